"""The sockets on /ws: RFC 6455 frames, and who hears what.

One socket per client id. A second connection with the same id takes over, and when the first one closes it takes the id
away from both: the second is silent for ever after. That is measured behaviour (server.py:325), kept on purpose.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import uuid
from typing import Any, Final

from .wire import Connection, Encoded, Request, Response

_MAGIC: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUED, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
PREVIEW_PLAIN: Final = 1
PREVIEW_WITH_METADATA: Final = 4


class Sockets:
    """Every open socket by client id. Belongs to the event loop; the worker reaches it through the server."""

    def __init__(self, features: dict[str, Any]) -> None:
        self._features = features
        self._by_id: dict[str, Socket] = {}

    @property
    def is_empty(self) -> bool:
        return not self._by_id

    def open(self, request: Request, connection: Connection, status: dict[str, Any], executing: Any) -> Response | None:
        """Make a socket of the connection; an answer instead when the request is no handshake."""
        key = request.headers.get("sec-websocket-key")
        if request.headers.get("upgrade", "").lower() != "websocket" or key is None:
            return Response.text('No WebSocket UPGRADE hdr: None\n Can "Upgrade" only to "WebSocket".', 400)
        client_id = request.query.get("clientId") or uuid.uuid4().hex
        accept = base64.b64encode(hashlib.sha1((key + _MAGIC).encode(), usedforsecurity=False).digest()).decode()
        head = (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n"
        )
        opened = Socket(connection, self._features)
        self._by_id[client_id] = opened
        connection.upgrade(head.encode(), opened.feed, lambda: self._forget(client_id))
        opened.send_event("status", {"status": status, "sid": client_id})
        if executing is not None and executing[0] == client_id:  # a late socket learns the node, nothing is replayed
            opened.send_event("executing", {"node": executing[1]})
        return None

    def send(self, event: str, data: dict[str, Any] | Encoded, client_id: str | None) -> None:
        """To one client, or to all when `client_id` is None. Goes out at `flush`."""
        addressed = self._addressed(client_id)
        if addressed:
            frame = _frame(_TEXT, _event(event, data))
            for opened in addressed:
                opened.keep(frame)

    def send_preview(self, jpeg: bytes, metadata: dict[str, Any] | None, client_id: str | None) -> None:
        """A preview picture: with metadata to clients that announced to understand it, without to the others."""
        if metadata is None:
            payload = struct.pack(">II", PREVIEW_PLAIN, 1) + jpeg
        else:
            header = json.dumps({**metadata, "image_type": "image/jpeg"}).encode()
            payload = struct.pack(">II", PREVIEW_WITH_METADATA, len(header)) + header + jpeg
        for opened in self._addressed(client_id):
            if opened.supports_preview_metadata is (metadata is not None):
                opened.keep(_frame(_BINARY, payload))

    def flush(self) -> None:
        """Send what is kept, to each in one piece: a packet for every frame costs more than making the frames."""
        for opened in self._by_id.values():
            opened.flush()

    def _addressed(self, client_id: str | None) -> list[Socket]:
        if client_id is None:
            return list(self._by_id.values())
        return [self._by_id[client_id]] if client_id in self._by_id else []

    def _forget(self, client_id: str) -> None:
        self._by_id.pop(client_id, None)  # also when the id belongs to a newer socket by now


class Socket:
    """One open socket: frames in both directions."""

    def __init__(self, connection: Connection, features: dict[str, Any]) -> None:
        self._connection = connection
        self._features = features
        self._buffer = bytearray()
        self._message = bytearray()
        self._kept: list[bytes] = []
        self._is_first = True
        self.supports_preview_metadata = False

    def send_event(self, event: str, data: dict[str, Any]) -> None:
        """At once, which is before what is said to several."""
        self._send(_TEXT, _event(event, data))

    def keep(self, frame: bytes) -> None:
        self._kept.append(frame)

    def flush(self) -> None:
        if self._kept:
            kept, self._kept = self._kept, []
            self._connection.write(b"".join(kept))

    def feed(self, data: bytes) -> None:
        """Take bytes of the client; acts on each complete message."""
        self._buffer += data
        while (frame := self._next_frame()) is not None:
            is_last, code, payload = frame
            if code == _CLOSE:
                self._send(_CLOSE, payload[:2])
                self._connection.close()
                return
            if code == _PING:
                self._send(_PONG, payload)
            elif code in (_TEXT, _BINARY, _CONTINUED):
                self._message += payload
                if is_last:
                    message, self._message = bytes(self._message), bytearray()
                    self._received(message)

    def _received(self, message: bytes) -> None:
        is_first, self._is_first = self._is_first, False
        try:
            content = json.loads(message)
        except ValueError:
            return
        if is_first and isinstance(content, dict) and content.get("type") == "feature_flags":
            wanted = content.get("data")
            self.supports_preview_metadata = isinstance(wanted, dict) and bool(wanted.get("supports_preview_metadata"))
            self.send_event("feature_flags", self._features)

    def _next_frame(self) -> tuple[bool, int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        length, start = buffer[1] & 0x7F, 2
        if length == 126:
            if len(buffer) < 4:
                return None
            length, start = int.from_bytes(buffer[2:4], "big"), 4
        elif length == 127:
            if len(buffer) < 10:
                return None
            length, start = int.from_bytes(buffer[2:10], "big"), 10
        mask = b""
        if buffer[1] & 0x80:
            mask, start = bytes(buffer[start : start + 4]), start + 4
        if len(buffer) < start + length:
            return None
        payload = bytes(buffer[start : start + length])
        if mask:
            payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        is_last, code = bool(buffer[0] & 0x80), buffer[0] & 0x0F
        del buffer[: start + length]
        return is_last, code, payload

    def _send(self, code: int, payload: bytes) -> None:
        self._connection.write(_frame(code, payload))


def _event(event: str, data: dict[str, Any] | Encoded) -> bytes:
    text = data if isinstance(data, Encoded) else json.dumps(data)
    return f'{{"type": "{event}", "data": {text}}}'.encode()


def _frame(code: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        head = struct.pack(">BB", 0x80 | code, size)
    elif size < 65536:
        head = struct.pack(">BBH", 0x80 | code, 126, size)
    else:
        head = struct.pack(">BBQ", 0x80 | code, 127, size)
    return head + payload
