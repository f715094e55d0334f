"""A real S3 server (moto's) on this machine; answers can be lost, or replaced.

``python tests/s3_server.py PORT`` serves one, without the proxy, until it is ended.
"""

from __future__ import annotations

import http.client
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import botocore.endpoint
import pytest
from moto import backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.server import ThreadedMotoServer
from werkzeug.test import EnvironBuilder, run_wsgi_app

from massive_sft.ledger.bucket import Bucket

BUCKET = "snapshots"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "canary-of-a-secret", "AWS_DEFAULT_REGION": "us-east-1"}
logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs each request
_SERVICES = list(backends.list_of_moto_modules())
backends.list_of_moto_modules = lambda: _SERVICES  # it looks through a folder for each request
_MOTO = DomainDispatcherApplication(create_backend_app)
_OF_ONE_HOP = {"connection", "transfer-encoding", "expect", "keep-alive"}


@dataclass
class Request:
    """What a client asks: the method, the object's path with its query, and how often it asked that before."""

    method: str
    path: str
    before: int


@dataclass
class S3Server:
    """The server as its clients see it.

    Attributes:
        address: of the proxy.
        loses: says of a request whether its answer gets lost after the server has done it.
        ahead_s: how far its clock is ahead.
        ignores: headers of requests that it knows nothing of, in lower case.
        refuses: says of a request with which error (status and code) it is refused before the server sees it.
        asked: all requests so far.
    """

    address: str
    loses: Callable[[Request], bool] = lambda request: False
    refuses: Callable[[Request], tuple[int, str] | None] = lambda request: None
    ahead_s: int = 0
    ignores: frozenset[str] = frozenset()
    asked: list[Request] = field(default_factory=list)

    @property
    def environment(self) -> Mapping[str, str]:
        """What lets boto3 find it."""
        return {"AWS_ENDPOINT_URL": self.address, **KEYS}


def lose_first_answers(request: Request) -> bool:
    """Each request is done, and its first answer lost."""
    return request.before == 0


def expired_after(count: int) -> Callable[[Request], tuple[int, str] | None]:
    """The credentials are good for so many requests."""
    left = [count]

    def refuse(request: Request) -> tuple[int, str] | None:
        left[0] -= 1
        return (400, "ExpiredToken") if left[0] < 0 else None

    return refuse


def denied(method: str) -> Callable[[Request], tuple[int, str] | None]:
    """A method is not allowed."""
    return lambda request: (403, "AccessDenied") if request.method == method else None


@lru_cache(maxsize=1)
def started() -> S3Server:
    """Return the server of this process; one is enough, for the clients take a while to be made."""
    proxy = _ProxyServer(("127.0.0.1", 0), _Proxy)
    proxy.daemon_threads = True
    proxy.server = server = S3Server("http://{}:{}".format(*proxy.server_address))  # type: ignore[attr-defined]
    Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
    return server


def empty(address: str) -> None:
    """Make the bucket of a server, empty and for everybody, whatever was there."""
    ask(address, "POST", "/moto-api/reset-auth", "Infinity")
    ask(address, "POST", "/moto-api/reset")
    ask(address, "PUT", f"/{BUCKET}")


def ask(address: str, method: str, path: str, body: str = "") -> None:
    """Ask a server for what no client of S3 asks for. After ``POST /moto-api/reset-auth 0`` it looks at keys."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    connection.request(method, path, body)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    connection.close()


def answers(address: str) -> bool:
    """Return whether a server is there and has its bucket."""
    try:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=5)
        connection.request("HEAD", f"/{BUCKET}")
        return connection.getresponse().status == 200
    except OSError:
        return False


class _ProxyServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients are killed here."""


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each body waits 40 ms for the client to acknowledge the headers

    def _serve(self) -> None:
        server: S3Server = self.server.server  # type: ignore[attr-defined]
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        before = sum((one.method, one.path) == (self.command, self.path) for one in server.asked)
        request = Request(self.command, self.path, before)
        server.asked.append(request)
        refusal = server.refuses(request)
        if refusal is not None:
            self._answer(refusal[0], {"Content-Type": "application/xml"}, _error(refusal[1]))
            return
        dropped = _OF_ONE_HOP | server.ignores
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        asked = EnvironBuilder(self.path, server.address, method=self.command, headers=headers, data=data)
        parts, status, answered = run_wsgi_app(_MOTO, asked.get_environ(), buffered=True)
        body, headers = b"".join(parts), dict(answered)
        for name in headers:
            if name.lower() in ("date", "last-modified"):
                headers[name] = format_datetime(
                    parsedate_to_datetime(headers[name]) + timedelta(seconds=server.ahead_s), True
                )
        if server.loses(request):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(int(status.split()[0]), headers, body)

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in _OF_ONE_HOP | {"content-length"}:
                self.send_header(name.title(), value)  # as some servers do
        length = headers.get("content-length") or headers.get("Content-Length")
        self.send_header("Content-Length", str(length if self.command == "HEAD" and length else len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def log_message(self, *arguments: object) -> None:
        pass


def _error(code: str) -> bytes:
    message = {"ExpiredToken": "The provided token has expired.", "AccessDenied": "Access Denied"}.get(code, code)
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    """A server that this process' clients find, and which they ask again without a pause; an empty cache beside it."""
    server = started()
    fresh = S3Server(server.address)
    vars(server).update(vars(fresh) | {"address": server.address})
    empty(server.address)
    server.asked.clear()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASSIVE_SFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(botocore.endpoint, "time", SimpleNamespace(sleep=lambda seconds: None))
    return server


def place(prefix: str = "a/study") -> Bucket:
    """Return a place in the server's bucket."""
    return Bucket(BUCKET, prefix)


if __name__ == "__main__":
    ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]), verbose=False).start()
    empty(f"http://127.0.0.1:{sys.argv[1]}")
    while True:
        time.sleep(3600)
