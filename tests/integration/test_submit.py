"""Permits become provider jobs, one per attempt, whatever the provider, the row and the database do meanwhile."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from shared.domain.errors import (
    InputLater,
    InputUnavailable,
    OutcomeUnknown,
    ProviderAway,
    ProviderBusy,
    ProviderRejected,
)
from shared.domain.outcome import DeadLetter, Done, FollowUp, Hold
from shared.domain.task import Reason, Stage, Status
from tests.factories import delivered
from tests.integration.submit_lab import Lab, names


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


def test_a_permit_starts_the_row_and_says_so(lab: Lab) -> None:
    verdict, row = lab.ended(lab.pending())

    assert names(verdict) == ["order.processing"]
    assert (row.status, row.attempt, row.provider_job_id) == (Status.PROCESSING, 1, str(row.job_key))
    assert (row.due_at - row.changed_at).total_seconds() == 7  # type: ignore[operator]
    assert [call for call, _ in lab.provider.calls] == ["prepare", "submit"]


def test_each_permit_starts_one_row_and_the_rest_wait_for_slots(lab: Lab) -> None:
    for _ in range(7):
        lab.pending()

    outcomes = lab.handle(7)

    assert [type(outcome) for outcome in outcomes] == [Done] * 5 + [Hold] * 2
    assert lab.provider.count("submit") == 5


def test_permits_for_which_no_row_is_left_are_done(lab: Lab) -> None:
    lab.pending()

    assert [names(outcome) for outcome in lab.handle(3)] == [["order.processing"], [], []]


def test_permits_wait_while_no_backend_takes_work(lab: Lab) -> None:
    lab.slots.set_health("gpu-1", "down")
    lab.pending()

    assert lab.handle(2) == [Hold(), Hold()]


def test_a_message_that_is_no_permit_is_buried_and_takes_no_row(lab: Lab) -> None:
    task = lab.pending()
    stray = delivered(SimpleNamespace(body=b"", type="?", message_id=None, correlation_id=None, headers={}))  # type: ignore[arg-type]

    (outcome,) = lab.submit.handle([stray])

    assert isinstance(outcome, DeadLetter)
    assert (outcome.reason, outcome.stage) == (Reason.INVALID_MESSAGE, Stage.SUBMIT)
    assert lab.now(task).status is Status.PENDING


def test_two_submitters_with_many_permits_submit_every_row_once(lab: Lab) -> None:
    lab.backends(gpu_1=100)
    tasks = [lab.pending() for _ in range(15)]

    threads = [threading.Thread(target=lab.handle, args=(10,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert lab.provider.count("submit") == 15
    assert {lab.now(task).status for task in tasks} == {Status.PROCESSING}


@pytest.mark.parametrize("accepted", [True, False])
def test_after_a_doubt_nothing_is_sent_before_the_lease_is_over_and_the_provider_was_asked(
    lab: Lab, accepted: bool
) -> None:
    task = lab.pending()
    lab.provider.plan("submit", OutcomeUnknown("the answer was lost"), accepted=accepted)

    verdict, row = lab.ended(task)
    assert (verdict, row.status) == (Done(), Status.SUBMITTING)
    assert lab.handle() == [Done()], "the lease is not over"
    assert lab.provider.count("submit") == 1

    lab.age(task, free_at=1)
    verdict, row = lab.ended(task)

    assert (row.status, row.attempt) == (Status.PROCESSING, 1)
    assert lab.provider.count("submit") == (1 if accepted else 2)
    calls = [call for call, _ in lab.provider.calls]
    assert calls[:3] == ["prepare", "submit", "find"]


def test_a_post_that_was_answered_with_an_error_and_made_nothing_uses_up_a_try(lab: Lab) -> None:
    task = lab.pending()
    lab.provider.plan("submit", *[OutcomeUnknown("HTTP 500", was_answered=True)] * 3, accepted=False)

    for charged in (1, 2):
        verdict, row = lab.ended(task)
        assert (verdict, row.status, row.charged, row.avoid_backend) == (Done(), Status.PENDING, charged, "gpu-1")
        assert row.detail == "HTTP 500"
    verdict, row = lab.ended(task)

    assert (row.status, row.reason, row.charged) == (Status.FAILED, Reason.ATTEMPTS_EXHAUSTED, 3)
    assert names(verdict) == ["submit.dead", "order.failed"]
    assert lab.provider.count("submit") == 3


def test_a_post_that_was_answered_with_an_error_and_made_a_job_all_the_same_is_recorded(lab: Lab) -> None:
    task = lab.pending()
    lab.provider.plan("submit", OutcomeUnknown("HTTP 500", was_answered=True), accepted=True)

    verdict, row = lab.ended(task)

    assert (names(verdict), row.status, row.charged) == (["order.processing"], Status.PROCESSING, 0)


def test_an_error_nobody_can_ask_about_is_left_to_the_next_owner(lab: Lab) -> None:
    task = lab.pending()
    lab.provider.plan("submit", OutcomeUnknown("HTTP 500", was_answered=True), accepted=True)
    lab.provider.plan("find", ProviderAway("no answer"))

    verdict, row = lab.ended(task)

    assert (verdict, row.status, row.charged) == (Done(), Status.SUBMITTING, 0)


@pytest.mark.parametrize("state", ["paused", "frozen", "gone from the file"])
@pytest.mark.parametrize("accepted", [True, False])
def test_a_doubt_at_a_backend_that_takes_no_work_any_more_is_settled_by_asking_alone(
    lab: Lab, state: str, accepted: bool
) -> None:
    task = lab.pending()
    lab.provider.plan("submit", OutcomeUnknown("the answer was lost"), accepted=accepted)
    lab.handle()
    lab.age(task, free_at=1)
    match state:
        case "paused":
            lab.slots.pause("gpu-1", "ann", "new driver", None)
        case "frozen":
            lab.slots.set_health("gpu-1", "frozen")
        case _:
            lab.backends(gpu_2=1)

    verdict, row = lab.ended(task)

    assert lab.provider.count("submit") == 1
    if accepted:
        assert (names(verdict), row.status, row.attempt) == (["order.processing"], Status.PROCESSING, 1)
    else:
        assert (verdict, row.status, row.charged, row.backend) == (Done(), Status.PENDING, 0, None)
        assert row.free_at == row.changed_at
        assert lab.attempts(task)[0].outcome == "not_created"


def test_a_takeover_that_cannot_ask_sends_nothing(lab: Lab) -> None:
    task = lab.pending()
    lab.provider.plan("submit", OutcomeUnknown("lost"), accepted=True)
    lab.handle()
    lab.age(task, free_at=1)
    lab.provider.plan("find", ProviderAway("no answer"))
    lab.provider.alive = False

    verdict, row = lab.ended(task)

    assert (verdict, row.status, lab.health()) == (Done(), Status.SUBMITTING, "down")
    assert lab.provider.count("submit") == 1


def test_a_busy_provider_gets_the_row_later_and_nothing_is_charged(lab: Lab) -> None:
    task = lab.pending()
    lab.provider.plan("submit", ProviderBusy("429", retry_after_seconds=30))

    verdict, row = lab.ended(task)

    assert (verdict, row.status, row.charged, row.detail) == (Done(), Status.PENDING, 0, "429")
    assert (row.free_at - row.changed_at).total_seconds() == 30
    assert lab.slots.backends()[0].is_paused
    assert lab.attempts(task)[0].outcome == "not_created"


def test_a_provider_that_is_down_gets_no_more_work_and_the_row_may_go_elsewhere_at_once(lab: Lab) -> None:
    task = lab.pending()
    lab.provider.plan("prepare", ProviderBusy("refused", is_down=True))

    _, row = lab.ended(task)

    assert (row.status, row.charged, lab.health()) == (Status.PENDING, 0, "down")
    assert row.free_at == row.changed_at


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        ("submit", ProviderRejected("no such node"), Reason.REJECTED),
        ("submit", ProviderRejected("nude", reason=Reason.CONTENT_REJECTED), Reason.CONTENT_REJECTED),
        ("prepare", ProviderRejected("width", reason=Reason.INVALID_WORKFLOW), Reason.INVALID_WORKFLOW),
        ("prepare", InputUnavailable("404"), Reason.INPUT_UNAVAILABLE),
    ],
)
def test_a_refused_order_fails_with_a_letter_and_an_event(
    lab: Lab, call: str, error: Exception, reason: Reason
) -> None:
    task = lab.pending()
    lab.provider.plan(call, error)

    verdict, row = lab.ended(task)

    assert names(verdict) == ["submit.dead", "order.failed"]
    assert verdict.follow_up_of == [FollowUp(row.id, row.version)]
    assert (row.status, row.reason, row.stage, row.charged) == (Status.FAILED, reason, "submit", 1)
    assert lab.attempts(task)[0].outcome == reason


def test_an_input_that_may_come_later_is_waited_for_as_often_as_attempts_are_made(lab: Lab) -> None:
    task = lab.pending()
    lab.provider.plan("submit", ProviderBusy("busy"), ProviderBusy("busy"), ProviderBusy("busy"))
    for _ in range(3):  # these attempts must not count
        lab.handle()
        lab.age(task, free_at=1)
    lab.provider.plan("prepare", *[InputLater("502")] * 3)

    for _ in range(2):
        _, row = lab.ended(task)
        assert (row.status, row.charged) == (Status.PENDING, 0)
        lab.age(task, free_at=1)
    verdict, row = lab.ended(task)

    assert (row.status, row.reason) == (Status.FAILED, Reason.INPUT_UNAVAILABLE)
    assert names(verdict) == ["submit.dead", "order.failed"]


def test_a_backend_this_worker_has_no_provider_for_is_left_to_newer_workers(lab: Lab) -> None:
    lab.backends(gpu_2=5)
    task = lab.pending()

    assert lab.handle() == [Hold()]
    assert lab.now(task).status is Status.PENDING
