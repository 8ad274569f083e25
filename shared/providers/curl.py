"""One HTTP call through libcurl, for servers that every order calls: see docs/decisions/0019.

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
from collections.abc import Callable, Mapping, Sequence
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

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """Names in lower case; of several with one name the last."""
        pairs = (line.decode("iso-8859-1").partition(":") for line in self._lines)
        return {name.strip().lower(): value.strip() for name, colon, value in pairs if colon}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds. connect -- until the connection stands; total -- until the last byte of the answer

    silence -- longest without a byte, and longest until the head is complete; None: only the total counts
    """

    connect: float
    total: float
    silence: float | None = None


class Curl:
    """Calls from any thread, each on a handle of its own; up to `kept` of them wait with their connections open."""

    def __init__(self, kept: int) -> None:
        self._idle: deque[pycurl.Curl] = deque(maxlen=kept)  # a handle that falls out closes its connections

    def call(
        self,
        method: str,
        url: str,
        limits: Limits,
        take: Callable[[Head, bytes], None],
        *,
        headers: Sequence[str] = (),
        body: bytes | None = None,
        encodings: str = "identity",
        once: bool = False,
    ) -> Head:
        """The head of the answer, after `take` had each piece of its body, decoded; what `take` raises ends the call.

        once -- on a new connection that is closed afterwards: the request is sent once or not at all, and nothing of it
            leaves once the call has ended

        Raises NotConnected, Silent, Broken.
        """
        handle = self._handle()
        head, answer = Head(), _Taker(take)
        for option, value in _options(method, url, limits, body, once=once).items():
            handle.setopt(option, value)
        handle.setopt(pycurl.ACCEPT_ENCODING, encodings)
        ours = ["Expect:", *(["Connection: close"] if once else [])]  # libcurl would ask before a large body
        handle.setopt(pycurl.HTTPHEADER, [*headers, *ours])
        handle.setopt(pycurl.HEADERFUNCTION, head.take)
        handle.setopt(pycurl.WRITEFUNCTION, lambda piece: answer.take(head, piece))
        if limits.silence is not None:
            handle.setopt(pycurl.LOW_SPEED_LIMIT, 1)
            handle.setopt(pycurl.LOW_SPEED_TIME, math.ceil(limits.silence))
            handle.setopt(pycurl.NOPROGRESS, 0)
            handle.setopt(pycurl.XFERINFOFUNCTION, _until_head(answer, time.monotonic() + limits.silence))
        try:
            handle.perform()
        except pycurl.error as error:
            if answer.error is not None:
                raise answer.error from None
            raise _meaning(handle, error) from error
        else:
            handle.reset()  # its connections stay; what `take` holds on to, a body of some megabytes, does not
            self._idle.append(handle)
            return head

    def _handle(self) -> "pycurl.Curl":
        try:
            return self._idle.pop()
        except IndexError:
            return pycurl.Curl()


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


def _options(method: str, url: str, limits: Limits, body: bytes | None, *, once: bool) -> Mapping[int, Any]:
    options: dict[int, Any] = {
        pycurl.URL: url,
        pycurl.NOSIGNAL: 1,
        pycurl.PROXY: "",
        pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
        pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
        pycurl.PATH_AS_IS: 1,
        pycurl.CONNECTTIMEOUT_MS: max(1, round(1000 * limits.connect)),
        pycurl.TIMEOUT_MS: max(1, round(1000 * limits.total)),
    }
    if method == "HEAD":
        options[pycurl.NOBODY] = 1
    elif method == "POST":
        options |= {pycurl.POST: 1, pycurl.POSTFIELDS: body or b""}
    if once:
        options |= {pycurl.FRESH_CONNECT: 1, pycurl.FORBID_REUSE: 1, pycurl.SOCKOPTFUNCTION: _forget_unsent}
    if url.lower().startswith("https:"):
        options |= _trusted()
    return options


def _forget_unsent(descriptor: int, _: int) -> int:
    """SO_LINGER of no seconds: given up, the connection is reset and forgets what has not been sent.

    An orderly close leaves it to the kernel, which may send it minutes later, when the network is back.
    """
    with socket.socket(fileno=os.dup(descriptor)) as same:
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


def _meaning(handle: "pycurl.Curl", error: "pycurl.error") -> CurlError:
    code, text = error.args[0], handle.errstr() or f"libcurl error {error.args[0]}"
    if code in _BEFORE_THE_REQUEST and handle.getinfo(pycurl.REQUEST_SIZE) == 0:
        return NotConnected(text)
    if code in (pycurl.E_OPERATION_TIMEDOUT, pycurl.E_ABORTED_BY_CALLBACK):
        return Silent(text)
    return Broken(text)
