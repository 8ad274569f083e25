"""Looks at rows: what is running stays untouched, what has ended is moved once, and what is owed is paid."""

import itertools
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from shared.domain.errors import ProviderAway, ProviderRejected, StorageAway
from shared.domain.messages import permit
from shared.domain.outcome import DeadLetter, Done, FollowUp
from shared.domain.task import Reason, Status
from shared.pictures import BrokenPicture
from shared.providers.base import Gone, Job, JobState, Running, Succeeded, Unclear
from tests.factories import MEASURED, at_once, delivered
from tests.integration.check_lab import Lab, all_columns, broken, names


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


def test_looking_at_a_running_job_writes_nothing(lab: Lab) -> None:
    task = lab.running()
    before = all_columns(lab, task)

    assert lab.look(task) == Done(then=[], follow_up_of=[])

    assert all_columns(lab, task) == before


def test_a_finished_job_is_completed_with_its_stored_pictures(lab: Lab) -> None:
    task = lab.running(Succeeded(outputs=[{}, {}]))

    outcome = lab.look(task)

    row = lab.now(task)
    assert (row.status, names(outcome)) == (Status.COMPLETED, ["order.completed"])
    assert outcome.follow_up_of == [FollowUp(row.id, row.version)]
    assert lab.store.kept == [f"{task.id}/1/0.png", f"{task.id}/1/1.png"]
    assert [a.key for a in lab.tasks.artifacts([task.id])[task.id]] == lab.store.kept
    assert lab.attempts(task)[0].outcome == "completed"


def test_a_hundred_rows_of_one_backend_are_one_question(lab: Lab) -> None:
    tasks = [lab.running() for _ in range(10)]
    asked: list[int] = []
    check = lab.provider.check

    def counted(jobs: Sequence[Job]) -> Mapping[uuid.UUID, JobState]:
        asked.append(len(jobs))
        return check(jobs)

    lab.provider.check = counted  # type: ignore[method-assign]
    lab.look(*tasks)

    assert asked == [10]


def test_of_two_pollers_that_find_the_job_done_one_completes_it(lab: Lab) -> None:
    task, other = lab.running(Succeeded(outputs=[{}])), lab.another_check()
    lab.provider.meanwhile["fetch"] = lambda: lab.look(task, check=other)

    outcome = lab.look(task)

    assert outcome.then == []
    assert lab.history(task)[-1] == ("processing", "completed")
    assert len(lab.tasks.artifacts([task.id])[task.id]) == 1


def test_an_order_cancelled_while_its_pictures_were_fetched_stays_cancelled(lab: Lab) -> None:
    task = lab.running(Succeeded(outputs=[{}]))
    lab.provider.meanwhile["fetch"] = lambda: lab.tasks.cancel(task.id)

    assert lab.look(task) == Done(then=[], follow_up_of=[])

    row = lab.now(task)
    assert (row.status, row.cancel_owed) == (Status.CANCELLED, True)
    assert row.due_at is not None


def test_a_row_that_moved_meanwhile_is_decided_again_from_where_it_is(lab: Lab) -> None:
    """A person adopts a job for the row just when the look at its first one is about to end it."""
    task = lab.running(broken(retryable=False))

    def adopted() -> None:
        lab.moved(lab.moved(task, Status.FAILED), Status.PROCESSING)
        lab.provider.finish(task, Succeeded(outputs=[{}]))

    lab.provider.meanwhile["check"] = adopted

    assert names(lab.look(task)) == ["order.completed"]
    assert lab.provider.count("check") == 2
    assert lab.history(task)[-3:] == [
        ("processing", "failed"),
        ("failed", "processing"),
        ("processing", "completed"),
    ]


def test_a_picture_another_poller_completed_is_counted_as_one_not_made_twice(lab: Lab) -> None:
    def suppressed() -> float:
        return MEASURED.value("duplicates_suppressed_total", point="complete")

    before = suppressed()
    task, other = lab.running(Succeeded(outputs=[{}])), lab.another_check()
    lab.provider.meanwhile["fetch"] = lambda: lab.look(task, check=other)
    lab.look(task)

    assert suppressed() == before + 1


@pytest.mark.parametrize("error", [BrokenPicture("cut off"), FileNotFoundError("gone")])
def test_a_picture_that_cannot_be_used_costs_an_attempt_and_goes_elsewhere(lab: Lab, error: Exception) -> None:
    task = lab.running(Succeeded(outputs=[{}]))
    lab.store.faults.append(error)

    lab.look(task)

    row = lab.now(task)
    assert (row.status, row.charged, row.reason) == (Status.PENDING, 1, Reason.NO_OUTPUTS)
    assert row.avoid_backend == "gpu-1"


def test_a_job_without_any_picture_is_no_success(lab: Lab) -> None:
    task = lab.running(Succeeded(outputs=[]))

    lab.look(task)

    assert (lab.now(task).status, lab.now(task).reason) == (Status.PENDING, Reason.NO_OUTPUTS)


def test_a_picture_too_large_to_take_ends_the_order(lab: Lab) -> None:
    task = lab.running(Succeeded(outputs=[{}]))
    lab.provider.plan("fetch", ProviderRejected("too large", reason=Reason.NO_OUTPUTS))

    assert names(lab.look(task)) == ["check.dead", "order.failed"]
    assert lab.now(task).reason == Reason.NO_OUTPUTS


@pytest.mark.parametrize("away", ["store", "provider"])
def test_pictures_that_cannot_be_had_or_kept_now_leave_the_row_as_it_is(lab: Lab, away: str) -> None:
    task = lab.running(Succeeded(outputs=[{}]))
    if away == "store":
        lab.store.faults.append(StorageAway("no answer"))
    else:
        lab.provider.plan("fetch", ProviderAway("no answer"))
    before = all_columns(lab, task)

    assert names(lab.look(task)) == []
    assert all_columns(lab, task) == before

    assert names(lab.look(task)) == ["order.completed"]


@pytest.mark.parametrize(("away", "reason"), [("store", Reason.STORE_FAILED), ("provider", Reason.DEADLINE)])
def test_pictures_that_could_not_be_kept_until_the_deadline_end_the_order(lab: Lab, away: str, reason: Reason) -> None:
    task = lab.age(lab.running(Succeeded(outputs=[{}])), deadline_at=1)
    lab.store.faults += [StorageAway("no answer")] if away == "store" else []
    if away == "provider":
        lab.provider.plan("fetch", ProviderAway("no answer"))

    lab.look(task)

    assert (lab.now(task).status, lab.now(task).reason) == (Status.FAILED, reason)


def test_a_backend_that_does_not_answer_changes_nothing(lab: Lab) -> None:
    task = lab.running(Succeeded(outputs=[{}]))
    lab.provider.plan("check", ProviderAway("no answer"))

    assert names(lab.look(task)) == []
    assert lab.now(task).version == task.version


def test_a_running_job_past_the_deadline_is_failed_and_cancelled(lab: Lab) -> None:
    task = lab.age(lab.running(), deadline_at=1)

    outcome = lab.look(task)

    row = lab.now(task)
    assert (row.status, row.reason) == (Status.FAILED, Reason.DEADLINE)
    assert len(lab.provider.cancelled) == 1
    assert names(outcome) == ["check.dead", "order.failed"]
    assert outcome.follow_up_of == [FollowUp(row.id, row.version)]


def test_a_submitting_row_past_the_deadline_waits_for_its_lease_and_is_then_cancelled_by_key(lab: Lab) -> None:
    task = lab.age(lab.submitting(), deadline_at=1)
    assert lab.look(task).then == []
    assert lab.now(task).status is Status.SUBMITTING
    lab.age(task, free_at=1)

    outcome = lab.look(task)

    assert (lab.now(task).status, lab.now(task).stage) == (Status.FAILED, "submit")
    assert names(outcome) == ["submit.dead", "order.failed"]
    assert [job.job_key for job in lab.provider.cancelled] == [task.job_key]


def test_a_doubt_past_the_deadline_is_told_as_one_when_the_provider_cannot_settle_it(lab: Lab) -> None:
    lab.provider.unclear = Unclear("gpu-1: sent 1 time; this provider cannot be asked")
    task = lab.submitting()
    assert lab.tasks.may_post([(task, "hash")], 60) == [True]
    lab.age(task, deadline_at=1, free_at=1)

    outcome = lab.look(task)

    row = lab.now(task)
    assert (row.status, row.reason) == (Status.FAILED, Reason.OUTCOME_UNKNOWN)
    assert row.detail == "gpu-1: sent 1 time; this provider cannot be asked; the deadline passed"
    assert names(outcome) == ["submit.dead", "order.failed"]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (Status.COMPLETED, ["order.completed"]),
        (Status.FAILED, ["check.dead", "order.failed"]),
        (Status.CANCELLED, ["order.cancelled"]),
    ],
)
def test_a_final_row_says_its_last_word_again_until_that_is_paid(lab: Lab, status: Status, said: list[str]) -> None:
    task = lab.moved(lab.running(), status)

    first, again = lab.look(task), lab.look(task)

    assert names(first) == names(again) == said
    assert [m.message_id for m in first.then] == [m.message_id for m in again.then]
    assert first.follow_up_of == [FollowUp(task.id, task.version)]
    lab.tasks.clear_due(first.follow_up_of)
    assert lab.look(task) == Done(then=[], follow_up_of=[])


def test_a_late_look_at_an_older_attempt_is_ignored(lab: Lab) -> None:
    old = lab.running(Succeeded(outputs=[{}]))
    lab.moved(old, Status.PENDING)
    (new,) = lab.take()
    lab.record(new, "job", 60)

    assert lab.look(old) == Done(then=[], follow_up_of=[])
    assert lab.now(old).version == new.version + 1
    assert lab.provider.calls == []


def test_a_row_that_waits_is_left_alone_until_its_deadline(lab: Lab) -> None:
    task = lab.pending()
    assert lab.look(task).then == []
    task = lab.age(task, deadline_at=1)

    assert names(lab.look(task)) == ["submit.dead", "order.failed"]


def test_rows_nobody_knows_are_no_error(lab: Lab) -> None:
    task = lab.running()
    stranger = type(task)(**{f: getattr(task, f) for f in task.__slots__} | {"id": uuid.uuid4()})

    assert lab.look(stranger, task) == Done(then=[], follow_up_of=[])


@pytest.mark.parametrize("fields", [{"type": "?"}, {"body": b"?"}, {"body": b'{"pool": "comfyui", "tasks": []}'}])
def test_a_message_that_is_no_check_is_buried(lab: Lab, fields: dict[str, Any]) -> None:
    message = delivered(permit("comfyui"), **{"type": "task.check.v1"} | fields)

    (outcome,) = lab.check.handle([message])

    assert isinstance(outcome, DeadLetter)
    assert outcome.reason is Reason.INVALID_MESSAGE


def test_every_combination_of_states_in_one_message_ends_each_row_for_itself(lab: Lab) -> None:
    states: list[JobState] = [Running(), Succeeded(outputs=[{}]), Gone(), broken(retryable=False)]
    tasks = [lab.running(state) for state, _ in itertools.product(states, range(2))]

    lab.look(*tasks)

    assert [lab.now(task).status.value for task in tasks] == [
        *["processing"] * 2,
        *["completed"] * 2,
        *["pending"] * 2,
        *["failed"] * 2,
    ]


def test_a_row_that_two_messages_name_at_once_is_completed_once(lab: Lab) -> None:
    tasks = [lab.running(Succeeded(outputs=[{}])) for _ in range(10)]

    checks = [lab.another_check() for _ in range(4)]
    outcomes = at_once([lambda check=check: lab.look(*tasks, check=check) for check in checks])  # type: ignore[misc]

    paid = [follow_up.task_id for outcome in outcomes for follow_up in outcome.follow_up_of]
    assert sorted(paid) == sorted(task.id for task in tasks)


def test_a_server_that_keeps_one_look_waiting_is_left_alone_by_the_others(lab: Lab) -> None:
    slow, other = lab.running(), lab.running(Succeeded(outputs=[{}]))
    asked, let_go = threading.Event(), threading.Event()
    lab.provider.meanwhile["check"] = lambda: (asked.set(), let_go.wait(30))
    waiting = threading.Thread(target=lab.look, args=(slow,))
    waiting.start()
    assert asked.wait(10)

    lab.clock += 5.1
    left_alone = lab.look(other)
    asked_for = lab.provider.count("check")
    let_go.set()
    waiting.join(10)

    assert left_alone == Done(then=[], follow_up_of=[])
    assert asked_for == 1
    assert names(lab.look(other)) == ["order.completed"]


def test_a_server_that_did_not_answer_is_asked_by_one_at_a_time_until_it_does(lab: Lab) -> None:
    task = lab.running(Succeeded(outputs=[{}]))
    lab.provider.plan("check", ProviderAway("no answer"))
    lab.look(task)
    others: list[Done] = []
    lab.provider.meanwhile["check"] = lambda: others.append(lab.look(task))

    assert names(lab.look(task)) == ["order.completed"]

    assert others == [Done(then=[], follow_up_of=[])]
    assert lab.provider.count("check") == 2
