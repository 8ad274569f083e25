"""The server's life: listening, starts and restarts, and the faults that strike a request on its way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .faults import BadFault, Faults
from .files import Folders
from .options import Options
from .prompts import Memory
from .records import Records
from .routes import Site, handle, normal_path
from .websocket import Sockets
from .wire import Connection, Request, Response, server_error
from .worker import Worker

#: Time between `execution_success` on /ws and the history entry. Measured: empty in 5 of 30 immediate reads.
HISTORY_LAG_SECONDS = 0.005


class News:
    """Carries the worker's news to the sockets of its own server start; those of a dead start are dropped."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, memory: Memory, sockets: Sockets, crash: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._memory = memory
        self._sockets = sockets
        self._crash = crash
        self.executing: tuple[str | None, str] | None = None

    def tell(self, event: str, data: dict[str, Any], client_id: str | None) -> None:
        if not self._sockets.is_empty and not self._memory.is_over:
            self._soon(self._sockets.send, event, data, client_id)

    def tell_preview(self, jpeg: bytes, metadata: dict[str, Any] | None, client_id: str | None) -> None:
        if not self._sockets.is_empty and not self._memory.is_over:
            self._soon(self._sockets.send_preview, jpeg, metadata, client_id)

    def node_is_running(self, client_id: str | None, node_id: str | None) -> None:
        self.executing = None if node_id is None else (client_id, node_id)

    def queue_changed(self) -> None:
        # Also from the loop's own thread through `call_soon`, so that nobody overtakes anybody.
        info = {"exec_info": {"queue_remaining": self._memory.remaining()}}
        self.tell("status", {"status": info}, None)

    def crash(self) -> None:
        self._soon(self._crash)

    def _soon(self, call: Callable[..., object], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(call, *arguments)


@dataclass(frozen=True)
class Start:
    """What exists from one start of the server to the next."""

    site: Site
    sockets: Sockets
    news: News
    worker: Worker


class Server:
    """One simulated ComfyUI. Belongs to the event loop it was made in."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.max_body = options.max_body
        self._loop = asyncio.get_running_loop()
        self._folders = Folders(options.directory)
        self._records = Records()
        self._faults = Faults(options.seconds_per_image, HISTORY_LAG_SECONDS, options.seed)
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._opening: asyncio.TimerHandle | None = None
        self._down_since: float | None = None
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._socket = _bound_socket(options.host, options.port)
        self.port: int = self._socket.getsockname()[1]
        self._start = self._new_start()

    async def open(self) -> bool:
        """Accept connections from now on, after the start-up time; False when told to end meanwhile."""
        if self._options.startup_seconds:
            self._down_since = time.monotonic()
            await asyncio.wait([self._ended], timeout=self._options.startup_seconds)
        if self._ended.done():
            return False
        await self._listen()
        return True

    async def wait(self) -> int:
        """Until `end` is called or the server crashed; the exit code."""
        return await self._ended

    def end(self, code: int = 0) -> None:
        if self._opening is not None:
            self._opening.cancel()
        self._start.site.memory.end()
        if self._listener is not None:
            self._listener.close()
        self._socket.close()
        for connection in list(self._connections):
            connection.close()
        if not self._ended.done():
            self._ended.set_result(code)

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def head_arrived(self, request: Request, connection: Connection) -> bool:
        path = normal_path(request.path)
        if path.startswith("/_sim/") or self._faults.strikes("drop_before_read", request.method, path) is None:
            return True
        self._records.called(request.method, request.target, path, 0, None)
        connection.reset()
        return False

    def answer(self, request: Request, connection: Connection) -> None:
        path = normal_path(request.path)
        if path.startswith("/_sim/"):
            self._control(request, connection)
            return
        slow = self._faults.strikes("slow", request.method, path)
        if slow is not None and slow["before"]:
            self._loop.call_later(slow["seconds"], self._carry_out, request, connection, path, 0.0, self._start)
        else:
            self._carry_out(request, connection, path, slow["seconds"] if slow else 0.0, self._start)

    def _carry_out(self, request: Request, connection: Connection, path: str, delay: float, start: Start) -> None:
        """Do what was asked, unless a fault stands before it, and answer after `delay` as the faults will have it."""
        if start is not self._start:
            return  # the server it had been sent to is gone
        if path == "/ws" and request.method == "GET":
            self._open_socket(request, connection)
            return
        if self._faults.strikes("garbage", request.method, path, kind="html") is not None:
            page = b"<html><head><title>Welcome</title></head><body>It works!</body></html>"
            self._finish(request, connection, path, Response(200, page, "text/html; charset=utf-8"), delay)
            return
        broken = self._faults.strikes("answer_500", request.method, path)
        if broken is not None and not broken["queue"]:
            self._finish(request, connection, path, server_error(), delay)
            return
        route, response = handle(start.site, request)
        if broken is not None:
            queued, response = response.prompt_id, server_error()
            response.prompt_id = queued
        elif self._faults.strikes("drop_after_accept", request.method, path) is not None:
            self._records.called(request.method, request.target, route, 0, response.prompt_id)
            self._later(delay, connection.reset)
            return
        elif self._faults.strikes("garbage", request.method, path, kind="cut_json") is not None:
            response.body = response.body[: len(response.body) // 2]
        elif self._faults.strikes("garbage", request.method, path, kind="cut_body") is not None:
            self._records.called(request.method, request.target, route, response.status, response.prompt_id)
            self._later(delay, connection.respond, response, 0.5)
            return
        self._finish(request, connection, route, response, delay)

    def _finish(self, request: Request, connection: Connection, route: str, response: Response, delay: float) -> None:
        self._records.called(request.method, request.target, route, response.status, response.prompt_id)
        self._later(delay, connection.respond, response)

    def _later(self, delay: float, call: Callable[..., None], *arguments: Any) -> None:
        if delay > 0:
            self._loop.call_later(delay, call, *arguments)
        else:
            call(*arguments)

    def _open_socket(self, request: Request, connection: Connection) -> None:
        start = self._start
        refused = start.sockets.open(request, connection, start.site.queue_info(), start.news.executing)
        status = 101 if refused is None else refused.status
        self._records.called(request.method, request.target, "/ws", status, None)
        if refused is not None:
            connection.respond(refused)

    def _control(self, request: Request, connection: Connection) -> None:
        """The tester's own paths, see the docstring of `__main__`."""
        if (request.method, request.path) == ("GET", "/_sim/stats"):
            connection.respond(Response.json(self._statistics(request)))
        elif (request.method, request.path) == ("GET", "/_sim/faults"):
            connection.respond(Response.json(self._faults.describe()))
        elif (request.method, request.path) == ("POST", "/_sim/faults"):
            self._change_faults(request, connection)
        else:
            connection.respond(Response(404))

    def _change_faults(self, request: Request, connection: Connection) -> None:
        try:
            actions = self._faults.change(request.json())
        except BadFault as error:
            connection.respond(Response.json({"error": str(error)}, 400))
            return
        except ValueError:
            connection.respond(Response.json({"error": "the body is not JSON"}, 400))
            return
        for name, setting in actions:
            self._faults.count(name)
            if name == "restart":
                self._restart(setting["down_seconds"], connection)
            else:
                self._go_down(setting["seconds"], connection)
        connection.respond(Response.json(self._faults.describe()))  # last: whoever reads it finds the port closed
        if actions:
            connection.close()

    def _statistics(self, request: Request) -> dict[str, Any]:
        with_log, with_executions = (request.query.get(name) != "0" for name in ("log", "executions"))
        return {
            "generation": self._options.generation,
            "directory": str(self._folders.directory),
            "queue_remaining": self._start.site.memory.remaining(),
            "worker_alive": self._start.worker.is_alive,
            **self._records.describe(with_log, with_executions),
        }

    def _new_start(self) -> Start:
        self._folders.wipe_temp()
        self._records.starts += 1
        memory = Memory(self._records)
        site = Site(self._options, memory, self._folders, self._records)
        sockets = Sockets(site.features())
        news = News(self._loop, memory, sockets, lambda: self.end(code=1))
        memory.on_change = news.queue_changed
        worker = Worker(memory, self._folders, self._faults, news)
        worker.start()
        return Start(site, sockets, news, worker)

    def _restart(self, down_seconds: float, asking: Connection) -> None:
        """As after a kill: memory gone, temp wiped, refused for a while."""
        self._start.site.memory.end()
        self._faults.thaw()
        self._go_down(down_seconds, asking)
        self._start = self._new_start()

    def _go_down(self, seconds: float, asking: Connection) -> None:
        """Refuse connections for so long. The port stays ours: a second socket is bound to it, but does not listen."""
        if self._down_since is None:
            self._down_since = time.monotonic()
        spare = _bound_socket(self._options.host, self.port, beside=self._socket)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._socket.close()
        self._socket = spare
        for connection in list(self._connections):
            if connection is not asking:
                connection.reset()
        if self._opening is not None:
            self._opening.cancel()
        self._opening = self._loop.call_later(seconds, self._open_again)

    def _open_again(self) -> None:
        self._opening = None
        self._listening = self._loop.create_task(self._listen())

    async def _listen(self) -> None:
        self._listener = await self._loop.create_server(lambda: Connection(self), sock=self._socket, backlog=1024)
        if self._down_since is not None:
            self._records.down_seconds += time.monotonic() - self._down_since
            self._down_since = None


def _bound_socket(host: str, port: int, beside: socket.socket | None = None) -> socket.socket:
    """A socket bound and not listening: connections are refused. `beside` shares the port for the moment of a swap."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if beside is not None:
        beside.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    bound.setblocking(False)
    return bound
