"""Podbay on a real cluster, `kubectl exec` into a pod of the same image there, and sshd on the same machine, in turn."""

import os
import re
import secrets
import statistics
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from .client import Long, Master, first_byte, read_some, read_until
from .pairs import measure, number, quantile
from .servers import CIPHERS, Failed, Podbay, answers, free_port, wait_for
from .times import block, digest, drain

# Where a transfer ends in a pod; the container's own layer.
IN_POD = "/tmp/podbay-bench"


class Kubectl:
    """`kubectl` with a pod of its own in the bench's namespace; of `ssh` it has only what the bench needs."""

    name = "kubectl"

    def __init__(self, program, kubeconfig, namespace, image):
        self.base = [program, "--kubeconfig", kubeconfig, "-n", namespace]
        self.image = image
        self.target = IN_POD

    def call(self, *arguments, **options):
        done = subprocess.run([*self.base, *arguments], capture_output=True, text=True, timeout=120, check=False, **options)
        if done.returncode != 0:
            raise Failed(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def start(self):
        self.call("create", "namespace", self.base[-1])
        self.call("run", "bench", f"--image={self.image}", "--restart=Never", "--command", "--", "sleep", "infinity")
        self.call("wait", "--for=condition=Ready", "--timeout=100s", "pod/bench")

    def stop(self):
        self.call("delete", "namespace", self.base[-1], "--wait=true", "--timeout=100s")

    def ssh(self, *options):
        """The command line up to the command, which is one word for the pod's shell as with ssh."""
        into = ["-i"] if "-T" in options else []
        return [*self.base, "exec", *into, "bench", "--", "/bin/sh", "-c"]

    def fresh(self, command):
        """A new pod that runs this command."""
        name = f"fresh-{secrets.token_hex(4)}"
        return [*self.base, "run", name, f"--image={self.image}", "--restart=Never", "--rm", "--attach", "--quiet",
                "--command", "--", "/bin/sh", "-c", command]


class OnCluster(Podbay):
    """podbay-backend and podbay-frontend, with pods of a real cluster."""

    def __init__(self, folder, programs, agent, kubeconfig, namespace, image):
        super().__init__(folder, programs)
        self.name = f"podbay, {'podbay-agent' if agent == 'podbay' else 'no agent'}"
        self.agent, self.kubeconfig, self.namespace, self.image = agent, kubeconfig, namespace, image
        self.target = IN_POD
        self.metrics = free_port()

    def start(self):
        grpc = free_port()
        demo = [os.path.join(self.programs, "podbay"), "demo", "--files-only", "--state-dir", self.state, "--agent", self.agent,
                "--kubeconfig", self.kubeconfig, "--namespace", self.namespace, "--image", self.image,
                "--ssh-port", str(self.port), "--grpc-port", str(grpc)]
        subprocess.run(demo, check=True, stdout=subprocess.DEVNULL, timeout=60)
        config = os.path.join(self.state, "podbay.yaml")
        with open(config, encoding="utf-8") as file:
            text = file.read()
        with open(config, "w", encoding="utf-8") as file:
            file.write("log: {level: warn}\n" + text)
        backend = os.path.join(self.state, "backend.yaml")
        text, count = re.subn(r"(?m)^grpc:$", f'grpc:\n  adminListen: "127.0.0.1:{self.metrics}"', text)
        if count != 1:
            raise Failed("podbay.yaml has no section grpc to add to")
        with open(backend, "w", encoding="utf-8") as file:
            file.write("log: {level: warn}\n" + text)
        for part, its in (("backend", backend), ("frontend", config)):
            self.spawn(part, [os.path.join(self.programs, f"podbay-{part}"), "--config", its])
        wait_for("the frontend", lambda: self.alive("frontend") and self.alive("backend") and answers(self.port))
        with open(os.path.join(self.state, "known_hosts"), encoding="utf-8") as file:
            host_key = file.read().split(" ", 1)[1].strip()
        self.write_ssh_config(self.port, "demo", os.path.join(self.state, "id_ed25519"), host_key)
        wait_for("a first session", lambda: subprocess.run(self.ssh() + ["true"], timeout=100, check=False,
                                                            stdin=subprocess.DEVNULL).returncode == 0, 60)

    def fresh(self, command):
        return self.ssh() + [command]

    def spent(self):
        """{stage: (seconds, count)} so far, from the backend's histograms."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        spent = {}
        for name, labels, part, value in re.findall(r"(?m)^(podbay_\w+_seconds)_(?=sum|count)()(sum|count) ([\d.eE+-]+)$", text) + [
                (name, labels, part, value) for name, part, labels, value in
                re.findall(r"(?m)^(podbay_\w+_seconds)_(sum|count)\{([^}]*)\} ([\d.eE+-]+)$", text)]:
            spent.setdefault((name, labels), {})[part] = float(value)
        return {stage: (both.get("sum", 0.0), both.get("count", 0.0)) for stage, both in spent.items()}


class Table:
    """Rows of several servers, each with ratios of the first to the others."""

    def __init__(self, servers):
        self.names = [server.name for server in servers]
        self.rows, self.checks, self.stages, self.notes = [], [], [], []

    def row(self, name, unit, values):
        self.rows.append({"name": name, "unit": unit, "values": values})

    def check(self, name, good, detail=""):
        self.checks.append({"name": name, "good": bool(good), "detail": detail})

    def note(self, text):
        self.notes.append(text)

    @property
    def good(self):
        return all(check["good"] for check in self.checks)

    def text(self):
        first = self.names[0]
        others = self.names[1:]
        head = ["", "unit", *self.names, *(f"{first} / {other}" for other in others)]
        lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        for row in self.rows:
            cells = [row["name"], row["unit"]]
            for name in self.names:
                values = [value for value in row["values"].get(name, []) if value is not None]
                cells.append(number(statistics.median(values), row["unit"]) if values else "–")
            for other in others:
                pairs = [a / b for a, b in zip(row["values"].get(first, []), row["values"].get(other, [])) if a and b]
                if not pairs:
                    cells.append("–")
                    continue
                cells.append(f"{statistics.median(pairs):.2f}" + (
                    f" ({quantile(pairs, 0.25):.2f}–{quantile(pairs, 0.75):.2f})" if len(pairs) > 1 else ""))
            lines.append("| " + " | ".join(cells) + " |")
        if self.stages:
            lines += ["", "| of a new connection, mean | ms |", "| --- | --- |"]
            lines += [f"| {stage} | {seconds * 1e3:.1f} |" for stage, seconds in self.stages]
        lines += ["", "| checked | | |", "| --- | --- | --- |"]
        lines += [f"| {check['name']} | {'good' if check['good'] else '**FAILED**'} | {check['detail']} |" for check in self.checks]
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(lines)


def fresh_pods(servers, table, plan):
    """A new connection in a new pod; sshd's has none."""
    ours = servers[0]
    before = ours.spent()
    took = measure(servers, plan.connections,
                   lambda server: first_byte(server.fresh("echo x") if hasattr(server, "fresh") else server.ssh() + ["echo x"]))
    table.row("new connection → first byte, in a new pod (sshd: no pod)", "ms", took)
    after = ours.spent()
    for name, (seconds, count) in sorted(after.items()):
        old = before.get(name, (0.0, 0.0))
        if name[0] in ("podbay_start_seconds", "podbay_kubernetes_request_seconds") and count > old[1]:
            told = name[0] + (f"{{{name[1]}}}" if name[1] else "")
            table.stages.append((f"`{told}`, {count - old[1]:.0f} of them", (seconds - old[0]) / (count - old[1])))


def commands(servers, table, plan, stack):
    """Commands where a connection, or kubectl's pod, is there already; each by a process of its own."""
    masters = {server.name: stack.enter_context(Master(server, CIPHERS[0])) for server in servers if not isinstance(server, Kubectl)}

    def argv(server, command):
        if isinstance(server, Kubectl):
            return server.ssh() + [command]
        return server.ssh("-S", masters[server.name].path) + [command]

    def run(server):
        done = subprocess.run(argv(server, "exit 7"), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, check=False)
        if done.returncode != 7:
            raise Failed(f"{server.name}: exit 7 ended with {done.returncode}")

    def rate(server):
        began = time.perf_counter()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: run(server), range(plan.execs)))
        return plan.execs / (time.perf_counter() - began)

    table.row("another command → first byte (`ssh` on a control socket; `kubectl exec`)", "ms",
              measure(servers, plan.sessions, lambda server: first_byte(argv(server, "echo x"))))
    table.row("such commands, 8 at once", "1/s", measure(servers, plan.rounds, rate))
    return masters


def echoes(servers, table, plan):
    with ExitStack() as stack:
        sessions = {server.name: stack.enter_context(Long(server, "-T", command="echo ready; exec cat")) for server in servers}
        for session in sessions.values():
            read_until(session.out, b"ready")
            drain(session)
        trips = {server.name: [] for server in servers}
        medians = measure(servers, plan.blocks, lambda server: block(sessions[server.name], trips[server.name]))
    table.row(f"echo round trip, pipes, p50 of {len(trips[servers[0].name])}", "ms", medians)
    table.row("echo round trip, pipes, p99", "ms", {name: [quantile(all_trips, 0.99)] for name, all_trips in trips.items()})


def bulk(servers, masters, table, plan, folder):
    """A file up and down again, compared by sha256 at both ends after the clock has stopped."""
    source = os.path.join(folder, "source")
    with open(source, "wb") as file:
        for _ in range(plan.bulk >> 20):
            file.write(os.urandom(1 << 20))
    whole = digest(source)
    compared, told = [], []

    def judge(server, direction, same, size):
        """Whether a transfer counts. What others than Podbay lose is told, and is no failure of the bench."""
        if isinstance(server, Kubectl) and not same:
            told.append(f"{direction} {size} of {plan.bulk} bytes")
        else:
            compared.append((f"{direction}, {server.name}", same))
        return same

    def run(server, command, **files):
        if isinstance(server, Kubectl):
            argv = [*server.base, "exec", *(["-i"] if "stdin" in files else []), "bench", "--", "/bin/sh", "-c", command]
        else:
            argv = server.ssh("-S", masters[server.name].path) + [command]
        files.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(argv, timeout=600, check=True, **files)

    def up(server):
        with open(source, "rb") as file:
            began = time.perf_counter()
            run(server, f"exec cat >{server.target}", stdin=file)
            took = time.perf_counter() - began
        there = run(server, f"sha256sum <{server.target}; wc -c <{server.target}", stdout=subprocess.PIPE).stdout.decode().split()
        return plan.bulk / took if judge(server, "up", there[0] == whole, there[-1]) else None

    def down(server):
        if isinstance(server, Kubectl):
            # What `kubectl exec` lost on its way up, `kubectl cp` brings.
            if run(server, f"sha256sum <{server.target}", stdout=subprocess.PIPE).stdout.decode().split()[0] != whole:
                server.call("cp", source, f"bench:{server.target}")
        target = os.path.join(folder, "target")
        with open(target, "wb") as file:
            began = time.perf_counter()
            run(server, f"exec cat {server.target}", stdout=file)
            took = time.perf_counter() - began
        return plan.bulk / took if judge(server, "down", digest(target) == whole, os.path.getsize(target)) else None

    for name, one in (("upload", up), ("download", down)):
        table.row(f"{name} of {plan.bulk >> 20} MiB, {CIPHERS[0]}", "MB/s", measure(servers, plan.transfers, one))
    wrong = sorted({what for what, good in compared if not good})
    table.check("transfers arrive whole (sha256 at the far end)", compared and not wrong, f"{len(compared)} compared; {', '.join(wrong) or 'none differs'}")
    if told:
        table.note(f"`kubectl exec` ended well and had lost bytes: {'; '.join(told)}. Such transfers have no rate here")
