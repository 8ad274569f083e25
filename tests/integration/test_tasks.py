"""Everything else that is done to a row: the look before the POST, recording, coming due, cancelling, finding."""

import uuid
from collections import Counter
from collections.abc import Iterator

import pytest

from shared.domain.outcome import FollowUp
from shared.domain.task import Accepted, Reason, Stage, Status, task_id_for
from tests.factories import MEASURED, POOL, Rows, a_change, a_claim, at_once


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    rows = Rows(database_url, threads=20)
    rows.backends(gpu_1=100)
    yield rows
    rows.close()


def test_the_post_is_noted_with_its_body_before_it_leaves(rows: Rows) -> None:
    task = rows.submitting(lease_seconds=60)

    assert rows.may_post(task, "body-hash", lease_seconds=60)

    (attempt,) = rows.attempts(task)
    assert attempt.body_hash == "body-hash"
    assert attempt.posted_at is not None


def test_the_owner_that_posts_owns_the_row_for_a_whole_lease_from_there(rows: Rows) -> None:
    """Looking and preparing used up the first one; otherwise a lease just long enough would never allow a POST."""
    task = rows.submitting(lease_seconds=5)

    assert rows.may_post(task, "body-hash", lease_seconds=60)

    now = rows.tasks.refresh(task)
    assert (now.free_at - now.now).total_seconds() > 50
    assert now.due_at == now.free_at
    assert now.version == task.version


def test_a_lease_that_was_just_given_is_not_written_again(rows: Rows) -> None:
    task = rows.submitting(lease_seconds=60)

    assert rows.may_post(task, "body-hash", lease_seconds=60)

    now = rows.tasks.refresh(task)
    assert (now.free_at, now.due_at) == (task.free_at, task.due_at)


def test_an_owner_whose_lease_ran_out_unnoticed_owns_the_row_for_another_one(rows: Rows) -> None:
    task = rows.submitting(lease_seconds=20)
    rows.age(task, free_at=1)

    assert rows.may_post(task, "body-hash", lease_seconds=60)

    assert rows.take() == []
    assert not rows.now(task).is_past_deadline


def test_of_an_owner_that_renews_its_lease_and_a_worker_that_takes_over_one_has_the_row(rows: Rows) -> None:
    for _ in range(10):
        task = rows.age(rows.submitting(), free_at=1)

        may_post, over = at_once([lambda task=task: rows.may_post(task, "hash", 60), rows.take])  # type: ignore[misc]

        assert may_post is (over == [])


def test_no_post_leaves_once_the_deadline_has_passed(rows: Rows) -> None:
    task = rows.age(rows.submitting(), deadline_at=1)

    assert not rows.may_post(task, "body-hash", lease_seconds=60)

    assert rows.attempts(task)[0].posted_at is None


def test_no_post_leaves_for_a_row_that_was_cancelled_or_taken_over(rows: Rows) -> None:
    cancelled, taken_over = rows.submitting(), rows.submitting()
    rows.tasks.cancel(cancelled.id)
    rows.age(taken_over, free_at=1)
    assert len(rows.take()) == 1

    assert not rows.may_post(cancelled, "hash", 1)
    assert not rows.may_post(taken_over, "hash", 1)


def test_recording_a_job_moves_the_row_and_names_its_next_look(rows: Rows) -> None:
    task = rows.submitting()

    recorded = rows.record(task, "job-7", due_in=12)

    assert recorded is not None
    assert (recorded.status, recorded.provider_job_id) == (Status.PROCESSING, "job-7")
    assert (recorded.due_at - recorded.changed_at).total_seconds() == 12  # type: ignore[operator]
    (attempt,) = rows.attempts(task)
    assert (attempt.provider_job_id, attempt.accepted_at is None) == ("job-7", False)


def test_the_job_is_known_to_its_attempt_even_when_the_row_has_moved_on(rows: Rows) -> None:
    task = rows.submitting()
    rows.tasks.cancel(task.id)

    assert rows.record(task, "job-7", due_in=1) is None

    assert rows.attempts(task)[0].provider_job_id == "job-7"
    assert rows.now(task).status is Status.CANCELLED


def test_recording_twice_keeps_the_first_time(rows: Rows) -> None:
    task = rows.submitting()
    rows.record(task, "job-7", due_in=1)
    before = rows.attempts(task)

    assert rows.record(task, "job-7", due_in=1) is None

    assert rows.attempts(task) == before


def test_two_schedulers_never_get_the_same_due_row(rows: Rows) -> None:
    tasks = [rows.age(rows.processing(), due_at=5) for _ in range(60)]

    taken = at_once([lambda: rows.tasks.take_due(15, next_look=60)] * 8)

    counted = Counter(task.id for batch in taken for task in batch)
    assert set(counted.values()) == {1}
    assert counted.keys() <= {task.id for task in tasks}


def test_a_due_row_keeps_its_version_and_comes_due_again_by_its_status(rows: Rows) -> None:
    processing, final = rows.processing(), rows.failed()
    submitting = rows.submitting(lease_seconds=500)
    pending = rows.pending()
    every = [rows.age(task, due_at=5) for task in (processing, final, submitting, pending)]

    due = {task.id: task for task in rows.tasks.take_due(100, next_look=60)}

    assert due.keys() == {task.id for task in every}
    assert all(due[task.id].version == task.version and due[task.id].free_at == task.free_at for task in every)

    def waits(task_id: uuid.UUID) -> float:
        return round((due[task_id].due_at - due[task_id].now).total_seconds(), 1)  # type: ignore[operator]

    assert (waits(processing.id), waits(final.id), waits(pending.id)) == pytest.approx((60, 30, 30), abs=1)
    assert due[submitting.id].due_at == submitting.free_at
    assert rows.tasks.take_due(100, next_look=60) == []


def test_the_oldest_due_rows_come_first(rows: Rows) -> None:
    tasks = [rows.age(rows.processing(), due_at=seconds) for seconds in (5, 50, 20)]

    found = rows.tasks.take_due(2, next_look=60)

    assert {task.id for task in found} == {tasks[1].id, tasks[2].id}


def test_rows_of_a_skipped_pool_stay_due_but_pending_ones_are_taken(rows: Rows) -> None:
    processing = rows.age(rows.processing(), due_at=5)
    pending = rows.age(rows.pending(), due_at=5)

    found = rows.tasks.take_due(100, 60, skip_pools=["comfyui"])

    assert [task.id for task in found] == [pending.id]
    assert [task.id for task in rows.tasks.take_due(100, 60)] == [processing.id]


def test_a_paid_follow_up_clears_only_the_version_it_was_paid_for(rows: Rows) -> None:
    first = rows.failed()
    replayed = rows.moved(rows.moved(first, Status.PENDING, deadline_in=60.0), Status.FAILED)

    rows.tasks.clear_due([FollowUp(first.id, first.version)])
    assert rows.now(first).due_at is not None

    rows.tasks.clear_due([FollowUp(first.id, replayed.version)])
    assert rows.now(first).due_at is None


def test_a_paid_follow_up_ends_what_was_owed_and_is_no_move(rows: Rows) -> None:
    cancelled = rows.tasks.cancel(rows.processing().id)
    assert cancelled is not None
    assert cancelled.cancel_owed

    rows.tasks.clear_due([FollowUp(cancelled.id, cancelled.version)])

    now = rows.now(cancelled)
    assert (now.cancel_owed, now.due_at, now.version) == (False, None, cancelled.version)


def test_a_row_that_is_not_final_keeps_its_due_moment(rows: Rows) -> None:
    task = rows.processing()

    rows.tasks.clear_due([FollowUp(task.id, task.version)])

    assert rows.now(task).due_at == task.due_at


def test_follow_ups_cleared_in_opposite_orders_do_not_deadlock(rows: Rows) -> None:
    tasks = [rows.failed() for _ in range(40)]
    paid = [FollowUp(task.id, task.version) for task in tasks]

    at_once([lambda: rows.tasks.clear_due(paid), lambda: rows.tasks.clear_due(paid[::-1])] * 5)

    assert all(rows.now(task).due_at is None for task in tasks[:3])
    assert rows.sql("select deadlocks from pg_stat_database where datname = current_database()")[0][0] == 0


def test_cancelling_a_waiting_order_owes_nothing_at_a_provider(rows: Rows) -> None:
    task = rows.tasks.cancel(rows.pending().id, "too late")

    assert task is not None
    assert (task.status, task.cancel_owed, task.reason) == (Status.CANCELLED, False, "too late")
    assert task.due_at == task.changed_at


def test_cancelling_a_started_order_owes_the_cancel_and_ends_the_attempt(rows: Rows) -> None:
    submitting, processing = rows.submitting(lease_seconds=300), rows.processing()

    first, second = rows.tasks.cancel(submitting.id), rows.tasks.cancel(processing.id)

    assert first is not None
    assert second is not None
    assert (first.cancel_owed, first.due_at) == (True, submitting.free_at)
    assert (second.cancel_owed, second.due_at) == (True, second.changed_at)
    assert rows.attempts(submitting)[0].outcome == rows.attempts(processing)[0].outcome == "cancelled"


@pytest.mark.parametrize("final", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
def test_cancelling_a_finished_order_changes_nothing(rows: Rows, final: Status) -> None:
    task = rows.moved(rows.processing(), final)

    answer = rows.tasks.cancel(task.id)

    assert answer is not None
    assert (answer.status, answer.version) == (final, task.version)


def test_cancelling_an_unknown_order_finds_nothing(rows: Rows) -> None:
    assert rows.tasks.cancel(uuid.uuid4()) is None


def test_ten_people_cancel_once_and_one_of_them_is_noted(rows: Rows) -> None:
    task = rows.processing()

    answers = at_once([lambda: rows.tasks.cancel(task.id, "no", by_whom="ann")] * 10)

    assert {answer.status for answer in answers if answer} == {Status.CANCELLED}
    assert rows.history(task)[-1] == ("processing", "cancelled")
    assert rows.sql("select count(*) from operator_actions")[0][0] == 1


def test_a_kept_key_answers_with_the_task_it_was_kept_with(rows: Rows) -> None:
    task = rows.pending(order_id="o")
    kept = a_claim(order_id="o")
    rows.tasks.claim([kept])

    found = rows.tasks.find(task_id_for(kept.idempotency_key))

    assert found is not None
    assert found.id == task.id
    assert rows.tasks.kept_fingerprint(task_id_for(kept.idempotency_key)) == kept.fingerprint
    assert rows.tasks.kept_fingerprint(task.id) is None
    assert rows.tasks.find(uuid.uuid4()) is None


def test_attempts_are_counted_by_their_end_since_the_last_replay(rows: Rows) -> None:
    task = rows.processing()
    rows.moved(task, Status.PENDING, attempt_outcome=Reason.EXECUTION_FAILED)
    (task,) = rows.take()
    assert rows.tasks.attempts_ended(task, Reason.EXECUTION_FAILED) == 1
    failed = rows.moved(task, Status.FAILED, attempt_outcome=Reason.EXECUTION_FAILED)
    assert rows.tasks.attempts_ended(task, Reason.EXECUTION_FAILED) == 2

    rows.moved(failed, Status.PENDING, deadline_in=60.0)

    assert rows.tasks.attempts_ended(task, Reason.EXECUTION_FAILED) == 0


def test_free_rows_are_those_a_permit_could_start_now(rows: Rows) -> None:
    rows.submitting()
    rows.moved(rows.processing(), Status.PENDING, free_in=60.0)
    rows.age(rows.submitting(), free_at=1)
    rows.pending()
    rows.pending(pool="other-pool")

    most = {"comfyui": 10, "other-pool": 10, "nobody": 10}
    assert rows.tasks.free_rows(most) == {"comfyui": 2, "other-pool": 1, "nobody": 0}
    assert rows.tasks.free_rows({"comfyui": 1}) == {"comfyui": 1}


def test_rows_that_wait_for_a_job_are_found_by_its_id_while_they_wait(rows: Rows) -> None:
    one, other, over = rows.processing(), rows.processing(), rows.failed(rows.processing())
    jobs = [one.provider_job_id or "", over.provider_job_id or "", "somebody else's"]

    assert [task.id for task in rows.tasks.at_work(one.backend or "", jobs)] == [one.id]
    assert rows.tasks.at_work("nobody", [*jobs, other.provider_job_id or ""]) == []


def test_rows_whose_job_is_not_recorded_yet_are_found_by_its_id_while_they_are_owned(rows: Rows) -> None:
    owned, left = rows.submitting(), rows.submitting()
    rows.age(left, free_at=1)

    found = rows.tasks.at_work(owned.backend or "", [str(owned.job_key), str(left.job_key)])

    assert [task.id for task in found] == [owned.id]


def test_of_two_changes_of_one_row_in_a_batch_the_first_counts(rows: Rows) -> None:
    one, other = rows.processing(), rows.processing()
    moves = [(one, Status.COMPLETED), (other, Status.COMPLETED), (one, Status.PENDING)]

    first, second, late = rows.tasks.move_each([a_change(task, to) for task, to in moves])

    assert [row.id for row in (first, second) if row] == [one.id, other.id]
    assert late is None
    assert rows.now(one).status is Status.COMPLETED


def test_of_many_posts_each_gets_its_own_answer(rows: Rows) -> None:
    mine, cancelled, other = rows.submitting(), rows.submitting(), rows.submitting()
    rows.tasks.cancel(cancelled.id)

    answers = rows.tasks.may_post([(task, f"hash of {task.id}") for task in (other, cancelled, mine)], 60)

    assert answers == [True, False, True]
    assert [rows.attempts(task)[0].body_hash for task in (mine, other)] == [f"hash of {t.id}" for t in (mine, other)]
    assert rows.attempts(cancelled)[0].posted_at is None


def test_of_many_jobs_those_are_recorded_whose_rows_wait_for_them(rows: Rows) -> None:
    mine, cancelled, other = rows.submitting(), rows.submitting(), rows.submitting()
    rows.tasks.cancel(cancelled.id)

    recorded = rows.tasks.record([(task, Accepted(f"job of {task.id}")) for task in (other, cancelled, mine)], 60)

    assert [task and task.provider_job_id for task in recorded] == [f"job of {other.id}", None, f"job of {mine.id}"]
    assert rows.attempts(cancelled)[0].provider_job_id == f"job of {cancelled.id}"


def test_an_owner_that_lost_its_row_to_the_same_process_does_not_stand_in_its_way(rows: Rows) -> None:
    before = rows.submitting()
    rows.age(before, free_at=1)
    (now,) = rows.take()

    assert rows.tasks.may_post([(before, "old"), (now, "new")], 60) == [False, True]
    late, recorded = rows.tasks.record([(before, Accepted("job")), (now, Accepted("job"))], 60)

    assert late is None
    assert recorded is not None and recorded.status is Status.PROCESSING  # noqa: PT018 - the first is for the types
    assert rows.attempts(now)[0].body_hash == "new"


def test_how_late_a_due_row_is_taken_is_measured_by_the_databases_clock(rows: Rows) -> None:
    rows.age(rows.processing(), due_at=5)
    before = MEASURED.value("poll_lag_seconds", pool=POOL)
    late = MEASURED.registry.get_sample_value("darkroom_poll_lag_seconds_sum", {"pool": POOL}) or 0.0
    rows.tasks.take_due(10, next_look=60)
    assert MEASURED.value("poll_lag_seconds", pool=POOL) == before + 1
    now = MEASURED.registry.get_sample_value("darkroom_poll_lag_seconds_sum", {"pool": POOL})
    assert now == pytest.approx(late + 5, abs=4)


def test_an_order_that_nobody_could_have_made_counts_as_refused_and_not_as_failed(rows: Rows) -> None:
    def ended(outcome: str) -> float:
        return MEASURED.value("orders_finished_total", pool=POOL, outcome=outcome)

    refused, failed = ended("refused"), ended("failed")
    rows.moved(rows.pending(), Status.FAILED, reason=Reason.INVALID_WORKFLOW, stage=Stage.ORDERS)
    assert (ended("refused"), ended("failed")) == (refused + 1, failed)
    rows.moved(rows.pending(), Status.FAILED, reason=Reason.BUG, stage=Stage.SUBMIT)
    assert (ended("refused"), ended("failed")) == (refused + 1, failed + 1)
