"""The rows of one message: what has come by now goes to the disk and into the table together, and fails alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Event
from typing import Any, BinaryIO

import pytest

from services.poller import side_by_side
from shared.database.moves import Change
from shared.domain.errors import DatabaseAway, ProviderAway, ProviderRejected, StorageAway
from shared.domain.task import Reason, Status, Task
from shared.providers.base import Job, Succeeded
from tests.factories import FakeProvider, a_check, a_picture, at_once
from tests.integration.check_lab import Lab, names
from tests.waiting import eventually

DONE = Succeeded(outputs=[{}])


class Together(FakeProvider):
    """Gives the pictures of several jobs from one thread.

    goes_wrong -- by place what is said of a job's picture instead
    """

    def __init__(self) -> None:
        super().__init__(seconds=0.005)
        self.goes_wrong: dict[int, Exception] = {}
        self.before_the_last: Callable[[], object] = lambda: None

    def fetch_together(
        self, outputs: Sequence[Sequence[Mapping[str, Any]]]
    ) -> Iterator[list[tuple[int, Sequence[BinaryIO] | Exception]]]:
        for place, ours in enumerate(outputs):
            if place == len(outputs) - 1:
                self.before_the_last()
            yield [(place, self.goes_wrong.get(place) or [a_picture() for _ in ours])]


@pytest.fixture
def together(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url, Together())
    yield lab
    lab.close()


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


def test_jobs_that_ended_together_are_settled_and_moved_in_one_round(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "PATIENCE_SECONDS", 5.0)
    tasks = [lab.running(DONE) for _ in range(12)]

    outcome = lab.look(*tasks)

    assert names(outcome) == ["order.completed"] * 12
    assert {lab.now(task).status for task in tasks} == {Status.COMPLETED}
    assert lab.store.settled == [12]


def test_pictures_that_cannot_be_settled_leave_their_rows_as_they_are(lab: Lab) -> None:
    tasks = [lab.running(DONE) for _ in range(3)]
    lab.store.faults_at_disk += [StorageAway("no space left")] * 3

    assert names(lab.look(*tasks)) == []
    assert {lab.now(task).status for task in tasks} == {Status.PROCESSING}

    lab.store.faults_at_disk.clear()
    assert names(lab.look(*tasks)) == ["order.completed"] * 3


def test_a_row_that_cannot_be_moved_is_failed_and_its_neighbours_complete(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [lab.running(DONE) for _ in range(6)]
    poison = tasks[3].id
    move_each = lab.tasks.move_each

    def poisoned(changes: Sequence[Change]) -> list[Task | None]:
        if any(change.task.id == poison for change in changes):
            raise ZeroDivisionError
        return move_each(changes)

    monkeypatch.setattr(lab.tasks, "move_each", poisoned)

    outcome = lab.look(*tasks)

    assert sorted(names(outcome)) == ["check.dead"] + ["order.completed"] * 5 + ["order.failed"]
    failed = lab.now(tasks[3])
    assert (failed.status, failed.reason) == (Status.FAILED, Reason.BUG)


def test_a_picture_that_is_slow_to_come_keeps_nobody_waiting(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [lab.running(DONE) for _ in range(4)]
    others_are_done = Event()
    fetch = lab.provider.fetch

    def slow(job: Job, outputs: Sequence[object]) -> object:
        if job.task_id == tasks[0].id:
            assert others_are_done.wait(20)
            raise ProviderAway("it trickled")
        return fetch(job, outputs)  # type: ignore[arg-type]

    monkeypatch.setattr(lab.provider, "fetch", slow)

    def look() -> list[str]:
        return names(lab.look(*tasks))

    def watch() -> list[str]:
        eventually(lambda: [lab.now(task).status for task in tasks[1:]] == [Status.COMPLETED] * 3, within=15)
        others_are_done.set()
        return []

    assert at_once([look, watch])[0] == ["order.completed"] * 3


def test_the_database_gone_in_the_middle_holds_the_message(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [lab.running(DONE) for _ in range(3)]

    def away(changes: Sequence[Change]) -> list[Task | None]:
        raise DatabaseAway("gone")

    with monkeypatch.context() as patched:
        patched.setattr(lab.tasks, "move_each", away)
        with pytest.raises(DatabaseAway):
            lab.look(*tasks)

    assert names(lab.look(*tasks)) == ["order.completed"] * 3


def test_of_two_threads_that_mean_the_same_row_one_looks_at_it(lab: Lab) -> None:
    """A hint and the row's own check often come together; a picture fetched twice helps nobody."""
    task = lab.running(DONE)
    lab.provider.meanwhile["fetch"] = lambda: lab.look(task)

    assert names(lab.look(task)) == ["order.completed"]
    assert lab.provider.count("check") == 1


def test_a_row_of_the_same_message_that_ends_while_a_picture_is_slow_to_come_is_completed_at_once(lab: Lab) -> None:
    slow, running = lab.running(DONE), lab.running()
    found: list[str] = []

    def meanwhile() -> None:
        lab.provider.finish(running, DONE)
        found.extend(names(lab.look(running)))

    lab.provider.meanwhile["fetch"] = meanwhile

    assert names(lab.look(slow, running)) == ["order.completed"]
    assert found == ["order.completed"]


def test_a_row_that_moved_since_it_was_read_is_not_fetched_again(lab: Lab) -> None:
    task = lab.running(DONE)
    found: list[str] = []
    lab.provider.meanwhile["check"] = lambda: found.extend(names(lab.look(task)))

    assert names(lab.look(task)) == []
    assert found == ["order.completed"]
    assert lab.provider.count("fetch") == 1


def test_a_row_in_the_hands_of_another_thread_is_not_counted_as_survived(lab: Lab) -> None:
    """Of a row that kills whoever looks at it, nobody who left it alone may say that it does no harm."""
    task = lab.running(DONE)
    lab.tasks.begin_alone(task)
    lab.provider.meanwhile["fetch"] = lambda: lab.check.handle([replace(a_check(task), redelivered=True)])

    lab.look(task)

    assert lab.sql("select deaths from attempts where task_id = :id", id=task.id) == [(1,)]


def test_a_row_is_free_again_after_a_look_that_ended_badly(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    task = lab.running(DONE)

    def away(changes: Sequence[Change]) -> list[Task | None]:
        raise DatabaseAway("gone")

    with monkeypatch.context() as patched:
        patched.setattr(lab.tasks, "move_each", away)
        with pytest.raises(DatabaseAway):
            lab.look(task)

    assert names(lab.look(task)) == ["order.completed"]


def test_pictures_that_come_together_fail_each_for_its_own_row(together: Lab) -> None:
    assert isinstance(together.provider, Together)
    tasks = [together.running(DONE) for _ in range(6)]
    together.provider.goes_wrong = {
        1: FileNotFoundError("gone"),
        2: ProviderAway("it does not answer"),
        3: ProviderRejected("too large", reason=Reason.NO_OUTPUTS),
    }

    outcome = together.look(*tasks)

    statuses = [together.now(task).status for task in tasks]
    done = Status.COMPLETED
    assert statuses == [done, Status.PENDING, Status.PROCESSING, Status.FAILED, done, done]
    assert sorted(names(outcome)) == ["check.dead", *["order.completed"] * 3, "order.failed"]


def test_of_pictures_that_come_together_a_slow_one_keeps_nobody_waiting(together: Lab) -> None:
    assert isinstance(together.provider, Together)
    tasks = [together.running(DONE) for _ in range(6)]

    def others_are_done() -> bool:
        return [together.now(task).status for task in tasks[:-1]] == [Status.COMPLETED] * 5

    together.provider.before_the_last = lambda: eventually(others_are_done, within=15)

    assert names(together.look(*tasks)) == ["order.completed"] * 6


def test_rows_are_free_again_when_their_pictures_could_not_be_asked_for(
    together: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [together.running(DONE) for _ in range(6)]

    def broken(_: object) -> Iterator[Any]:
        raise DatabaseAway("in the middle")

    with monkeypatch.context() as patched:
        patched.setattr(together.provider, "fetch_together", broken)
        with pytest.raises(DatabaseAway):
            together.look(*tasks)

    assert names(together.look(*tasks)) == ["order.completed"] * 6
