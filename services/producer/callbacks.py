"""POST /callbacks/{provider}/{job_key}: a provider says that a job has ended, so its row is looked at now.

The call changes nothing else, so a false one costs one question to the provider. A signature that does not fit is
refused all the same. A provider calls again when it does not hear of a success.
"""

import asyncio
import logging
import uuid
from collections.abc import Mapping
from typing import Final, Protocol

from fastapi import Request, Response

from services.producer.bodies import BODY_SECONDS
from services.producer.database_calls import DatabaseCalls
from services.producer.problem import Refused
from shared.domain.errors import ProviderAway

log = logging.getLogger(__name__)

PATH: Final = "/callbacks/{provider}/{job_key}"
#: Of a signed call, which names its pictures; an unsigned one may bring them along, is thrown away and may be larger.
_MAX_SIGNED: Final = 1024 * 1024
_MAX_UNSIGNED: Final = 64 * 1024 * 1024


class Counter(Protocol):
    def count(self, name: str, amount: float = 1, /, **labels: str) -> None: ...


class Rows(Protocol):
    """Raises DatabaseAway."""

    def called(self, provider: str, job_key: uuid.UUID, job_id: str | None) -> bool: ...


class Signatures(Protocol):
    @property
    def are_checked(self) -> bool: ...
    def fits(self, headers: Mapping[str, str], body: bytes) -> bool: ...
    def job_id(self, body: bytes) -> str | None: ...


class Callbacks:
    """providers -- by name, those that may call"""

    def __init__(self, providers: Mapping[str, Signatures], rows: Rows, calls: DatabaseCalls, metrics: Counter) -> None:
        self._providers = providers
        self._rows = rows
        self._calls = calls
        self._metrics = metrics

    async def take(self, request: Request) -> Response:
        """204; a problem otherwise."""
        provider = request.path_params["provider"]
        try:
            signatures = self._providers[provider]
            job_key = uuid.UUID(request.path_params["job_key"])
        except (KeyError, ValueError):
            raise self._refused("unknown", "not_found", "nobody is called back here") from None
        job_id = await self._job_id(request, signatures)
        if not await self._calls.run(lambda: self._rows.called(provider, job_key, job_id)):
            raise self._refused("unknown", "not_found", "no job of this name was sent there")
        self._metrics.count("callbacks_total", result="taken")
        return Response(status_code=204)

    async def _job_id(self, request: Request, signatures: Signatures) -> str | None:
        """What a call names that is surely the provider's. Raises Refused."""
        if not signatures.are_checked:
            await self._body(request, _MAX_UNSIGNED, kept=False)
            return None
        body = await self._body(request, _MAX_SIGNED)
        try:
            # The keys may have to be asked for, which may take some seconds.
            fits = await asyncio.to_thread(signatures.fits, dict(request.headers), body)
        except ProviderAway as error:
            log.warning("a callback cannot be checked", extra={"why": str(error)})
            raise self._refused("unchecked", "signature_unchecked", "call again: the keys cannot be had now") from error
        if not fits:
            raise self._refused("forged", "bad_signature", "this signature is not the provider's, or too old")
        return signatures.job_id(body)

    async def _body(self, request: Request, at_most: int, *, kept: bool = True) -> bytes:
        """kept -- false: it is read to its end and thrown away"""
        body = bytearray()
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    size += len(chunk)
                    if kept:
                        body += chunk
                    if size > at_most:
                        raise self._refused("unchecked", "too_large", f"more than {at_most} bytes")
        except TimeoutError:
            raise self._refused("unchecked", "too_slow", f"{size} bytes within {BODY_SECONDS:g} s") from None
        return bytes(body)

    def _refused(self, result: str, code: str, detail: str) -> Refused:
        self._metrics.count("callbacks_total", result=result)
        closes = {"Connection": "close"} if code in ("too_large", "too_slow") else {}
        return Refused(code, detail, headers=closes)
