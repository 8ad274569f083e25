"""Orders that name several pools: what they may say, and when they go on."""

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from services.producer.orders import Offer
from shared.domain.fallback import next_pool
from shared.domain.messages import Order, order_placed
from shared.domain.task import Reason
from shared.providers.table_files import load_tables
from shared.providers.workflow import Binding, Workflow, Workflows
from tests.unit.api_lab import BINDING, NOW, a_task

OWN = {"model": "a/b"}
CHAIN = ["comfyui", {"pool": "fal", "inputs": OWN}, "spare"]


def order(**fields: Any) -> Order:
    return Order.model_validate({"idempotency_key": "k-1", "workflow": "paint", "inputs": {"width": 512}} | fields)


def test_the_first_of_its_pools_is_the_order_s_pool() -> None:
    assert order(pools=CHAIN).pool == order(pools=CHAIN, pool="comfyui").pool == "comfyui"
    assert order(pools=[CHAIN[1]]).pool == "fal"
    sent = order_placed(order(pools=CHAIN)).body
    assert Order.model_validate_json(sent) == order(pools=CHAIN)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "pool"),
        ({"pools": []}, "pool"),
        ({"pools": CHAIN, "pool": "fal"}, "must be the first of pools"),
        ({"pools": ["a", "b", "a"]}, "names one twice"),
        ({"pools": list("abcdef")}, "at most 5"),
        ({"pools": [{"pool": "a", "colour": 1}]}, "colour"),
        ({"pools": [{"pool": "a", "inputs": {"x": "\x00"}}]}, "NUL"),
        ({"pools": [7]}, "pools"),
        ({"pool": "a", "fallback_on": ["deadline"]}, "fallback_on"),
    ],
)
def test_a_wrong_choice_is_named(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        order(**fields)


def test_a_name_takes_what_the_order_says_and_an_object_what_it_says_itself() -> None:
    said = [(choice.pool, choice.workflow, choice.inputs) for choice in order(pools=CHAIN).choices()]
    assert said == [("comfyui", "paint", {"width": 512}), ("fal", None, OWN), ("spare", "paint", {"width": 512})]
    body = order(pools=CHAIN).model_dump(mode="json")
    for pool, workflow, inputs in said:
        task = a_task(body=body, pool=pool)
        assert (task.workflow, task.inputs) == (workflow, inputs)


def test_an_order_that_names_one_pool_keeps_the_fingerprint_it_always_had() -> None:
    plain = order(pool="comfyui")
    assert plain.fingerprint == "0cd4d1dd1ff436d733bf8e62b96a44ba71285873fce17cd7bdc33f642374d04a"
    assert order(pools=["comfyui"]).fingerprint != plain.fingerprint
    assert order(pool="comfyui", fallback_on=["failed"]).fingerprint != plain.fingerprint


def goes_on(reason: Reason, pool: str = "comfyui", *, made_a_job: bool = False, allowed: tuple[str, ...] = ()) -> Any:
    body = order(pools=CHAIN, fallback_on=list(allowed)).model_dump(mode="json")
    return next_pool(a_task(body=body, pool=pool), reason, made_a_job=made_a_job)


def test_it_goes_on_in_the_next_pool_and_ends_in_the_last() -> None:
    assert [goes_on(Reason.REJECTED, pool) for pool in ("comfyui", "fal", "spare")] == ["fal", "spare", None]
    assert goes_on(Reason.REJECTED, "elsewhere") is None


NEVER = set(Reason) - {
    Reason.REJECTED,
    Reason.INVALID_WORKFLOW,
    Reason.EXECUTION_FAILED,
    Reason.ATTEMPTS_EXHAUSTED,
    Reason.LOST,
    Reason.NO_OUTPUTS,
    Reason.CONTENT_REJECTED,
}


@pytest.mark.parametrize("reason", sorted(NEVER))
@pytest.mark.parametrize("made_a_job", [False, True])
def test_doubts_deadlines_and_the_order_s_own_faults_end_it_whatever_it_allows(
    reason: Reason, made_a_job: bool
) -> None:
    assert Reason.OUTCOME_UNKNOWN in NEVER
    assert goes_on(reason, made_a_job=made_a_job, allowed=("failed", "content_rejected")) is None


@pytest.mark.parametrize("made_a_job", [False, True])
def test_refused_content_goes_on_with_the_order_s_consent_alone(made_a_job: bool) -> None:
    refused = Reason.CONTENT_REJECTED
    assert goes_on(refused, made_a_job=made_a_job) is None
    assert goes_on(refused, made_a_job=made_a_job, allowed=("failed",)) is None
    assert goes_on(refused, made_a_job=made_a_job, allowed=("content_rejected",)) == "fal"


def test_failed_jobs_are_tried_elsewhere_with_the_order_s_consent_alone() -> None:
    failed = Reason.EXECUTION_FAILED
    assert goes_on(failed, made_a_job=True) is None
    assert goes_on(failed, made_a_job=True, allowed=("content_rejected",)) is None
    assert goes_on(failed, made_a_job=True, allowed=("failed",)) == "fal"


def test_after_its_deadline_nothing_goes_on() -> None:
    body = order(pools=CHAIN).model_dump(mode="json")
    late = a_task(body=body, deadline_at=NOW - timedelta(seconds=1))
    assert next_pool(late, Reason.REJECTED, made_a_job=False) is None


def test_every_pool_s_part_is_looked_at_when_an_order_is_placed() -> None:
    paint = Workflow("paint", {}, Binding.model_validate(BINDING))
    offer = Offer({"comfyui": "comfyui", "fal": "http"}, Workflows({"paint": paint}), {"fal": load_tables()["fal"]})
    wrong = {"pool": "fal", "inputs": {"model": "a/b", "prompt": "p"}}

    assert [str(mistake) for mistake in offer.mistakes(order(pools=["comfyui", wrong, "nowhere"]))] == [
        "pools.1.inputs.prompt: is unknown",
        "pools.1.inputs.arguments: is missing",
        "pools.2.pool: is unknown; there are: comfyui, fal",
    ]
    right = {"pool": "fal", "inputs": {"model": "a/b", "arguments": {}}}
    assert offer.mistakes(order(pools=["comfyui", right])) == []
