"""Jobs that failed, were lost or strike a bug: charged as far as they should be, and for their own row alone."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from shared.database.moves import Change
from shared.domain.messages import Artifact
from shared.domain.outcome import FollowUp
from shared.domain.task import Reason, Status, Task
from shared.providers.base import Failed, Gone, Job, JobState, Succeeded
from tests.integration.check_lab import Lab, broken, names


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


@pytest.mark.parametrize("state", [Gone(), broken()])
def test_a_lost_job_is_tried_again_after_a_backoff_and_charged(lab: Lab, state: JobState) -> None:
    task = lab.running(state)

    assert names(lab.look(task)) == []

    row = lab.now(task)
    assert (row.status, row.charged, row.reason, row.backend) == (Status.PENDING, 1, Reason.LOST, None)
    assert lab.attempts(task)[0].outcome == Reason.LOST


@pytest.mark.parametrize(
    ("failed", "ends_as"),
    [
        (broken(), Reason.LOST),
        (broken(Reason.NO_OUTPUTS), Reason.NO_OUTPUTS),
        (broken(Reason.REJECTED), Reason.ATTEMPTS_EXHAUSTED),
    ],
)
def test_an_order_whose_tries_are_used_up_fails_with_a_letter(lab: Lab, failed: Failed, ends_as: Reason) -> None:
    task = lab.running(failed)
    for _ in range(2):
        lab.look(task)
        lab.age(task, free_at=1)
        (task,) = lab.take()
        recorded = lab.record(task, "job", 60)
        assert recorded is not None
        lab.provider.finish(task, failed)

    outcome = lab.look(task)

    row = lab.now(task)
    assert (row.status, row.charged, row.reason) == (Status.FAILED, 3, ends_as)
    assert names(outcome) == ["check.dead", "order.failed"]
    assert outcome.follow_up_of == [FollowUp(row.id, row.version)]


def test_a_failure_that_no_retry_helps_ends_the_order_at_once(lab: Lab) -> None:
    task = lab.running(broken(Reason.CONTENT_REJECTED, retryable=False))

    assert names(lab.look(task)) == ["check.dead", "order.failed"]
    assert lab.now(task).reason == Reason.CONTENT_REJECTED


def test_an_execution_error_gets_one_more_attempt(lab: Lab) -> None:
    error = broken(Reason.EXECUTION_FAILED, once=True, elsewhere=True)
    task = lab.running(error)
    lab.look(task)
    assert lab.now(task).status is Status.PENDING
    lab.age(task, free_at=1)
    (task,) = lab.take()
    lab.record(task, "job", 60)
    lab.provider.finish(task, error)

    lab.look(task)

    assert (lab.now(task).status, lab.now(task).reason) == (Status.FAILED, Reason.EXECUTION_FAILED)
    assert lab.now(task).attempt == 2


def test_running_out_of_memory_does_not_use_up_the_one_retry_of_an_execution_error(lab: Lab) -> None:
    error = broken(Reason.EXECUTION_FAILED, once=True, elsewhere=True)
    no_memory = broken(Reason.EXECUTION_FAILED, elsewhere=True, attempt_outcome="out_of_memory")
    task = lab.running(no_memory)

    for state, status in [(no_memory, Status.PENDING), (error, Status.PENDING), (error, Status.FAILED)]:
        lab.provider.finish(task, state)
        lab.look(task)
        assert lab.now(task).status is status
        if status is Status.PENDING:
            lab.age(task, free_at=1)
            (task,) = lab.take()
            lab.record(task)

    assert [attempt.outcome for attempt in lab.attempts(task)] == ["out_of_memory", *["execution_failed"] * 2]


def test_a_bug_with_one_row_fails_that_row_and_not_its_neighbours(lab: Lab) -> None:
    poison, neighbour = lab.running(Succeeded(outputs=[{}])), lab.running(Succeeded(outputs=[{}]))
    write = lab.store.write

    def buggy(task_id: uuid.UUID, *rest: Any) -> Artifact:
        if task_id == poison.id:
            raise KeyError("a bug")
        return write(task_id, *rest)

    lab.store.write = buggy  # type: ignore[method-assign]

    outcome = lab.look(poison, neighbour)

    assert (lab.now(poison).status, lab.now(poison).reason) == (Status.FAILED, Reason.BUG)
    assert lab.now(neighbour).status is Status.COMPLETED
    assert sorted(names(outcome)) == ["check.dead", "order.completed", "order.failed"]
    assert len(outcome.follow_up_of) == 2


def test_a_job_that_breaks_the_bulk_question_is_failed_alone(lab: Lab) -> None:
    poison, neighbour = lab.running(), lab.running(Succeeded(outputs=[{}]))
    check = lab.provider.check

    def buggy(jobs: Sequence[Job]) -> Mapping[uuid.UUID, JobState]:
        if any(job.task_id == poison.id for job in jobs):
            raise KeyError("a bug")
        return check(jobs)

    lab.provider.check = buggy  # type: ignore[method-assign]

    lab.look(poison, neighbour)

    assert lab.now(poison).reason == Reason.BUG
    assert lab.now(neighbour).status is Status.COMPLETED


def test_a_bug_while_cancelling_leaves_the_cancel_owed_and_the_letter_leaves(lab: Lab) -> None:
    task, neighbour = lab.age(lab.running(), deadline_at=1), lab.running(Succeeded(outputs=[{}]))
    lab.provider.plan("cancel", *[KeyError("a bug")] * 3)

    outcome = lab.look(task, neighbour)

    assert sorted(names(outcome)) == ["check.dead", "order.completed", "order.failed"]
    assert (lab.now(task).reason, lab.now(task).cancel_owed) == (Reason.DEADLINE, True)
    assert lab.now(neighbour).status is Status.COMPLETED


def test_a_row_that_cannot_even_be_failed_is_left_to_its_next_look(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    task, neighbour = lab.running(broken(retryable=False)), lab.running(Succeeded(outputs=[{}]))
    move = lab.tasks._move

    def buggy(changes: Sequence[Change], also: Any = None) -> dict[uuid.UUID, Task]:
        if any(change.task.id == task.id for change in changes):
            raise KeyError("a bug")
        return move(changes, also)

    monkeypatch.setattr(lab.tasks, "_move", buggy)

    assert names(lab.look(task, neighbour)) == ["order.completed"]
    assert lab.now(task).version == task.version
    assert lab.now(task).due_at is not None
