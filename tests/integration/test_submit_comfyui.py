"""Permits become jobs at a simulated ComfyUI that is broken, whatever its faults."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from services.submitter.submit import Submit
from shared.domain.retry import RetryPolicy
from shared.domain.task import Reason, Status, Task
from shared.observe.logs import ContextPool
from shared.storage import Artifacts
from tests.factories import MEASURED, POOL, Rows, permits
from tests.integration.comfyui_lab import Lab, running_lab
from tests.waiting import eventually


@pytest.fixture(scope="module")
def server() -> Iterator[Lab]:
    with running_lab("modern") as lab:
        yield lab


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    rows = Rows(database_url)
    rows.backends(gpu_1=2)
    yield rows
    rows.close()


@pytest.fixture
def submit(rows: Rows, server: Lab) -> Iterator[Submit]:
    calls = ContextPool(2)
    yield Submit(
        POOL,
        rows.tasks,
        rows.slots,
        {"gpu-1": server.new_adapter()},
        artifacts=Artifacts("memory://"),
        calls=calls,
        lease_seconds=60,
        first_look_seconds=7,
        retry=RetryPolicy(first_seconds=0),
        metrics=MEASURED,
        stopping=threading.Event(),
    )
    calls.shutdown()


def test_a_server_that_answers_every_post_with_500_ends_the_order_after_five_tries(
    rows: Rows, server: Lab, submit: Submit
) -> None:
    server.begin()
    server.faults(answer_500={"queue": False})
    task = rows.pending(workflow="solid-invert", inputs={"width": 32, "height": 32, "color": 7})

    while rows.now(task).status is Status.PENDING:
        (answer,) = submit.handle(permits(1))
        assert isinstance(answer, Future)
        answer.result(20)

    row = rows.now(task)
    assert (row.status, row.reason, row.charged) == (Status.FAILED, Reason.ATTEMPTS_EXHAUSTED, 5)
    assert [attempt.outcome for attempt in rows.attempts(task)] == ["not_created"] * 4 + ["attempts_exhausted"]
    assert server.posts == 10
    assert rows.slots.backends()[0].health == "up"


@pytest.fixture
def order(rows: Rows) -> Task:
    return rows.pending(workflow="solid-invert", inputs={"width": 32, "height": 32, "color": 9})


def start(submit: Submit) -> None:
    (answer,) = submit.handle(permits(1))
    assert isinstance(answer, Future)
    answer.result(20)


def held(server: Lab, seconds: float) -> None:
    """The next POST is carried out so late, whoever has given it up."""
    server.begin()
    server.faults(slow={"seconds": seconds, "before": True, "paths": ["/prompt"], "times": 1})


def doubles() -> float:
    return MEASURED.value("possible_double_total", backend="gpu-1")


def test_a_post_carried_out_after_its_submitter_gave_it_up_is_found_when_the_lease_is_over(
    rows: Rows, server: Lab, submit: Submit, order: Task
) -> None:
    held(server, 2.5)
    start(submit)
    waiting, counted = rows.now(order), doubles()
    assert waiting.status is Status.SUBMITTING
    assert 55 < (waiting.free_at - waiting.now).total_seconds() <= 60
    eventually(lambda: runs(server, waiting) == ["success"], within=5)

    rows.age(order, free_at=1)
    start(submit)

    assert rows.now(order).status is Status.PROCESSING
    assert (server.posts, doubles()) == (1, counted)


def test_a_post_held_back_for_longer_than_its_lease_is_counted_as_a_possible_double(
    rows: Rows, server: Lab, submit: Submit, order: Task
) -> None:
    held(server, 4)
    counted = doubles()
    start(submit)

    rows.age(order, free_at=1)
    start(submit)

    row = rows.now(order)
    assert (row.status, row.attempt, doubles()) == (Status.PROCESSING, 1, counted + 1)
    eventually(lambda: runs(server, row) == ["success", "cached"], within=10, what="the held one comes too")
    assert server.posts == 2


def runs(server: Lab, row: Task) -> list[str]:
    return [run["outcome"] for run in server.stats()["executions"] if run["prompt_id"] == str(row.job_key)]
