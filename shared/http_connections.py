"""The HTTP server of the producer and of the console; none of its connections waits for ever for a request's head."""

import asyncio
import socket
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Bytes of a request's line and headers.
MAX_HEAD_BYTES: Final = 32 * 1024
#: h11 lets a head of any length pass that is there as a whole when it looks, and asyncio reads 256 KiB at a time.
_PIECE_BYTES: Final = 8 * 1024
#: From the connection, or the answer before, to the end of the head. uvicorn itself waits for ever.
HEAD_SECONDS: Final = 10.0


def http_server(app: ASGIApp, drain_seconds: float) -> uvicorn.Server:
    """A server for `app`, to be run on a socket that listens already."""
    config = uvicorn.Config(
        app,
        http=Connection,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(drain_seconds),
    )
    return uvicorn.Server(config)


class Connection(H11Protocol):
    """Closes itself when no request is under way and none has begun within HEAD_SECONDS."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # asyncio does so only where the listener was made with a protocol number, and socket.create_server gives none:
        # the body then waits 40 ms for the client's delayed acknowledgement of the head.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE_BYTES):
            if self.transport.is_closing():
                break
            super().data_received(data[start : start + _PIECE_BYTES])
        if self._is_answering and self._late is not None:
            self._late.cancel()
            self._late = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._late is not None:
            self._late.cancel()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if not self._is_answering:
            self.transport.close()
