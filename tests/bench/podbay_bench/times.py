"""Latency and throughput."""

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from . import procfs
from .client import Long, Master, first_byte, read_some, read_until
from .pairs import measure, quantile
from .servers import CIPHERS, Failed


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def connect(servers, rows, plan):
    """A new connection, its first session, its first byte: in Podbay that is a new pod."""
    took = measure(servers, plan.connections, lambda server: first_byte(server.ssh() + ["echo x"]))
    rows.pair("new connection → first byte (Podbay: in a new pod)", "ms", took, aim=1.0)


def second_session(servers, rows, plan):
    """A session on a connection that is there, alone and eight at a time."""
    with ExitStack() as stack:
        masters = {server.name: stack.enter_context(Master(server, CIPHERS[0])) for server in servers}
        for master in masters.values():
            master.first_byte()
        took = measure(servers, plan.sessions, lambda server: masters[server.name].first_byte())
        rows.pair("second session on a connection → first byte", "ms", took, aim=3.0)
        took = measure(servers, plan.sessions // 2, lambda server: first_byte(
            server.ssh("-S", masters[server.name].path) + ["echo x"]))
        rows.pair("the same with the start of the `ssh` that asks for it", "ms", took)
        rates = measure(servers, plan.rounds, lambda server: parallel(masters[server.name], plan.execs))
        rows.pair("execs of `true`, 8 channels at once", "1/s", rates, larger_is_better=True)


def parallel(master, count, workers=8):
    """Programs per second: each worker runs one after another."""
    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda _: master.run("true"), range(count)))
    return count / (time.perf_counter() - began)


def echo(servers, rows, plan):
    """One byte to a `cat` and back, in one long session."""
    kinds = {
        "terminal": (["-tt"], "stty raw -echo; echo ready; exec cat"),
        "pipes": (["-T"], "echo ready; exec cat"),
    }
    for kind, (options, command) in kinds.items():
        with ExitStack() as stack:
            sessions = {server.name: stack.enter_context(Long(server, *options, command=command)) for server in servers}
            for session in sessions.values():
                read_until(session.out, b"ready")
                drain(session)
            trips = {server.name: [] for server in servers}
            medians = measure(servers, plan.blocks, lambda server: block(sessions[server.name], trips[server.name]))
            tails = {name: [quantile(all_trips, 0.99)] for name, all_trips in trips.items()}
        rows.pair(f"echo round trip, {kind}, p50 of {len(trips['podbay'])}", "ms", medians, aim=3.0)
        rows.pair(f"echo round trip, {kind}, p99", "ms", tails)


def lines(servers, rows, plan):
    """A line in two pieces, of which the program answers only the second: what a lone small packet waits for on its way."""
    command = 'stty raw -echo; echo ready; while read -r line; do echo "$line"; done'
    with ExitStack() as stack:
        sessions = {server.name: stack.enter_context(Long(server, "-tt", command=command)) for server in servers}
        for session in sessions.values():
            read_until(session.out, b"ready")

        def one(server):
            session = sessions[server.name]
            os.write(session.into, b"x")
            time.sleep(0.002)
            began = time.perf_counter()
            os.write(session.into, b"\n")
            read_until(session.out, b"x")
            return time.perf_counter() - began

        took = measure(servers, plan.blocks * 5, one)
    rows.pair("answer to the second of two keys, terminal", "ms", took, aim=3.0)


def drain(session):
    """Reads the end of the line that said ready, by a byte that can be told from it."""
    os.write(session.into, b"\x01")
    read_until(session.out, b"\x01")


def block(session, trips, count=50):
    """The median of so many round trips."""
    here = []
    for number in range(count):
        sent = bytes([0x41 + number % 26])
        began = time.perf_counter()
        os.write(session.into, sent)
        got = read_some(session.out, 16)
        here.append(time.perf_counter() - began)
        if got != sent:
            raise Failed(f"{sent!r} came back as {got!r}")
    trips += here
    return quantile(here, 0.5)


def bulk(servers, rows, plan, folder):
    """Whole files, both ways, compared at their other end by sha256 after the clock has stopped."""
    source = os.path.join(folder, "source")
    with open(source, "wb") as file:
        for _ in range(plan.bulk >> 20):
            file.write(os.urandom(1 << 20))
    os.chmod(source, 0o644)
    whole = digest(source)
    target = os.path.join(folder, "target")
    cpu = {}

    def transfer(master, server, down, cipher):
        with open(target, "wb"):
            pass
        os.chmod(target, 0o666)
        before = {part: procfs.cpu_seconds(pids) for part, pids in server.processes().items()}
        began = time.perf_counter()
        if down:
            with open(target, "r+b") as file:
                master.run(f"exec cat {source}", stdout=file.fileno())
        else:
            with open(source, "rb") as file:
                master.run(f"exec cat >{target}", stdin=file.fileno())
        took = time.perf_counter() - began
        for part, pids in server.processes().items():
            used = procfs.cpu_seconds(pids) - before.get(part, 0.0)
            cpu.setdefault((cipher, down), {}).setdefault(part, []).append(used / (plan.bulk / 1e9))
        direction = "down" if down else "up"
        same = digest(target) == whole
        if not same:
            rows.check(f"{direction}, {server.name}, {cipher}", False, f"{os.path.getsize(target)} bytes, another sha256")
        transfer.compared += 1
        return plan.bulk / took

    transfer.compared = 0
    for cipher in CIPHERS:
        with ExitStack() as stack:
            masters = {server.name: stack.enter_context(Master(server, cipher)) for server in servers}
            for down in (True, False):
                rates = measure(servers, plan.transfers,
                                lambda server: transfer(masters[server.name], server, down, cipher))
                rows.pair(f"{'download' if down else 'upload'}, {cipher}", "MB/s", rates, aim=0.35, larger_is_better=True)
    rows.check("transfers arrive whole (sha256 at the far end)", transfer.compared > 0,
               f"{transfer.compared} of {plan.bulk >> 20} MiB")
    rows.cpu = {f"{'download' if down else 'upload'}, {cipher}": {part: sorted(used)[len(used) // 2]
                                                                 for part, used in parts.items()}
                for (cipher, down), parts in cpu.items()} if plan.transfers > 1 else {}
    os.unlink(target)
    return source, whole


def slow_reader(podbay, rows, plan, folder):
    """A stream to a reader that first stops and then crawls: whole at the end, and neither process grows with it."""
    source = os.path.join(folder, "stream")
    sha = hashlib.sha256()
    with open(source, "wb") as file:
        for _ in range(plan.stream >> 20):
            piece = os.urandom(1 << 20)
            sha.update(piece)
            file.write(piece)
    before = {part: procfs.memory([podbay.started[part].pid])["rss"] for part in ("frontend", "backend")}
    peak = dict(before)
    done = threading.Event()

    def watch():
        while not done.wait(0.05):
            for part in peak:
                peak[part] = max(peak[part], procfs.memory([podbay.started[part].pid])["rss"])

    watcher = threading.Thread(target=watch)
    got, count = hashlib.sha256(), 0
    with Long(podbay, "-T", command=f"exec cat {source}") as session:
        watcher.start()
        try:
            time.sleep(plan.pause)
            slow_until = time.monotonic() + plan.crawl
            while piece := read_some(session.out, 1 << 16):
                got.update(piece)
                count += len(piece)
                if time.monotonic() < slow_until:
                    time.sleep(len(piece) / 20e6)
            status = session.process.wait(60)
        finally:
            done.set()
            watcher.join()
    os.unlink(source)
    rows.check("a stream to a slow reader arrives whole", got.digest() == sha.digest() and status == 0,
               f"{count >> 20} of {plan.stream >> 20} MiB, status {status}")
    for part, bytes_ in peak.items():
        grown = bytes_ - before[part]
        rows.check(f"{part} grows by at most 64 MiB meanwhile", grown <= 64 << 20, f"{grown / (1 << 20):.1f} MiB (RSS)")
