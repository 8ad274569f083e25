"""Input pictures: from http(s) addresses and from allowed folders, checked and re-encoded before they go anywhere.

An order is written by somebody else. It must not make us read our own network, files outside the allowed folders, or
more than fits into memory. What we say about it shows no secrets of it: the query of a signed address stays out.
"""

import os
import stat
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urljoin, urlsplit

import requests
import urllib3.exceptions

from shared.domain.errors import InputLater, InputUnavailable
from shared.providers.addresses import PinnedAdapter, Resolve, is_public, resolve
from shared.providers.body import pieces
from shared.providers.picture import Picture, re_encode
from shared.providers.session import Session

__all__ = ["NotThere", "Picture", "Pictures"]

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
#: Refusals that may pass: request time-out, too early, too many requests.
_LATER: Final = frozenset({408, 425, 429})


class NotThere(InputUnavailable):
    """The server of an address says that it will not give the picture: gone, forbidden, never there."""


class Pictures:
    """Fetches input pictures. Holds nothing between calls; usable from all threads."""

    def __init__(
        self,
        *,
        folders: Sequence[Path] = (),
        allow_private: bool = False,
        private_hosts: Collection[str] = (),
        max_bytes: int = 40 * 2**20,
        max_pixels: int = 64_000_000,
        max_redirects: int = 5,
        connect_seconds: float = 5.0,
        read_seconds: float = 10.0,
        limit_seconds: float = 30.0,
        resolve: Resolve = resolve,
    ) -> None:
        """folders       -- where `file:` addresses and plain paths may point; none: no files at all
        allow_private -- also call loopback and private networks; for demos and tests
        private_hosts -- `host:port` that may be called wherever they are
        limit_seconds -- the longest one picture may take, redirects included
        """
        self._folders = [folder.resolve() for folder in folders]
        self._allow_private = allow_private
        self._private_hosts = frozenset(private_hosts)
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._max_redirects = max_redirects
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._resolve = resolve
        self.limit_seconds = limit_seconds

    def get(self, reference: str) -> Picture:
        """The picture as PNG, without its metadata. Raises InputUnavailable (for good) and InputLater (not now)."""
        is_remote = reference[:8].lower().startswith(("http://", "https://"))
        shown = _shown(reference)
        try:
            content = self.download(reference) if is_remote else self._read_file(reference)
            return re_encode(content, max_pixels=self._max_pixels)
        except InputUnavailable as error:
            raise InputUnavailable(f"{shown}: {error}") from error
        except InputLater as error:
            raise InputLater(f"{shown}: {error}") from error

    def download(self, url: str) -> bytes:
        """The bytes at an http(s) address, as they are. Raises NotThere, InputUnavailable, InputLater."""
        ends = time.monotonic() + self.limit_seconds
        for _ in range(self._max_redirects + 1):
            answer = self._get_one(url, ends)
            if isinstance(answer, bytes):
                return answer
            try:
                url = urljoin(url, answer)
            except ValueError as error:
                raise InputUnavailable("a redirect to no usable address") from error
        raise InputUnavailable(f"more than {self._max_redirects} redirects")

    def _get_one(self, url: str, ends: float) -> bytes | str:
        """The body, or where a redirect leads. Each address of the host is tried until one can be connected to."""
        try:
            request = requests.Request("GET", url, headers={"Accept-Encoding": "identity", "User-Agent": "darkroom"})
            prepared = request.prepare()
            parts = urlsplit(prepared.url or "")
            host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        except (requests.RequestException, ValueError) as error:
            raise InputUnavailable("not a usable address") from error
        if parts.scheme not in ("http", "https") or not host:
            raise InputUnavailable("only http and https addresses are fetched")
        addresses = self._checked(str(host), port)
        for address in addresses:
            is_last = address == addresses[-1]
            try:
                return self._get_from(address, prepared, ends)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                if is_last or not _is_unconnected(error):
                    raise InputLater(f"no whole answer ({type(error).__name__})") from error
        raise InputLater("the host has no address")

    def _checked(self, host: str, port: int) -> list[str]:
        """Every address of the host; InputUnavailable when a single one is not for us."""
        try:
            addresses = self._resolve(host, port)
        except UnicodeError as error:
            raise InputUnavailable("not a usable host name") from error
        except OSError as error:
            raise InputLater("the host's name could not be resolved") from error
        may_be_private = self._allow_private or f"{host}:{port}" in self._private_hosts
        if not may_be_private and not all(is_public(address) for address in addresses):
            raise InputUnavailable("the host is not on the public internet")
        return addresses

    def _get_from(self, address: str, prepared: requests.PreparedRequest, ends: float) -> bytes | str:
        left = ends - time.monotonic()
        if left <= 0:
            raise InputLater(f"not fetched within {self.limit_seconds:g} s")
        timeout = (min(self._connect_seconds, left), min(self._read_seconds, left))
        with Session() as session:  # a proxy of the environment would connect in our place, unchecked
            session.mount(f"{urlsplit(prepared.url or '').scheme}://", PinnedAdapter(address))
            with session.send(prepared, stream=True, timeout=timeout, allow_redirects=False) as response:
                if response.status_code in _REDIRECTS and "Location" in response.headers:
                    return response.headers["Location"]
                if response.status_code >= 500 or response.status_code in _LATER:
                    raise InputLater(f"HTTP {response.status_code}")
                if response.status_code != 200:
                    raise NotThere(f"HTTP {response.status_code}")
                return self._body(response, ends)

    def _body(self, response: requests.Response, ends: float) -> bytes:
        announced = response.headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise InputUnavailable(self._too_large())
        body = bytearray()
        for piece in pieces(response.raw, ends):
            body += piece
            if len(body) > self._max_bytes:
                raise InputUnavailable(self._too_large())
        return bytes(body)

    def _read_file(self, reference: str) -> bytes:
        path = self._allowed_path(_path_of(reference))
        try:
            # O_NOFOLLOW and O_NONBLOCK: the path was resolved, so a link here is new, and a pipe would wait for ever.
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            raise InputUnavailable("no such file, or not ours to read") from error
        except OSError as error:
            raise InputLater(f"the file cannot be read ({error.strerror})") from error
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise InputUnavailable("not a file")
            with open(handle, "rb", closefd=False) as file:
                content = file.read(self._max_bytes + 1)
        except OSError as error:
            raise InputLater(f"the file cannot be read ({error.strerror})") from error
        finally:
            os.close(handle)
        if len(content) > self._max_bytes:
            raise InputUnavailable(self._too_large())
        return content

    def _allowed_path(self, path: Path) -> Path:
        """The path with every link followed. What it points to must lie in an allowed folder."""
        for folder in self._folders:
            try:
                resolved = (folder / path).resolve()  # an absolute path stands for itself
            except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a NUL
                raise InputUnavailable("not a usable path") from error
            if resolved.is_relative_to(folder) and (resolved.exists() or folder == self._folders[-1]):
                return resolved
        raise InputUnavailable("files are read from the allowed folders only")

    def _too_large(self) -> str:
        return f"larger than {self._max_bytes} bytes"


def _path_of(reference: str) -> Path:
    if not reference.lower().startswith("file:"):
        if "://" in reference[:32]:
            raise InputUnavailable("only http, https and file addresses are fetched")
        text = reference
    else:
        parts = urlsplit(reference)
        if parts.netloc not in ("", "localhost"):
            raise InputUnavailable("a file address names no other host")
        text = unquote(parts.path)
    if not text or "\x00" in text:
        raise InputUnavailable("not a usable path")
    return Path(text)


def _is_unconnected(error: Exception) -> bool:
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, urllib3.exceptions.NewConnectionError)


def _shown(reference: str) -> str:
    """For messages: no query, no fragment, no password."""
    if "://" not in reference:
        return reference[:200]
    try:
        parts = urlsplit(reference)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:200]
    except ValueError:
        return "input picture"
