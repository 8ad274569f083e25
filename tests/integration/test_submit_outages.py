"""The database goes away or a bug strikes in the middle of a submission: nothing is sent twice, no lease is lost."""

import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from shared.domain.errors import (
    DatabaseAway,
    ProviderBusy,
)
from shared.domain.outcome import Done
from shared.domain.task import Reason, Status
from tests.factories import permits
from tests.integration.submit_lab import Lab, names
from tests.waiting import eventually


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


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


def test_answers_about_the_lease_that_always_come_too_late_leave_the_row_to_the_end_of_its_lease(
    database_url: str,
) -> None:
    lab = Lab(database_url, lease_seconds=0.5)  # shorter than a submission of this provider may last
    try:
        verdict, row = lab.ended(lab.pending())
        assert (verdict, row.status, lab.provider.count("submit")) == (Done(), Status.SUBMITTING, 0)
    finally:
        lab.close()


def test_a_lease_whose_confirmation_came_late_is_asked_for_again_before_anything_is_sent(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The POST would last beyond its end, and another owner could find nothing and send the job too."""
    task = lab.pending()
    may_post, asked = lab.tasks.may_post, []
    lab.provider.submit_limit_seconds = 58.8  # of a lease of 60 s, of which one may be over

    def late_once(*args: Any) -> Any:
        answer = may_post(*args)
        asked.append(lab.provider.count("submit"))
        time.sleep(0.3 if len(asked) == 1 else 0)
        return answer

    monkeypatch.setattr(lab.tasks, "may_post", late_once)

    _, row = lab.ended(task)

    assert (row.status, asked, lab.provider.count("submit")) == (Status.PROCESSING, [0, 0], 1)


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
