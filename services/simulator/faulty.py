"""A server that misbehaves on request: listening, going down, and the faults that strike a request on its way."""

from __future__ import annotations

import asyncio
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from .faults import BadFault, Faults, Setting
from .records import Records
from .wire import Connection, Request, Response, server_error


class FaultyServer(ABC):
    """What every simulated server does alike. Belongs to the event loop it was made in."""

    max_body: float

    def __init__(self, host: str, port: int, faults: Faults, records: Records) -> None:
        self._loop = asyncio.get_running_loop()
        self._host = host
        self._faults = faults
        self._records = records
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._opening: asyncio.TimerHandle | None = None
        self._down_since: float | None = None
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._socket = _bound_socket(host, port)
        self.port: int = self._socket.getsockname()[1]

    # --- what differs ---------------------------------------------------------------------------------------------

    @abstractmethod
    def route(self, path: str) -> str:
        """The path as faults name it."""

    @abstractmethod
    def carry_out(self, request: Request) -> tuple[str, Response]:
        """Do what was asked: the route for the log, and the answer."""

    @abstractmethod
    def statistics(self, request: Request) -> dict[str, Any]:
        """The answer of GET /_sim/stats."""

    def memory(self) -> object:
        """Another one after a restart: what had been sent to the server before is not carried out by it."""
        return self

    def takes_over(self, request: Request, connection: Connection, path: str) -> bool:  # noqa: ARG002
        """True when the connection leaves HTTP here."""
        return False

    def act(self, name: str, setting: Setting, asking: Connection) -> None:  # noqa: ARG002 - `refuse` is the only one here
        """Carry out a fault that happens once, now."""
        self.go_down(setting["seconds"], asking)

    def leave(self) -> None:  # noqa: B027 - some have nothing to put away
        """The server ends."""

    # --- its life -------------------------------------------------------------------------------------------------

    async def open(self, after_seconds: float = 0.0) -> bool:
        """Accept connections from now on, after the start-up time; False when told to end meanwhile."""
        if after_seconds:
            self._down_since = time.monotonic()
            await asyncio.wait([self._ended], timeout=after_seconds)
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
        self.leave()
        if self._listener is not None:
            self._listener.close()
        self._socket.close()
        for connection in list(self._connections):
            connection.close()
        if not self._ended.done():
            self._ended.set_result(code)

    # --- a request ------------------------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def head_arrived(self, request: Request, connection: Connection) -> bool:
        path = self.route(request.path)
        if path.startswith("/_sim/") or self._faults.strikes("drop_before_read", request.method, path) is None:
            return True
        self._records.called(request.method, request.target, path, 0, None)
        connection.reset()
        return False

    def answer(self, request: Request, connection: Connection) -> None:
        path = self.route(request.path)
        if path.startswith("/_sim/"):
            self._control(request, connection)
            return
        slow = self._faults.strikes("slow", request.method, path)
        if slow is not None and slow["before"]:
            self._loop.call_later(slow["seconds"], self._carry_out, request, connection, path, 0.0, self.memory())
        else:
            self._carry_out(request, connection, path, slow["seconds"] if slow else 0.0, self.memory())

    def _carry_out(self, request: Request, connection: Connection, path: str, delay: float, memory: object) -> None:
        """Do what was asked, unless a fault stands before it, and answer after `delay` as the faults will have it."""
        if memory is not self.memory():
            return  # the server it had been sent to is gone
        if self.takes_over(request, connection, path):
            return
        if self._faults.strikes("garbage", request.method, path, kind="html") is not None:
            page = b"<html><head><title>Welcome</title></head><body>It works!</body></html>"
            self._finish(request, connection, path, Response(200, page, "text/html; charset=utf-8"), delay)
            return
        broken = self._faults.strikes("answer_500", request.method, path)
        if broken is not None and not broken["queue"]:
            self._finish(request, connection, path, server_error(), delay)
            return
        route, response = self.carry_out(request)
        delay += response.held_seconds
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

    # --- the tester's own paths -----------------------------------------------------------------------------------

    def _control(self, request: Request, connection: Connection) -> None:
        if (request.method, request.path) == ("GET", "/_sim/stats"):
            connection.respond(Response.json(self.statistics(request)))
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
            self.act(name, setting, connection)
        connection.respond(Response.json(self._faults.describe()))  # last: whoever reads it finds the port closed
        if actions:
            connection.close()

    def go_down(self, seconds: float, asking: Connection) -> None:
        """Refuse connections for so long. The port stays ours: a second socket is bound to it, but does not listen."""
        if self._down_since is None:
            self._down_since = time.monotonic()
        spare = _bound_socket(self._host, self.port, beside=self._socket)
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
