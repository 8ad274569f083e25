"""The body of an HTTP answer, piece by piece, for as long as we are willing to wait."""

import time
from collections.abc import Iterator
from typing import Final

import requests

_PIECE: Final = 64 * 1024


def pieces(response: requests.Response, ends: float) -> Iterator[bytes]:
    """What has arrived, as it arrives. Raises requests.ReadTimeout past `ends` (monotonic).

    Not `iter_content`: it waits until a piece is full, and a server that sends one byte at a time keeps it waiting past
    every time-out. A body that ends before its Content-Length raises an exception of urllib3.
    """
    while piece := response.raw.read1(_PIECE, decode_content=True):
        yield piece
        if time.monotonic() > ends:
            raise requests.ReadTimeout("the answer did not end in time")
