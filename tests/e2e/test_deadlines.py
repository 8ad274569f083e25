"""A deadline passes, in each state an order can be in: it fails once, and its job at the server is cancelled."""

from collections.abc import Iterator

import pytest

from shared.domain.messages import CheckTasks, Order, TaskRef, check
from tests.e2e import states
from tests.e2e.conftest import Build
from tests.e2e.system import System, an_order
from tests.waiting import eventually

TAKEN = [("pending", "submitting")]
STARTED = [*TAKEN, ("submitting", "processing")]


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    system = build(settings=states.PATIENT)
    system.start()
    return system


@pytest.fixture(autouse=True)
def _released(system: System) -> Iterator[None]:
    yield
    states.release(system)


def assert_failed(system: System, order: Order, stage: str, *outcomes: str) -> None:
    """For its deadline, with one letter and one event; its jobs ended like this, and nothing is owed any more."""
    [row] = system.await_status("failed", order)
    assert (row.reason, row.stage, row.cancel_owed) == ("deadline", stage, False)
    assert states.outcomes(system, order) == list(outcomes)
    letters = eventually(lambda: system.letters(order), within=20, what="a letter")
    assert [(letter.reason, letter.stage) for letter in letters] == [("deadline", stage)]
    assert system.events(order) == ["failed"]


def test_an_order_for_which_there_is_no_slot_fails_and_never_reaches_the_server(system: System) -> None:
    first, second, third = states.pending(system, deadline_seconds=0.5)

    assert_failed(system, third, "submit")
    assert system.moves(third) == [("pending", "failed")]
    assert states.outcomes(system, first) == ["running"]
    assert states.outcomes(system, second) == ["pending"]


@pytest.fixture
def _paused(system: System) -> Iterator[None]:
    [gpu] = system.gpus
    [submitter] = system.living("submitter")
    system.slots.pause(gpu.name, "person", "a test", None)
    eventually(lambda: submitter.said("queue paused"), within=20, what="no consumer")
    yield
    system.slots.resume(gpu.name, "person")


@pytest.mark.usefixtures("_paused")
def test_an_order_of_a_paused_pool_fails_and_never_reaches_the_server(system: System) -> None:
    order = an_order(deadline_seconds=0.5)
    system.place(order)

    assert_failed(system, order, "submit")
    assert system.moves(order) == [("pending", "failed")]


@pytest.mark.parametrize("accepted", [True, False], ids=["the job exists", "the job comes later"])
def test_an_order_whose_post_is_not_answered_yet_fails_after_the_answer(system: System, accepted: bool) -> None:
    """Before it nobody could say whether there is a job to cancel, so a check in between leaves the order alone."""
    order = states.submitting(system, accepted=accepted)
    system.pass_deadline(order)
    asked = CheckTasks(pool=order.pool, tasks=[TaskRef(task_id=order.task_id, attempt=1)])
    system.mail.publish([check(order.pool, asked)])

    assert_failed(system, order, "check", "interrupted")
    assert system.moves(order) == [*STARTED, ("processing", "failed")]
    states.waiting(system)  # both slots are free


def test_an_order_in_doubt_fails_when_its_lease_is_over(system: System) -> None:
    order = states.in_doubt(system)
    system.pass_deadline(order)

    system.pass_time(order, states.PATIENT["LEASE_SECONDS"])
    assert_failed(system, order, "submit", "interrupted")
    assert system.moves(order) == [*TAKEN, ("submitting", "failed")]
    states.waiting(system)


def test_a_job_in_the_servers_queue_is_taken_out_and_the_next_order_gets_its_slot(system: System) -> None:
    first, second, third = states.pending(system)
    system.pass_deadline(second)

    assert_failed(system, second, "check", "deleted")
    assert system.moves(second) == [*STARTED, ("processing", "failed")]
    system.await_status("processing", third)
    assert states.outcomes(system, first) == ["running"]


def test_a_running_job_is_interrupted_and_the_next_order_gets_its_slot(system: System) -> None:
    first, _, third = states.pending(system)
    system.pass_deadline(first)

    assert_failed(system, first, "check", "interrupted")
    assert system.moves(first) == [*STARTED, ("processing", "failed")]
    system.await_status("processing", third)


def test_an_order_whose_server_says_nothing_fails_once_and_owes_the_cancelling(system: System) -> None:
    order = states.running(system)
    [gpu] = system.gpus
    gpu.faults(answer_500={"paths": states.LOOKS})
    system.pass_deadline(order)
    eventually(lambda: system.events(order) == ["failed"], within=20, what="the event, all the same")
    eventually(lambda: system.row(order).told_at is not None, within=20, what="noted that the end was told")
    looks, copies = len(gpu.calls("GET", "/queue")), system.mail.copies_of_events
    system.pass_time(order, 30)
    eventually(lambda: len(gpu.calls("GET", "/queue")) > looks, within=20, what="the cancelling is tried once more")
    system.mail.events()
    assert system.mail.copies_of_events == copies
    assert system.row(order).cancel_owed

    gpu.faults(answer_500=None)
    system.pass_time(order, 30)
    assert_failed(system, order, "check", "interrupted")
