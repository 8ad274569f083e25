"""The finished pictures, streamed from the artifact store."""

import logging
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Final, Protocol

from fastapi import Header, Path, Response
from fastapi.responses import StreamingResponse

from services.producer.database_calls import DatabaseCalls
from services.producer.problem import Refused
from services.producer.ranges import NotSatisfiable, names, wanted_bytes
from services.producer.reading import TaskId, missing
from shared.domain.messages import Artifact
from shared.domain.task import Status, Task

log = logging.getLogger(__name__)

#: A completed order never changes, so neither do its pictures; what only one token may see is for no shared cache.
_CACHE: Final = "private, max-age=31536000, immutable"

Index = Annotated[int, Path(ge=0, le=2**31 - 1, description="`index` of the picture, from 0", examples=[0])]
IfNoneMatch = Annotated[str | None, Header(description="ETags the caller has; 304 when one of them is this picture's")]


class Tasks(Protocol):
    """The rows. Every method raises DatabaseAway."""

    def find(self, task_id: uuid.UUID) -> Task | None: ...

    def purged(self, task_id: uuid.UUID) -> Status | None: ...

    def artifacts(self, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, list[Artifact]]: ...


class Store(Protocol):
    async def stream(self, key: str, size: int, wanted: range) -> AsyncIterator[bytes]: ...


class Pictures:
    """GET and HEAD /v1/orders/{task_id}/artifacts/{index}."""

    def __init__(self, tasks: Tasks, calls: DatabaseCalls, store: Store) -> None:
        self._tasks = tasks
        self._calls = calls
        self._store = store

    async def head(self, task_id: TaskId, index: Index, if_none_match: IfNoneMatch = None) -> Response:
        """What GET would say of the picture, without the picture."""
        task, artifact = await self._find(task_id, index)
        headers = _headers(task, artifact)
        if names(if_none_match, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        more = {"Content-Length": str(artifact.bytes), "Content-Type": artifact.media_type}
        return Response(headers=headers | more)

    async def get(
        self,
        task_id: TaskId,
        index: Index,
        if_none_match: IfNoneMatch = None,
        if_range: Annotated[str | None, Header(description="Range counts only if this is still the ETag")] = None,
        range_: Annotated[
            str | None, Header(alias="Range", description="one range of bytes; several are answered with the whole")
        ] = None,
    ) -> Response:
        """The bytes of one picture of a completed order. Its ETag is the SHA-256 of them; they never change."""
        task, artifact = await self._find(task_id, index)
        headers = _headers(task, artifact)
        if names(if_none_match, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        try:
            part = wanted_bytes(range_ if if_range in (None, headers["ETag"]) else None, artifact.bytes)
        except NotSatisfiable:
            raise Refused(
                "range_not_satisfiable",
                f"the picture has {artifact.bytes} bytes",
                headers={"Content-Range": f"bytes */{artifact.bytes}"},
            ) from None
        wanted = range(artifact.bytes) if part is None else part
        headers["Content-Length"] = str(len(wanted))
        if part is not None:
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{artifact.bytes}"
        try:
            pieces = await self._store.stream(artifact.key, artifact.bytes, wanted)
        except FileNotFoundError as error:
            log.error("picture missing", extra={"task": task.id, "key": artifact.key, "why": str(error)})  # noqa: TRY400 - no traceback: it is the store's state
            raise Refused("picture_missing", "its row says that it was stored; ask the operators") from None
        status = 200 if part is None else 206
        return StreamingResponse(pieces, status, headers, artifact.media_type)

    async def _find(self, task_id: uuid.UUID, index: int) -> tuple[Task, Artifact]:
        """Raises Refused."""

        def look() -> tuple[Task, list[Artifact]]:
            task = self._tasks.find(task_id)
            if task is None:
                raise missing(self._tasks, task_id)
            return task, self._tasks.artifacts([task.id]).get(task.id, [])

        task, artifacts = await self._calls.run(look)
        for artifact in artifacts:
            if artifact.index == index:
                return task, artifact
        raise Refused("no_picture", f"the order is {task.status} and has {len(artifacts)} pictures", task_id=task.id)


def _headers(task: Task, artifact: Artifact) -> dict[str, str]:
    extension = artifact.key.rpartition(".")[2]
    return {
        "ETag": f'"{artifact.sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": _CACHE,
        "Content-Disposition": f'inline; filename="{task.id}-{artifact.index}.{extension}"',
        "X-Content-Type-Options": "nosniff",
    }
