#!/usr/bin/env python3
"""A reference webhook server for Podbay (and ContainerSSH): authentication and configuration.

    webhook.py --users FILE [--listen 127.0.0.1:8080] [--cert FILE --key FILE [--client-ca FILE]]

It answers POST /password, /pubkey, /authz (the frontend's `auth`) and /config (the backend's `configserver`). FILE is JSON:

    {"alice": {"password": "scrypt:SALT:HASH", "keys": ["ssh-ed25519 AAAA..."], "team": "red",
               "namespace": "users", "image": "debian:12", "environment": {"EDITOR": "vi"},
               "pod": {"shellCommand": ["/bin/bash", "-l"]}}}

It needs nothing but Python 3.8's standard library. `webhook.py --hash` reads a password and prints what belongs into FILE.
An attempt that it does not like is answered with 200 and {"success": false}: any other status means that *the server* is
out of order, and is asked again.
"""

import argparse
import base64
import getpass
import hashlib
import hmac
import json
import os
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_QUESTION = 1024 * 1024


def hash_password(password: bytes, salt: bytes) -> str:
    digest = hashlib.scrypt(password, salt=salt, n=2**14, r=8, p=1)
    return "scrypt:%s:%s" % (salt.hex(), digest.hex())


def is_password(user: dict, password: bytes) -> bool:
    # Somebody who is unknown, or has no password, costs the same work.
    known = user.get("password") or "scrypt:%s:" % ("00" * 16)
    salt = bytes.fromhex(known.split(":")[1])
    return hmac.compare_digest(hash_password(password, salt), known)


def entry(value: str, sensitive: bool = False) -> dict:
    return {"value": value, "sensitive": sensitive}


class Policy:
    """What is decided, apart from HTTP."""

    def __init__(self, path: str):
        self.path = path

    def user(self, question: dict) -> dict:
        # Read anew each time: no restart for a new user.
        with open(self.path, encoding="utf-8") as file:
            return json.load(file).get(question["username"], {})

    def password(self, question: dict) -> dict:
        given = base64.b64decode(question["passwordBase64"], validate=True)
        return self.answer(question, is_password(self.user(question), given))

    def pubkey(self, question: dict) -> dict:
        given = question["publicKey"].split()[:2]
        keys = [key.split()[:2] for key in self.user(question).get("keys", [])]
        return self.answer(question, given in keys)

    def answer(self, question: dict, success: bool) -> dict:
        if not success:
            return {"success": False}
        user = self.user(question)
        answer = {"success": True, "authenticatedUsername": user.get("name", question["username"])}
        if "team" in user:
            answer["metadata"] = {"team": entry(user["team"])}
        if "token" in user:
            # Reaches the pod, and no other webhook.
            answer["environment"] = {"TOKEN": entry(user["token"], sensitive=True)}
        return answer

    def authz(self, question: dict) -> dict:
        return {"success": not self.user(question).get("locked", False)}

    def config(self, question: dict) -> dict:
        user = self.user(question)
        # Whatever else of `kubernetes.pod` is this user's own.
        pod = dict(user.get("pod", {}))
        if "namespace" in user:
            pod["metadata"] = {"namespace": user["namespace"], "labels": {"team": user.get("team", "none")}}
        if "image" in user:
            pod["spec"] = {"containers": [{"name": "shell", "image": user["image"]}]}
        answer = {"config": {"kubernetes": {"pod": pod}}}
        answer["environment"] = {name: entry(value) for name, value in user.get("environment", {}).items()}
        answer["files"] = {
            path: entry(base64.b64encode(text.encode()).decode()) for path, text in user.get("files", {}).items()
        }
        return answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    policy: Policy

    def do_POST(self):
        decide = {
            "/password": self.policy.password,
            "/pubkey": self.policy.pubkey,
            "/authz": self.policy.authz,
            "/config": self.policy.config,
        }.get(self.path)
        if decide is None:
            return self.reply(404, {"error": "no such question"})
        length = int(self.headers.get("Content-Length", 0))
        if length > MAX_QUESTION:
            return self.reply(413, {"error": "too long"})
        body = self.rfile.read(length)
        try:
            answer = decide(json.loads(body))
        except (KeyError, TypeError, ValueError) as error:
            # Never the question itself: it holds passwords.
            print("a question that can't be answered: %r" % error, file=sys.stderr)
            return self.reply(400, {"error": "the question can't be read"})
        return self.reply(200, answer)

    def reply(self, status: int, answer: dict):
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, text, *args):
        print(self.address_string(), text % args, file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users")
    parser.add_argument("--listen", default="127.0.0.1:8080")
    parser.add_argument("--cert")
    parser.add_argument("--key")
    parser.add_argument("--client-ca", help="only clients with a certificate of this CA may ask")
    parser.add_argument("--hash", action="store_true", help="read a password and print its hash")
    options = parser.parse_args()
    if options.hash:
        return print(hash_password(getpass.getpass().encode(), os.urandom(16)))
    if not options.users:
        parser.error("--users is needed")
    host, port = options.listen.rsplit(":", 1)
    handler = type("Bound", (Handler,), {"policy": Policy(options.users)})
    server = ThreadingHTTPServer((host.strip("[]"), int(port)), handler)
    if options.cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(options.cert, options.key)
        if options.client_ca:
            context.load_verify_locations(options.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        # The handshake is the thread's that serves the client: a silent one must not hold up the others.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print("listening on %s:%d" % server.server_address[:2], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
