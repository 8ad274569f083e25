"""A status moves by compare-and-set along legal edges only, and every move is in the history."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise, product

import pytest
import sqlalchemy as sa

from shared.database.moves import FOLLOW_UP_GRACE_SECONDS
from shared.domain.messages import Artifact
from shared.domain.task import LEGAL_MOVES, Reason, Stage, Status, Task
from tests.factories import MEASURED, Rows, a_change, at_once

PICTURE = Artifact(index=0, key="k", sha256="0" * 64, bytes=1, media_type="image/png", width=1, height=1)
S = Status


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    rows = Rows(database_url, threads=20)
    rows.backends(gpu_1=100)
    yield rows
    rows.close()


def in_status(rows: Rows, status: Status) -> Task:
    match status:
        case S.PENDING:
            return rows.pending()
        case S.SUBMITTING:
            return rows.submitting()
        case S.PROCESSING:
            return rows.processing()
        case S.COMPLETED:
            return rows.moved(rows.processing(), S.COMPLETED)
        case S.FAILED:
            return rows.failed(rows.processing())
        case S.CANCELLED:
            return rows.moved(rows.processing(), S.CANCELLED)


def forced(rows: Rows, task: Task, to: Status) -> Task:
    """The move, with everything in it that the table's own rules ask of that status."""
    needs_job = to in (S.SUBMITTING, S.PROCESSING, S.COMPLETED) and task.backend is None
    if needs_job:
        rows.sql("update tasks set backend = 'gpu-1', job_key = gen_random_uuid() where id = :id", id=task.id)
    return rows.moved(rows.now(task), to, provider_job_id="job" if to is S.PROCESSING else None)


def test_every_legal_move_can_be_made(rows: Rows) -> None:
    for before, after in sorted(LEGAL_MOVES):
        task = in_status(rows, before)

        moved = forced(rows, task, after)

        assert (moved.status, moved.version) == (after, task.version + 1)
        assert rows.history(moved)[-1] == (before, after)
        rows.sql("update tasks set free_at = 'infinity' where id = :id", id=task.id)  # out of the next one's way


def test_every_other_move_is_refused_and_changes_nothing(rows: Rows) -> None:
    ends_pending = sorted(Status, key=lambda status: status is S.PENDING)
    rows_by_status = {status: in_status(rows, status) for status in ends_pending}
    for before, after in sorted(set(product(Status, Status)) - LEGAL_MOVES):
        task = rows_by_status[before]
        with pytest.raises(sa.exc.IntegrityError):
            forced(rows, task, after)
        assert (rows.now(task).status, rows.now(task).version) == (task.status, task.version), (before, after)


def test_a_stale_version_or_status_moves_nothing(rows: Rows) -> None:
    read = rows.pending()
    rows.moved(read, S.CANCELLED)

    assert rows.tasks.move([a_change(read, S.FAILED)]) == {}
    assert rows.now(read).status is S.CANCELLED


def test_of_ten_workers_that_read_the_same_row_one_moves_it(rows: Rows) -> None:
    read = rows.processing()
    wanted = [S.COMPLETED, S.FAILED, S.CANCELLED, S.PENDING] * 3

    made = at_once([partial(rows.tasks.move, [a_change(read, to)]) for to in wanted])

    assert sum(len(moved) for moved in made) == 1
    assert len(rows.history(read)) == 4


def test_an_illegal_move_undoes_the_whole_batch(rows: Rows) -> None:
    fine, ended = rows.pending(), rows.moved(rows.pending(), S.CANCELLED)
    counted = partial(MEASURED.value, "transitions_total", from_status=S.CANCELLED, to_status=S.FAILED)
    before = counted(result="forbidden")

    with pytest.raises(sa.exc.IntegrityError):
        rows.tasks.move([a_change(fine, S.FAILED), a_change(ended, S.FAILED)])

    assert counted(result="forbidden") == before + 1

    assert rows.now(fine).status is S.PENDING
    assert rows.history(fine) == [(None, "pending")]


def test_a_batch_of_different_moves_answers_with_those_that_were_made(rows: Rows) -> None:
    done, again, stale = rows.processing(), rows.processing(), rows.processing()
    rows.moved(stale, S.CANCELLED)

    moved = rows.tasks.move(
        [
            a_change(done, S.COMPLETED, artifacts=[PICTURE], attempt_outcome="completed"),
            a_change(again, S.PENDING, reason=Reason.LOST, charge=True, free_in=60.0, attempt_outcome=Reason.LOST),
            a_change(stale, S.FAILED, attempt_outcome=Reason.BUG),
        ]
    )

    assert {id_: task.status for id_, task in moved.items()} == {done.id: S.COMPLETED, again.id: S.PENDING}
    assert (moved[again.id].charged, moved[again.id].backend, moved[again.id].job_key) == (1, None, None)
    assert rows.tasks.artifacts([done.id, again.id]) == {done.id: [PICTURE]}
    assert [rows.attempts(task)[0].outcome for task in (done, again, stale)] == ["completed", "lost", None]
    assert rows.attempts(done)[0].ended_at is not None


def test_overlapping_batches_in_opposite_orders_do_not_deadlock(rows: Rows) -> None:
    tasks = [rows.pending() for _ in range(40)]
    changes = [a_change(task, S.FAILED) for task in tasks]

    made = at_once([partial(rows.tasks.move, changes), partial(rows.tasks.move, changes[::-1])] * 5)

    assert sum(map(len, made)) == 40
    assert rows.sql("select deadlocks from pg_stat_database where datname = current_database()")[0][0] == 0


def test_recording_and_cancelling_the_same_rows_at_once_does_not_deadlock(rows: Rows) -> None:
    for _ in range(15):
        task = rows.submitting()
        at_once([partial(rows.record, task, "job"), partial(rows.tasks.cancel, task.id)] * 2)
        assert rows.now(task).status is S.CANCELLED
        assert rows.attempts(task)[0].provider_job_id == "job"
    assert rows.sql("select deadlocks from pg_stat_database where datname = current_database()")[0][0] == 0


def test_the_history_is_a_gapless_chain_of_versions(rows: Rows) -> None:
    task = rows.processing()
    task = rows.moved(task, S.PENDING, charge=True)
    (task,) = rows.take()
    task = rows.failed(task)
    task = rows.moved(task, S.PENDING, deadline_in=60.0)

    moves = rows.sql("select * from task_moves where task_id = :id order by version", id=task.id)

    assert [move.version for move in moves] == list(range(1, task.version + 1))
    assert all(a.to_status == b.from_status for a, b in pairwise(moves))
    assert moves[-1].to_status == task.status
    assert [move.attempt for move in moves] == [0, 1, 1, 1, 2, 2, 2]
    assert {move.actor for move in moves} == {"test"}


@pytest.mark.parametrize(
    "statement",
    [
        "delete from task_moves",
        "update task_moves set actor = 'nobody'",
        "update tasks set status = 'completed', finished_at = now()",  # no new version
        "update tasks set version = version + 2",
        "update tasks set version = version - 1",
    ],
)
def test_nobody_bends_the_history_by_hand(rows: Rows, statement: str) -> None:
    task = rows.processing()

    with pytest.raises(sa.exc.IntegrityError):
        rows.sql(statement)

    assert len(rows.history(task)) == 3
    assert (rows.now(task).status, rows.now(task).version) == (S.PROCESSING, task.version)


def seconds_until(moment: object, task: Task) -> float:
    return (moment - task.changed_at).total_seconds()  # type: ignore[operator]


def test_a_pending_row_comes_due_at_its_deadline_and_is_free_after_its_backoff(rows: Rows) -> None:
    task = rows.moved(rows.processing(), S.PENDING, free_in=60.0, due_in=1.0)

    assert task.due_at == task.deadline_at
    assert seconds_until(task.free_at, task) == 60


@pytest.mark.parametrize("final", [S.COMPLETED, S.FAILED, S.CANCELLED])
def test_a_final_row_comes_due_when_its_mover_may_have_died(rows: Rows, final: Status) -> None:
    task = rows.moved(rows.processing(), final)

    assert seconds_until(task.due_at, task) == FOLLOW_UP_GRACE_SECONDS


def test_a_row_cancelled_while_submitting_comes_due_when_the_lease_ends(rows: Rows) -> None:
    task = rows.submitting(lease_seconds=120.0)

    cancelled = rows.moved(task, S.CANCELLED, due_in=0.0, cancel_owed=True)

    assert cancelled.due_at == task.free_at


def test_a_row_cancelled_after_its_lease_comes_due_at_once(rows: Rows) -> None:
    task = rows.age(rows.submitting(), free_at=10)

    cancelled = rows.moved(task, S.CANCELLED, cancel_owed=True)

    assert cancelled.due_at == cancelled.changed_at


def test_a_replay_has_all_tries_again_and_a_new_deadline(rows: Rows) -> None:
    failed = rows.moved(rows.processing(), S.FAILED, charge=True)
    assert failed.charged == 1

    task = rows.moved(failed, S.PENDING, deadline_in=500.0)

    assert (task.charged, task.attempt) == (0, 1)
    assert seconds_until(task.deadline_at, task) == 500
    assert task.due_at == task.deadline_at


def test_a_text_the_database_cannot_hold_is_kept_as_far_as_it_can(rows: Rows) -> None:
    task = rows.moved(rows.pending(), S.FAILED, detail="a\x00b\ud800c" + "x" * 9000)

    assert task.detail is not None
    assert task.detail.startswith("ab?c")
    assert len(task.detail) == 8000


def test_a_row_that_owes_a_cancel_stays_due_until_that_is_paid(rows: Rows) -> None:
    task = rows.moved(rows.processing(), S.CANCELLED, cancel_owed=True)

    with pytest.raises(sa.exc.IntegrityError):
        rows.sql("update tasks set due_at = null where id = :id", id=task.id)


def test_the_stage_and_reason_of_a_failure_stand_in_the_row(rows: Rows) -> None:
    task = rows.moved(rows.pending(), S.FAILED, reason=Reason.DEADLINE, stage=Stage.SUBMIT, detail="too late")

    assert (task.reason, task.stage, task.detail) == ("deadline", "submit", "too late")
