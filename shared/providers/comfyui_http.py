"""One HTTP call to one ComfyUI server, and what its ending means. No retry of anything that changes something.

ProviderAway
├── NoConnection       nothing left this machine: the server cannot have seen the request
└── NoAnswer           the request may have arrived, and no usable answer came back
    ├── BrokenConnection   the connection ended: what has not arrived by now never will
    ├── BadAnswer          somebody answered, so the request has arrived
    └── Silence            nobody said anything: it may arrive later, if a network or a proxy holds it back
"""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final
from urllib.parse import urlencode

import urllib3

from shared.domain.errors import ProviderAway
from shared.providers.body import TooSlow, pieces
from shared.providers.heads import HTTPConnectionPool, HTTPSConnectionPool
from shared.providers.retry_after import retry_after_seconds

#: Called once per HTTP call with (operation, result, seconds).
#: operation: submit, poll, download, cancel, health, upload
#: result:    ok, timeout, connect, http_429, http_4xx, http_5xx, bad_response, other
Observe = Callable[[str, str, float], None]

#: Largest JSON answer read. A queue of 2 000 graphs is 5 MB.
_MAX_JSON_BYTES: Final = 64 * 2**20
_KEPT_CONNECTIONS: Final = 32
#: SO_LINGER of no seconds: closing forgets what has not been sent. An orderly close leaves it to the kernel, which may
#: send it minutes later, when the network is back.
_FORGET_UNSENT: Final = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
#: What a proxy's error page is, and no picture: the one that was asked for may be there, so it is asked for again.
_NO_FILE: Final = ("text/", "application/json")
_HEADERS: Final = {"User-Agent": "darkroom", "Accept": "*/*", "Accept-Encoding": "gzip, deflate"}
#: Nothing is repeated, nothing is followed, the body is read piece by piece.
_AS_IT_IS: Final[Mapping[str, Any]] = {"retries": False, "redirect": False, "preload_content": False}


class NoConnection(ProviderAway):
    """No connection came about, so nothing was asked and nothing was done."""


class NoAnswer(ProviderAway):
    """The request left and no usable answer came."""


class BadAnswer(NoAnswer):
    """The server answers, but not as ComfyUI does; asking about something else may work."""


class BrokenConnection(NoAnswer):
    """Reset or closed before the answer was whole."""


class Silence(NoAnswer):
    """Nobody said anything for too long, we or a proxy before the server: the request may still be on its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds. `read` is the longest silence; a body that trickles is cut off once connect + read are over."""

    connect: float = 5.0
    submit_read: float = 30.0
    upload_read: float = 30.0
    read: float = 10.0
    view_read: float = 60.0
    view_limit: float = 300.0
    #: How long a request may sit in a socket buffer after its connection broke.
    settle: float = 2.0
    #: How long `cancel` waits to see the job leave.
    cancel_wait: float = 2.0
    cancel_poll: float = 0.1

    @property
    def look(self) -> float:
        return self.connect + self.read

    @property
    def post(self) -> float:
        return self.connect + self.submit_read


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    #: The decoded JSON, None when the body is no JSON.
    body: Any
    text: str
    #: Seconds, as Retry-After says; None: it does not.
    retry_after: float | None


class Server:
    """The calls of one server, from any thread.

    urllib3 itself and not requests: the same connections, at half the CPU time per call (docs/decisions/0006).
    """

    def __init__(self, url: str, timings: Timings, observe: Observe, on_lost: Callable[[], None]) -> None:
        parts = urllib3.util.parse_url(url)
        self._base = (parts.path or "").rstrip("/")
        self._kept = _pool(parts)
        #: Never holds a connection, since each call closes its own; given up, it sends nothing more.
        self._once = _pool(parts, _FORGET_UNSENT)
        self._timings = timings
        self._observe = observe
        self._on_lost = on_lost  # the server may come back as another version
        self._local = threading.local()

    @contextmanager
    def until(self, ends: float) -> Iterator[None]:
        """No call of this thread goes past `ends` (monotonic) inside; without time left it raises NoConnection."""
        self._local.ends = ends
        try:
            yield
        finally:
            self._local.ends = None

    def get(self, path: str, operation: str, params: Mapping[str, str] | None = None) -> Answer:
        """A question. Asked again once, on a new connection, when a kept-alive one turns out to be dead."""
        for is_last in (False, True):
            try:
                return self._json("GET", path, operation, read=self._timings.read, params=params)
            except BrokenConnection:
                if is_last:
                    raise
        raise AssertionError("unreachable")

    def post(self, path: str, operation: str, value: Any = None) -> Answer:
        """A command that does no harm when it is carried out twice."""
        return self._json("POST", path, operation, read=self._timings.read, json=value)

    def post_once(self, path: str, operation: str, data: bytes) -> Answer:
        """A command that must be sent once, so on a connection of its own.

        A kept-alive connection that the server closes just as we send looks exactly like a lost answer, and would cost
        the settling time for nothing. A new connection costs 0.3 ms on loopback.
        """
        headers = {"Content-Type": "application/json", "Connection": "close"}
        return self._json(
            "POST", path, operation, read=self._timings.submit_read, pool=self._once, body=data, headers=headers
        )

    def upload(self, filename: str, content: bytes, fields: Mapping[str, str]) -> Answer:
        """POST /upload/image. The same bytes under the same name are stored once."""
        form: dict[str, str | tuple[str, bytes, str]] = {**fields, "image": (filename, content, "image/png")}
        body, content_type = urllib3.encode_multipart_formdata(form)
        headers = {"Content-Type": content_type}
        return self._json("POST", "/upload/image", "upload", read=self._timings.upload_read, body=body, headers=headers)

    def exists(self, params: Mapping[str, str]) -> bool:
        """Whether a complete PNG lies there. A crash can leave half a file, which does not end in IEND."""
        head = self._json("HEAD", "/view", "poll", read=self._timings.read, params=params)
        if head.status == 404:
            return False
        if head.status != 200:
            raise BadAnswer(f"HEAD /view: HTTP {head.status}")
        with self._open("/view", "poll", params, read=self._timings.read, headers={"Range": "bytes=-12"}) as response:
            if response.status not in (200, 206):
                raise BadAnswer(f"GET /view of the last bytes: HTTP {response.status}")
            tail = b""
            for chunk in pieces(response, time.monotonic() + self._timings.view_limit):
                tail = (tail + chunk)[-12:]
        return tail[4:8] == b"IEND"

    def download(self, params: Mapping[str, str], target: BinaryIO, max_bytes: int) -> int | None:
        """Write a file into `target` and return its size; None when it is gone. Raises ValueError above `max_bytes`."""
        with self._open("/view", "download", params, read=self._timings.view_read) as response:
            if response.status == 404:
                return None
            if response.status != 200:
                raise BadAnswer(f"GET /view: HTTP {response.status}")
            kind = response.headers.get("Content-Type", "")
            if kind.startswith(_NO_FILE):
                raise BadAnswer(f"GET /view: {kind[:100]}, not a file of ComfyUI")
            size = 0
            for chunk in pieces(response, time.monotonic() + self._timings.view_limit):
                size += len(chunk)
                if size > max_bytes:
                    raise ValueError(f"the picture is larger than {max_bytes} bytes")
                target.write(chunk)
        return size

    def _json(
        self,
        method: str,
        path: str,
        operation: str,
        *,
        read: float,
        pool: urllib3.HTTPConnectionPool | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Answer:
        connect, read = self._patience(read)
        ends = time.monotonic() + connect + read
        with self._call(operation) as call, self._translated(method, path):
            response = (pool or self._kept).request(
                method,
                self._target(path, params),
                headers={**_HEADERS, **(headers or {})},
                timeout=urllib3.Timeout(connect=connect, read=read),
                **_AS_IT_IS,
                **more,
            )
            with _released(response):
                raw = bytearray()
                for chunk in pieces(response, ends):
                    raw += chunk
                    if len(raw) > _MAX_JSON_BYTES:
                        raise BadAnswer(f"{method} {path}: more than {_MAX_JSON_BYTES} bytes")
            body = _decoded(bytes(raw))
            call.result = _result(response.status, is_readable=body is not None or not raw)
            headers = response.headers
            wait = retry_after_seconds(headers.get("Retry-After"), headers.get("Date"), datetime.now(UTC))
            return Answer(response.status, body, raw[:500].decode("utf-8", "replace"), wait)

    @contextmanager
    def _open(
        self,
        path: str,
        operation: str,
        params: Mapping[str, str],
        *,
        read: float,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        connect, read = self._patience(read)
        with self._call(operation) as call, self._translated("GET", path):
            response = self._kept.request(
                "GET",
                self._target(path, params),
                headers={**_HEADERS, "Accept-Encoding": "identity", **(headers or {})},
                timeout=urllib3.Timeout(connect=connect, read=read),
                **_AS_IT_IS,
            )
            with _released(response):
                call.result = _result(response.status, is_readable=True)
                yield response

    def _target(self, path: str, params: Mapping[str, str] | None) -> str:
        return self._base + path + (f"?{urlencode(params)}" if params else "")

    def _patience(self, read: float) -> tuple[float, float]:
        """Connect and read time-out. A call can be silent three times: connecting, before its headers, in its body."""
        ends: float | None = getattr(self._local, "ends", None)
        if ends is None:
            return self._timings.connect, read
        third = (ends - time.monotonic()) / 3
        if third <= 0:
            raise NoConnection("no time is left for another call")
        return min(self._timings.connect, third), min(read, third)

    @contextmanager
    def _call(self, operation: str) -> Iterator["_Call"]:
        call = _Call()
        began = time.monotonic()
        try:
            yield call
        except NoConnection:
            call.result = "connect"
            raise
        except BadAnswer:
            call.result = "bad_response" if call.result in ("ok", "other") else call.result
            raise
        except Silence:
            call.result = "timeout"
            raise
        except BrokenConnection:
            call.result = "other"
            raise
        finally:
            self._observe(operation, call.result, time.monotonic() - began)

    @contextmanager
    def _translated(self, method: str, path: str) -> Iterator[None]:
        """Which exception of urllib3 means what; measured with urllib3 2.8 against broken sockets."""
        where = f"{method} {path}"
        try:
            yield
        except urllib3.exceptions.NewConnectionError as error:  # refused, or no such host
            self._on_lost()
            raise NoConnection(f"{where}: no connection") from error
        except urllib3.exceptions.ConnectTimeoutError as error:
            self._on_lost()
            raise NoConnection(f"{where}: no connection within {self._timings.connect} s") from error
        except (urllib3.exceptions.TimeoutError, TooSlow) as error:
            raise Silence(f"{where}: no answer in time") from error
        except urllib3.exceptions.HTTPError as error:
            self._on_lost()
            if any(isinstance(part, TimeoutError) for part in error.args):  # while a large body was sent
                raise Silence(f"{where}: no answer in time") from error
            raise BrokenConnection(f"{where}: connection lost ({type(error).__name__})") from error


@dataclass(slots=True)
class _Call:
    result: str = "other"


def _pool(url: urllib3.util.Url, *options: tuple[int, int, bytes]) -> urllib3.HTTPConnectionPool:
    """Connections to one server; more threads than it keeps connections for open and close their own."""
    kind = HTTPSConnectionPool if url.scheme == "https" else HTTPConnectionPool
    with_ours = [*kind.ConnectionCls.default_socket_options, *options]
    return kind(url.host or "", url.port, maxsize=_KEPT_CONNECTIONS, socket_options=with_ours)


@contextmanager
def _released(response: urllib3.BaseHTTPResponse) -> Iterator[None]:
    """A body read to its end has gone back to the pool already; the connection of any other is of no use any more."""
    try:
        yield
    finally:
        response.close()


def _decoded(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _result(status: int, *, is_readable: bool) -> str:
    if status == 429:
        return "http_429"
    if status >= 500:
        return "http_5xx"
    if status in (400, 404) or status < 300:  # both are answers: a refusal, and "there is no such thing"
        return "ok" if is_readable or status != 200 else "bad_response"
    return "http_4xx"
