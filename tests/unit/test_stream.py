"""Streams share one loop: one question per tick, one state per order, a place for each and none lost."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from services.producer import stream
from services.producer.database_calls import DatabaseCalls
from services.producer.problem import Refused
from services.producer.stream import Events, EventStream, Watch
from shared.domain.errors import DatabaseAway
from shared.domain.messages import Artifact
from shared.domain.task import Status, Task
from tests.unit.api_lab import a_task


class FollowedRows:
    def __init__(self, *rows: Task) -> None:
        self.rows = {row.id: row for row in rows}
        self.looks: list[dict[uuid.UUID, int]] = []
        self.error: Exception | None = None

    def changed(self, seen: Mapping[uuid.UUID, int]) -> dict[uuid.UUID, Task]:
        self.looks.append(dict(seen))
        if self.error is not None:
            raise self.error
        return {id_: self.rows[id_] for id_ in seen if id_ in self.rows and self.rows[id_].version > seen[id_]}

    def purged(self, task_id: uuid.UUID) -> None:
        return None

    def artifacts(self, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, list[Artifact]]:
        return {}

    def move(self, task: Task, status: Status) -> None:
        row = self.rows[task.id]
        self.rows[task.id] = replace(row, status=status, version=row.version + 1)


class Lab:
    """A watch whose loop turns quickly, in one event loop."""

    def __init__(self, rows: FollowedRows, max_streams: int = 10) -> None:
        self.rows = rows
        self.is_stopping = False
        self.calls = DatabaseCalls()
        self.watch = Watch(rows, rows, self.calls, is_stopping=lambda: self.is_stopping, max_streams=max_streams)
        self.events = Events(self.watch)

    async def open(self, task: Task, had: int | None = None) -> "Reader":
        answer = await self.events.stream(task.id, had)
        assert isinstance(answer, EventStream)
        return Reader(answer)


class Reader:
    """A client of one stream."""

    def __init__(self, answer: EventStream) -> None:
        self.text = ""
        self._gone = asyncio.Event()
        self._serving = asyncio.create_task(answer({"type": "http"}, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.text += message.get("body", b"").decode()

    async def reads(self, text: str) -> None:
        async with asyncio.timeout(5):
            while text not in self.text:
                await asyncio.sleep(0.005)

    async def ends(self) -> None:
        async with asyncio.timeout(5):
            await self._serving

    async def hangs_up(self) -> None:
        self._gone.set()
        await self.ends()


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_TICK_SECONDS", 0.01)
    monkeypatch.setattr(stream, "_KEEP_ALIVE_SECONDS", 0.05)
    monkeypatch.setattr(stream, "_CLAIM_SECONDS", 0.2)


def run(rows: FollowedRows, story: Callable[[Lab], Coroutine[Any, Any, None]], **fields: Any) -> None:
    async def tell() -> None:
        lab = Lab(rows, **fields)
        try:
            await story(lab)
        finally:
            lab.calls.close()

    asyncio.run(tell())


async def refusal(opening: Awaitable[Any]) -> str:
    with pytest.raises(Refused) as error:
        await opening
    return error.value.code


def test_many_streams_ask_one_question_per_tick() -> None:
    first, second = a_task(), a_task(idempotency_key="k-2")
    rows = FollowedRows(first, second)

    async def story(lab: Lab) -> None:
        readers = [await lab.open(task) for task in (first, second) for _ in range(5)]
        before = len(rows.looks)
        rows.move(first, Status.FAILED)
        rows.move(second, Status.CANCELLED)
        for reader in readers:
            await reader.ends()
        assert "event: failed" in readers[0].text
        assert "event: cancelled" in readers[-1].text
        assert len(rows.looks) - before <= 3
        assert set(rows.looks[-1]) == {first.id, second.id}

    run(rows, story)


def test_an_event_carries_version_status_and_the_order_and_is_sent_once() -> None:
    task = a_task()
    rows = FollowedRows(task)

    async def story(lab: Lab) -> None:
        reader = await lab.open(task)
        await reader.reads(": still here")
        rows.move(task, Status.COMPLETED)
        await reader.ends()
        assert reader.text.startswith("retry: 2000\n\nid: 1\nevent: pending\ndata: {")
        assert reader.text.count("event: pending") == 1
        assert reader.text.count("id: 2\nevent: completed\ndata: {") == 1

    run(rows, story)


def test_what_was_had_already_is_not_sent_again() -> None:
    task = a_task(version=3)
    rows = FollowedRows(task)

    async def story(lab: Lab) -> None:
        reader = await lab.open(task, had=3)
        await reader.reads(": still here")
        rows.move(task, Status.FAILED)
        await reader.ends()
        assert reader.text.count("event:") == 1
        assert "id: 4\nevent: failed" in reader.text

    run(rows, story)


def test_no_more_streams_are_opened_than_there_are_places_and_a_place_comes_back() -> None:
    task = a_task()

    async def story(lab: Lab) -> None:
        first, second = await lab.open(task), await lab.open(task)
        assert await refusal(lab.open(task)) == "too_many_streams"
        await first.hangs_up()
        await (await lab.open(task)).hangs_up()
        await second.hangs_up()

    run(FollowedRows(task), story, max_streams=2)


def test_refused_and_finished_requests_keep_no_place() -> None:
    done, unknown = a_task(status=Status.COMPLETED), a_task(idempotency_key="nobody")

    async def story(lab: Lab) -> None:
        for _ in range(2):
            assert await refusal(lab.open(unknown)) == "not_claimed_yet"
            assert (await lab.events.stream(done.id, 1)).status_code == 204
            await (await lab.open(done)).ends()

    run(FollowedRows(done), story, max_streams=1)


def test_the_loop_rests_while_nobody_follows() -> None:
    task = a_task()
    rows = FollowedRows(task)

    async def story(lab: Lab) -> None:
        await (await lab.open(task)).hangs_up()
        await asyncio.sleep(0.05)  # several ticks
        before = len(rows.looks)
        await asyncio.sleep(0.05)
        assert len(rows.looks) == before
        await (await lab.open(task)).hangs_up()

    run(rows, story)


def test_streams_end_when_the_process_does_and_no_new_one_begins() -> None:
    task = a_task()

    async def story(lab: Lab) -> None:
        readers = [await lab.open(task) for _ in range(3)]
        lab.is_stopping = True
        for reader in readers:
            await reader.ends()
        assert await refusal(lab.open(task)) == "shutting_down"

    run(FollowedRows(task), story)


def test_an_outage_of_the_database_keeps_streams_open_and_refuses_new_orders_as_such() -> None:
    task, other = a_task(), a_task(idempotency_key="k-2")
    rows = FollowedRows(task, other)

    async def story(lab: Lab) -> None:
        reader = await lab.open(task)
        rows.error = DatabaseAway("gone")
        with pytest.raises(DatabaseAway):
            await lab.open(other)
        rows.error = None
        rows.move(task, Status.FAILED)
        await reader.ends()
        assert "event: failed" in reader.text

    run(rows, story)


def test_a_bug_ends_the_streams_and_the_next_one_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    task = a_task()
    rows = FollowedRows(task)

    async def story(lab: Lab) -> None:
        reader = await lab.open(task)
        rows.error = ZeroDivisionError("of ours")
        await reader.ends()
        rows.error = None
        again = await lab.open(task)
        await again.reads("event: pending")
        await again.hangs_up()

    run(rows, story)
    assert [record.message for record in caplog.records] == ["streams ended by a bug"]
