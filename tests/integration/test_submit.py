"""Permits become provider jobs, one per attempt, whatever the provider, the row and the database do meanwhile."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from services.submitter.submit import Submit
from shared.domain.errors import (
    DatabaseAway,
    InputLater,
    InputUnavailable,
    OutcomeUnknown,
    ProviderAway,
    ProviderBusy,
    ProviderRejected,
)
from shared.domain.outcome import DeadLetter, Done, FollowUp, Hold
from shared.domain.retry import RetryPolicy
from shared.domain.task import Reason, Stage, Status, Task
from shared.observe.logs import ContextPool
from tests.factories import MEASURED, POOL, FakeProvider, Rows, delivered, permits
from tests.waiting import eventually


class Lab(Rows):
    """A submitter with one fake backend of capacity 5 and a real database."""

    def __init__(self, url: str) -> None:
        super().__init__(url, threads=20)
        self.backends(gpu_1=5)
        self.provider = FakeProvider()
        self.stopping = threading.Event()
        self.calls = ContextPool(10)
        self.submit = Submit(
            POOL,
            self.tasks,
            self.slots,
            {"gpu-1": self.provider},
            calls=self.calls,
            lease_seconds=60,
            first_look_seconds=7,
            retry=RetryPolicy(max_charged=3, first_seconds=0),
            metrics=MEASURED,
            stopping=self.stopping,
        )

    def close(self) -> None:
        self.stopping.set()
        self.calls.shutdown()
        super().close()

    def handle(self, count: int = 1) -> list[Any]:
        """The verdicts; what is in the future is waited for."""
        answers = self.submit.handle(permits(count))
        return [answer.result(20) if isinstance(answer, Future) else answer for answer in answers]

    def ended(self, task: Task) -> tuple[Any, Task]:
        """The verdict of the one permit, and the row afterwards."""
        (verdict,) = self.handle()
        return verdict, self.now(task)

    def health(self) -> str:
        return self.slots.backends()[0].health


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


def names(verdict: Any) -> list[str]:
    return [message.routing_key for message in verdict.then]


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


def test_nothing_is_posted_past_the_deadline_and_the_order_fails_at_once(lab: Lab) -> None:
    task = lab.pending()
    lab.provider.meanwhile["prepare"] = lambda: lab.age(task, deadline_at=1)

    verdict, row = lab.ended(task)

    assert (row.status, row.reason, lab.provider.count("submit")) == (Status.FAILED, Reason.DEADLINE, 0)
    assert names(verdict) == ["submit.dead", "order.failed"]


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("may_post", None),
        ("set_health", ProviderBusy("refused", is_down=True)),
        ("pause", ProviderBusy("429", retry_after_seconds=30)),
    ],
)
@pytest.mark.parametrize("answer_is_lost", [True, False])
def test_a_short_outage_of_the_database_costs_the_row_no_lease(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception | None, answer_is_lost: bool
) -> None:
    task = lab.pending()
    lab.provider.plan("submit", error)
    owner = lab.tasks if error is None else lab.slots
    write, tries = getattr(owner, method), []

    def away_twice(*args: Any, **fields: Any) -> Any:
        tries.append(1)
        if len(tries) > 2:
            return write(*args, **fields)
        if answer_is_lost:
            write(*args, **fields)
        raise DatabaseAway("gone")

    monkeypatch.setattr(owner, method, away_twice)

    _, row = lab.ended(task)

    assert row.status is (Status.PROCESSING if error is None else Status.PENDING)
    assert (len(tries), lab.provider.count("submit")) == (3, 1)


def test_while_the_database_is_away_an_accepted_job_is_recorded_again_and_never_sent_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = lab.pending()
    record, tries = lab.tasks.record, []

    def away_twice(*args: Any, **fields: Any) -> Any:
        tries.append(1)
        if len(tries) <= 2:
            raise DatabaseAway("gone")
        return record(*args, **fields)

    monkeypatch.setattr(lab.tasks, "record", away_twice)

    verdict, row = lab.ended(task)

    assert (names(verdict), row.status, len(tries)) == (["order.processing"], Status.PROCESSING, 3)
    assert lab.provider.count("submit") == 1


def test_a_record_whose_answer_was_lost_is_found_to_have_worked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    task = lab.pending()
    record, tries = lab.tasks.record, []

    def answer_lost(*args: Any, **fields: Any) -> Any:
        found = record(*args, **fields)
        tries.append(1)
        if len(tries) == 1:
            raise DatabaseAway("the commit worked, its answer was lost")
        return found

    monkeypatch.setattr(lab.tasks, "record", answer_lost)

    verdict, row = lab.ended(task)

    assert (verdict, row.status) == (Done(), Status.PROCESSING)
    assert lab.provider.cancelled == []


def test_a_worker_told_to_stop_during_an_outage_leaves_the_row_to_its_lease(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = lab.pending()
    tries = []

    def away(*_: Any, **__: Any) -> Any:
        tries.append(1)
        raise DatabaseAway("gone")

    monkeypatch.setattr(lab.tasks, "record", away)
    (answer,) = lab.submit.handle(permits(1))
    assert isinstance(answer, Future)
    eventually(lambda: tries, within=10)
    lab.stopping.set()

    assert answer.result(10) == Done()
    assert lab.now(task).status is Status.SUBMITTING
    assert lab.provider.count("submit") == 1


def test_a_bug_fails_its_row_after_three_tries_and_check_cancels_what_may_exist(lab: Lab) -> None:
    poison, neighbour = lab.pending(), lab.pending()
    prepare = lab.provider.prepare

    def buggy(job: Any) -> Any:
        if job.task_id == poison.id:
            lab.provider.calls.append(("bug", job.job_key))
            raise KeyError("a bug")
        return prepare(job)

    lab.provider.prepare = buggy  # type: ignore[method-assign]

    lab.handle(2)

    row = lab.now(poison)
    assert (row.status, row.reason, row.cancel_owed) == (Status.FAILED, Reason.BUG, True)
    assert row.due_at == row.changed_at, "check is to look at once"
    assert "KeyError" in (row.detail or "")
    assert lab.provider.count("bug") == 3
    assert lab.now(neighbour).status is Status.PROCESSING


def test_a_bug_after_the_post_does_not_send_it_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    task = lab.pending()
    record, tries = lab.tasks.record, []

    def bug_once(*args: Any, **fields: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("a fluke")
        return record(*args, **fields)

    monkeypatch.setattr(lab.tasks, "record", bug_once)

    _, row = lab.ended(task)

    assert row.status is Status.PROCESSING
    assert (lab.provider.count("submit"), lab.provider.count("find")) == (1, 1)


def test_a_backend_this_worker_has_no_provider_for_is_left_to_newer_workers(lab: Lab) -> None:
    lab.backends(gpu_2=5)
    task = lab.pending()

    assert lab.handle() == [Hold()]
    assert lab.now(task).status is Status.PENDING
