"""kill -9 where it hurts, and what no single crash point shows; tests/drill has those."""

import pytest

from shared.domain.task import LEGAL_MOVES
from shared.observe.crash import CrashPoint
from tests.e2e.conftest import Build
from tests.e2e.system import QUICK, System, an_order
from tests.waiting import eventually


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


def test_nobody_sends_a_dead_submitters_job_before_its_lease_is_over(system: System) -> None:
    order = an_order()
    system.place(order)
    assert system.add_dying("submitter", CrashPoint.POSTED).ended(60) == -9
    assert system.row(order).provider_job_id is None
    eventually(lambda: len(system.runs_of(order)) == 1, within=10, what="the server has the prompt")

    system.start()
    [row] = system.await_status("completed", order)
    assert (row.attempt, [run["outcome"] for run in system.runs_of(order)]) == (1, ["success"])
    assert system.moves(order)[1] == ("submitting", "submitting")
    [wait] = system.sql(
        "select extract(epoch from b.at - a.at) as seconds from task_moves a join task_moves b on b.version = 3"
        " and b.task_id = a.task_id where a.version = 2 and a.task_id = :id",
        id=order.task_id,
    )
    assert wait.seconds >= QUICK["LEASE_SECONDS"]


def test_an_order_cancelled_while_its_dead_submitter_had_posted_it_is_cancelled_at_the_server(system: System) -> None:
    system.gpus[0].faults(seconds_per_image=600)
    order = an_order()
    system.place(order)
    assert system.add_dying("submitter", CrashPoint.POSTED).ended(60) == -9
    system.cancel(order)
    assert system.row(order).cancel_owed

    system.start()
    system.pass_time(order, QUICK["LEASE_SECONDS"])
    system.await_status("cancelled", order)
    assert [run["outcome"] for run in system.runs_of(order)] == ["interrupted"]
    assert system.events(order) == ["cancelled"]


def test_a_permit_that_died_with_intake_is_made_by_the_scheduler(system: System) -> None:
    order = an_order()
    system.place(order)
    assert system.add_dying("submitter", CrashPoint.CLAIM_COMMITTED).ended(60) == -9
    with system.mail.channel() as channel:
        channel.queue_purge("orders")  # so that no redelivered order brings the permit
    assert system.add_dying("poller", CrashPoint.PERMIT_SENT).ended(60) == -9

    system.start()
    system.await_status("completed", order)
    assert [run["outcome"] for run in system.runs_of(order)] == ["success"]


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
