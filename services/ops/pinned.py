"""What a person is told of an order that one backend alone may make. Pure."""

from collections.abc import Iterable

from shared.database.slots import Backend
from shared.domain.task import Status, Task


def pin_said(task: Task, backends: Iterable[Backend]) -> str | None:
    """Where it may be made, and what keeps it from that now; None: at any backend of its pool."""
    if task.pinned_backend is None:
        return None
    backend = next((one for one in backends if one.name == task.pinned_backend), None)
    alone = f"{task.pinned_backend} alone"
    if task.status is not Status.PENDING or (backend is not None and backend.takes_work):
        return alone
    return f"{alone}; blocked: it is {_why(backend)}"


def _why(backend: Backend | None) -> str:
    if backend is None or not backend.enabled:
        return "not in the backends file any more"
    if backend.is_paused:
        return f"paused{f' ({backend.pause_reason})' if backend.pause_reason else ''}"
    return backend.health
