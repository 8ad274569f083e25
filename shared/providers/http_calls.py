"""One HTTP call to a provider's API, and what its ending means. Sent once, followed nowhere, read against a clock."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import requests
import urllib3
from requests.adapters import HTTPAdapter

from shared.domain.errors import ProviderAway
from shared.providers.answers import Answer
from shared.providers.body import as_json, pieces
from shared.providers.comfyui_http import Observe
from shared.providers.heads import HTTPConnectionPool, HTTPSConnectionPool
from shared.providers.session import Session

#: Largest answer read; a picture in base64 is a third larger than the picture.
_MAX_BYTES: Final = 128 * 2**20
#: A shorter word of the header with our key is the name of a scheme, as Bearer.
_SHORTEST_SECRET: Final = 8
#: Kept of an answer's text to look for what JSON does not say.
_MAX_TEXT: Final = 2000


class NoConnection(ProviderAway):
    """No connection came about, so nothing was asked and nothing was done."""


class NoAnswer(ProviderAway):
    """The request left and no usable answer came."""


class Calls:
    """The calls to one provider, from any thread.

    key -- the value of the header with our key; what answers quote of it is taken out before anybody reads them
    """

    def __init__(self, connect_seconds: float, observe: Observe, key: str) -> None:
        self._secrets = [word.encode() for word in key.split() if len(word) >= _SHORTEST_SECRET]
        self._connect = connect_seconds
        self._observe = observe
        self._local = threading.local()

    def once(
        self, method: str, url: str, operation: str, *, read: float, headers: Mapping[str, str], content: bytes
    ) -> Answer:
        """A command that must leave once, so on a connection of its own: a kept one that the provider closes just as
        we send looks like a lost answer. Raises NoConnection, NoAnswer.
        """
        with _session() as session:
            return self._call(session, method, url, operation, read=read, headers=headers, content=content)

    def ask(self, method: str, url: str, operation: str, *, read: float, headers: Mapping[str, str]) -> Answer:
        """A question, or a command that does no harm when it is carried out twice. Raises NoConnection, NoAnswer."""
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = _session()
        try:
            return self._call(session, method, url, operation, read=read, headers=headers, content=None)
        except _Broken:  # most often a kept connection that the provider has closed
            return self._call(session, method, url, operation, read=read, headers=headers, content=None)

    def _call(
        self,
        session: requests.Session,
        method: str,
        url: str,
        operation: str,
        *,
        read: float,
        headers: Mapping[str, str],
        content: bytes | None,
    ) -> Answer:
        result = "other"
        began = time.monotonic()
        try:
            request = _prepared(session, method, url, headers, content)
            with _translated(method):
                response = session.send(request, timeout=(self._connect, read), allow_redirects=False, stream=True)
                with response:
                    raw = bytearray()
                    for piece in pieces(response.raw, began + self._connect + read):
                        raw += piece
                        if len(raw) > _MAX_BYTES:
                            raise NoAnswer(f"{method}: the answer is larger than {_MAX_BYTES} bytes")
            for secret in self._secrets:
                raw = raw.replace(secret, b"***")
            body = as_json(bytes(raw))
            result = _result(response.status_code, is_readable=body is not None or not raw)
            text = raw[:_MAX_TEXT].decode("utf-8", "replace")
            return Answer(response.status_code, dict(response.headers), body, text)
        except NoConnection:
            result = "connect"
            raise
        except Silence:
            result = "timeout"
            raise
        finally:
            self._observe(operation, result, time.monotonic() - began)


class Silence(NoAnswer):
    """Nobody said anything for too long; something between us and the provider may still deliver the request."""


class _Broken(NoAnswer):
    """Reset or closed before the answer was whole."""


def _prepared(
    session: requests.Session, method: str, url: str, headers: Mapping[str, str], content: bytes | None
) -> requests.PreparedRequest:
    """Raises NoConnection for what cannot be sent. Apart from the sending: an answer's bad header has the same name."""
    ours = {"User-Agent": "darkroom", "Accept": "application/json", **headers}
    try:
        return session.prepare_request(requests.Request(method, url, data=content, headers=ours))
    except (requests.RequestException, ValueError) as error:
        raise NoConnection(f"{method}: not a request that can be sent ({type(error).__name__})") from error


def _session() -> requests.Session:
    """Never a Retry on it: it would send a POST again."""
    session = Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(max_retries=0))
    return session


class _Adapter(HTTPAdapter):
    """Connections whose answers begin in time, or a call could outlive its lease."""

    def init_poolmanager(self, *args: Any, **named: Any) -> None:
        super().init_poolmanager(*args, **named)
        self.poolmanager.pool_classes_by_scheme = {"http": HTTPConnectionPool, "https": HTTPSConnectionPool}


@contextmanager
def _translated(method: str) -> Iterator[None]:
    """Which exception of requests 2.34 and urllib3 2.8 means what; measured against broken sockets."""
    try:
        yield
    except requests.ConnectTimeout as error:
        raise NoConnection(f"{method}: no connection in time") from error
    except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
        raise Silence(f"{method}: no answer in time") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        reason = getattr(error.args[0], "reason", None) if error.args else None
        if isinstance(reason, urllib3.exceptions.NewConnectionError):  # refused, no such host, or no trusted one
            raise NoConnection(f"{method}: no connection") from error
        raise _Broken(f"{method}: connection lost ({type(error).__name__})") from error


def _result(status: int, *, is_readable: bool) -> str:
    if status == 429:
        return "http_429"
    if status >= 500:
        return "http_5xx"
    if status >= 300:
        return "http_4xx"
    return "ok" if is_readable else "bad_response"
