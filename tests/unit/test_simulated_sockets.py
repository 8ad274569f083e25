"""What the simulated ComfyUI says to its sockets, and in how many pieces."""

import json

from services.simulator.websocket import Sockets
from services.simulator.wire import Request


class _Connection:
    """Remembers what is written to it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def upgrade(self, head: bytes, *_: object) -> None:
        self.written.append(head)

    def write(self, data: bytes) -> None:
        self.written.append(data)


def _handshake(client_id: str) -> Request:
    headers = {"upgrade": "websocket", "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}
    return Request("GET", f"/ws?clientId={client_id}", "/ws", f"clientId={client_id}", headers)


def _events(data: bytes) -> list[str]:
    """Types of the text frames, all shorter than 126 bytes."""
    found = []
    while data:
        length = data[1]
        found.append(json.loads(data[2 : 2 + length])["type"])
        data = data[2 + length :]
    return found


def test_all_that_is_said_before_a_flush_is_written_once_in_its_order() -> None:
    sockets, one, other = Sockets({}), _Connection(), _Connection()
    sockets.open(_handshake("one"), one, {}, None)  # type: ignore[arg-type] - what a socket uses of a connection
    sockets.open(_handshake("other"), other, {}, None)  # type: ignore[arg-type] - as above
    one.written.clear()
    other.written.clear()

    sockets.send("status", {}, None)
    sockets.send("executing", {"node": "1"}, "one")
    sockets.send("progress_state", {}, None)
    assert one.written == other.written == []

    sockets.flush()
    sockets.flush()
    assert [_events(data) for data in one.written] == [["status", "executing", "progress_state"]]
    assert [_events(data) for data in other.written] == [["status", "progress_state"]]
