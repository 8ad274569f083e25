"""The watcher beside a server whose queue changes faster than anybody can look."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import websocket

from services.poller.watch import Watch
from tests.factories import MEASURED


class Busy:
    """A socket with so many lengths of the queue, and no word more once all are read; then the watcher is stopped."""

    def __init__(self, lengths: Iterator[int], stopping: threading.Event) -> None:
        self._lengths = lengths
        self._stopping = stopping
        self._seconds = 0.0
        self._silent = 0
        self.read_at = 0.0

    def settimeout(self, seconds: float) -> None:
        self._seconds = seconds

    def recv_data(self, **_: object) -> tuple[int, bytes]:
        for length in self._lengths:
            self.read_at = time.monotonic()
            status = {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": length}}}}
            return websocket.ABNF.OPCODE_TEXT, json.dumps(status).encode()
        self._silent += 1
        if self._silent > 2:
            self._stopping.set()
        time.sleep(min(0.3, self._seconds))
        raise websocket.WebSocketTimeoutException("nothing")

    def ping(self) -> None: ...


def test_however_often_a_queue_gets_shorter_the_hints_are_few_and_the_last_one_comes_when_all_is_read() -> None:
    stopping, hints = threading.Event(), list[float]()
    backend: Any = type("Backend", (), {"name": "gpu-1", "url": "http://127.0.0.1:1"})
    leader: Any = type("Leader", (), {"leads": staticmethod(lambda _: True)})
    provider: Any = type("Alive", (), {"is_alive": staticmethod(lambda: True)})
    slots: Any = type("Slots", (), {"set_health": staticmethod(lambda *_, **__: False)})
    watch = Watch(
        backend,
        provider,
        slots,
        leader,
        hint=lambda: hints.append(time.monotonic()),
        stopping=stopping,
        beat=lambda: None,
        metrics=MEASURED,
    )
    socket: Any = Busy(iter(range(500, 0, -1)), stopping)

    watch._follow(socket)

    assert 1 <= len(hints) <= 3
    assert hints[-1] >= socket.read_at
