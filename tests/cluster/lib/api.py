"""A small HTTPS client with the cluster's own certificates: what the start-up and the health checks ask.

A server that isn't this cluster's (a stray one on the same port) fails the TLS handshake, so it is never taken for ready.
"""

import http.client
import json
import ssl

from machine import RUN

PKI = RUN / "pki"


def get(port, path, identity, timeout=3):
    """The status and body of a GET from 127.0.0.1; status 0 when nothing of ours answers."""
    try:
        context = ssl.create_default_context(cafile=PKI / "ca.crt")
        context.load_cert_chain(PKI / f"{identity}.crt", PKI / f"{identity}.key")
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout, context=context)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error).encode()


def get_json(port, path, identity):
    """The parsed body of a 200, else None."""
    status, body = get(port, path, identity)
    try:
        return json.loads(body) if status == 200 else None
    except ValueError:
        return None
