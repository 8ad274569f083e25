"""Where pika's own behaviour costs messages or time, and what is done instead. Nothing else relies on its insides."""

import contextlib
import logging
import struct
from collections.abc import Callable
from typing import Any, Final

import pika
from pika.adapters.select_connection import SelectConnection
from pika.channel import Channel
from pika.exceptions import InvalidFrameError
from pika.frame import Frame, Header, ProtocolHeader
from pika.spec import FRAME_END_SIZE, FRAME_HEADER, FRAME_HEADER_SIZE, BasicProperties

from shared.broker.io_loop import Loop

log = logging.getLogger(__name__)

#: Class id, weight and body size: what stands before the properties in a header frame.
_BEFORE_PROPERTIES: Final = 12
#: Of a write that the socket takes in parts, the rest is copied each time.
_LONGEST_WRITE: Final = 64 * 1024


class Connection(SelectConnection):
    """A connection that outlives messages whose header table pika cannot read, and delivers them without it.

    AMQP knows values that Python's types do not: a date beyond the year 9999 (milliseconds where seconds belong), a
    float that is not a number. pika raises while it reads the frame and gives the connection up, so the same message
    comes again, and all that was prefetched with it runs into the delivery limit.

    What it sends in one turn of the loop leaves in one write. pika writes frame by frame, three for a message: 8 system
    calls an order in a submitter.
    """

    def __init__(
        self,
        parameters: pika.URLParameters,
        loop: Loop,
        *,
        on_open: Callable[["Connection"], None],
        on_gone: Callable[["Connection", BaseException], None],
    ) -> None:
        self._loop = loop
        self._emitted: list[bytes] = []
        self._emitted_bytes = 0
        super().__init__(parameters, on_open, on_gone, on_gone, custom_ioloop=loop)

    def _adapter_emit_data(self, data: bytes) -> None:
        if not self._emitted:
            self._loop.at_turn_end(self._write)
        self._emitted.append(data)
        self._emitted_bytes += len(data)
        if self._emitted_bytes >= _LONGEST_WRITE:
            self._write()

    def _write(self) -> None:
        emitted, self._emitted, self._emitted_bytes = self._emitted, [], 0
        if emitted and self._transport is not None:
            super()._adapter_emit_data(b"".join(emitted))

    def _read_frame(self) -> tuple[int, Frame | ProtocolHeader | None]:
        try:
            return super()._read_frame()
        except InvalidFrameError:
            raise  # the stream itself is broken
        except Exception:
            found = _without_table(self._frame_buffer)
            if found is None:
                raise
            log.warning("headers of a message cannot be decoded and are left out", exc_info=True)
            return found


def cancel(channel: Channel, consumer_tag: str, done: Callable[[], None]) -> None:
    """End a consumer; `done` runs once nothing more comes. What is on its way until then is still delivered.

    pika rejects those deliveries by itself, and each rejection counts towards the delivery limit.
    """
    channel.basic_cancel(consumer_tag, callback=lambda _: done())
    channel._cancelled.discard(consumer_tag)


def hang_up(connection: Connection) -> None:
    """End a connection that is being closed without waiting for the other side any longer.

    pika says goodbye to each channel first, behind whatever that one was asked and has not answered.
    """
    connection._terminate_stream(None)


def _without_table(buffer: bytes) -> tuple[int, Header] | None:
    """The frame at the start of `buffer`, and its length, without the header table; None when it is no header frame."""
    kind, channel_number, size = struct.unpack_from(">BHL", buffer)
    if kind != FRAME_HEADER:
        return None
    content = buffer[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + size]
    (body_size,) = struct.unpack_from(">4xQ", content)
    properties: Any = BasicProperties()  # type: ignore[no-untyped-call]  # pika's own annotations are partial
    with contextlib.suppress(Exception):  # then it was no header: what was read before it stays, the rest is None
        properties.decode(_table_cut(content[_BEFORE_PROPERTIES:]))
    return FRAME_HEADER_SIZE + size + FRAME_END_SIZE, Header(channel_number, body_size, properties)


def _table_cut(encoded: bytes) -> bytes:
    """Encoded properties without `headers`, which come third, after two short strings."""
    (flags,) = struct.unpack_from(">H", encoded)
    if not flags & BasicProperties.FLAG_HEADERS:
        return encoded
    start = 2
    for flag in (BasicProperties.FLAG_CONTENT_TYPE, BasicProperties.FLAG_CONTENT_ENCODING):
        if flags & flag:
            start += 1 + encoded[start]
    (size,) = struct.unpack_from(">I", encoded, start)
    return struct.pack(">H", flags & ~BasicProperties.FLAG_HEADERS) + encoded[2:start] + encoded[start + 4 + size :]
