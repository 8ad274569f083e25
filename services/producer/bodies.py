"""The body of a request: no more of it is ever held than its limit, and none is waited for longer than a while."""

import asyncio
from typing import Final

from fastapi import Request

from services.producer.orders import BadOrder, TooLarge
from services.producer.problem import Refused
from shared.domain.messages import MAX_ORDER_BYTES

#: The largest body takes 5 s at 100 kbit/s.
BODY_SECONDS: Final = 10.0


async def body_of(request: Request) -> bytes:
    """The whole body. Raises TooLarge, Refused."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_ORDER_BYTES:
                    raise TooLarge
    except TimeoutError:
        detail = f"{len(body)} bytes arrived within {BODY_SECONDS:g} s"
        # What still arrives of it is no next request.
        raise Refused("too_slow", detail, headers={"Connection": "close"}) from None
    return bytes(body)


def refusal(error: BadOrder, code: str) -> Refused:
    """The problem for a body that was read and is wrong. code -- when it is JSON of a fitting size"""
    if isinstance(error, TooLarge):
        return Refused("too_large", str(error))
    if not error.is_json:
        return Refused("malformed_json", str(error))
    return Refused(code, str(error), mistakes=error.mistakes)
