"""Connections whose answers begin in time: a whole head, status line and headers, may take one read time-out.

urllib3 and http.client begin that time anew with every byte, so a server that trickles holds its caller for hours.
"""

import http.client
import io
import socket
import ssl
import time
from typing import Any

import urllib3.connection
import urllib3.exceptions
from urllib3.util.ssl_match_hostname import CertificateError


class _Head(io.RawIOBase):
    """What arrives on a socket. ends -- (monotonic) when the head must have arrived; None once it has"""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, ends: float) -> None:
        self._raw = raw
        self._sock = sock
        self.ends: float | None = ends

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.ends is not None:
            left = self.ends - time.monotonic()
            if left <= 0:
                raise TimeoutError("the head of the answer did not end in time")
            self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **named: Any) -> None:
        super().__init__(sock, *args, **named)
        self._wire, self._patience, self._head = sock, sock.gettimeout(), None
        if self._patience is not None:
            raw = self.fp.detach()
            self._head = _Head(raw, sock, time.monotonic() + self._patience)
            self.fp = io.BufferedReader(self._head)

    def begin(self) -> None:
        super().begin()
        if self._head is not None and self._head.ends is not None:
            self._head.ends = None
            self._wire.settimeout(self._patience)


class HTTPConnection(urllib3.connection.HTTPConnection):
    response_class = _Response


class HTTPSConnection(urllib3.connection.HTTPSConnection):
    response_class = _Response

    def connect(self) -> None:
        """Raises NewConnectionError for a handshake that fails too: an SSLError is then one of a call under way."""
        try:
            super().connect()
        except (ssl.SSLError, CertificateError, urllib3.exceptions.SSLError) as error:
            raise urllib3.exceptions.NewConnectionError(self, f"no trusted connection: {error}") from error


class HTTPConnectionPool(urllib3.HTTPConnectionPool):
    ConnectionCls = HTTPConnection


class HTTPSConnectionPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = HTTPSConnection
