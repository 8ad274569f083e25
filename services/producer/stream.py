"""Orders as they change, as server-sent events. However many streams are open, each tick asks the database once."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from typing import Annotated, Final, Protocol

from fastapi import Header, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from services.producer.answers import OrderStatus
from services.producer.database_calls import DatabaseCalls
from services.producer.problem import Refused
from services.producer.reading import TaskId, missing
from shared.domain.errors import DatabaseAway
from shared.domain.messages import Artifact
from shared.domain.task import Status, Task

log = logging.getLogger(__name__)

#: Streams one process keeps open. 1000 idle ones of 100 orders: 0.8 % of a core, two statements a second, 133 MB for
#: the whole process; all were told within half a second of the last move.
MAX_STREAMS: Final = 1000
#: Time between two looks at the rows that somebody follows.
_TICK_SECONDS: Final = 0.5
#: An order just placed gets its row within this time, or its stream is refused.
_CLAIM_SECONDS: Final = 5.0
#: A silent stream says something so often: proxies end connections that are silent for 30 to 60 s.
_KEEP_ALIVE_SECONDS: Final = 15.0
#: How long a client waits before it comes back to a stream that ended.
_RETRY_MILLISECONDS: Final = 2000


class Listing(Protocol):
    def changed(self, seen: Mapping[uuid.UUID, int]) -> dict[uuid.UUID, Task]: ...


class Tasks(Protocol):
    def purged(self, task_id: uuid.UUID) -> Status | None: ...

    def artifacts(self, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, list[Artifact]]: ...


class Followed:
    """One order, for everybody who follows it: only its newest state is kept, so a slow reader holds nothing up."""

    def __init__(self, task_id: uuid.UUID) -> None:
        self.task_id = task_id
        self.order: OrderStatus | None = None
        self.followers = 0
        self.is_over = False
        self._news = asyncio.Event()

    def tell(self, order: OrderStatus) -> None:
        self.order = order
        self._wake()

    def end(self) -> None:
        """No more news will come."""
        self.is_over = True
        self._wake()

    async def newer_than(self, version: int, within_seconds: float) -> OrderStatus | None:
        """The order as soon as its version is higher; None when time is up or no more news will come."""
        try:
            async with asyncio.timeout(within_seconds):
                while not self.is_over:
                    if self.order is not None and self.order.version > version:
                        return self.order
                    await self._news.wait()
        except TimeoutError:
            pass
        return None

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


class Watch:
    """The one loop that reads for all streams. It runs while anybody follows an order. For one event loop alone."""

    def __init__(
        self,
        tasks: Tasks,
        listing: Listing,
        calls: DatabaseCalls,
        *,
        is_stopping: Callable[[], bool],
        max_streams: int = MAX_STREAMS,
    ) -> None:
        self._tasks = tasks
        self._listing = listing
        self._calls = calls
        self._is_stopping = is_stopping
        self._max_streams = max_streams
        self._streams = 0
        self._followed: dict[uuid.UUID, Followed] = {}
        self._loop: asyncio.Task[None] | None = None
        self.is_blind = False

    def follow(self, task_id: uuid.UUID) -> Followed:
        """Every `follow` needs its `leave`. Raises Refused."""
        if self._is_stopping():
            raise Refused("shutting_down", "open the stream again; another process answers")
        if self._streams >= self._max_streams:
            raise Refused("too_many_streams", f"{self._max_streams} are open; ask for the status instead, or later")
        self._streams += 1
        followed = self._followed.setdefault(task_id, Followed(task_id))
        followed.followers += 1
        if self._loop is None:
            self._loop = asyncio.create_task(self._run())
            self._loop.add_done_callback(_tell_of_a_bug)
        return followed

    def leave(self, followed: Followed) -> None:
        self._streams -= 1
        followed.followers -= 1
        if not followed.followers and self._followed.get(followed.task_id) is followed:
            del self._followed[followed.task_id]

    async def missing(self, task_id: uuid.UUID) -> Refused:
        """Why there is nothing of this order. Raises DatabaseAway."""
        return await self._calls.run(partial(missing, self._tasks, task_id))

    async def _run(self) -> None:
        try:
            while self._followed and not self._is_stopping():
                await self._turn()
                await asyncio.sleep(_TICK_SECONDS)
        finally:
            self._loop = None
            over, self._followed = self._followed, {}
            for followed in over.values():
                followed.end()

    async def _turn(self) -> None:
        seen = {id_: followed.order.version if followed.order else 0 for id_, followed in self._followed.items()}
        try:
            changed = await self._calls.run(partial(self._look, seen))
        except DatabaseAway as error:
            if not self.is_blind:
                log.warning("streams have no news", extra={"why": str(error)})
            self.is_blind = True
            return
        self.is_blind = False
        for id_, order in changed.items():
            if followed := self._followed.get(id_):
                followed.tell(order)

    def _look(self, seen: Mapping[uuid.UUID, int]) -> dict[uuid.UUID, OrderStatus]:
        changed = self._listing.changed(seen)
        completed = {task.id for task in changed.values() if task.status is Status.COMPLETED}
        pictures = self._tasks.artifacts(completed) if completed else {}
        return {id_: OrderStatus.of(task, pictures.get(task.id, [])) for id_, task in changed.items()}


def _tell_of_a_bug(loop: asyncio.Task[None]) -> None:
    if not loop.cancelled() and (error := loop.exception()) is not None:
        log.error("streams ended by a bug", exc_info=error)


class EventStream(StreamingResponse):
    """A stream that leaves its place however it ends, also when nothing of it was ever sent."""

    def __init__(self, events: AsyncIterator[bytes], leave: Callable[[], None]) -> None:
        # X-Accel-Buffering: nginx would hold events back until its buffer is full.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


class Events:
    """GET /v1/orders/{task_id}/events."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    async def stream(
        self,
        task_id: TaskId,
        last_event_id: Annotated[
            int | None, Header(ge=0, description="the highest version had already; browsers send it by themselves")
        ] = None,
    ) -> Response:
        """The order as it is and each time its status changes, until it has ended, as `text/event-stream`.

        An event's id is the row's `version`, its name the status, its data the same JSON that `GET
        /v1/orders/{task_id}` answers. A status that lasted less than half a second may be left out; the last one never
        is. `204` tells a browser that comes back to an ended order to stay away.
        """
        followed = self._watch.follow(task_id)
        try:
            first = await followed.newer_than(0, _CLAIM_SECONDS)
            if first is None:
                raise await self._nothing_of(followed)
        except BaseException:
            self._watch.leave(followed)
            raise
        had = last_event_id or 0
        if first.status.is_final and first.version <= had:
            self._watch.leave(followed)
            return Response(status_code=204)
        return EventStream(_events(followed, had), partial(self._watch.leave, followed))

    async def _nothing_of(self, followed: Followed) -> Exception:
        if followed.is_over:
            return Refused("shutting_down", "open the stream again; another process answers")
        if self._watch.is_blind:
            return DatabaseAway("no news")
        return await self._watch.missing(followed.task_id)


async def _events(followed: Followed, had: int) -> AsyncIterator[bytes]:
    yield f"retry: {_RETRY_MILLISECONDS}\n\n".encode()
    while not followed.is_over:
        order = await followed.newer_than(had, _KEEP_ALIVE_SECONDS)
        if order is None:
            yield b": still here\n\n"
            continue
        yield f"id: {order.version}\nevent: {order.status}\ndata: {order.model_dump_json()}\n\n".encode()
        if order.status.is_final:
            return
        had = order.version
