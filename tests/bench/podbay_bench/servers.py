"""The two servers under test: Podbay's three processes on its embedded cluster, and sshd with a configuration of its own.

Both listen on 127.0.0.1 only, take the same key of the same type, and are forced to the same key exchange. Everything is
started and ended by process id, and lives in one temporary directory.
"""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time

from . import procfs

KEX = "curve25519-sha256"
CIPHERS = ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"]
# A name for the user that sshd gives a shell to, in a passwd of its own.
GUEST = "podbay-bench"
GUEST_ID = 64123


class Failed(Exception):
    """The bench can't go on."""


def wait_for(what, condition, seconds=20.0):
    """Polls until the condition is true; returns its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise Failed(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.01)
    return value


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as peer:
            return peer.recv(4) == b"SSH-"
    except OSError:
        return False


def end(process, seconds=15.0):
    """SIGTERM, and SIGKILL for one that does not listen."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Server:
    """What both have: a name, ssh's options, and processes."""

    name = "?"

    def __init__(self, folder):
        self.folder = folder
        self.config = os.path.join(folder, "ssh_config")
        self.started = {}
        self.logs = []

    def spawn(self, part, argv, **options):
        log = open(os.path.join(self.folder, f"{part}.log"), "ab")
        self.logs.append(log)
        self.started[part] = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)
        return self.started[part]

    def alive(self, part):
        process = self.started[part]
        if process.poll() is not None:
            with open(os.path.join(self.folder, f"{part}.log"), encoding="utf-8", errors="replace") as log:
                raise Failed(f"{part} ended with {process.returncode}:\n{log.read()[-2000:]}")
        return True

    def ssh(self, *options, cipher=CIPHERS[0]):
        """The client's command line up to the host."""
        return ["ssh", "-F", self.config, "-c", cipher, *options, "bench"]

    def write_ssh_config(self, port, user, key, host_key):
        known = os.path.join(self.folder, "known_hosts")
        with open(known, "w", encoding="utf-8") as file:
            file.write(f"bench {host_key}\n")
        lines = {
            "HostName": "127.0.0.1", "Port": port, "User": user, "HostKeyAlias": "bench", "IdentityFile": key,
            "IdentitiesOnly": "yes", "IdentityAgent": "none", "UserKnownHostsFile": known,
            "GlobalKnownHostsFile": "/dev/null", "StrictHostKeyChecking": "yes",
            "PreferredAuthentications": "publickey", "KexAlgorithms": KEX, "HostKeyAlgorithms": "ssh-ed25519",
            # OpenSSH 9.5 and later send keystrokes every 20 ms otherwise, which would be all that is measured.
            "IgnoreUnknown": "ObscureKeystrokeTiming", "ObscureKeystrokeTiming": "no",
            "Compression": "no", "UpdateHostKeys": "no", "LogLevel": "ERROR",
        }
        with open(self.config, "w", encoding="utf-8") as file:
            file.write("Host bench\n" + "".join(f"    {key} {value}\n" for key, value in lines.items()))

    def stop(self):
        for process in reversed(self.started.values()):
            end(process)
        self.started.clear()
        for log in self.logs:
            log.close()
        self.logs.clear()


class Podbay(Server):
    """podbay-minicluster, podbay-backend and podbay-frontend, with the files of `podbay demo --files-only`."""

    name = "podbay"

    def __init__(self, folder, programs):
        super().__init__(folder)
        self.programs = programs
        self.state = os.path.join(folder, "state")
        self.port = free_port()

    def start(self):
        grpc = free_port()
        demo = [os.path.join(self.programs, "podbay"), "demo", "--files-only", "--state-dir", self.state,
                "--ssh-port", str(self.port), "--grpc-port", str(grpc)]
        subprocess.run(demo, check=True, stdout=subprocess.DEVNULL, timeout=60)
        config = os.path.join(self.state, "podbay.yaml")
        with open(config, encoding="utf-8") as file:
            text = file.read()
        # chacha20 is not offered by default; the same ciphers on both sides are the point here.
        text, count = re.subn(r"(?m)^ssh:$", f"ssh:\n  ciphers: [{', '.join(CIPHERS)}]\n  kex: [{KEX}]", text)
        if count != 1:
            raise Failed("podbay.yaml has no section ssh to add to")
        with open(config, "w", encoding="utf-8") as file:
            file.write("log: {level: warn}\n" + text)
        kubeconfig = os.path.join(self.state, "kubeconfig")
        self.spawn("minicluster", [os.path.join(self.programs, "podbay-minicluster"), "--kubeconfig", kubeconfig,
                                   "--state-dir", os.path.join(self.folder, "pods")])
        wait_for("the minicluster", lambda: self.alive("minicluster") and os.path.exists(kubeconfig))
        for part in ("backend", "frontend"):
            self.spawn(part, [os.path.join(self.programs, f"podbay-{part}"), "--config", config])
        wait_for("the frontend", lambda: self.alive("frontend") and self.alive("backend") and answers(self.port))
        with open(os.path.join(self.state, "known_hosts"), encoding="utf-8") as file:
            host_key = file.read().split(" ", 1)[1].strip()
        self.write_ssh_config(self.port, "demo", os.path.join(self.state, "id_ed25519"), host_key)
        # The first connection also finds the backend.
        wait_for("a first session", lambda: subprocess.run(self.ssh() + ["true"], timeout=60, check=False,
                                                            stdin=subprocess.DEVNULL).returncode == 0)

    def processes(self):
        """Each part's processes: the minicluster's own and its pods' supervisors apart."""
        pids = {part: [process.pid] for part, process in self.started.items()}
        root = self.started["minicluster"].pid
        program = procfs.program(root)
        pids["pod supervisors"] = [pid for pid in procfs.descendants(root) if procfs.program(pid) == program]
        return pids


class Sshd(Server):
    """OpenSSH's sshd, not the system's: own configuration, own port, no PAM."""

    name = "sshd"

    def __init__(self, folder, identity):
        super().__init__(folder)
        self.identity = identity
        self.port = free_port()
        self.made_run = False
        self.note = ""

    def start(self):
        program = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
        if program is None:
            raise Failed("there is no sshd: install openssh-server")
        host_key = os.path.join(self.folder, "host_ed25519")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host_key], check=True)
        keys = os.path.join(self.folder, "authorized_keys")
        public = subprocess.run(["ssh-keygen", "-y", "-f", self.identity], check=True, capture_output=True, text=True)
        with open(keys, "w", encoding="utf-8") as file:
            file.write(public.stdout)
        os.chmod(keys, 0o644)
        prefix, user = self.guest()
        config = os.path.join(self.folder, "sshd_config")
        lines = {
            "ListenAddress": f"127.0.0.1:{self.port}", "HostKey": host_key, "AuthorizedKeysFile": keys,
            "PidFile": "none", "UsePAM": "no", "UseDNS": "no", "StrictModes": "no", "PrintMotd": "no",
            "PrintLastLog": "no", "PasswordAuthentication": "no", "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "prohibit-password", "KexAlgorithms": KEX, "Ciphers": ",".join(CIPHERS),
            "MaxStartups": 100, "MaxSessions": 64, "LogLevel": "ERROR",
            # Debian's bash reads ~/.bashrc for each command that sshd starts, unless it is an inner shell: not measured.
            "SetEnv": "SHLVL=9",
        }
        with open(config, "w", encoding="utf-8") as file:
            file.write("".join(f"{key} {value}\n" for key, value in lines.items()))
        if os.geteuid() == 0 and not os.path.isdir("/run/sshd"):
            os.mkdir("/run/sshd", 0o755)
            self.made_run = True
        self.spawn("sshd", [*prefix, program, "-D", "-e", "-f", config])
        wait_for("sshd", lambda: self.alive("sshd") and answers(self.port))
        with open(f"{host_key}.pub", encoding="utf-8") as file:
            host = " ".join(file.read().split()[:2])
        self.write_ssh_config(self.port, user, self.identity, host)
        subprocess.run(self.ssh() + ["true"], check=True, timeout=60, stdin=subprocess.DEVNULL)

    def guest(self):
        """For root, sshd keeps no monitor beside the session, which is not how people use it: give it a plain user, in a
        passwd that only sshd sees. Without the right to mount, root it is."""
        me = pwd.getpwuid(os.geteuid()).pw_name
        if os.geteuid() != 0:
            return [], me
        probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
        if probe.returncode != 0:
            self.note = "sshd's sessions are root's: one process each, without a monitor"
            return [], me
        home = os.path.join(self.folder, "home")
        os.mkdir(home)
        os.chown(home, GUEST_ID, GUEST_ID)
        shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
        passwd = os.path.join(self.folder, "passwd")
        with open("/etc/passwd", encoding="utf-8") as old, open(passwd, "w", encoding="utf-8") as new:
            new.write(old.read() + f"{GUEST}:*:{GUEST_ID}:{GUEST_ID}::{home}:{shell}\n")
        os.chmod(passwd, 0o644)
        mount = 'mount --bind "$1" /etc/passwd && shift && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", mount, "sh", passwd], GUEST

    def processes(self):
        """The listener and, of each connection, monitor and child; not the shells."""
        root = self.started["sshd"].pid
        program = procfs.program(root)
        return {"sshd": [root] + [pid for pid in procfs.descendants(root) if procfs.program(pid) == program]}

    def stop(self):
        for process in self.started.values():
            for pid in procfs.descendants(process.pid):
                try:
                    os.kill(pid, signal.SIGTERM)
                except ProcessLookupError:
                    pass
        super().stop()
        if self.made_run:
            os.rmdir("/run/sshd")
            self.made_run = False
