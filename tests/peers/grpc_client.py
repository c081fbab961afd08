"""A gRPC client from the .proto files alone: what CI systems, IDEs and web terminals would write.

Takes the demo's state directory, the folder of the .proto files, and a folder for the generated code.
"""

import hashlib
import os
import queue
import secrets
import sys
import threading

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from grpc_tools import protoc

sys.argv, (protos, generated) = sys.argv[:2], sys.argv[2:4]
from common import DATA, SUM, equal, file  # noqa: E402  (reads argv)

FILES = [f"podbay/v1/{name}.proto" for name in ("common", "connection", "session")]
include = os.path.join(os.path.dirname(protoc.__file__), "_proto")
code = protoc.main(["", f"-I{protos}", f"-I{include}", f"--python_out={generated}", f"--grpc_python_out={generated}", *FILES])
equal("the contract compiles", code, 0)
sys.path.insert(0, generated)
from podbay.v1 import common_pb2, connection_pb2, connection_pb2_grpc, session_pb2, session_pb2_grpc  # noqa: E402

env = dict(line.strip().split("=", 1) for line in open(file("grpc.env"), encoding="utf-8"))


def read(name: str) -> bytes:
    with open(env[name], "rb") as pem:
        return pem.read()


credentials = grpc.ssl_channel_credentials(read("PODBAY_CA"), read("PODBAY_KEY"), read("PODBAY_CERT"))
channel = grpc.secure_channel(env["PODBAY_ADDRESS"], credentials)
connections = connection_pb2_grpc.ConnectionServiceStub(channel)
sessions = session_pb2_grpc.SessionServiceStub(channel)

services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
wanted = {"podbay.v1.ConnectionService", "podbay.v1.SessionService", "grpc.health.v1.Health"}
equal("reflection lists the services", wanted - services, set())
health = health_pb2_grpc.HealthStub(channel)
for name in ("", "podbay.v1.ConnectionService", "podbay.v1.SessionService", "kubernetes"):
    answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=30, wait_for_ready=True)
    equal(f"health of {name!r}", answer.status, health_pb2.HealthCheckResponse.SERVING)

WINDOW = 256 * 1024
# What was said of the programs: whether they outlive a stream.
durable = set()


def refusal(error: grpc.RpcError) -> common_pb2.Refusal:
    for detail in rpc_status.from_call(error).details:
        found = common_pb2.Refusal()
        if detail.Unpack(found):
            return found
    raise SystemExit(f"no Refusal in {error}")


def run(handle: bytes, stdin: bytes, **program: object) -> tuple[bytes, bytes, session_pb2.Exit]:
    """Runs one program: stdin within the credit that comes, credit for output as it is taken."""
    frames: queue.Queue = queue.Queue()
    opening = session_pb2.Open(
        handle=handle, session_id=secrets.token_hex(16), stdout_credit=WINDOW, stderr_credit=WINDOW, **program
    )
    frames.put(session_pb2.RunSessionRequest(open=opening))
    outputs = {session_pb2.STREAM_STDOUT: bytearray(), session_pb2.STREAM_STDERR: bytearray()}
    sent = limit = 0
    ended = False
    for answer in sessions.RunSession(iter(frames.get, None), timeout=120):
        kind = answer.WhichOneof("frame")
        if kind == "started":
            limit = answer.started.stdin_credit
            durable.add(answer.started.durable)
        elif kind == "credit":
            limit = max(limit, answer.credit.limit)
        elif kind == "data":
            output = outputs[answer.data.stream]
            if answer.data.offset != len(output):
                raise SystemExit(f"a gap at {len(output)}: {answer.data.offset}")
            output += answer.data.data
            credit = session_pb2.Credit(stream=answer.data.stream, limit=len(output) + WINDOW)
            frames.put(session_pb2.RunSessionRequest(credit=credit))
            # A durable program waits once a window was not acknowledged.
            ack = session_pb2.Ack(stream=answer.data.stream, offset=len(output))
            frames.put(session_pb2.RunSessionRequest(ack=ack))
        elif kind == "exit":
            frames.put(None)
            if answer.exit.WhichOneof("end") == "lost":  # whose code would read as 0
                raise SystemExit(f"lost: {answer.exit.lost}")
            return bytes(outputs[1 + session_pb2.STREAM_STDIN]), bytes(outputs[session_pb2.STREAM_STDERR]), answer.exit
        while sent < min(limit, len(stdin)):
            piece = stdin[sent : min(sent + 32768, limit)]
            data = session_pb2.Data(stream=session_pb2.STREAM_STDIN, offset=sent, data=piece)
            frames.put(session_pb2.RunSessionRequest(data=data))
            sent += len(piece)
        if sent == len(stdin) and limit > 0 and not ended:
            ended = True
            eof = session_pb2.Eof(stream=session_pb2.STREAM_STDIN, offset=sent, id=1)
            frames.put(session_pb2.RunSessionRequest(eof=eof))
    raise SystemExit("the stream ended without Exit")


owner, connection = secrets.token_hex(16), secrets.token_hex(16)
request = connection_pb2.OpenConnectionRequest(
    connection_id=connection, owner_id=owner, user=common_pb2.User(name="alice"), remote_address="192.0.2.7"
)
events = list(connections.OpenConnection(request, timeout=60))
equal("first event", events[0].WhichOneof("event"), "accepted")
equal("last event", events[-1].WhichOneof("event"), "opened")
handle = events[-1].opened.handle
equal("the handle is small", 0 < len(handle) < 8192, True)

beat = connections.Heartbeat(
    connection_pb2.HeartbeatRequest(owner_id=owner, connection_ids=[connection], complete=True, handles=[handle]), timeout=30
)
equal("heartbeats have an interval", 0 < beat.interval.ToSeconds() < beat.lease_duration.ToSeconds(), True)

out, err, end = run(handle, b"", exec=session_pb2.Exec(command="echo $WHO; echo err >&2; exit 7"), environment={"WHO": "me"})
equal("a command", (out, err, end.code), (b"me\n", b"err\n", 7))
out, _, end = run(handle, DATA, exec=session_pb2.Exec(argv=["/usr/bin/sha256sum"]))
equal("upload", (out.split()[0], end.code), (SUM.encode(), 0))
out, _, end = run(handle, DATA, exec=session_pb2.Exec(command="cat"))
equal("a filter both ways", (hashlib.sha256(out).hexdigest(), end.code), (SUM, 0))

listed = connections.ListConnections(connection_pb2.ListConnectionsRequest(user="alice"), timeout=30).connections
equal("it is listed", [(one.connection_id, one.remote_address) for one in listed], [(connection, "192.0.2.7")])


def refused(what: str, frames: list, reason: int) -> None:
    try:
        list(sessions.RunSession(iter(frames), timeout=60))
    except grpc.RpcError as error:
        equal(what, common_pb2.Reason.Name(refusal(error).reason), common_pb2.Reason.Name(reason))
    else:
        raise SystemExit(f"{what}: not refused")


request = session_pb2.RunSessionRequest
bad = bytearray(handle)
bad[-1] ^= 1
refused("a handle that was tampered with", [request(open=session_pb2.Open(handle=bytes(bad), session_id=secrets.token_hex(16), shell=session_pb2.Shell()))], common_pb2.REASON_HANDLE_INVALID)
refused("no Open first", [request(eof=session_pb2.Eof(stream=session_pb2.STREAM_STDIN))], common_pb2.REASON_PROTOCOL_VIOLATION)
if durable == {False}:
    refused("a resume without podbay-agent", [request(open=session_pb2.Open(handle=handle, session_id=secrets.token_hex(16), attempt=2, shell=session_pb2.Shell()))], common_pb2.REASON_UNIMPLEMENTED)

closed = connections.CloseConnection(connection_pb2.CloseConnectionRequest(connection_id=connection), timeout=60)
equal("its pod is gone", closed.pods_deleted, 1)
connections.Heartbeat(connection_pb2.HeartbeatRequest(owner_id=owner, complete=True, leaving=True), timeout=30)
left = connections.ListConnections(connection_pb2.ListConnectionsRequest(), timeout=30).connections
equal("none is listed", list(left), [])

anonymous = grpc.secure_channel(env["PODBAY_ADDRESS"], grpc.ssl_channel_credentials(read("PODBAY_CA")))
try:
    connection_pb2_grpc.ConnectionServiceStub(anonymous).ListConnections(connection_pb2.ListConnectionsRequest(), timeout=30)
    raise SystemExit("a caller without a certificate was served")
except grpc.RpcError as error:
    equal("no certificate, no answer", error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED), True)
