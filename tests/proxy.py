"""A TCP proxy that hurts the connections through it the ways a network, a balancer or a dying host does."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

from tests.servers import free_port

T = TypeVar("T")

_HOST: Final = "127.0.0.1"
_CHUNK: Final = 65536
#: SO_LINGER of no seconds: closing sends a reset instead of an orderly end.
_RESET: Final = struct.pack("ii", 1, 0)


class FaultProxy:
    """Passes everything on to a loopback port until it is told otherwise. Every method may be called from any thread.

    `only` of a method -- what the first bytes of a connection must begin with for it to be hurt, such as b"GET /ws"
    """

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.lost_answers = 0
        self._target_port = target_port
        self._links: set[_Link] = set()
        self._refuses = False
        self._lose: tuple[bytes, int] | None = None
        self._requests = 0
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._listener = socket.create_server((_HOST, self.port), backlog=256)
        self._listener.setblocking(False)
        self._thread.start()
        self._accepting = asyncio.run_coroutine_threadsafe(self._accept(), self._loop)

    def url(self, url: str) -> str:
        """The same URL, by way of this proxy."""
        return url.replace(f":{self._target_port}", f":{self.port}")

    @property
    def open(self) -> int:
        """Connections of clients that are open."""
        return len(self._links)

    def reset(self, only: bytes = b"") -> int:
        """Reset every connection; new ones are passed on. Returns how many there were."""
        return self._call(lambda: self._end(only))

    def refuse(self) -> None:
        """Reset every connection, and each new one until `heal`: nobody is there."""

        def work() -> None:
            self._refuses = True
            self._end(b"")

        self._call(work)

    def stall(self) -> None:
        """Connections open and stay open, and not a byte arrives until `heal`; then what was held arrives."""
        self._call(self._flows.clear)

    def half_open(self, only: bytes = b"") -> int:
        """Every connection ends at the target, and its client is never told; new ones are passed on."""

        def work() -> int:
            hurt = [link for link in self._links if link.head.startswith(only)]
            for link in hurt:
                link.forsake()
            return len(hurt)

        return self._call(work)

    def lose_answers(self, to: bytes, *, every: int = 1) -> None:
        """Of the requests that hold `to`, every so-manieth is answered and its answer lost: the connection is reset."""

        def work() -> None:
            self._lose, self._requests = (to, every), 0

        self._call(work)

    def heal(self) -> None:
        """New connections are passed on, held bytes flow, and no answer is lost any more."""

        def work() -> None:
            self._refuses = False
            self._lose = None
            self._flows.set()

        self._call(work)

    def close(self) -> None:
        """Reset everything and free the port."""

        async def work() -> None:
            self._accepting.cancel()
            links = list(self._links)
            self._end(b"")
            await asyncio.gather(*(link.task for link in links), return_exceptions=True)
            await asyncio.sleep(0)
            self._listener.close()

        asyncio.run_coroutine_threadsafe(work(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # --- the proxy's own thread -----------------------------------------------------------------------------------

    def _call(self, work: Callable[[], T]) -> T:
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return done.result(10)

    def _end(self, only: bytes) -> int:
        hurt = [link for link in self._links if link.head.startswith(only)]
        for link in hurt:
            link.reset()
        return len(hurt)

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            client.setblocking(False)
            link = _Link(self, client)
            self._links.add(link)
            link.task = self._loop.create_task(link.run(self._target_port))
            link.task.add_done_callback(lambda _, link=link: self._ended(link))

    def _ended(self, link: "_Link") -> None:
        """Also of a link that was reset before its task took the first step."""
        self._links.discard(link)
        link.close()

    def _is_lost(self, request: bytes) -> bool:
        if self._lose is None or self._lose[0] not in request:
            return False
        self._requests += 1
        return self._requests % self._lose[1] == 0


class _Link:
    """One connection of a client and the one to the target that belongs to it."""

    task: "asyncio.Task[None]"

    def __init__(self, proxy: FaultProxy, client: socket.socket) -> None:
        self.head = b""
        self._proxy = proxy
        self._client = client
        self._server = socket.socket()
        self._forsaken = False
        self._loses_next = False

    def reset(self) -> None:
        self._end_with_reset()
        self.task.cancel()

    def forsake(self) -> None:
        """The target's end is closed; the client's stays open and deaf."""
        self._forsaken = True
        with contextlib.suppress(OSError):  # it was still being opened
            self._server.shutdown(socket.SHUT_RDWR)

    def _end_with_reset(self) -> None:
        """When they are closed: not while the loop watches them, or it would take the next sockets for them."""
        for end in (self._client, self._server):
            if end.fileno() >= 0:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    async def run(self, target_port: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._proxy._refuses:
                self._end_with_reset()
                return
            self._server.setblocking(False)
            await self._proxy._flows.wait()
            await loop.sock_connect(self._server, (_HOST, target_port))
            for end in (self._client, self._server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._requests(loop))
                pumps.create_task(self._answers(loop))
        except* OSError:  # one end has gone, so does the other
            self._end_with_reset()

    def close(self) -> None:
        self._client.close()
        self._server.close()

    async def _requests(self, loop: asyncio.AbstractEventLoop) -> None:
        while data := await loop.sock_recv(self._client, _CHUNK):
            self.head = self.head or data[:64]
            await self._proxy._flows.wait()
            if self._forsaken:
                continue
            self._loses_next = self._loses_next or self._proxy._is_lost(data)
            await loop.sock_sendall(self._server, data)
        if not self._forsaken:
            await self._proxy._flows.wait()
            self._server.shutdown(socket.SHUT_WR)

    async def _answers(self, loop: asyncio.AbstractEventLoop) -> None:
        while data := await loop.sock_recv(self._server, _CHUNK):
            await self._proxy._flows.wait()
            if self._forsaken:
                return
            if self._loses_next:
                self._proxy.lost_answers += 1
                raise ConnectionResetError("the answer is lost")
            await loop.sock_sendall(self._client, data)
        if not self._forsaken:
            await self._proxy._flows.wait()
            self._client.shutdown(socket.SHUT_WR)
