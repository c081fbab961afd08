"""Every signal and window change that a client may send, by AsyncSSH, to a program of several processes. The second argument is the agent's
level in the pod: none, containerssh or podbay."""

import asyncio
import sys
import time

import asyncssh
from common import equal, file, port

LEVEL = sys.argv[2]
# RFC 4254 section 6.10, without KILL, which nobody can tell of.
NAMES = ["ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2"]
# OpenSSH's own, which Linux has not; those that OpenSSH's server knows to refuse; and some that nobody has.
REFUSED = ["INFO@openssh.com", "WINCH", "CONT", "STOP", "TSTP", "SIGTERM", "term", "NOSUCH", "X@example.org"]
# A deadline of the frontend's is 60 s; what nothing stands in the way of takes no part of it.
PROMPT = 10
# Each of these three traps them all and stays. The outer one runs the other two as a pipeline, so that they are neither in the
# background (where INT and QUIT are ignored) nor its own business: it tells nothing until they end.
EACH = (
    f'for s in {" ".join(NAMES)}; do trap "echo $0 $s. >&2" $s; done; echo $0 up. >&2; '
    'while :; do sleep 0.1; done'
)
GROUP = f"for s in {' '.join(NAMES)}; do trap : $s; done; export E='{EACH}'; sh -c \"$E\" one | sh -c \"$E\" two; exit 3"


class Reader:
    """What has come of both outputs."""

    def __init__(self, process: asyncssh.SSHClientProcess) -> None:
        self.text = ""
        streams = [process.stdout, process.stderr]
        self.tasks = [asyncio.create_task(self.read(stream)) for stream in streams]

    async def read(self, stream: asyncssh.SSHReader) -> None:
        while text := await stream.read(4096):
            self.text += text

    async def shows(self, *words: str) -> float:
        began = time.monotonic()
        while not all(word in self.text for word in words):
            if time.monotonic() - began > 60:
                raise SystemExit(f"never {words}: {self.text!r}")
            await asyncio.sleep(0.01)
        return time.monotonic() - began


async def group(connection: asyncssh.SSHClientConnection, terminal: bool) -> None:
    where = "on a terminal" if terminal else "off a terminal"
    tty = {"term_type": "xterm", "term_size": (80, 24)} if terminal else {}
    process = await connection.create_process(GROUP, **tty)
    read = Reader(process)
    await read.shows("one up.", "two up.")
    slowest = 0.0
    for name in NAMES:
        process.send_signal(name)
        if LEVEL == "podbay":
            slowest = max(slowest, await read.shows(f"one {name}.", f"two {name}."))
        else:
            await read.shows(f"signal {name} was not delivered")
    equal(f"every signal reaches the group {where} or is told not to, each within {PROMPT} s", slowest < PROMPT, True)
    for name in REFUSED:
        process.send_signal(name)
        await read.shows(f"signal {name} was not delivered")
    print(f"ok what is no signal is told {where}", flush=True)
    if LEVEL == "none":
        process.channel.abort()
        return
    process.send_signal("KILL")
    done = await asyncio.wait_for(process.wait(), 60)
    equal(f"KILL ends it {where}", done.exit_signal[0], "KILL")


async def one(connection: asyncssh.SSHClientConnection) -> None:
    """Every agent can tell one process."""
    script = EACH.replace("$0", "self")
    process = await connection.create_process(f"exec /bin/sh -c '{script}'")
    read = Reader(process)
    await read.shows("self up.")
    slowest = 0.0
    for name in NAMES:
        process.send_signal(name)
        slowest = max(slowest, await read.shows(f"self {name}."))
    equal(f"every signal reaches a program, each within {PROMPT} s", slowest < PROMPT, True)
    process.channel.abort()


async def last_size(connection: asyncssh.SSHClientConnection) -> None:
    """A program that says nothing and reads nothing, and a user who drags the window."""
    process = await connection.create_process(
        "stty -echo; echo up; trap 'exec stty size' USR1; sleep 3; until [ \"$(stty size)\" = '47 133' ]; do sleep 0.1; done; echo last",
        term_type="xterm",
        term_size=(80, 24),
    )
    read = Reader(process)
    await read.shows("up")
    process.stdin.write("x" * 100_000)
    began = time.monotonic()
    for n in range(300):
        process.change_terminal_size(80 + n % 50, 24 + n % 20)
    process.change_terminal_size(133, 47)
    # Behind all of that, and not behind the program.
    done = await asyncio.wait_for(connection.run("echo beside"), 60)
    equal("another session goes on", done.stdout, "beside\n")
    await read.shows("last")
    equal("the last of 301 sizes arrives", time.monotonic() - began < PROMPT + 3, True)
    await asyncio.wait_for(process.wait(), 60)


async def silent(connection: asyncssh.SSHClientConnection) -> None:
    """Neither its start nor its end waits for a byte of a program on a terminal that says none."""
    process = await asyncio.wait_for(connection.create_process("exec sleep 1000", term_type="xterm"), 60)
    done = await asyncio.wait_for(connection.run("echo beside"), 60)
    equal("a silent program stops nobody", done.stdout, "beside\n")
    # A shell that is just becoming the program may let one go by, as on any Unix.
    ended = asyncio.ensure_future(process.wait())
    for _ in range(120):
        process.stdin.write("\x03")
        if (await asyncio.wait([ended], timeout=0.5))[0]:
            break
    done = await asyncio.wait_for(ended, 1)
    equal("^C reaches it", done.exit_status != 0, True)


async def main() -> None:
    with open(file("known_hosts"), encoding="utf-8") as lines:
        host_key = asyncssh.import_public_key(lines.read().split(" ", 1)[1])
    async with asyncssh.connect(
        "127.0.0.1",
        port(),
        username="demo",
        client_keys=[file("id_ed25519")],
        known_hosts=([host_key], [], []),
        config=None,
        agent_path=None,
    ) as connection:
        # ContainerSSH's agent tells one process only.
        for terminal in () if LEVEL == "containerssh" else (False, True):
            await group(connection, terminal)
        if LEVEL != "none":
            await one(connection)
        await last_size(connection)
        await silent(connection)


asyncio.run(main())
