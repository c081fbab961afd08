"""A gRPC client of Podbay in Python: runs a program, leaves it running, comes back for the rest of its output, signals it.

    pip install grpcio grpcio-tools grpcio-status
    python3 -m grpc_tools.protoc -Iproto --python_out=DIR --grpc_python_out=DIR proto/podbay/v1/*.proto
    PYTHONPATH=DIR python3 grpc_client.py grpc.env alice

`podbay demo` writes grpc.env; docs/contract.md has the rules.
"""

import queue
import secrets
import sys
import threading

import grpc
from google.protobuf.duration_pb2 import Duration
from grpc_status import rpc_status
from podbay.v1 import common_pb2, connection_pb2, connection_pb2_grpc, session_pb2, session_pb2_grpc

WINDOW = 256 * 1024  # of output on its way; no more may be granted beyond what was taken
OUT, ERR, IN = session_pb2.STREAM_STDOUT, session_pb2.STREAM_STDERR, session_pb2.STREAM_STDIN


def connect(path):
    env = dict(line.strip().split("=", 1) for line in open(path, encoding="utf-8") if "=" in line)
    pem = [open(env[name], "rb").read() for name in ("PODBAY_CA", "PODBAY_KEY", "PODBAY_CERT")]
    return grpc.secure_channel(env["PODBAY_ADDRESS"].split(",")[0], grpc.ssl_channel_credentials(*pem))


def refusal(error):
    """Every refusal of the backend has a podbay.v1.Refusal in its details; a status without one is the transport's."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        found = common_pb2.Refusal()
        if detail.Unpack(found):
            return f"{common_pb2.Reason.Name(found.reason)}: {found.message}"
    return f"{error.code()}: {error.details()}"


class Session:
    """One attempt at a session: iterate over it for ("stdout" | "stderr", bytes); then `exit` is set."""

    def __init__(self, stub, handle, session_id, taken=None, requests=0, **opening):
        self.exit, self.taken, self.frames, self.requests = None, dict(taken or {OUT: 0, ERR: 0}), queue.Queue(), requests
        if taken is not None:  # come back: whoever has the session loses it
            resume = session_pb2.ResumeFrom(stdout=taken[OUT], stderr=taken[ERR])
            opening |= {"take_over": True, "resume_from": resume}
        credit = {"stdout_credit": self.taken[OUT] + WINDOW, "stderr_credit": self.taken[ERR] + WINDOW}
        self.send(open=session_pb2.Open(handle=handle, session_id=session_id, **credit, **opening))
        self.answers = stub.RunSession(iter(self.frames.get, None))
        self.stdin, self.sent, self.limit, self.ended = b"", 0, 0, taken is not None

    def send(self, **frame):
        self.frames.put(session_pb2.RunSessionRequest(**frame))

    def request(self, frame, message, **fields):
        self.requests += 1
        self.send(**{frame: message(id=self.requests, **fields)})

    def signal(self, name):
        self.request("signal", session_pb2.Signal, name=name)

    def feed(self, stdin=None):
        """Sends what credit allows of stdin, then its end."""
        if stdin is not None:
            self.stdin = stdin
        while self.sent < min(self.limit, len(self.stdin)):
            piece = self.stdin[self.sent : min(self.sent + 32768, self.limit)]
            self.send(data=session_pb2.Data(stream=IN, offset=self.sent, data=piece))
            self.sent += len(piece)
        if self.sent == len(self.stdin) and not self.ended:
            self.ended = True
            self.request("eof", session_pb2.Eof, stream=IN, offset=self.sent)

    def __iter__(self):
        for answer in self.answers:
            kind = answer.WhichOneof("frame")
            if kind == "started":
                self.limit = answer.started.stdin_credit
                self.sent = answer.started.stdin_offset
                self.feed()
            elif kind == "credit":
                self.limit = max(self.limit, answer.credit.limit)
                self.feed()
            elif kind == "data":
                stream, data = answer.data.stream, answer.data.data
                yield ("stdout" if stream == OUT else "stderr"), data
                self.taken[stream] = answer.data.offset + len(data)
                # Both: credit lets more come, Ack lets the pod forget what is safe here. Without Ack a durable program waits.
                self.send(credit=session_pb2.Credit(stream=stream, limit=self.taken[stream] + WINDOW))
                self.send(ack=session_pb2.Ack(stream=stream, offset=self.taken[stream]))
            elif kind == "answer" and answer.answer.HasField("refusal"):
                print("refused:", answer.answer.refusal.message, file=sys.stderr)
            elif kind in ("notice", "progress"):
                print(kind, getattr(answer, kind).message if kind == "notice" else "", file=sys.stderr)
            elif kind == "exit":
                self.exit = answer.exit
                self.frames.put(None)

    def end(self):
        """How it ended. `exit.code` alone would read 0 where there is none."""
        match self.exit and self.exit.WhichOneof("end"):
            case "code":
                return f"exit {self.exit.code}"
            case "signal":
                return f"signal {self.exit.signal.name}"
            case "lost":
                return f"not known: {self.exit.lost.message}"
        return "not known: the stream ended without Exit"


def main(env, user):
    channel = connect(env)
    connections = connection_pb2_grpc.ConnectionServiceStub(channel)
    sessions = session_pb2_grpc.SessionServiceStub(channel)
    owner, connection = secrets.token_hex(16), secrets.token_hex(16)
    opening = connection_pb2.OpenConnectionRequest(
        connection_id=connection, owner_id=owner, user=common_pb2.User(name=user), remote_address="127.0.0.1"
    )
    events = list(connections.OpenConnection(opening))
    handle = events[-1].opened.handle
    over = threading.Event()

    def heartbeats():
        every = events[0].accepted.heartbeat_interval.ToSeconds()
        while not over.wait(every):
            beat = connection_pb2.HeartbeatRequest(owner_id=owner, connection_ids=[connection], complete=True, handles=[handle])
            every = connections.Heartbeat(beat, timeout=10).interval.ToSeconds()

    threading.Thread(target=heartbeats, daemon=True).start()
    try:
        # A filter: more than a window, both ways at once.
        data = secrets.token_bytes(1_000_000)
        cat = Session(sessions, handle, secrets.token_hex(16), exec=session_pb2.Exec(argv=["cat"]))
        cat.stdin = data
        got = b"".join(piece for _, piece in cat)
        print("filter:", "same" if got == data else "DIFFERENT", cat.end())

        # A job that is left, and found again where it was left.
        job, line = secrets.token_hex(16), b""
        program = session_pb2.Exec(command="echo begun; sleep 1; echo more; exec sleep 600")
        first = Session(sessions, handle, job, exec=program)
        for _, piece in first:
            line += piece
            if line.endswith(b"\n"):
                break
        kept = sessions.Detach(session_pb2.DetachRequest(handle=handle, session_id=job, keep=Duration(seconds=600)), timeout=30)
        first.answers.cancel()
        print("left:", line.decode().strip(), "kept for", kept.keep.ToSeconds(), "s")
        # The program is named again, and not begun again; ids of requests go on from where they were.
        again = Session(sessions, handle, job, taken={OUT: len(line), ERR: 0}, requests=first.requests, exec=program)
        for _, piece in again:
            print("again:", piece.decode().strip())
            again.signal("TERM")
        print("job:", again.end())
        sessions.AckExit(session_pb2.AckExitRequest(handle=handle, session_id=job), timeout=30)

        # What a refusal looks like.
        try:
            list(Session(sessions, handle, secrets.token_hex(16), subsystem=session_pb2.Subsystem(name="nosuch")))
        except grpc.RpcError as error:
            print("refusal:", refusal(error))
    finally:
        over.set()
        connections.CloseConnection(connection_pb2.CloseConnectionRequest(connection_id=connection), timeout=30)


if __name__ == "__main__":
    main(*sys.argv[1:3])
