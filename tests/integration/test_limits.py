"""How many jobs a provider gets at once after it said that it was too fast: half, then one more at a time."""

from collections.abc import Iterator, Sequence

import pytest

from shared.domain.task import Status, Task
from tests.factories import POOL, Rows, at_once


class Limited(Rows):
    def limit(self) -> int:
        (backend,) = self.slots.backends()
        return backend.limit

    def started(self, count: int) -> Sequence[Task]:
        """So many more rows in flight."""
        for _ in range(count):
            self.pending()
        return self.take(count)

    def refused(self, task: Task) -> int | None:
        limit = self.slots.too_fast(task)
        self.moved(task, Status.PENDING, free_in=3600.0, attempt_outcome="not_created")
        return limit

    def accepted(self, count: int) -> None:
        """Begun, accepted and done, one after the other."""
        for _ in range(count):
            (task,) = self.started(1)
            recorded = self.record(task)
            assert recorded is not None
            self.moved(recorded, Status.FAILED)


@pytest.fixture
def rows(database_url: str) -> Iterator[Limited]:
    rows = Limited(database_url, threads=12)
    rows.backends(gpu_1=10)
    yield rows
    rows.close()


def test_a_refusal_halves_what_was_in_flight_and_nobody_takes_more(rows: Limited) -> None:
    tasks = rows.started(8)

    assert rows.refused(tasks[0]) == 4
    assert rows.limit() == 4
    for _ in range(5):
        rows.pending()
    assert rows.take(5) == [], "seven are in flight where four are allowed"


def test_refusals_of_jobs_that_were_begun_together_halve_once(rows: Limited) -> None:
    tasks = rows.started(8)

    answers = at_once([lambda task=task: rows.slots.too_fast(task) for task in tasks])  # type: ignore[misc]

    assert [answer for answer in answers if answer is not None] == [4]


def test_a_refusal_after_the_halving_halves_again_and_never_below_one(rows: Limited) -> None:
    first, second = rows.started(2)
    assert rows.refused(first) == 1
    rows.moved(second, Status.FAILED)
    for _ in range(3):
        (task,) = rows.started(1)
        assert rows.refused(task) == 1


def test_as_many_accepted_jobs_as_it_has_earn_it_one_more_up_to_its_capacity(rows: Limited) -> None:
    tasks = rows.started(8)
    rows.refused(tasks[0])
    for task in tasks[1:]:
        rows.moved(task, Status.FAILED)

    seen = []
    for _ in range(4 + 5 + 6 + 7 + 8 + 9 + 1):
        rows.accepted(1)
        seen.append(rows.limit())

    assert [seen.count(limit) for limit in range(4, 11)] == [4, 5, 6, 7, 8, 9, 1]
    (row,) = rows.sql("select limit_now from backends")
    assert row.limit_now is None, "nothing is counted any more"


def test_jobs_begun_before_the_halving_earn_nothing(rows: Limited) -> None:
    tasks = rows.started(8)
    rows.refused(tasks[0])
    for task in tasks[1:]:
        recorded = rows.record(task)
        assert recorded is not None
        rows.moved(recorded, Status.FAILED)

    rows.take(1)
    assert rows.limit() == 4


def test_a_capacity_below_the_limit_holds(rows: Limited) -> None:
    rows.refused(rows.started(8)[0])
    rows.slots.sync([("gpu-1", POOL, "comfyui", "http://127.0.0.1:1", 2, 60.0)])
    assert rows.limit() == 2
