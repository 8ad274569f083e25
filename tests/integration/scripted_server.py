"""A loopback HTTP server that does what a test tells it, down to breaking off in the middle of a line."""

import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

#: What to do with one request: bytes are sent as they are, then the connection is closed.
Script = Callable[["Request"], bytes]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: socket.socket = field(repr=False)


def answer(status: int = 200, value: Any = None, *, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole answer: bytes as they are, everything else as JSON."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {text}" for name, text in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chain(*scripts: Script) -> Script:
    """One script after the other; the last one stays."""
    left = list(scripts)

    def play(request: Request) -> bytes:
        return (left.pop(0) if len(left) > 1 else left[0])(request)

    return play


class Server:
    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[Request] = []
        self.routes: dict[str, Script] = {}

    @property
    def calls(self) -> list[str]:
        return [f"{request.method} {request.path}" for request in self.requests]

    def on(self, route: str, *scripts: Script | bytes) -> None:
        """route -- "GET /path" without the query."""
        self.routes[route] = chain(*(script if callable(script) else _always(script) for script in scripts))


@contextmanager
def scripted_server(host: str = "127.0.0.1") -> Iterator[Server]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            try:
                request = self._read()
                if request is None:
                    return
                served.requests.append(request)
                script = served.routes.get(f"{request.method} {request.path.split('?')[0]}")
                self.wfile.write(script(request) if script else answer(404, b""))
            except OSError:
                return  # the client has had enough

        def _read(self) -> Request | None:
            first = self.rfile.readline().decode().split()
            if len(first) < 2:
                return None
            headers = {}
            while line := self.rfile.readline().decode().strip():
                name, _, text = line.partition(":")
                headers[name.title()] = text.strip()
            body = self.rfile.read(int(headers.get("Content-Length", 0)))
            return Request(first[0], first[1], headers, body, self.connection)

    class Listener(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Listener((host, 0), Handler) as listener:
        served = Server(f"http://{host}:{listener.server_address[1]}")
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield served
        finally:
            listener.shutdown()
            thread.join()


def _always(raw: bytes) -> Script:
    return lambda _: raw
