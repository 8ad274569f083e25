"""The queue and the history: what a server start remembers and a restart forgets.

Event loop and worker thread both use it, under one lock. Rows are tuples on a heap and are compared as such: two rows
with the same number and id end up comparing dicts, which raises after the row was appended. That is how the measured
server answers 500 and runs the prompt all the same.
"""

from __future__ import annotations

import heapq
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Final

from .records import Execution, Records

#: number, prompt id, graph, extra_data, ids of the output nodes. A list in answers.
Row = tuple[float, str, dict[str, Any], dict[str, Any], list[str]]

#: Checked before insertion, so one more can be there.
HISTORY_SIZE: Final = 10_000
#: Never written to history or shown in /queue.
_SENSITIVE: Final = ("auth_token_comfy_org", "api_key_comfy_org", "comfy_usage_source")


class Entry(dict[str, Any]):
    """The value under a prompt id in GET /history. It never changes, so its JSON is made once."""

    @cached_property
    def encoded(self) -> bytes:
        """Id and entry, as they stand in the answer."""
        return f"{json.dumps(self['prompt'][1])}: {json.dumps(self)}".encode()


@dataclass
class Memory:
    """Everything one start of the server knows. `on_change` is called, without the lock, when the queue changed."""

    records: Records
    on_change: Callable[[], None] = lambda: None
    history: dict[str, Entry] = field(default_factory=dict)
    number: int = 0
    is_over: bool = False  # the server was restarted: whoever still holds this must stop
    stop_wanted: threading.Event = field(default_factory=threading.Event)  # interrupt, or the end
    drop_cache: bool = False
    _pending: list[Row] = field(default_factory=list)
    _running: dict[int, Row] = field(default_factory=dict)
    _executions: dict[int, Execution] = field(default_factory=dict)  # by id() of the row
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def put(
        self, number: float, prompt_id: str, graph: dict[str, Any], extra: dict[str, Any], outputs: list[str]
    ) -> None:
        """Queue a prompt. Raises TypeError for a row the heap cannot compare; the row is queued nevertheless."""
        for name in _SENSITIVE:
            extra.pop(name, None)
        row: Row = (number, prompt_id, graph, extra, outputs)
        with self._changed:
            self._executions[id(row)] = self.records.accepted(prompt_id, number)
            self.records.present(len(self._pending) + len(self._running) + 1)
            heapq.heappush(self._pending, row)
            self._changed.notify()
        self.on_change()

    def take(self) -> tuple[Row, Execution] | None:
        """Wait for the next row and make it the running one; None when the server was restarted."""
        with self._changed:
            while not self._pending and not self.is_over:
                self._changed.wait()
            if self.is_over:
                return None
            row = heapq.heappop(self._pending)
            execution = self._executions[id(row)]
            self._running[id(row)] = row
            self.stop_wanted.clear()  # one given while idle does not leak into this prompt
            self.records.started(execution)
        self.on_change()
        return row, execution

    def finish(self, row: Row, outcome: str, entry: Entry) -> None:
        """Move the running row to history; both happen at once for every reader."""
        with self._changed:
            if self.is_over:
                return
            del self._running[id(row)]
            if len(self.history) > HISTORY_SIZE:
                self.history.pop(next(iter(self.history)))
            self.history[row[1]] = entry  # an id used before keeps its old place
            self.records.ended(self._executions.pop(id(row)), outcome)
        self.on_change()

    def end(self) -> None:
        """The server goes down: everything here is lost."""
        with self._changed:
            self.is_over = True
            self.stop_wanted.set()
            for execution in self._executions.values():
                self.records.ended(execution, "lost")
            self._changed.notify_all()

    def remaining(self) -> int:
        return len(self._pending) + len(self._running)

    def rows(self) -> tuple[list[Row], list[Row]]:
        """Running and pending, the latter in heap order."""
        with self._changed:
            return list(self._running.values()), list(self._pending)

    def is_running(self, prompt_id: str) -> bool:
        with self._changed:
            return any(row[1] == prompt_id for row in self._running.values())

    def interrupt(self, prompt_id: str | None) -> bool:
        """Ask the running prompt to stop, when it is this one (None: whichever). True when there was one."""
        with self._changed:
            if prompt_id is not None and not any(row[1] == prompt_id for row in self._running.values()):
                return False
            self.stop_wanted.set()
            return True

    def delete_pending(self, prompt_id: object) -> bool:
        """Remove at most one pending row of this id."""
        with self._changed:
            for at, row in enumerate(self._pending):
                if row[1] == prompt_id:
                    del self._pending[at]
                    self.records.ended(self._executions.pop(id(row)), "deleted")
                    heapq.heapify(self._pending)
                    break
            else:
                return False
        self.on_change()
        return True

    def clear_pending(self) -> None:
        with self._changed:
            for row in self._pending:
                self.records.ended(self._executions.pop(id(row)), "deleted")
            self._pending.clear()
        self.on_change()

    def entry(self, prompt_id: str) -> Entry | None:
        return self.history.get(prompt_id)

    def entries(self, at_most: int | None, offset: int) -> dict[str, Entry]:
        """A part of the history, oldest first. A negative offset means the newest `at_most`."""
        with self._changed:
            if at_most is None:
                return dict(self.history)
            if offset < 0:
                offset = max(0, len(self.history) - at_most)
            return dict(islice(self.history.items(), offset, offset + max(0, at_most)))

    def forget(self, prompt_ids: Iterable[Any]) -> None:
        with self._changed:
            for prompt_id in prompt_ids:
                self.history.pop(prompt_id, None)

    def forget_all(self) -> None:
        with self._changed:
            self.history.clear()


def history_entry(row: Row, outputs: dict[str, Any], status: dict[str, Any], meta: dict[str, Any]) -> Entry:
    return Entry(prompt=list(row), outputs=outputs, status=status, meta=meta)
