"""How many requests of one client are answered at a time: whoever sends too many waits, and nobody else does."""

import hashlib
from collections import Counter
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from services.producer.problem import Refused

#: Requests of one client under way in this process. One lasts milliseconds; what piles up here is slow bodies, slow
#: readers of pictures, and a database that does not answer.
MAX_PER_CLIENT: Final = 100
#: Event streams stay open by design, and have a limit of their own.
_STREAMS: Final = "/events"


class Turnstile:
    """by_token -- a client is whoever sends the same `Authorization`; else it is an address

    A token that is none of ours is refused before anything is waited for, so making them up gets nobody further.
    """

    def __init__(self, app: ASGIApp, *, by_token: bool, at_most: int = MAX_PER_CLIENT) -> None:
        self._app = app
        self._by_token = by_token
        self._at_most = at_most
        self._inside: Counter[bytes] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].endswith(_STREAMS):
            await self._app(scope, receive, send)
            return
        client = self._client(scope)
        if self._inside[client] >= self._at_most:
            detail = f"{self._at_most} of your requests are under way; send this one again when some are answered"
            await Refused("too_many_requests", detail).answer()(scope, receive, send)
            return
        self._inside[client] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside[client] -= 1
            if not self._inside[client]:
                del self._inside[client]

    def _client(self, scope: Scope) -> bytes:
        if self._by_token and (sent := Headers(scope=scope).get("authorization")):
            return hashlib.sha256(sent.encode("latin-1")).digest()
        address = scope["client"]
        return b"" if address is None else str(address[0]).encode()
