"""kill -9 at every line where it hurts: one test per crash window, named after the line the worker died on.

In each, a worker dies on that line with an order in hand, and only then a healthy one comes. What it finds must be
enough to end the order, and what the servers saw must be one prompt.
"""

import pytest

from shared.domain.messages import Order
from shared.domain.task import LEGAL_MOVES
from tests.e2e.conftest import Build
from tests.e2e.system import QUICK, System, an_order
from tests.e2e.worker import Worker
from tests.waiting import eventually

SUBMITTED = [("pending", "submitting"), ("submitting", "processing"), ("processing", "completed")]
TAKEN_OVER = [SUBMITTED[0], ("submitting", "submitting"), *SUBMITTED[1:]]


@pytest.fixture(scope="module")
def _empty(build: Build) -> System:
    return build()


@pytest.fixture
def system(_empty: System) -> System:
    """Servers, database and broker, and no worker at all."""
    for worker in _empty.workers:
        if worker.is_alive:
            worker.kill()  # quicker than asking; nothing is owed here, as the audit has seen
    for gpu in _empty.gpus:
        gpu.heal()
    return _empty


def died(worker: Worker) -> None:
    assert worker.ended(60) == -9, worker.tail()


def one_prompt(system: System, order: Order) -> None:
    assert [run["outcome"] for run in system.runs_of(order)] == ["success"]
    assert system.events(order) == ["completed"]


# --- intake


@pytest.mark.parametrize("line", ["claim committed", "permit confirmed"])
def test_intake_killed_between_the_commit_of_the_claim_and_the_ack(system: System, line: str) -> None:
    order = an_order()
    system.place(*[order] * 3)
    died(system.add_dying("submitter", line))
    assert [row.status for row in system.rows([order])] == ["pending"]

    system.start()
    system.await_status("completed", order)
    one_prompt(system, order)
    assert system.moves(order) == SUBMITTED


def test_intake_killed_after_the_commit_of_failed_and_before_the_letter(system: System) -> None:
    order = an_order(workflow="no-such-workflow")
    system.place(order)
    died(system.add_dying("submitter", "unstartable order failed"))
    assert system.mail.depths()["orders.dead"] == 0

    system.start(pollers=0)  # nobody but the redelivered order brings the letter: it does not wait for its due_at
    system.await_status("failed", order)
    assert [letter.reason for letter in eventually(lambda: system.letters(order), within=20)] == ["invalid_workflow"]
    assert system.events(order) == ["failed"]


# --- submit


@pytest.mark.parametrize("line", ["row taken", "post announced"])
def test_submit_killed_after_the_commit_of_the_take_and_before_the_post(system: System, line: str) -> None:
    order = an_order()
    system.place(order)
    died(system.add_dying("submitter", line))
    assert system.row(order).status == "submitting"
    assert system.runs_of(order) == []

    system.start()
    system.pass_time(order, QUICK["LEASE_SECONDS"])
    [row] = system.await_status("completed", order)
    one_prompt(system, order)
    assert system.moves(order) == TAKEN_OVER
    assert row.attempt == 1


def test_submit_killed_after_the_post_and_before_the_record(system: System) -> None:
    """The lease is waited out for real here: nobody sends anything before it is over."""
    order = an_order()
    system.place(order)
    died(system.add_dying("submitter", "post accepted"))
    assert system.row(order).status == "submitting"
    assert system.row(order).provider_job_id is None
    eventually(lambda: len(system.runs_of(order)) == 1, within=10, what="the server has the prompt")

    system.start()
    [row] = system.await_status("completed", order)
    one_prompt(system, order)
    assert system.moves(order) == TAKEN_OVER
    assert row.attempt == 1
    [wait] = system.sql(
        "select extract(epoch from b.at - a.at) as seconds from task_moves a join task_moves b on b.version = 3"
        " and b.task_id = a.task_id where a.version = 2 and a.task_id = :id",
        id=order.task_id,
    )
    assert wait.seconds >= QUICK["LEASE_SECONDS"]


@pytest.mark.parametrize("line", ["record committed", "started order told"])
def test_submit_killed_between_the_commit_of_the_record_and_the_ack(system: System, line: str) -> None:
    order = an_order()
    system.place(order)
    died(system.add_dying("submitter", line))
    assert system.row(order).status == "processing"

    system.start()
    system.await_status("completed", order)
    one_prompt(system, order)
    assert system.moves(order) == SUBMITTED


def test_an_order_cancelled_while_its_dead_submitter_had_posted_it_is_cancelled_at_the_server(system: System) -> None:
    system.gpus[0].faults(seconds_per_image=600)
    order = an_order()
    system.place(order)
    died(system.add_dying("submitter", "post accepted"))
    system.cancel(order)
    assert system.row(order).cancel_owed

    system.start()
    system.pass_time(order, QUICK["LEASE_SECONDS"])
    system.await_status("cancelled", order)
    assert [run["outcome"] for run in system.runs_of(order)] == ["interrupted"]
    assert system.events(order) == ["cancelled"]


# --- check


@pytest.mark.parametrize("line", ["picture stored", "completed committed", "event confirmed", "follow-up cleared"])
def test_check_killed_between_the_stored_picture_and_the_ack(system: System, line: str) -> None:
    order = an_order()
    system.place(order)
    system.add("submitter")
    died(system.add_dying("poller", line))
    status = system.row(order).status
    assert status == ("processing" if line == "picture stored" else "completed")

    system.start(submitters=0)
    system.await_status("completed", order)
    one_prompt(system, order)
    assert system.moves(order) == SUBMITTED
    assert len(list((system.folder / "pictures" / str(order.task_id)).rglob("*.png"))) == 1


def test_check_killed_after_the_commit_of_failed_and_before_the_letter(system: System) -> None:
    order = an_order()
    system.gpus[0].faults(fail_execution={})
    system.place(order)
    system.add("submitter")
    died(system.add_dying("poller", "failed committed"))
    assert system.row(order).due_at is not None

    system.start(submitters=0)
    system.await_status("failed", order)
    assert [letter.reason for letter in eventually(lambda: system.letters(order), within=20)] == ["execution_failed"]
    assert system.events(order) == ["failed"]


def test_check_killed_after_the_commit_of_a_retry(system: System) -> None:
    order = an_order()
    system.gpus[0].faults(fail_execution={"times": 1})
    system.place(order)
    system.add("submitter")
    died(system.add_dying("poller", "retry committed"))

    system.start(submitters=0)
    [row] = system.await_status("completed", order)
    assert (row.attempt, row.charged) == (2, 1)
    assert [run["outcome"] for run in system.runs_of(order)] == ["error", "success"]


# --- schedule


def test_schedule_killed_after_the_commit_of_the_next_look_and_before_the_check_message(system: System) -> None:
    # Still running when its row comes due, however long the poller takes to start: a hint would complete it before.
    system.gpus[0].faults(seconds_per_image=12)
    order = an_order()
    system.place(order)
    submitter = system.add("submitter")
    system.await_status("processing", order)
    died(system.add_dying("poller", "due rows taken"))
    assert submitter.is_alive

    system.start(submitters=0)
    system.await_status("completed", order)
    one_prompt(system, order)


def test_schedule_killed_after_it_failed_an_overdue_row_and_before_the_letter(system: System) -> None:
    order = an_order(deadline_seconds=0.2)
    system.place(order)
    died(system.add_dying("submitter", "claim committed"))
    died(system.add_dying("poller", "overdue row failed"))
    statement = "select extract(epoch from due_at - changed_at) as s from tasks where id = :id"
    [owed] = system.sql(statement, id=order.task_id)
    assert 0 < owed.s <= 30

    system.start()
    assert system.mail.depths()["submit.dead"] == 0
    system.pass_time(order, owed.s)
    system.await_status("failed", order)
    assert [letter.reason for letter in eventually(lambda: system.letters(order), within=20)] == ["deadline"]
    assert system.runs_of(order) == []


def test_schedule_killed_before_missing_permits_are_made(system: System) -> None:
    order = an_order()
    system.place(order)
    died(system.add_dying("submitter", "claim committed"))
    with system.mail.channel() as channel:
        channel.queue_purge("orders")  # so that nobody but the scheduler makes the permit
    died(system.add_dying("poller", "permits made"))

    system.start()
    system.await_status("completed", order)
    one_prompt(system, order)


# --- collector


@pytest.mark.parametrize("line", ["letter in hand", "letter recorded"])
def test_the_collector_killed_before_the_ack_records_the_letter_once(system: System, line: str) -> None:
    order = an_order(workflow="no-such-workflow")
    system.place(order)
    system.mail.send(b"not even JSON")
    before = len(system.letters())
    system.start(ops=0)
    eventually(lambda: system.mail.depths()["orders.dead"] == 2, within=20, what="two letters wait")
    died(system.add_dying("ops", line))
    eventually(lambda: system.mail.depths()["orders.dead"] == 2, within=20, what="both are back")

    system.add("ops")
    eventually(lambda: system.mail.depths()["orders.dead"] == 0, within=20, what="both are taken")
    system.await_status("failed", order)
    assert len(system.letters(order)) == 1
    assert len(eventually(lambda: system.letters()[before:], within=20)) == 1


# --- all of them, at any line


def test_workers_killed_at_random_lose_nothing_and_make_nothing_twice(system: System) -> None:
    system.gpus[0].faults(seconds_per_image=0.05)
    orders = [an_order() for _ in range(20)]
    system.start(submitters=2, pollers=2)
    system.place(*orders, publishers=4)
    for service in ("submitter", "poller", "submitter", "poller", "ops"):
        done = system.statuses(orders).get("completed", 0)
        system.living(service)[0].kill()
        system.add(service)
        eventually(
            lambda done=done: system.statuses(orders).get("completed", 0) > done, within=30, what="it goes on"
        ) if done < len(orders) else None
    system.await_status("completed", *orders, within=60)
    legal = {(str(before), str(after)) for before, after in LEGAL_MOVES}
    assert {move for order in orders for move in system.moves(order)} <= legal
    assert [len(system.runs_of(order)) for order in orders] == [1] * len(orders)
