"""An order is cancelled, in each state it can be in: so is its job at the server, and its slot is free again."""

from collections.abc import Iterator

import pytest

from shared.domain.messages import Order
from tests.e2e import states
from tests.e2e.conftest import Build
from tests.e2e.system import System, an_order
from tests.waiting import eventually


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    system = build(settings=states.PATIENT)
    system.start()
    return system


@pytest.fixture(autouse=True)
def _released(system: System) -> Iterator[None]:
    yield
    states.release(system)


def assert_cancelled(system: System, order: Order, *outcomes: str) -> None:
    """The row is, its jobs ended like this, it was told once, and nothing is owed any more."""
    [row] = system.await_status("cancelled", order)
    assert not row.cancel_owed
    assert states.outcomes(system, order) == list(outcomes)
    assert system.events(order) == ["cancelled"]
    assert system.letters(order) == []


def test_a_pending_order_never_reaches_the_server(system: System) -> None:
    first, second, third = states.pending(system)
    system.cancel(third)

    assert_cancelled(system, third)
    assert system.moves(third) == [("pending", "cancelled")]
    assert states.outcomes(system, first) == ["running"]
    assert states.outcomes(system, second) == ["pending"]


@pytest.mark.parametrize("accepted", [True, False], ids=["the job exists", "the job comes later"])
def test_an_order_whose_post_is_not_answered_yet_is_cancelled_with_the_answer(system: System, accepted: bool) -> None:
    order = states.submitting(system, accepted=accepted)
    system.cancel(order)

    assert_cancelled(system, order, "interrupted")
    assert system.moves(order) == [("pending", "submitting"), ("submitting", "cancelled")]
    states.waiting(system)  # both slots are free


def test_an_order_in_doubt_is_cancelled_when_its_lease_is_over(system: System) -> None:
    order = states.in_doubt(system)
    system.cancel(order)
    assert system.row(order).cancel_owed

    system.pass_time(order, states.PATIENT["LEASE_SECONDS"])
    assert_cancelled(system, order, "interrupted")
    assert system.moves(order) == [("pending", "submitting"), ("submitting", "cancelled")]
    states.waiting(system)


def test_a_job_in_the_servers_queue_is_taken_out_and_the_next_order_gets_its_slot(system: System) -> None:
    first, second, third = states.pending(system)
    system.cancel(second)

    assert_cancelled(system, second, "deleted")
    system.await_status("processing", third)
    assert states.outcomes(system, first) == ["running"]


def test_a_running_job_is_interrupted_and_the_next_order_gets_its_slot(system: System) -> None:
    first, second, third = states.pending(system)
    system.cancel(first)

    assert_cancelled(system, first, "interrupted")
    system.await_status("processing", third)
    eventually(lambda: states.outcomes(system, second) == ["running"], within=10, what="the next one runs")


def test_a_cancelled_order_holds_its_slot_until_its_server_has_ended_the_job(system: System) -> None:
    order = states.running(system)
    [gpu] = system.gpus
    gpu.faults(answer_500={"paths": states.LOOKS})
    system.cancel(order)
    eventually(lambda: system.events(order) == ["cancelled"], within=20, what="the event, all the same")
    assert system.row(order).cancel_owed
    assert [backend.in_flight for backend in system.slots.backends()] == [1]

    gpu.faults(answer_500=None)
    system.pass_time(order, 30)
    assert_cancelled(system, order, "interrupted")
    assert [backend.in_flight for backend in system.slots.backends()] == [0]


def test_a_completed_order_stays_completed(system: System) -> None:
    order = an_order()
    system.place(order)
    system.await_status("completed", order)
    system.cancel(order)

    assert system.row(order).status == "completed"
    assert system.events(order) == ["completed"]
