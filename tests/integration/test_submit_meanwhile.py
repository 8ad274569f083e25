"""A row is cancelled, taken over or comes to its deadline during the provider call: no job is left without an owner."""

from collections.abc import Iterator

import pytest

from shared.domain.errors import (
    InputLater,
    InputUnavailable,
    ProviderAway,
    ProviderBusy,
    ProviderRejected,
)
from shared.domain.outcome import Done, FollowUp
from shared.domain.task import Reason, Status
from tests.integration.submit_lab import Lab, names


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


def test_a_job_accepted_for_an_order_cancelled_meanwhile_is_cancelled_too(lab: Lab) -> None:
    task = lab.pending()
    lab.provider.meanwhile["submit"] = lambda: lab.tasks.cancel(task.id)

    verdict, row = lab.ended(task)

    assert [job.provider_job_id for job in lab.provider.cancelled] == [str(row.job_key)]
    assert names(verdict) == ["order.cancelled"]
    assert verdict.follow_up_of == [FollowUp(row.id, row.version)]
    assert lab.attempts(task)[0].provider_job_id == str(row.job_key)


def test_a_job_that_could_not_be_cancelled_is_left_to_check(lab: Lab) -> None:
    task = lab.pending()
    lab.provider.meanwhile["submit"] = lambda: lab.tasks.cancel(task.id)
    lab.provider.plan("cancel", ProviderAway("no answer"))

    verdict, row = lab.ended(task)

    assert verdict == Done()
    assert row.cancel_owed
    assert row.due_at is not None


def test_a_job_whose_row_is_at_another_attempt_is_cancelled_by_its_own_key(lab: Lab) -> None:
    task = lab.pending()

    def another_attempt() -> None:
        now = lab.now(task)
        lab.moved(lab.moved(now, Status.FAILED), Status.PENDING, deadline_in=60.0)
        assert len(lab.take()) == 1

    lab.provider.meanwhile["submit"] = another_attempt

    verdict, row = lab.ended(task)

    first = lab.attempts(task)[0].job_key
    assert verdict == Done()
    assert (row.attempt, row.status) == (2, Status.SUBMITTING)
    assert [job.job_key for job in lab.provider.cancelled] == [first]
    assert first != row.job_key


def test_a_job_whose_row_was_taken_over_meanwhile_is_left_alone(lab: Lab) -> None:
    task = lab.pending()

    def taken_over() -> None:
        lab.age(task, free_at=1)
        assert lab.take()[0].taken_over

    lab.provider.meanwhile["submit"] = taken_over

    verdict, row = lab.ended(task)

    assert (verdict, row.status) == (Done(), Status.SUBMITTING)
    assert lab.provider.cancelled == []


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("prepare", None),
        ("prepare", ProviderBusy("refused", is_down=True)),
        ("prepare", InputLater("502")),
        ("prepare", InputUnavailable("404")),
        ("submit", ProviderBusy("429", retry_after_seconds=30)),
        ("submit", ProviderRejected("no such node")),
    ],
)
def test_an_order_cancelled_before_anything_was_made_gives_up_its_slot_at_once(
    lab: Lab, call: str, error: Exception | None
) -> None:
    task = lab.pending()
    lab.provider.plan(call, error)
    lab.provider.meanwhile[call] = lambda: lab.tasks.cancel(task.id)

    verdict, row = lab.ended(task)
    lab.tasks.clear_due(verdict.follow_up_of)  # as the consumer does once the event is confirmed

    assert names(verdict) == ["order.cancelled"]
    assert (row.status, lab.now(task).cancel_owed, lab.now(task).due_at) == (Status.CANCELLED, False, None)
    assert lab.slots.backends()[0].in_flight == 0
    assert lab.provider.jobs == {}


def test_a_lease_that_ended_while_the_inputs_were_fetched_is_renewed_when_nobody_took_the_row_over(lab: Lab) -> None:
    task = lab.pending()
    lab.provider.meanwhile["prepare"] = lambda: lab.age(task, free_at=1)

    _, row = lab.ended(task)

    assert (row.status, row.attempt, lab.provider.count("submit")) == (Status.PROCESSING, 1, 1)


def test_nothing_is_posted_for_a_row_that_was_taken_over_while_the_inputs_were_fetched(lab: Lab) -> None:
    task = lab.pending()

    def taken_over() -> None:
        lab.age(task, free_at=1)
        assert lab.take()[0].taken_over

    lab.provider.meanwhile["prepare"] = taken_over

    verdict, row = lab.ended(task)

    assert (verdict, row.status, lab.provider.count("submit")) == (Done(), Status.SUBMITTING, 0)


@pytest.mark.parametrize("call", ["prepare", "submit"])
def test_an_owner_too_late_leaves_the_cancel_owed_for_what_the_next_owner_sends(lab: Lab, call: str) -> None:
    task = lab.pending()

    def taken_over_and_cancelled() -> None:
        lab.age(task, free_at=1)
        (theirs,) = lab.take()
        assert lab.may_post(theirs)
        lab.tasks.cancel(task.id)

    lab.provider.meanwhile[call] = taken_over_and_cancelled

    verdict, row = lab.ended(task)
    lab.tasks.clear_due(verdict.follow_up_of)

    assert (verdict, row.status) == (Done(), Status.CANCELLED)
    assert lab.now(task).cancel_owed
    assert lab.now(task).due_at is not None
    assert lab.slots.backends()[0].in_flight == 1


def test_nothing_is_posted_past_the_deadline_and_the_order_fails_at_once(lab: Lab) -> None:
    task = lab.pending()
    lab.provider.meanwhile["prepare"] = lambda: lab.age(task, deadline_at=1)

    verdict, row = lab.ended(task)

    assert (row.status, row.reason, lab.provider.count("submit")) == (Status.FAILED, Reason.DEADLINE, 0)
    assert names(verdict) == ["submit.dead", "order.failed"]
