"""Listens to each ComfyUI's websocket. What it says only speeds things up; the checks decide.

A ComfyUI tells every socket how long its queue is. When it got shorter, or the socket came back after a break, the
running jobs of that server are checked now instead of at their next look. The same loop knows best whether the
server is there at all, so it writes `health`.
"""

import json
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable
from typing import Final, Protocol

import websocket

from shared.database.leader import Leader
from shared.database.slots import Backend, Slots
from shared.loop import keep_turning
from shared.observe.metrics import Metrics

log = logging.getLogger(__name__)

_RECONNECT_SECONDS: Final = 1.0
_CONNECT_SECONDS: Final = 5.0
#: How long a silent socket is waited for before anything else has its turn: a SIGTERM, the lead, the server's health.
_RECEIVE_SECONDS: Final = 1.0
_SHORTEST_SECONDS: Final = 0.001
#: A socket that answers no ping is opened again: its other end may be gone while the server itself answers.
_SILENT_SECONDS: Final = 5.0
#: A submitter that found the server unreachable writes `down`; while the socket lives nobody else would take that back.
_ALIVE_SECONDS: Final = 5.0
#: Several jobs that end together, and the moment until the history shows them, become one hint.
_GATHER_SECONDS: Final = 0.05
#: Between two hints: a busy server says hundreds of times a second that its queue got shorter.
_APART_SECONDS: Final = 0.2


class Alive(Protocol):
    """What the watcher needs of a provider."""

    def is_alive(self) -> bool | None: ...


class Watch:
    """One thread per backend; of several pollers the one that holds the backend's advisory lock listens.

    hint -- have somebody look which jobs ended there
    """

    def __init__(
        self,
        backend: Backend,
        provider: Alive,
        slots: Slots,
        leader: Leader,
        *,
        hint: Callable[[], None],
        stopping: threading.Event,
        beat: Callable[[], None],
        metrics: Metrics,
    ) -> None:
        self._name = backend.name
        self._provider = provider
        self._slots = slots
        self._leader = leader
        self._hint = hint
        self._stopping = stopping
        self._beat = beat
        self._metrics = metrics
        # A clientId of our own per connection: of two sockets with one id the server forgets both.
        self._url = backend.url.replace("http", "ws", 1).rstrip("/") + "/ws?clientId="

    def run(self) -> None:
        """Listen until told to stop. Nothing that goes wrong here stops an order."""
        keep_turning("watch", self._turn, stopping=self._stopping, beat=self._beat, metrics=self._metrics)

    def _turn(self) -> float:
        if self._leader.leads(self._name):
            self._listen()
        return _RECONNECT_SECONDS

    def _listen(self) -> None:
        try:
            # What is no UTF-8 is no JSON either; looking at each byte of it in Python takes longer than all the rest.
            socket = websocket.create_connection(
                self._url + uuid.uuid4().hex, timeout=_CONNECT_SECONDS, skip_utf8_validation=True
            )
        except (OSError, websocket.WebSocketException) as error:
            # No websocket is not yet no server: a proxy may not let it through.
            if not self._is_alive() and self._slots.set_health(self._name, "down", str(error), only_from="up"):
                log.warning("backend health changed", extra={"backend": self._name, "health": "down"})
            return
        try:
            self._is_up()
            self._hint()
            self._follow(socket)
        except (OSError, websocket.WebSocketException) as error:
            log.info("websocket gone", extra={"backend": self._name, "why": str(error)})
        finally:
            # Not `close`, which waits 3 s for an answer from whoever has just given none.
            socket.shutdown()  # type: ignore[no-untyped-call]  # its annotations are partial

    def _is_alive(self) -> bool:
        """Whether the server answers; one that was down is up again then."""
        alive = self._provider.is_alive()
        if alive:
            self._is_up()
        return alive is not False

    def _is_up(self) -> None:
        """It answers. So does a frozen one, behind a proxy even on a new connection: check lifts that, or a person."""
        if self._slots.set_health(self._name, "up", only_from="down"):
            log.info("backend health changed", extra={"backend": self._name, "health": "up"})

    def _follow(self, socket: websocket.WebSocket) -> None:
        remaining = 0
        heard_at = time.monotonic()
        ask_at = heard_at + _ALIVE_SECONDS
        hinted_at, hint_at = heard_at, math.inf
        turn_at = heard_at
        while not self._stopping.is_set():
            now = time.monotonic()
            if now >= turn_at:  # not at each of hundreds of messages a second
                if not self._leader.leads(self._name):
                    return
                self._beat()
                turn_at = now + _RECEIVE_SECONDS
            if now >= ask_at:
                if not self._is_alive():
                    return  # a peer that vanished closes no socket; connecting again tells
                ask_at = time.monotonic() + _ALIVE_SECONDS
            if now >= hint_at:
                self._hint()
                hinted_at, hint_at = time.monotonic(), math.inf
            # Read on until it is time: what is left unread would bring hints long after there is nothing to be found.
            socket.settimeout(max(_SHORTEST_SECONDS, min(_RECEIVE_SECONDS, hint_at - time.monotonic())))
            try:
                opcode, text = socket.recv_data(control_frame=True)
            except websocket.WebSocketTimeoutException:
                if hint_at < math.inf:
                    continue
                if time.monotonic() - heard_at > _SILENT_SECONDS:
                    raise websocket.WebSocketTimeoutException("our pings are not answered") from None
                socket.ping()
                continue
            heard_at = time.monotonic()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                return
            length = _queue_remaining(text) if opcode == websocket.ABNF.OPCODE_TEXT else None
            if length is None:
                continue
            if length < remaining:
                hint_at = min(hint_at, max(heard_at + _GATHER_SECONDS, hinted_at + _APART_SECONDS))
            remaining = length


def _queue_remaining(text: bytes) -> int | None:
    """The queue length in a `status` message; None for every other message, known or not."""
    if b"queue_remaining" not in text:  # most are not worth reading
        return None
    try:
        message = json.loads(text)
        if message.get("type") != "status":
            return None
        return int(message["data"]["status"]["exec_info"]["queue_remaining"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
