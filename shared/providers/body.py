"""The body of an HTTP answer: piece by piece, for as long as we are willing to wait, and what it says."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import urllib3
from pydantic_core import from_json

_PIECE: Final = 64 * 1024


class TooSlow(urllib3.exceptions.HTTPError):
    """The body had not ended when its time was up, however steadily it came."""


def pieces(response: urllib3.BaseHTTPResponse, ends: float) -> Iterator[bytes]:
    """What has arrived, as it arrives. Raises TooSlow past `ends` (monotonic), else what urllib3 raises.

    Not `stream`: it waits until a piece is full, and a server that sends one byte at a time keeps it waiting past every
    time-out. A body that ends before its Content-Length raises too.
    """
    while piece := response.read1(_PIECE, decode_content=True):
        yield piece
        if time.monotonic() > ends:
            raise TooSlow("the answer did not end in time")


def as_json(raw: bytes) -> Any:
    """What a whole body says; None when it is not JSON, or is nested too deep to be read. Pure.

    pydantic's reader takes half the time and refuses some of what Python's reads, as half a character.
    """
    with suppress(ValueError):
        return from_json(raw)
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None
