"""The simulated ComfyUI: one memory, worker and set of sockets from one start of it to the next."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .faults import COMFYUI_SHAPES, Faults, Setting
from .faulty import FaultyServer
from .files import Folders
from .options import Options
from .prompts import Memory
from .records import Records
from .routes import Site, handle, normal_path
from .websocket import Sockets
from .wire import Connection, Encoded, Request, Response
from .worker import Worker

#: Time between `execution_success` on /ws and the history entry. Measured: empty in 5 of 30 immediate reads.
HISTORY_LAG_SECONDS = 0.005


#: News are gathered for so long before they go out, in one piece for each socket: waking the loop and writing for each
#: costs more than the news. The measured server took 3 ms for the nine of a small prompt (ws_no_client_id.jsonl).
_GATHER_SECONDS = 0.001


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
        self._calls: deque[Callable[[], object]] = deque()
        self._is_due = False
        self._thread = threading.get_ident()

    def tell(self, event: str, data: dict[str, Any] | Encoded, client_id: str | None) -> None:
        if not self._sockets.is_empty and not self._memory.is_over:
            self._soon(self._sockets.send, event, data, client_id)

    def tell_preview(self, jpeg: bytes, metadata: dict[str, Any] | None, client_id: str | None) -> None:
        if not self._sockets.is_empty and not self._memory.is_over:
            self._soon(self._sockets.send_preview, jpeg, metadata, client_id)

    def node_is_running(self, client_id: str | None, node_id: str | None) -> None:
        self.executing = None if node_id is None else (client_id, node_id)

    def queue_changed(self) -> None:
        # From the loop's own thread in the same way, so that nobody overtakes anybody.
        info = {"exec_info": {"queue_remaining": self._memory.remaining()}}
        self.tell("status", {"status": info}, None)

    def crash(self) -> None:
        self._soon(self._crash)

    def _soon(self, call: Callable[..., object], *arguments: Any) -> None:
        self._calls.append(partial(call, *arguments))
        if self._is_due:
            return
        self._is_due = True
        if threading.get_ident() == self._thread:
            self._loop.call_later(_GATHER_SECONDS, self._carry_out)
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(self._loop.call_later, _GATHER_SECONDS, self._carry_out)

    def _carry_out(self) -> None:
        self._is_due = False  # first: what is appended from here on calls for another turn
        try:
            while self._calls:
                self._calls.popleft()()
        finally:
            self._sockets.flush()
            if self._calls:  # one of them failed, which the loop reports; the others have their turn
                self._loop.call_soon(self._carry_out)


@dataclass(frozen=True)
class Start:
    """What exists from one start of the server to the next."""

    site: Site
    sockets: Sockets
    news: News
    worker: Worker


class Server(FaultyServer):
    """One simulated ComfyUI."""

    def __init__(self, options: Options) -> None:
        faults = Faults(
            {"seconds_per_image": options.seconds_per_image, "history_lag_seconds": HISTORY_LAG_SECONDS},
            options.seed,
            COMFYUI_SHAPES,
        )
        super().__init__(options.host, options.port, faults, Records())
        self._options = options
        self.max_body = options.max_body
        self._folders = Folders(options.directory)
        self._start = self._new_start()

    def route(self, path: str) -> str:
        return normal_path(path)

    def carry_out(self, request: Request) -> tuple[str, Response]:
        return handle(self._start.site, request)

    def memory(self) -> object:
        return self._start

    def leave(self) -> None:
        self._start.site.memory.end()

    def takes_over(self, request: Request, connection: Connection, path: str) -> bool:
        if path != "/ws" or request.method != "GET":
            return False
        start = self._start
        refused = start.sockets.open(request, connection, start.site.queue_info(), start.news.executing)
        status = 101 if refused is None else refused.status
        self._records.called(request.method, request.target, "/ws", status, None)
        if refused is not None:
            connection.respond(refused)
        return True

    def statistics(self, request: Request) -> dict[str, Any]:
        with_log, with_executions = (request.query.get(name) != "0" for name in ("log", "executions"))
        return {
            "generation": self._options.generation,
            "directory": str(self._folders.directory),
            "queue_remaining": self._start.site.memory.remaining(),
            "worker_alive": self._start.worker.is_alive,
            **self._records.describe(with_log, with_executions),
        }

    def act(self, name: str, setting: Setting, asking: Connection) -> None:
        if name == "restart":
            self._restart(setting["down_seconds"], asking)
        else:
            super().act(name, setting, asking)

    def _restart(self, down_seconds: float, asking: Connection) -> None:
        """As after a kill: memory gone, temp wiped, refused for a while."""
        self._start.site.memory.end()
        self._faults.thaw()
        self.go_down(down_seconds, asking)
        self._start = self._new_start()

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
