"""One HTTP call to one ComfyUI server, and what its ending means. No retry of anything that changes something.

ProviderAway
├── NoConnection       nothing left this machine: the server cannot have seen the request
└── NoAnswer           the request may have arrived, and no usable answer came back
    ├── BrokenConnection   the connection ended: what has not arrived by now never will
    ├── BadAnswer          somebody answered, so the request has arrived
    └── Silence            nobody said anything: it may arrive later, if a network or a proxy holds it back
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final
from urllib.parse import urlencode

import urllib3

from shared.domain.errors import ProviderAway
from shared.providers.body import as_json
from shared.providers.curl import Broken, Call, Curl, Head, Limits, NotConnected, Silent
from shared.providers.retry_after import retry_after_seconds

#: Called once per HTTP call with (operation, result, seconds).
#: operation: submit, poll, download, cancel, health, upload
#: result:    ok, timeout, connect, http_429, http_4xx, http_5xx, bad_response, other
Observe = Callable[[str, str, float], None]

#: Largest JSON answer read. A queue of 2 000 graphs is 5 MB.
_MAX_JSON_BYTES: Final = 64 * 2**20
_KEPT_CONNECTIONS: Final = 32
#: Pictures that one thread fetches at the same time.
_DOWNLOADS_AT_ONCE: Final = 4
#: What a proxy's error page is, and no picture: the one that was asked for may be there, so it is asked for again.
_NO_FILE: Final = ("text/", "application/json")
_HEADERS: Final = ("User-Agent: darkroom", "Accept: */*")


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
    """The calls of one server, from any thread."""

    def __init__(self, url: str, timings: Timings, observe: Observe, on_lost: Callable[[], None]) -> None:
        self._base = url.rstrip("/")
        self._curl = Curl(_KEPT_CONNECTIONS)
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
        try:
            return self._json("GET", path, operation, read=self._timings.read, params=params)
        except BrokenConnection:
            return self._json("GET", path, operation, read=self._timings.read, params=params, once=True)

    def post(self, path: str, operation: str, value: Any = None) -> Answer:
        """A command that does no harm when it is carried out twice."""
        body = None if value is None else json.dumps(value).encode()
        return self._json("POST", path, operation, read=self._timings.read, body=body)

    def post_once(self, path: str, operation: str, data: bytes) -> Answer:
        """A command that must be sent once, so on a connection of its own.

        A kept-alive connection that the server closes just as we send looks exactly like a lost answer, and would cost
        the settling time for nothing. A new connection costs 0.1 ms on loopback.
        """
        return self._json("POST", path, operation, read=self._timings.submit_read, body=data, once=True)

    def post_each_once(
        self, path: str, operation: str, bodies: Sequence[bytes]
    ) -> Iterator[list[tuple[int, Answer | ProviderAway]]]:
        """`post_once` of each, all at once: by place what was answered or is raised there, as it comes."""
        raw = [bytearray() for _ in bodies]
        calls = [
            self._what(collected, "POST", path, read=self._timings.submit_read, body=body, once=True)
            for collected, body in zip(raw, bodies, strict=True)
        ]
        began = time.monotonic()
        for ended in self._curl.together(calls):
            yield [(place, self._outcome(path, operation, began, found, raw[place])) for place, found in ended]

    def _outcome(
        self, path: str, operation: str, began: float, found: Head | Exception, raw: bytearray
    ) -> Answer | ProviderAway:
        try:
            with self._call(operation, began) as call, self._translated("POST", path):
                if isinstance(found, Exception):
                    raise found
                return self._answer(found, raw, call)
        except (NoConnection, NoAnswer) as error:
            return error

    def upload(self, filename: str, content: bytes, fields: Mapping[str, str]) -> Answer:
        """POST /upload/image. The same bytes under the same name are stored once."""
        form: dict[str, str | tuple[str, bytes, str]] = {**fields, "image": (filename, content, "image/png")}
        body, content_type = urllib3.encode_multipart_formdata(form)
        return self._json(
            "POST", "/upload/image", "upload", read=self._timings.upload_read, body=body, content_type=content_type
        )

    def exists(self, params: Mapping[str, str]) -> bool:
        """Whether a complete PNG lies there. A crash can leave half a file, which does not end in IEND."""
        head = self._json("HEAD", "/view", "poll", read=self._timings.read, params=params)
        if head.status == 404:
            return False
        if head.status != 200:
            raise BadAnswer(f"HEAD /view: HTTP {head.status}")
        tail = bytearray()

        def keep_last(_: Head, piece: bytes) -> None:
            tail.extend(piece)
            del tail[:-12]

        with self._call("poll") as call, self._translated("GET", "/view"):
            status = self._curl.call(self._view(params, self._timings.read, keep_last, ["Range: bytes=-12"])).status
            call.result = _result(status, is_readable=True)
        if status not in (200, 206):
            raise BadAnswer(f"GET /view of the last bytes: HTTP {status}")
        return tail[4:8] == b"IEND"

    def download(self, params: Mapping[str, str], target: BinaryIO, max_bytes: int) -> int | None:
        """Write a file into `target` and return its size; None when it is gone. Raises ValueError above `max_bytes`."""
        file = _Target(target, max_bytes)
        with self._call("download") as call, self._translated("GET", "/view"):
            return file.end(self._curl.call(self._view(params, self._timings.view_read, file.take)), call)

    def download_each(
        self, files: Sequence[tuple[Mapping[str, str], BinaryIO]], max_bytes: int
    ) -> Iterator[list[tuple[int, int | Exception | None]]]:
        """`download` of each, some at once: by place what is returned or raised there, as it comes."""
        targets = [_Target(target, max_bytes) for _, target in files]
        calls = [
            self._view(params, self._timings.view_read, file.take)
            for (params, _), file in zip(files, targets, strict=True)
        ]
        began = time.monotonic()
        for ended in self._curl.together(calls, at_once=_DOWNLOADS_AT_ONCE):
            yield [(place, self._downloaded(began, found, targets[place])) for place, found in ended]

    def _downloaded(self, began: float, found: Head | Exception, file: "_Target") -> int | Exception | None:
        try:
            with self._call("download", began) as call, self._translated("GET", "/view"):
                if isinstance(found, Exception):
                    raise found
                return file.end(found, call)
        except (ProviderAway, ValueError) as error:
            return error

    def _json(self, method: str, path: str, operation: str, **how: Any) -> Answer:
        """how -- see `_what`"""
        raw = bytearray()
        with self._call(operation) as call, self._translated(method, path):
            return self._answer(self._curl.call(self._what(raw, method, path, **how)), raw, call)

    def _what(
        self,
        raw: bytearray,
        method: str,
        path: str,
        *,
        read: float,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        once: bool = False,
    ) -> Call:
        """Its answer is collected in `raw`."""

        def collect(_: Head, piece: bytes) -> None:
            raw.extend(piece)
            if len(raw) > _MAX_JSON_BYTES:
                raise BadAnswer(f"{method} {path}: more than {_MAX_JSON_BYTES} bytes")

        return Call(
            method,
            self._target(path, params),
            Limits(connect=self._connect_seconds(), total=self._what_is_left(self._timings.connect + read)),
            collect,
            [*_HEADERS, f"Content-Type: {content_type}"] if method == "POST" else _HEADERS,
            body=body,
            encodings="gzip, deflate",
            once=once,
        )

    def _answer(self, head: Head, raw: bytearray, call: "_Call") -> Answer:
        decoded = as_json(bytes(raw))
        call.result = _result(head.status, is_readable=decoded is not None or not raw)
        wait = None if head.status == 200 else _retry_after(head)
        return Answer(head.status, decoded, raw[:500].decode("utf-8", "replace"), wait)

    def _view(
        self,
        params: Mapping[str, str],
        silence: float,
        take: Callable[[Head, bytes], None],
        headers: Sequence[str] = (),
    ) -> Call:
        """GET /view."""
        limits = Limits(
            connect=self._connect_seconds(),
            total=self._what_is_left(self._timings.view_limit),
            silence=self._what_is_left(silence),
        )
        return Call("GET", self._target("/view", params), limits, take, [*_HEADERS, *headers])

    def _target(self, path: str, params: Mapping[str, str] | None) -> str:
        return self._base + path + (f"?{urlencode(params)}" if params else "")

    def _connect_seconds(self) -> float:
        return self._what_is_left(self._timings.connect)

    def _what_is_left(self, seconds: float) -> float:
        """No more than `until` leaves."""
        ends: float | None = getattr(self._local, "ends", None)
        if ends is None:
            return seconds
        left = ends - time.monotonic()
        if left <= 0:
            raise NoConnection("no time is left for another call")
        return min(seconds, left)

    @contextmanager
    def _call(self, operation: str, began: float | None = None) -> Iterator["_Call"]:
        call = _Call()
        began = time.monotonic() if began is None else began
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
        try:
            yield
        except NotConnected as error:
            self._on_lost()
            raise NoConnection(f"{method} {path}: no connection ({error})") from error
        except Silent as error:
            raise Silence(f"{method} {path}: no answer in time") from error
        except Broken as error:
            self._on_lost()
            raise BrokenConnection(f"{method} {path}: connection lost ({error})") from error


@dataclass(slots=True)
class _Call:
    result: str = "other"


@dataclass(slots=True)
class _Target:
    """Where a file is written to, and its size so far."""

    file: BinaryIO
    max_bytes: int
    size: int = 0

    def take(self, head: Head, piece: bytes) -> None:
        if not _is_file(head):
            return
        self.size += len(piece)
        if self.size > self.max_bytes:
            raise ValueError(f"the picture is larger than {self.max_bytes} bytes")
        self.file.write(piece)

    def end(self, head: Head, call: _Call) -> int | None:
        call.result = _result(head.status, is_readable=True)
        return self.size if _is_file(head) else None


def _retry_after(head: Head) -> float | None:
    return retry_after_seconds(head.header("retry-after"), head.header("date"), datetime.now(UTC))


def _is_file(head: Head) -> bool:
    """False: there is no such file. Raises BadAnswer for what no ComfyUI says."""
    if head.status == 404:
        return False
    if head.status != 200:
        raise BadAnswer(f"GET /view: HTTP {head.status}")
    kind = head.header("content-type") or ""
    if kind.startswith(_NO_FILE):
        raise BadAnswer(f"GET /view: {kind[:100]}, not a file of ComfyUI")
    return True


def _result(status: int, *, is_readable: bool) -> str:
    if status == 429:
        return "http_429"
    if status >= 500:
        return "http_5xx"
    if status in (400, 404) or status < 300:  # both are answers: a refusal, and "there is no such thing"
        return "ok" if is_readable or status != 200 else "bad_response"
    return "http_4xx"
