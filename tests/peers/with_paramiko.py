"""paramiko, as Ansible and Fabric use it."""

import hashlib
import io
import threading
import time

import paramiko
from common import DATA, STATE, SUM, equal, file, port

client = paramiko.SSHClient()
client.load_host_keys(file("known_hosts"))
key = paramiko.Ed25519Key.from_private_key_file(file("id_ed25519"))
# known_hosts has the alias `demo`; paramiko looks for [127.0.0.1]:port.
host = client.get_host_keys().lookup("demo")["ssh-ed25519"]
client.get_host_keys().add(f"[127.0.0.1]:{port()}", "ssh-ed25519", host)
client.connect("127.0.0.1", port(), "demo", pkey=key, look_for_keys=False, allow_agent=False)

_, out, err = client.exec_command("echo out; echo err >&2; exit 7", timeout=60)
equal("stdout", out.read(), b"out\n")
equal("stderr", err.read(), b"err\n")
equal("exit code", out.channel.recv_exit_status(), 7)

stdin, out, _ = client.exec_command("sha256sum", timeout=60)
stdin.write(DATA)
stdin.channel.shutdown_write()
equal("upload", out.read().split()[0], SUM.encode())

stdin, out, _ = client.exec_command("cat", timeout=60)
writer = threading.Thread(target=lambda: (stdin.write(DATA), stdin.channel.shutdown_write()))
writer.start()
equal("a filter both ways", hashlib.sha256(out.read()).hexdigest(), SUM)
writer.join()


def run(results: list, n: int) -> None:
    _, out, _ = client.exec_command(f"echo {n}; exit {n}", timeout=60)
    results[n] = (out.read(), out.channel.recv_exit_status())


results: list = [None] * 10
threads = [threading.Thread(target=run, args=(results, n)) for n in range(10)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
equal("ten channels at once", results, [(f"{n}\n".encode(), n) for n in range(10)])

shell = client.invoke_shell("xterm", width=91, height=33)
shell.settimeout(60)


def until(text: bytes) -> None:
    seen = b""
    while text not in seen:
        piece = shell.recv(4096)
        if not piece:
            raise SystemExit(f"the shell ended before {text!r}: {seen!r}")
        seen += piece
    print(f"ok shell shows {text!r}", flush=True)


shell.sendall(b"stty size\n")
until(b"33 91")
shell.resize_pty(width=120, height=40)
shell.sendall(b"until [ \"$(stty size)\" = '40 120' ]; do sleep 0.05; done; echo ARRI''VED\n")
until(b"ARRIVED")
shell.sendall(b"exit 3\n")
equal("shell's exit code", shell.recv_exit_status(), 3)

sftp = client.open_sftp()
sftp.putfo(io.BytesIO(DATA), "there")
back = io.BytesIO()
sftp.getfo("there", back)
equal("sftp both ways", hashlib.sha256(back.getvalue()).hexdigest(), SUM)
sftp.remove("there")
sftp.close()

began = time.monotonic()
client.close()
equal("closes at once", time.monotonic() - began < 5, True)
