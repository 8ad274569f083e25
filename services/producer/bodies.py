"""The body of a request: no more than the limit of it is ever held."""

from fastapi import Request

from services.producer.orders import BadOrder, TooLarge
from services.producer.problem import Refused
from shared.domain.messages import MAX_ORDER_BYTES


async def body_of(request: Request) -> bytes:
    """The whole body. Raises TooLarge."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_ORDER_BYTES:
            raise TooLarge
    return bytes(body)


def refusal(error: BadOrder, code: str) -> Refused:
    """The problem for a body that was read and is wrong. code -- when it is JSON of a fitting size"""
    if isinstance(error, TooLarge):
        return Refused("too_large", str(error))
    if not error.is_json:
        return Refused("malformed_json", str(error))
    return Refused(code, str(error), mistakes=error.mistakes)
