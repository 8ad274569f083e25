"""A row that kills whoever looks at it fails after a few deaths, and the rows beside it are made meanwhile."""

import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from shared.domain.outcome import Done
from shared.domain.retry import DEATHS
from shared.domain.task import Reason, Status, Task
from shared.providers.base import Job, Prepared, Succeeded
from tests.factories import FakeProvider, a_check, a_hint, permits
from tests.integration import check_lab
from tests.integration.submit_lab import Lab
from tests.waiting import eventually


class Deadly(FakeProvider):
    """Whoever prepares one of these rows, or fetches its pictures, dies there: SystemExit goes past every handler."""

    def __init__(self) -> None:
        super().__init__(seconds=0.01)
        self.deadly: set[uuid.UUID] = set()

    def prepare(self, job: Job) -> Prepared:
        self._die_of(job)
        return super().prepare(job)

    def fetch(self, job: Job, outputs: Sequence[Any]) -> Iterator[Any]:
        self._die_of(job)
        return super().fetch(job, outputs)

    def _die_of(self, job: Job) -> None:
        self.calls.append(("met", job.job_key))
        if job.task_id in self.deadly:
            raise SystemExit


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url, provider=Deadly())
    yield lab
    lab.close()


def take_over(lab: Lab, *tasks: Task) -> list[Any]:
    """What one process makes of them once their leases are over; None where it died."""
    for task in tasks:
        lab.age(task, free_at=1)
    answers = lab.submit.handle(permits(len(tasks)))
    futures = [answer for answer in answers if isinstance(answer, Future)]
    assert len(futures) == len(tasks)
    for future in futures:
        eventually(future.done, within=20)
    return [None if future.exception() else future.result() for future in futures]


def test_a_row_that_kills_its_submitters_fails_as_a_bug(lab: Lab) -> None:
    row = lab.submitting()
    lab.provider.deadly = {row.id}
    for _ in range(DEATHS):
        assert take_over(lab, row) == [None]
        assert lab.now(row).status is Status.SUBMITTING

    [verdict] = take_over(lab, row)

    failed = lab.now(row)
    assert isinstance(verdict, Done)
    assert (failed.status, failed.reason, failed.cancel_owed) == (Status.FAILED, Reason.BUG, True)
    assert failed.detail == f"{DEATHS} workers died in a row while they looked at nothing else"
    assert lab.provider.count("submit") == 0


def test_a_row_that_was_survived_once_counts_from_the_beginning(lab: Lab) -> None:
    row = lab.submitting()
    lab.provider.deadly = {row.id}
    for _ in range(DEATHS):
        take_over(lab, row)
    lab.sql("update attempts set deaths = deaths - 1")
    lab.provider.deadly = set()
    [verdict] = take_over(lab, row)
    assert isinstance(verdict, Done)
    assert lab.now(row).status is Status.PROCESSING
    assert [attempt.deaths for attempt in lab.attempts(row)] == [0]


def test_of_several_rows_taken_over_only_the_one_begun_is_suspected(lab: Lab) -> None:
    """SystemExit ends one thread here and not the process, so the others go on; each is begun after the one before."""
    rows = [lab.pending() for _ in range(4)]
    rows = [lab.now(row) for row in lab.take(at_most=4)]
    lab.provider.deadly = {rows[0].id}
    begun: list[int] = []
    lab.provider.meanwhile["submit"] = lambda: begun.append(
        sum(attempt.deaths for row in rows[1:] for attempt in lab.attempts(row))
    )

    take_over(lab, *rows)

    assert begun == [1]  # the row itself, while it was being sent
    assert [lab.now(row).status for row in rows] == [Status.SUBMITTING] + [Status.PROCESSING] * 3
    assert [attempt.deaths for row in rows for attempt in lab.attempts(row)] == [1, 0, 0, 0]


def test_a_row_that_moved_on_is_nobodys_death(lab: Lab) -> None:
    row = lab.submitting()
    assert lab.tasks.begin_alone(replace(row, version=row.version - 1)) == 0
    assert [attempt.deaths for attempt in lab.attempts(row)] == [0]


# --- check


@pytest.fixture
def checks(database_url: str) -> Iterator[check_lab.Lab]:
    lab = check_lab.Lab(database_url, provider=Deadly())
    yield lab
    lab.close()


def redelivered(lab: check_lab.Lab, *rows: Task) -> bool:
    """Whether the process outlived the message."""
    try:
        lab.check.handle([replace(a_check(*rows), redelivered=True)])
    except SystemExit:
        return False
    return True


def test_a_picture_that_kills_its_pollers_fails_its_order_alone(checks: check_lab.Lab) -> None:
    rows = [checks.running(Succeeded(outputs=[{"filename": "a.png"}])) for _ in range(3)]
    deadly = sorted(rows, key=lambda row: row.id)[1]
    checks.provider.deadly = {deadly.id}
    for _ in range(DEATHS):
        assert not redelivered(checks, *rows)
        assert checks.now(deadly).status is Status.PROCESSING

    assert redelivered(checks, *rows)

    failed = checks.now(deadly)
    assert (failed.status, failed.reason) == (Status.FAILED, Reason.BUG)
    assert {checks.now(row).status for row in rows if row.id != deadly.id} == {Status.COMPLETED}


def test_rows_of_a_message_that_comes_for_the_first_time_are_suspected_of_nothing(checks: check_lab.Lab) -> None:
    row = checks.running(Succeeded(outputs=[{"filename": "a.png"}]))
    checks.provider.deadly = {row.id}

    with pytest.raises(SystemExit):
        checks.look(row)

    assert [attempt.deaths for attempt in checks.attempts(row)] == [0]


def test_a_final_row_is_told_of_whatever_its_attempt_did(checks: check_lab.Lab) -> None:
    row = checks.failed(checks.running())
    checks.sql("update attempts set deaths = 99")

    [outcome] = checks.check.handle([replace(a_check(row), redelivered=True)])

    assert isinstance(outcome, Done)
    assert [message.routing_key for message in outcome.then] == ["check.dead", "order.failed"]


def test_a_hint_somebody_may_have_died_of_is_dropped(checks: check_lab.Lab) -> None:
    row = checks.running(Succeeded(outputs=[{"filename": "a.png"}]))

    [outcome] = checks.check.handle([replace(a_hint("gpu-1"), redelivered=True)])

    assert isinstance(outcome, Done)
    assert checks.now(row).status is Status.PROCESSING
    assert checks.provider.count("ended") == 0
