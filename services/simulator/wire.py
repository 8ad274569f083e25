"""HTTP/1.1 on one connection: bytes in, requests out, answers back. Knows no ComfyUI.

An asyncio protocol of its own because the faults need the socket: reset after the body or before it, half an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import cached_property, lru_cache
from http import HTTPStatus
from typing import Any, ClassVar, Final, Protocol
from urllib.parse import parse_qsl, unquote

_MAX_HEAD: Final = 64 * 1024
_READ_BYTES: Final = 256 * 1024
_SERVER: Final = "Python/3.11 aiohttp/3.13"
JSON_TYPE: Final = "application/json; charset=utf-8"
TEXT_TYPE: Final = "text/plain; charset=utf-8"


class Encoded(str):
    """JSON that is ready to be sent."""

    __slots__ = ()


@dataclass
class Request:
    """One complete request. `path` is decoded and without query, `target` is what stood in the request line."""

    method: str
    target: str
    path: str
    query_string: str
    headers: dict[str, str]
    body: bytes = b""
    is_too_large: bool = False

    @cached_property
    def query(self) -> dict[str, str]:
        """First value per name, as aiohttp's `query.get` reads it."""
        values: dict[str, str] = {}
        for name, value in parse_qsl(self.query_string, keep_blank_values=True):
            values.setdefault(name, value)
        return values

    def json(self) -> Any:
        """Raises ValueError (also for a body that is not UTF-8)."""
        return json.loads(self.body.decode("utf-8"))


@dataclass
class Response:
    """One answer. A body without content type goes out without that header, as aiohttp does for empty bodies."""

    status: int = 200
    body: bytes = b""
    content_type: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    prompt_id: str | None = None  # of the prompt this call queued, for the log
    held_seconds: float = 0.0  # a call that takes as long as the work it asks for

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Response:
        return cls(status, json.dumps(value).encode(), JSON_TYPE)

    @classmethod
    def text(cls, text: str, status: int) -> Response:
        return cls(status, text.encode(), TEXT_TYPE)


def server_error() -> Response:
    """What aiohttp says when a handler raised: two lines, no detail."""
    return Response.text("500 Internal Server Error\n\nServer got itself in trouble", 500)


class Application(Protocol):
    """What a connection asks of the server behind it."""

    max_body: float

    def opened(self, connection: Connection) -> None: ...

    def closed(self, connection: Connection) -> None: ...

    def head_arrived(self, request: Request, connection: Connection) -> bool:
        """False when the connection was dropped before the body is read."""

    def answer(self, request: Request, connection: Connection) -> None:
        """Must call `connection.respond`, `reset` or `upgrade`, now or later."""


class Connection(asyncio.BufferedProtocol):
    """One client connection, kept alive between requests; requests on it are answered one after another."""

    #: For all connections: what arrives is taken out of it before another one reads. A new buffer for every read
    #: would cost more than most of the requests.
    _arriving: ClassVar = memoryview(bytearray(_READ_BYTES))

    def __init__(self, application: Application) -> None:
        self._application = application
        self._buffer = bytearray()
        self._request: Request | None = None  # head is there, body is not complete
        self._missing = 0  # body bytes still to come
        self._chunks: bytearray | None = None  # collects a chunked body
        self._current: Request | None = None  # being answered
        self._on_data: Callable[[bytes], None] | None = None  # after an upgrade
        self._on_close: Callable[[], None] | None = None
        self._transport: asyncio.Transport | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  loop.create_server promises it
        self._transport = transport
        self.is_open = True
        peer: socket.socket = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # the peer may be gone already
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._application.opened(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.is_open = False
        self._application.closed(self)
        if self._on_close is not None:
            self._on_close()

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._arriving

    def buffer_updated(self, nbytes: int) -> None:
        if self._on_data is not None:
            self._on_data(bytes(self._arriving[:nbytes]))
            return
        self._buffer += self._arriving[:nbytes]
        self._advance()

    def respond(self, response: Response, cut_at: float = 1.0) -> None:
        """Send an answer. With `cut_at` below 1 only that part of the body goes out, then the connection is reset."""
        request, self._current = self._current, None
        if self._transport is None or not self.is_open or request is None:
            return
        keep_alive = request.headers.get("connection", "").lower() != "close"
        head = (
            f"HTTP/1.1 {response.status} {_phrase(response.status)}\r\n"
            f"Content-Length: {response.headers.pop('Content-Length', len(response.body))}\r\n"
            f"Date: {http_date(int(time.time()))}\r\nServer: {_SERVER}\r\n"
        )
        if response.content_type is not None:
            head += f"Content-Type: {response.content_type}\r\n"
        if not keep_alive:
            head += "Connection: close\r\n"
        for name, value in response.headers.items():
            head += f"{name}: {value}\r\n"
        body = b"" if request.method == "HEAD" or response.status == 304 else response.body
        if cut_at < 1:
            self._transport.write(f"{head}\r\n".encode("latin-1") + body[: int(len(body) * cut_at)])
            self.close()
            return
        self._transport.write(f"{head}\r\n".encode("latin-1") + body)
        if not keep_alive:
            self.close()
        elif self._buffer:
            self._advance()

    def upgrade(self, head: bytes, on_data: Callable[[bytes], None], on_close: Callable[[], None]) -> None:
        """Leave HTTP: send `head` and hand every later byte to `on_data`."""
        self._current = None
        self._on_data, self._on_close = on_data, on_close
        self.write(head)
        if self._buffer:
            rest, self._buffer = bytes(self._buffer), bytearray()
            on_data(rest)

    def write(self, data: bytes) -> None:
        if self._transport is not None and self.is_open:
            self._transport.write(data)

    def close(self) -> None:
        """End the connection after what was written has gone out."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """End the connection at once with a TCP reset; nothing unsent goes out."""
        self._current = None
        if self._transport is None or not self.is_open:
            return
        peer: socket.socket = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # without linger, close() would send an orderly FIN
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _advance(self) -> None:
        """Take complete requests off the buffer, one at a time."""
        while self._current is None and self.is_open:
            if self._request is None and not self._read_head():
                return
            request = self._request
            if request is None or not self._read_body(request):
                return
            self._request, self._current = None, request
            self._application.answer(request, self)

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD:
                self.close()
            return False
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        try:
            method, target, _ = lines[0].split(" ", 2)
        except ValueError:
            self._refuse_garbage()
            return False
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        path, _, query_string = target.partition("?")
        request = Request(method, target, unquote(path), query_string, headers)
        length = headers.get("content-length", "0")
        if not length.isdigit():
            self._refuse_garbage()
            return False
        self._missing = int(length)
        self._chunks = bytearray() if headers.get("transfer-encoding", "").lower() == "chunked" else None
        if not self._application.head_arrived(request, self):
            return False
        if headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._request = request
        return True

    def _refuse_garbage(self) -> None:
        self.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.close()

    def _read_body(self, request: Request) -> bool:
        """True when the body is complete. One above the limit is read and thrown away, so that the client, still
        sending, gets the 413 and not a reset."""
        if self._chunks is not None:
            return self._read_chunks(request, self._chunks)
        if request.is_too_large or self._missing > self._application.max_body:
            request.is_too_large = True
            thrown = min(self._missing, len(self._buffer))
            del self._buffer[:thrown]
            self._missing -= thrown
            return self._missing == 0
        if len(self._buffer) < self._missing:
            return False
        if self._missing:
            request.body = bytes(self._buffer[: self._missing])
            del self._buffer[: self._missing]
            self._missing = 0
        return True

    def _read_chunks(self, request: Request, body: bytearray) -> bool:
        while True:
            end = self._buffer.find(b"\r\n")
            if end < 0:
                return False
            try:
                size = int(bytes(self._buffer[:end]).split(b";")[0], 16)
            except ValueError:
                self._refuse_garbage()
                return False
            if len(self._buffer) < end + 2 + size + 2:
                return False
            body += self._buffer[end + 2 : end + 2 + size]
            del self._buffer[: end + 2 + size + 2]
            if size == 0:
                request.is_too_large = len(body) > self._application.max_body
                request.body = b"" if request.is_too_large else bytes(body)
                self._chunks = None
                return True


@lru_cache(maxsize=64)
def http_date(seconds: int) -> str:
    """A moment as headers write it, in seconds since 1970."""
    return formatdate(seconds, usegmt=True)


@lru_cache
def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
