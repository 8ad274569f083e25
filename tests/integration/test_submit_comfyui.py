"""Permits become jobs at a simulated ComfyUI that is broken, whatever its faults."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from services.submitter.submit import Submit
from shared.domain.retry import RetryPolicy
from shared.domain.task import Reason, Status
from shared.observe.logs import ContextPool
from shared.storage import Artifacts
from tests.factories import MEASURED, POOL, Rows, permits
from tests.integration.comfyui_lab import Lab, running_lab


@pytest.fixture(scope="module")
def server() -> Iterator[Lab]:
    with running_lab("modern") as lab:
        lab.begin()
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
        {"gpu-1": server.adapter},
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
