"""Who may use the HTTP interface, and for what: bearer tokens from the settings, or whoever is on this machine."""

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from services.producer.problem import Refused

#: Hexadecimal digits of a token's hash that name it in operator_actions: enough to tell two of them apart.
_NAME_DIGITS: Final = 8

_BEARER: Final = HTTPBearer(
    auto_error=False,
    description="One of DARKROOM_HTTP_TOKENS; for GET and HEAD one of DARKROOM_HTTP_READ_TOKENS will do.",
)
#: What a token that may only look is good for.
_LOOKING: Final = frozenset({"GET", "HEAD"})


class Gate:
    """Lets in who has a token; when there are none, who is on this machine. A dependency of every route under /v1.

    A page from elsewhere in a browser on this machine is not: it may send simple requests here, and once its own name
    leads to a loopback address (DNS rebinding) read the answers. Either shows in Host or Origin.

    tokens      -- good for everything
    read_tokens -- good for GET and HEAD
    """

    def __init__(self, tokens: Sequence[str], read_tokens: Sequence[str] = ()) -> None:
        self._readers = [_digest(token.encode()) for token in read_tokens]
        self._digests = [_digest(token.encode()) for token in tokens] + self._readers

    async def __call__(
        self, request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
    ) -> None:
        """`request.state.caller` is who asks. Raises Refused."""
        request.state.caller = "http"
        if not self._digests:
            if not _is_from_here(request):
                raise Refused("not_from_here", "ask 127.0.0.1 or localhost itself, or set DARKROOM_HTTP_TOKENS")
            return
        if credentials is None:
            raise _unauthorized("send `Authorization: Bearer <token>`", "Bearer")
        given = _digest(credentials.credentials.encode("latin-1"))  # as Starlette decoded it
        # Every one is compared, each in constant time: how long it takes says nothing about any of them.
        fitting = [digest for digest in self._digests if hmac.compare_digest(digest, given)]
        if not fitting:
            raise _unauthorized("this token is none of ours", 'Bearer error="invalid_token"')
        if fitting[0] in self._readers and request.method not in _LOOKING:
            raise Refused("forbidden", "this token may look at orders, and not place or cancel any")
        request.state.caller = f"http token {fitting[0].hex()[:_NAME_DIGITS]}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on `host`. A name other than localhost may lead anywhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_from_here(request: Request) -> bool:
    """Whether both the address that was asked and the page that asks, if it is one, are of this machine."""
    asked = [f"//{host}" for host in request.headers.getlist("Host")]
    try:
        return all(is_loopback(urlsplit(url).hostname or "") for url in [*asked, *request.headers.getlist("Origin")])
    except ValueError:
        return False


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _unauthorized(detail: str, challenge: str) -> Refused:
    return Refused("unauthorized", detail, headers={"WWW-Authenticate": challenge})
