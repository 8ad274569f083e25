"""Jobs that run too long and jobs nobody wants: they are cancelled by id, and a server that cannot is frozen."""

from collections.abc import Iterator

import pytest

from shared.database.audit import Check, run_audit
from shared.domain.errors import ProviderAway
from shared.domain.outcome import Done, FollowUp
from shared.domain.task import Status, Task
from shared.providers.base import Gone, Running, Succeeded
from tests.integration.check_lab import Lab, all_columns, names


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


def cancelled(lab: Lab) -> Task:
    task = lab.tasks.cancel(lab.running().id)
    assert task is not None
    return task


def paid(lab: Lab, task: Task) -> Done:
    """A look whose messages are confirmed."""
    outcome = lab.look(task)
    lab.tasks.clear_due(outcome.follow_up_of)
    return outcome


def frozen(lab: Lab) -> Task:
    """A job that ran past its limit and could not be cancelled for longer than is granted."""
    task = lab.running()
    lab.age(task, changed_at=151)
    lab.provider.can_cancel = False
    lab.look(task)
    lab.clock += 151
    lab.look(task)
    assert lab.health() == "frozen"
    return task


def test_a_job_that_ended_between_the_look_and_the_cancel_of_its_limit_keeps_its_picture(lab: Lab) -> None:
    task = lab.running()
    lab.look(task)
    lab.clock += 101
    lab.provider.meanwhile["cancel"] = lambda: lab.provider.finish(task)

    outcome = lab.look(task)

    row = lab.now(task)
    assert (row.status, row.attempt, row.charged) == (Status.COMPLETED, 1, 0)
    assert names(outcome) == ["order.completed"]
    assert lab.provider.count("cancel") == 1


def test_a_job_over_its_limit_whose_server_falls_silent_is_looked_at_again(lab: Lab) -> None:
    task = lab.running()
    lab.look(task)
    lab.clock += 101
    lab.provider.meanwhile["cancel"] = lambda: lab.provider.plan("check", ProviderAway("no answer"))

    lab.look(task)
    assert lab.now(task).status is Status.PROCESSING
    lab.look(task)
    assert (lab.now(task).status, lab.now(task).charged) == (Status.PENDING, 1)


def test_a_job_over_its_limit_is_cancelled_and_tried_elsewhere(lab: Lab) -> None:
    task = lab.running()
    lab.look(task)
    lab.clock += 99
    lab.look(task)
    assert lab.provider.cancelled == []
    lab.clock += 1

    lab.look(task)

    row = lab.now(task)
    assert (row.status, row.charged, row.avoid_backend) == (Status.PENDING, 1, "gpu-1")
    assert len(lab.provider.cancelled) == 1
    assert lab.attempts(task)[0].outcome == "attempts_exhausted"


def test_the_time_a_job_waits_at_its_server_does_not_count_as_running(lab: Lab) -> None:
    task = lab.age(lab.running(Running(waiting=True)), changed_at=5000)
    lab.look(task)
    lab.clock += 5000
    before = all_columns(lab, task)
    lab.look(task)

    lab.provider.finish(task, Running())
    lab.look(task)
    lab.clock += 99
    lab.look(task)
    assert lab.provider.cancelled == []
    assert all_columns(lab, task) == before, "no look at a running job writes"
    lab.clock += 1
    lab.look(task)

    assert lab.now(task).status is Status.PENDING


def test_a_job_that_outlives_its_cancelling_freezes_its_server_and_stays_there(lab: Lab) -> None:
    task = lab.running()
    lab.provider.can_cancel = False
    lab.look(task)
    lab.clock += 149
    lab.look(task)
    assert (lab.health(), len(lab.provider.cancelled)) == ("up", 1)
    lab.clock += 2

    lab.look(task)

    assert lab.health() == "frozen"
    assert lab.now(task).status is Status.PROCESSING


def test_an_unwanted_job_that_outlives_its_cancelling_freezes_its_server_too(lab: Lab) -> None:
    """The jobs behind it only wait, so none of them would ever be over its limit."""
    task = cancelled(lab)
    lab.provider.can_cancel = False
    lab.look(task)
    assert lab.health() == "up"
    lab.age(task, changed_at=51)

    lab.look(task)

    assert lab.health() == "frozen"


@pytest.mark.parametrize("state", [Gone(), Succeeded(outputs=[{}])])
def test_a_frozen_server_is_up_again_when_the_job_that_froze_it_has_ended(lab: Lab, state: Gone | Succeeded) -> None:
    other = cancelled(lab)
    task = frozen(lab)
    lab.provider.can_cancel = True
    lab.look(other)
    assert lab.health() == "frozen", "a dead worker's queue can still be cleared"

    lab.provider.finish(task, state)
    lab.look(task)

    assert lab.health() == "up"


def test_a_frozen_server_is_up_again_when_its_job_can_be_cancelled_after_all(lab: Lab) -> None:
    task = frozen(lab)
    lab.provider.can_cancel = True

    lab.look(task)

    assert lab.health() == "up"
    assert lab.now(task).status is Status.PENDING


def test_a_person_lifts_a_freeze(lab: Lab) -> None:
    frozen(lab)

    assert lab.slots.resume("gpu-1", "ann")

    assert lab.health() == "up"


def test_a_cancelled_order_says_so_once_and_is_paid_when_its_job_is_cancelled_at_the_provider(lab: Lab) -> None:
    task = cancelled(lab)
    lab.provider.plan("cancel", ProviderAway("no answer"))
    first = paid(lab, task)
    lab.provider.can_cancel = False
    second = paid(lab, task)
    assert (names(first), names(second)) == (["order.cancelled"], [])
    assert (lab.now(task).cancel_owed, lab.now(task).due_at is None) == (True, False)
    lab.provider.can_cancel = True

    assert paid(lab, task) == Done(then=[], follow_up_of=[FollowUp(task.id, task.version)])

    assert (lab.now(task).cancel_owed, lab.now(task).due_at) == (False, None)


def test_a_last_word_that_was_not_confirmed_is_said_again(lab: Lab) -> None:
    task = cancelled(lab)
    lab.provider.can_cancel = False

    assert names(lab.look(task)) == names(lab.look(task)) == ["order.cancelled"]


def test_a_row_that_ends_again_says_its_new_last_word(lab: Lab) -> None:
    task = lab.moved(lab.running(), Status.FAILED)
    paid(lab, task)

    again = lab.moved(lab.moved(lab.now(task), Status.PROCESSING), Status.FAILED)

    assert names(lab.look(again)) == ["check.dead", "order.failed"]


def test_a_cancel_owed_at_a_backend_unknown_here_stays_owed(lab: Lab) -> None:
    task = cancelled(lab)
    lab.sql("update tasks set backend = 'gpu-2' where id = :id", id=task.id)

    assert names(paid(lab, task)) == ["order.cancelled"]

    assert lab.now(task).cancel_owed


def test_a_job_whose_id_came_after_the_row_had_moved_on_is_cancelled_by_that_id(lab: Lab) -> None:
    task = lab.submitting()
    assert lab.may_post(task)
    lab.tasks.cancel(task.id)
    assert lab.record(task, "prediction-7") is None

    lab.look(task)

    assert [job.provider_job_id for job in lab.provider.cancelled] == ["prediction-7"]


@pytest.mark.parametrize(
    ("enabled", "health", "owed"), [(True, "down", True), (False, "up", True), (False, "down", False)]
)
def test_a_cancel_is_dropped_when_its_backend_was_removed_and_is_silent(
    lab: Lab, enabled: bool, health: str, owed: bool
) -> None:
    task = cancelled(lab)
    lab.slots.set_health("gpu-1", health)
    lab.sql("update backends set enabled = :enabled where name = 'gpu-1'", enabled=enabled)
    lab.provider.plan("cancel", ProviderAway("no answer"))

    paid(lab, task)

    assert lab.now(task).cancel_owed is owed


def test_a_cancel_owed_to_a_server_that_is_away_breaks_no_promise_and_one_that_is_up_does(lab: Lab) -> None:
    task = cancelled(lab)
    lab.provider.can_cancel = False
    paid(lab, task)
    lab.age(task, told_at=400, finished_at=500, free_at=500)
    lab.sql("update backends set health = 'down', health_changed_at = now() - interval '1 hour'")
    assert run_audit(lab.engine, lab.store) == []

    lab.sql("update backends set health = 'up'")

    assert [(f.check, f.subject) for f in run_audit(lab.engine, lab.store)] == [(Check.ZOMBIE, str(task.id))]
