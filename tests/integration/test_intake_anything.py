"""Whatever lies in the queue `orders`: each delivery gets one outcome, and none gets in the way of its neighbours."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.submitter.intake import Intake
from shared.domain.messages import ORDER_PLACED, Delivery, order_placed
from shared.domain.outcome import DeadLetter, Done
from shared.domain.task import Status
from shared.providers.workflow import load_workflows
from tests.factories import MEASURED, POOL, Rows, an_order, delivered

WORKFLOWS = load_workflows(Path(__file__).parents[2] / "deploy" / "workflows")

any_text = st.text(st.characters(exclude_categories=()), max_size=20)  # half characters included
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=10,
)
inputs = st.dictionaries(
    st.sampled_from(["photo", "width", "height", "color", "copies", "seed", "prompt"]) | any_text, any_json, max_size=4
)
orders = st.fixed_dictionaries(
    {"idempotency_key": st.sampled_from(["k1", "k2", "k3"]) | any_text | any_json},
    optional={
        "order_id": st.sampled_from(["o1", "o2"]) | any_json,
        "pool": st.sampled_from([POOL, POOL, "nobody"]) | any_json,
        "workflow": st.sampled_from(WORKFLOWS.names()) | any_json,
        "inputs": inputs | any_json,
        "priority": st.sampled_from(["normal", "high"]) | any_json,
        "deadline_seconds": st.floats() | st.integers() | any_json,
        "metadata": st.dictionaries(any_text, any_json, max_size=2) | any_json,
        "colour": any_json,
    },
)
bodies = st.binary(max_size=100) | (orders | any_json).map(lambda value: json.dumps(value).encode())
amqp_values = st.none() | st.booleans() | st.integers() | any_text | st.binary(max_size=60) | st.datetimes() | any_json
header_names = st.sampled_from(["traceparent", "TraceParent", "x-death"]) | any_text
headers = st.dictionaries(header_names, amqp_values, max_size=3)
deliveries = st.builds(
    Delivery,
    queue=st.just("orders"),
    body=bodies,
    type=st.sampled_from([ORDER_PLACED] * 3) | st.none() | any_text,
    message_id=st.none() | any_text,
    correlation_id=st.none() | any_text,
    headers=headers,
    redelivered=st.booleans(),
)


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    rows = Rows(database_url)
    yield rows
    rows.close()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(strange=st.lists(deliveries, min_size=1, max_size=6), place=st.integers(0, 6))
def test_every_delivery_gets_one_outcome_and_a_good_order_among_them_starts(
    rows: Rows, strange: list[Any], place: int
) -> None:
    intake = Intake(
        rows.tasks,
        pools=[POOL],
        pools_now=rows.slots.pools,
        problems=lambda order: WORKFLOWS.problems(order.workflow, order.inputs),
        default_deadline_seconds=3600,
        metrics=MEASURED,
    )
    good = an_order(idempotency_key=f"good {uuid.uuid4()}", workflow="solid-invert")
    batch = [*strange[:place], delivered(order_placed(good)), *strange[place:]]

    outcomes = intake.handle(batch)

    assert len(outcomes) == len(batch)
    assert all(isinstance(outcome, Done | DeadLetter) for outcome in outcomes)
    fine = outcomes[min(place, len(strange))]
    assert isinstance(fine, Done)
    assert [message.routing_key for message in fine.then] == ["submit.comfyui"]
    assert rows.tasks.get([good.task_id])[good.task_id].status is Status.PENDING
