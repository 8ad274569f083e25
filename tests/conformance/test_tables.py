"""Every shipped table against the simulated APIs: an order's whole way there, and the POSTs that this took.

What reached the provider is what the provider counted.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from PIL import Image

from shared.domain.task import Reason, Status
from tests.conformance.simulated_apis import SimulatedApis
from tests.conformance.table_lab import ORDERS, PLACES, WORDS, TableLab
from tests.factories import a_check
from tests.integration.api_lab import SHIPPED
from tests.waiting import eventually

POLLED = [name for name, table in SHIPPED.items() if table.shape == "submit_poll"]
#: These give their pictures by address, so there is something that can be gone.
BY_ADDRESS = ["dashscope", "fal", "replicate"]


@pytest.fixture(params=sorted(SHIPPED))
def lab(request: pytest.FixtureRequest, one_database: str, apis: SimulatedApis) -> Iterator[TableLab]:
    lab = TableLab(one_database, request.param, apis)
    yield lab
    lab.close()


polled = pytest.mark.parametrize("lab", POLLED, indirect=True)


def test_every_shipped_table_is_tried() -> None:
    assert set(PLACES) == set(ORDERS) == set(SHIPPED)


def test_an_order_becomes_a_picture_with_one_post(lab: TableLab) -> None:
    task = lab.order()

    row = lab.until(task, Status.COMPLETED, Status.FAILED)

    assert (row.status, row.attempt, row.reason) == (Status.COMPLETED, 1, None)
    assert (lab.seen("posts"), lab.seen("jobs")) == (1, 1)
    (picture,) = lab.tasks.artifacts([task.id])[task.id]
    with lab.store.open(picture.key) as file:
        assert Image.open(file).size == (picture.width, picture.height)
    assert lab.seen("downloads") == (lab.name in BY_ADDRESS)


def test_too_fast_costs_no_try_and_the_order_is_made_when_it_is_let_in(lab: TableLab) -> None:
    lab.apis.faults(rate_limited={"times": 1})
    task = lab.order()

    row = lab.until(task, Status.COMPLETED, Status.FAILED)

    assert (row.status, row.charged, row.attempt) == (Status.COMPLETED, 0, 2)
    assert (lab.seen("posts"), lab.seen("jobs")) == (2, 1)


def test_without_money_the_order_waits_and_nothing_more_is_sent(lab: TableLab) -> None:
    lab.apis.faults(no_money={})
    task = lab.order()
    lab.handle()
    lab.handle()

    row = lab.now(task)
    assert (row.status, row.charged, lab.health()) == (Status.PENDING, 0, "refused")
    assert (lab.seen("posts"), lab.seen("jobs")) == (1, 0)


def test_refused_words_end_the_order_at_once(lab: TableLab) -> None:
    lab.apis.faults(moderated={"match": WORDS[lab.name]})

    row = lab.until(lab.order(), Status.FAILED, Status.COMPLETED)

    assert (row.status, row.reason, row.attempt) == (Status.FAILED, Reason.CONTENT_REJECTED, 1)
    assert (lab.seen("posts"), lab.seen("jobs")) == (1, 0)


def test_a_picture_that_is_moderated_away_ends_the_order_too(lab: TableLab) -> None:
    lab.apis.faults(outcome={"match": WORDS[lab.name], "kind": "moderated"})

    row = lab.until(lab.order(), Status.FAILED, Status.COMPLETED)

    assert (row.status, row.reason, row.attempt) == (Status.FAILED, Reason.CONTENT_REJECTED, 1)
    assert (lab.seen("posts"), lab.seen("jobs")) == (1, 1)


@polled
@pytest.mark.parametrize("ending", ["failed", "lost"])
def test_a_job_that_is_known_to_have_failed_is_made_anew_as_another_attempt(lab: TableLab, ending: str) -> None:
    lab.apis.faults(outcome={"match": WORDS[lab.name], "kind": ending, "times": 1})
    task = lab.order()

    row = lab.until(task, Status.COMPLETED, Status.FAILED)

    assert (row.status, row.attempt, row.charged) == (Status.COMPLETED, 2, 1)
    assert (lab.seen("posts"), lab.seen("jobs"), lab.seen("same_seed_twice")) == (2, 2, 0)


def test_a_success_without_a_picture_is_none(lab: TableLab) -> None:
    lab.apis.faults(outcome={"match": WORDS[lab.name], "kind": "no_picture", "times": 1})

    row = lab.until(lab.order(), Status.COMPLETED, Status.FAILED)

    if SHIPPED[lab.name].result.empty == "permanent":
        assert (row.reason, lab.seen("posts")) == (Reason.REJECTED, 1)
    else:
        assert (row.status, row.attempt, lab.seen("posts")) == (Status.COMPLETED, 2, 2)


@polled
def test_a_state_in_no_documentation_is_read_as_running(lab: TableLab) -> None:
    lab.apis.faults(outcome={"match": WORDS[lab.name], "kind": "unknown_state"})
    task = lab.order()
    row = lab.until(task, Status.PROCESSING)

    def asked() -> bool:
        lab.until(row, Status.PROCESSING)
        return lab.seen("in_flight") == 0

    eventually(asked, within=10)
    assert lab.until(task, Status.PROCESSING).attempt == 1
    assert lab.seen("posts") == 1


@pytest.mark.parametrize("lab", BY_ADDRESS, indirect=True)
def test_a_picture_that_is_gone_is_made_anew(lab: TableLab) -> None:
    lab.apis.faults(expired={"times": 1})

    row = lab.until(lab.order(), Status.COMPLETED, Status.FAILED)

    assert (row.status, row.attempt) == (Status.COMPLETED, 2)
    assert (lab.seen("posts"), lab.seen("jobs"), lab.seen("downloads")) == (2, 2, 1)


@polled
def test_an_order_that_is_cancelled_is_taken_back_at_the_provider(lab: TableLab) -> None:
    lab.apis.faults(slow_job={"match": WORDS[lab.name], "seconds": 30})
    task = lab.order()
    lab.until(task, Status.PROCESSING)
    lab.tasks.cancel(task.id)

    lab.check.handle([a_check(lab.now(task))])

    assert lab.seen("cancelled") == 1
