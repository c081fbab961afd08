"""The load: the stock ssh client, and its control socket spoken to directly where starting a process would be most of
what is measured (PROTOCOL.mux of OpenSSH)."""

import os
import select
import socket
import struct
import subprocess
import time

from .servers import Failed, end, wait_for

HELLO, NEW_SESSION = 0x1, 0x10000002
OPENED, EXIT_MESSAGE = 0x80000006, 0x80000004
PATIENCE = 60.0


def read_some(fd, most, seconds=PATIENCE):
    """What is there of at most so many bytes; waits for the first. Empty at the end."""
    if not select.select([fd], [], [], seconds)[0]:
        raise Failed(f"nothing came for {seconds:.0f} s")
    return os.read(fd, most)


def read_until(fd, mark, seconds=PATIENCE):
    got = b""
    while mark not in got:
        if not (piece := read_some(fd, 4096, seconds)):
            raise Failed(f"ended before {mark!r}: {got!r}")
        got += piece
    return got


def first_byte(argv):
    """Seconds from starting this command to the first byte it prints. It must print x and succeed."""
    began = time.perf_counter()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, close_fds=False)
    try:
        text = read_some(process.stdout.fileno(), 1)
        took = time.perf_counter() - began
        if text != b"x" or process.wait(PATIENCE) != 0:
            raise Failed(f"{' '.join(argv)} printed {text!r} and ended with {process.poll()}")
        return took
    finally:
        process.stdout.close()
        end(process)


class Long:
    """A session with pipes to it that lives until the block ends."""

    def __init__(self, server, *options, command=None):
        self.argv = server.ssh(*options) + ([command] if command else [])

    def __enter__(self):
        self.process = subprocess.Popen(self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.into, self.out = self.process.stdin.fileno(), self.process.stdout.fileno()
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(0.2)
        except subprocess.TimeoutExpired:
            pass
        end(self.process)
        self.process.stdout.close()


class Master:
    """A connection with a control socket."""

    def __init__(self, server, cipher):
        # Paths of Unix sockets are short.
        self.path = os.path.join(server.folder, f"m{cipher[:3]}")
        self.server, self.cipher = server, cipher

    def __enter__(self):
        argv = self.server.ssh("-N", "-M", "-S", self.path, "-o", "ControlPersist=no", cipher=self.cipher)
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        try:
            wait_for("the control socket", lambda: os.path.exists(self.path) or self.process.poll() is not None)
            self.run("true")
        except BaseException:
            end(self.process)
            raise
        return self

    def __exit__(self, *_):
        end(self.process)

    def start(self, command, stdin=None, stdout=None):
        """Starts a command in a new channel, with these descriptors (default: /dev/null)."""
        return Channel(self.path, command, stdin, stdout)

    def run(self, command, **descriptors):
        """Runs it to its end, which must be a success."""
        with self.start(command, **descriptors) as channel:
            status = channel.wait()
        if status != 0:
            raise Failed(f"{self.server.name}: {command!r} ended with {status}")

    def first_byte(self, command="echo x"):
        """Seconds from the request for a channel to the first byte of its output."""
        ours, theirs = os.pipe()
        try:
            began = time.perf_counter()
            with self.start(command, stdout=theirs) as channel:
                os.close(theirs)
                theirs = None
                text = read_some(ours, 1)
                took = time.perf_counter() - began
                if text != b"x" or channel.wait() != 0:
                    raise Failed(f"{self.server.name}: {command!r} printed {text!r}")
            return took
        finally:
            os.close(ours)
            if theirs is not None:
                os.close(theirs)


class Channel:
    """A session through a control socket."""

    def __init__(self, path, command, stdin, stdout):
        self.what = f"{command!r} through {path}"
        self.null = os.open(os.devnull, os.O_RDWR)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE * 5)
        try:
            self.socket.connect(path)
            text = command.encode()
            # Request id, reserved, no tty, X11, agent or subsystem; no escape character; no TERM.
            session = struct.pack(">II", NEW_SESSION, 1) + self.string(b"") + struct.pack(">IIIII", 0, 0, 0, 0, 0xFFFFFFFF)
            session += self.string(b"") + self.string(text)
            self.socket.sendall(self.string(struct.pack(">II", HELLO, 4)) + self.string(session))
            for fd in (stdin, stdout, None):
                socket.send_fds(self.socket, [b"\0"], [self.null if fd is None else fd])
        except BaseException:
            self.close()
            raise

    @staticmethod
    def string(data):
        return struct.pack(">I", len(data)) + data

    def exactly(self, count):
        """So many bytes; None where the connection has ended before the first."""
        got = b""
        while len(got) < count:
            if not (piece := self.socket.recv(count - len(got))):
                if got:
                    raise Failed("the control connection ended within a message")
                return None
            got += piece
        return got

    def wait(self):
        """The program's exit status, once the channel is closed: the status may come before the master has written all output."""
        status = None
        while (length := self.exactly(4)) is not None:
            body = self.exactly(*struct.unpack(">I", length)) or b""
            kind = struct.unpack(">I", body[:4])[0]
            if kind == EXIT_MESSAGE:
                status = struct.unpack(">I", body[8:12])[0]
            elif kind not in (HELLO, OPENED):
                raise Failed(f"the master answers {kind:#x}: {body!r}")
        if status is None:
            raise Failed(f"{self.what} ended without an exit status")
        return status

    def close(self):
        self.socket.close()
        os.close(self.null)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
