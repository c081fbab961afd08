"""AsyncSSH, which waits for every answer and can send signals."""

import asyncio
import hashlib

import asyncssh
from common import DATA, SUM, equal, file, port


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
        done = await connection.run("echo out; echo err >&2; exit 7")
        equal("a command", (done.stdout, done.stderr, done.exit_status), ("out\n", "err\n", 7))
        done = await connection.run("sha256sum", input=DATA, encoding=None)
        equal("upload", done.stdout.split()[0], SUM.encode())
        done = await connection.run("cat", input=DATA, encoding=None)
        equal("a filter both ways", hashlib.sha256(done.stdout).hexdigest(), SUM)
        all_ = await asyncio.gather(*(connection.run(f"echo {n}; exit {n}") for n in range(10)))
        equal("ten channels at once", [(done.stdout, done.exit_status) for done in all_], [(f"{n}\n", n) for n in range(10)])
        # What is not supported is refused, once each: a second answer would end the connection.
        for what in (connection.open_connection("127.0.0.1", 1), connection.open_unix_connection("/nosuch")):
            try:
                await asyncio.wait_for(what, 30)
                raise SystemExit("a forwarded channel was opened")
            except asyncssh.ChannelOpenError as refused:
                equal("forwarding is refused", refused.code, asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED)
        done = await connection.run("echo on")
        equal("after that", done.stdout, "on\n")
        # Stuck both ways: nobody reads this program's output, and this program reads nothing.
        async with connection.create_process("yes", encoding=None) as unread:
            unread.stdout.channel.pause_reading()
            async with connection.create_process("sleep 60", encoding=None) as unreading:
                unreading.stdin.write(DATA)
                done = await asyncio.wait_for(connection.run("echo free"), 30)
                equal("beside two stuck channels", done.stdout, "free\n")
                # close() would first wait for the program to read all.
                unreading.channel.abort()
            unread.channel.abort()
        async with connection.create_process(
            "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done", term_type="xterm", term_size=(80, 24)
        ) as process:
            await process.stdout.readline()
            process.change_terminal_size(120, 40)
            # Without an agent it is not delivered, and the session goes on.
            process.send_signal("USR1")
            process.stdin.write("\x03")
            done = await asyncio.wait_for(process.wait(), 30)
            equal("^C on a terminal ends it", done.exit_status != 0, True)
        # A resize beside the start of a program, whose answer must not get lost (each waits for it).
        for n in range(40):
            process = await asyncio.wait_for(
                connection.create_process(f"echo {n}", term_type="xterm", term_size=(80 + n, 24)), 30
            )
            process.change_terminal_size(100 + n, 30)
            done = await asyncio.wait_for(process.wait(), 30)
            if done.stdout.strip() != str(n):
                raise SystemExit(f"start {n}: {done.stdout!r}")
        print("ok forty starts with a resize each", flush=True)
        async with connection.start_sftp_client() as sftp:
            async with sftp.open("there", "wb") as there:
                await there.write(DATA)
            async with sftp.open("there", "rb") as there:
                equal("sftp both ways", hashlib.sha256(await there.read()).hexdigest(), SUM)
            await sftp.remove("there")


asyncio.run(main())
