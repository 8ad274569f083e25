"""HTTP calls through libcurl, one or many at once, for servers that every order calls: see docs/decisions/0019.

Nothing is repeated but a question on a kept connection that turned out to be dead, nothing is followed, no proxy and no
credentials of the environment are used.
"""

import math
import os
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

import certifi
import pycurl

#: With no byte of the request sent, these say that nothing was asked.
_BEFORE_THE_REQUEST: Final = frozenset(
    {
        pycurl.E_COULDNT_RESOLVE_HOST,
        pycurl.E_COULDNT_CONNECT,
        pycurl.E_OPERATION_TIMEDOUT,
        pycurl.E_SSL_CONNECT_ERROR,
        pycurl.E_PEER_FAILED_VERIFICATION,
        pycurl.E_URL_MALFORMAT,
        pycurl.E_UNSUPPORTED_PROTOCOL,
    }
)


#: How long calls that are made together wait for each other's ends, as `shared.gathered` does for writes.
_PATIENCE_SECONDS: Final = 0.02
_LOOK_SECONDS: Final = 1.0
_NAME_SECONDS: Final = 0.01


class CurlError(Exception):
    """No whole answer came. The text is libcurl's."""


class NotConnected(CurlError):
    """No connection came about: not a byte of the request was sent."""


class Silent(CurlError):
    """The request left, at least in part, and the answer did not end in time."""


class Broken(CurlError):
    """The request left, at least in part, and what came back was no whole answer."""


class Head:
    """Status and headers of an answer; to be read once its head is complete."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        #: Takes the next line.
        self.take: Final = self._lines.append

    @cached_property
    def status(self) -> int:
        """0: it says none."""
        last = next((line for line in reversed(self._lines) if line.startswith(b"HTTP/")), b"")
        word = last.split(maxsplit=2)[1:2]
        return int(word[0]) if word and word[0].isdigit() else 0

    def header(self, name: str) -> str | None:
        """Its value, of several the last; None: there is none. name -- in lower case"""
        start = f"{name}:".encode()
        found = (line for line in reversed(self._lines) if line[: len(start)].lower() == start)
        line = next(found, None)
        return None if line is None else line[len(start) :].decode("iso-8859-1").strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds. connect -- until the connection stands; total -- until the last byte of the answer

    silence -- longest without a byte, and longest until the head is complete; None: only the total counts
    """

    connect: float
    total: float
    silence: float | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call, and who takes what is answered.

    take -- has each piece of the answer's body, decoded; what it raises ends the call
    once -- on a new connection that is closed afterwards: the request is sent once or not at all, and nothing of it
            leaves once the call has ended
    """

    method: str
    url: str
    limits: Limits
    take: Callable[[Head, bytes], None]
    headers: Sequence[str] = ()
    body: bytes | None = None
    encodings: str = "identity"
    once: bool = False


class Curl:
    """Calls from any thread, each on a handle of its own; up to `kept` of them wait with their connections open."""

    def __init__(self, kept: int) -> None:
        self._idle: deque[pycurl.Curl] = deque(maxlen=kept)  # a handle that falls out closes its connections
        self._multis: deque[pycurl.CurlMulti] = deque(maxlen=kept)  # each with connections of its own

    def call(self, call: Call) -> Head:
        """The head of the answer, once `take` had all of its body. Raises NotConnected, Silent, Broken."""
        begun = _Begun(self._handle(), call)
        try:
            begun.handle.perform()
        except pycurl.error as error:
            raise begun.meaning(int(error.args[0])) from error
        self._keep(begun.handle)
        return begun.head

    def together(
        self, calls: Sequence[Call], *, at_once: int | None = None
    ) -> Iterator[list[tuple[int, Head | Exception]]]:
        """All, or so many `at_once`, on this thread: by place what has ended, as heads or as what `call` would raise.

        What ends at about the same time comes in one list.
        """
        multi = self._multi()
        waiting = deque(enumerate(calls))
        running: dict[pycurl.Curl, tuple[int, _Begun]] = {}

        def fill() -> int:
            while waiting and (at_once is None or len(running) < at_once):
                place, call = waiting.popleft()
                begun = _Begun(self._handle(), call)
                multi.add_handle(begun.handle)
                running[begun.handle] = (place, begun)
            return len(running)

        def end(handle: "pycurl.Curl", code: int) -> tuple[int, Head | Exception]:
            place, begun = running.pop(handle)
            multi.remove_handle(handle)
            if code != pycurl.E_OK:
                return place, begun.meaning(code)
            self._keep(handle)
            return place, begun.head

        try:
            while fill():
                yield list(_ends(multi, fill, end))
        finally:
            for handle in running:
                multi.remove_handle(handle)
        self._multis.append(multi)

    def _multi(self) -> "pycurl.CurlMulti":
        try:
            return self._multis.pop()
        except IndexError:
            return pycurl.CurlMulti()

    def _handle(self) -> "pycurl.Curl":
        try:
            return self._idle.pop()
        except IndexError:
            return pycurl.Curl()

    def _keep(self, handle: "pycurl.Curl") -> None:
        handle.reset()  # its connections stay; what `take` holds on to, a body of some megabytes, does not
        self._idle.append(handle)


def _ends(
    multi: "pycurl.CurlMulti",
    fill: Callable[[], int],
    end: Callable[["pycurl.Curl", int], tuple[int, Head | Exception]],
) -> Iterator[tuple[int, Head | Exception]]:
    """Those that end now, and what ends within the patience after the first of them.

    fill -- begins what there is room for; how many are running then
    end  -- takes one out, with libcurl's code
    """
    ends = math.inf
    while fill():
        multi.perform()
        _, done, failed = multi.info_read()
        for handle, code in [*((handle, pycurl.E_OK) for handle in done), *((h, code) for h, code, _ in failed)]:
            ends = min(ends, time.monotonic() + _PATIENCE_SECONDS)
            yield end(handle, code)
        left = min(_LOOK_SECONDS, ends - time.monotonic())
        if left <= 0:
            return
        if not (done or failed) and multi.select(left) < 0:  # it waits for no socket, but for a name
            time.sleep(min(_NAME_SECONDS, left))


class _Begun:
    """A handle that is ready to perform a call."""

    def __init__(self, handle: "pycurl.Curl", call: Call) -> None:
        self.handle = handle
        self.head = head = Head()
        self._answer = answer = _Taker(call.take)
        limits = call.limits
        for option, value in _options(call).items():
            handle.setopt(option, value)
        handle.setopt(pycurl.ACCEPT_ENCODING, call.encodings)
        ours = ["Expect:", *(["Connection: close"] if call.once else [])]  # libcurl would ask before a large body
        handle.setopt(pycurl.HTTPHEADER, [*call.headers, *ours])
        handle.setopt(pycurl.HEADERFUNCTION, head.take)
        handle.setopt(pycurl.WRITEFUNCTION, lambda piece: answer.take(head, piece))
        if limits.silence is not None:
            handle.setopt(pycurl.LOW_SPEED_LIMIT, 1)
            handle.setopt(pycurl.LOW_SPEED_TIME, math.ceil(limits.silence))
            handle.setopt(pycurl.NOPROGRESS, 0)
            handle.setopt(pycurl.XFERINFOFUNCTION, _until_head(answer, time.monotonic() + limits.silence))

    def meaning(self, code: int) -> Exception:
        """What `take` raised, or what libcurl's code says."""
        if self._answer.error is not None:
            return self._answer.error
        text = self.handle.errstr() or f"libcurl error {code}"
        if code in _BEFORE_THE_REQUEST and self.handle.getinfo(pycurl.REQUEST_SIZE) == 0:
            return NotConnected(text)
        if code in (pycurl.E_OPERATION_TIMEDOUT, pycurl.E_ABORTED_BY_CALLBACK):
            return Silent(text)
        return Broken(text)


@dataclass(slots=True)
class _Taker:
    """Hands the body on: an exception cannot pass through libcurl, so it is kept and the transfer ended."""

    receiver: Callable[[Head, bytes], None]
    has_begun: bool = False
    error: Exception | None = None

    def take(self, head: Head, piece: bytes) -> int:
        self.has_begun = True
        try:
            self.receiver(head, piece)
        except Exception as error:  # noqa: BLE001 - raised again once libcurl has returned
            self.error = error
            return -1
        return len(piece)


def _until_head(answer: _Taker, ends: float) -> Callable[..., int]:
    """Ends a transfer whose body has not begun in time, however steadily its head trickles; asked every second."""
    return lambda *_: int(not answer.has_begun and time.monotonic() > ends)


def _options(call: Call) -> Mapping[int, Any]:
    options: dict[int, Any] = {
        pycurl.URL: call.url,
        pycurl.NOSIGNAL: 1,
        pycurl.PROXY: "",
        pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
        pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
        pycurl.PATH_AS_IS: 1,
        pycurl.CONNECTTIMEOUT_MS: max(1, round(1000 * call.limits.connect)),
        pycurl.TIMEOUT_MS: max(1, round(1000 * call.limits.total)),
    }
    if call.method == "HEAD":
        options[pycurl.NOBODY] = 1
    elif call.method == "POST":
        options |= {pycurl.POST: 1, pycurl.POSTFIELDS: call.body or b""}
    if call.once:
        options |= {pycurl.FRESH_CONNECT: 1, pycurl.FORBID_REUSE: 1, pycurl.SOCKOPTFUNCTION: _forget_unsent}
    if call.url.lower().startswith("https:"):
        options |= _trusted()
    return options


def _forget_unsent(descriptor: int, _: int) -> int:
    """SO_LINGER of no seconds: given up, the connection is reset and forgets what has not been sent.

    An orderly close leaves it to the kernel, which may send it minutes later, when the network is back.
    """
    # Of what family it is does not matter here, and Python would ask the system three times.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, os.dup(descriptor)) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return pycurl.SOCKOPT_OK


@lru_cache(maxsize=1)
def _trusted() -> Mapping[int, str]:
    """The authorities Python itself trusts: those of the system, SSL_CERT_FILE and SSL_CERT_DIR; else certifi's."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile is None and (paths.capath is None or not any(Path(paths.capath).iterdir())):
        return {pycurl.CAINFO: certifi.where()}
    found = {pycurl.CAINFO: paths.cafile, pycurl.CAPATH: paths.capath}
    return {option: path for option, path in found.items() if path is not None}
