"""What an idle connection costs in memory, by process."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from . import procfs
from .client import Long, end, read_until
from .servers import wait_for

# So many log in at once: few enough for anybody's limit on connections that have not logged in.
AT_ONCE = 4


def settled(server):
    """Memory of each part, once it no longer moves by more than 64 KiB in half a second (or after 20 s)."""
    last = None
    for _ in range(40):
        now = {part: procfs.memory(pids) for part, pids in server.processes().items()}
        if last is not None and sum(abs(now[part]["pss"] - last[part]["pss"]) for part in now) < 64 << 10:
            break
        last = now
        time.sleep(0.5)
    return now


class Quiet:
    """A connection without any session."""

    def __init__(self, server, number):
        self.path = os.path.join(server.folder, f"n{number}")
        argv = ("-N", "-M", "-S", self.path, "-o", "ControlPersist=no")
        self.session = Long(server, *argv)

    def __enter__(self):
        self.session.__enter__()
        # The control socket is there as soon as the login is done.
        wait_for("a login", lambda: self.session.process.poll() is not None or os.path.exists(self.path))
        return self

    def __exit__(self, *_):
        end(self.session.process)
        self.session.__exit__()


class Shell:
    """A connection with a shell on a terminal that has answered once."""

    def __init__(self, server, _):
        self.session = Long(server, "-tt")

    def __enter__(self):
        self.session.__enter__()
        os.write(self.session.into, b"echo on''line\n")
        read_until(self.session.out, b"online")
        return self

    def __exit__(self, *_):
        end(self.session.process)
        self.session.__exit__()


@contextmanager
def held(kind, server, count):
    """So many connections, for the length of the block."""
    made = [kind(server, number) for number in range(count)]
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda one: one.__enter__(), made))
        yield
    finally:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda one: one.__exit__() if hasattr(one.session, "process") else None, made))


def grown(server, kind, count):
    """{part: {rss, pss}}: bytes per connection. The server has served one connection before, so what is made once is there."""
    before = settled(server)
    with held(kind, server, count):
        if server.name == "podbay":
            wait_for("the pods", lambda: len(server.processes()["pod supervisors"]) >= count, 60)
        after = settled(server)
    nothing = {"rss": 0, "pss": 0}
    return {part: {key: (now[key] - before.get(part, nothing)[key]) / count for key in now} for part, now in after.items()}


def idle(fresh, rows, plan):
    """`fresh()` gives new servers (Podbay, sshd): memory that was used before would hide growth."""
    for name, kind in (("with a shell", Shell), ("without a session", Quiet)):
        with fresh() as servers:
            ours, theirs = (grown(server, kind, plan.idle) for server in servers)
        both = {key: ours["frontend"][key] + ours["backend"][key] for key in ("rss", "pss")}
        title = f"memory per idle connection {name}"
        rows.plain(f"{title}: frontend + backend; sshd's processes", "kB", podbay=both["pss"], sshd=theirs["sshd"]["pss"],
                   aim=200e3)
        # Only together: supervisors share the minicluster's pages, so its own share falls as they come.
        cluster = {key: ours["minicluster"][key] + ours["pod supervisors"][key] for key in ("rss", "pss")}
        for part, of_part in (("frontend", ours["frontend"]), ("backend", ours["backend"]),
                              ("the embedded cluster, supervisor of the pod included", cluster)):
            rows.plain(f"{title}: {part}", "kB", podbay=of_part["pss"])
        rows.idle[name] = {"connections": plan.idle, **ours, "frontend + backend": both, **theirs}
