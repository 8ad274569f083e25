"""Whatever lies in a check queue or a dead queue: each delivery gets one outcome, and no letter is beyond storing."""

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from services.ops.collector import letter_of
from services.poller.check import Check
from shared.database.dead_letters import MAX_BODY_BYTES
from shared.domain.messages import TASK_CHECK, CheckTasks, Delivery, dead_letter_headers
from shared.domain.outcome import DeadLetter, Done
from shared.domain.retry import RetryPolicy
from shared.domain.task import Reason, Stage
from shared.observe.logs import ContextPool, redacted_body
from tests.factories import MEASURED

any_text = st.text(st.characters(exclude_categories=()), max_size=20)  # half characters included
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=10,
)
amqp_values = st.none() | st.integers() | any_text | st.binary(max_size=60) | st.datetimes() | st.decimals() | any_json
refs = st.fixed_dictionaries({"task_id": st.uuids().map(str) | any_json, "attempt": st.integers() | any_json})
checks = st.fixed_dictionaries(
    {"pool": st.just("comfyui") | any_json},
    optional={
        "tasks": st.lists(refs, max_size=3) | any_json,
        "backend": st.just("gpu-9") | any_json,
        "via": st.sampled_from(["poll", "push"]) | any_json,
        "colour": any_json,
    },
)
bodies = st.binary(max_size=100) | (checks | any_json).map(lambda value: json.dumps(value).encode())
names = st.sampled_from(["reason", "stage", "task_id", "attempt", "detail", "traceparent", "x-death"]) | any_text


def a_delivery(**fields: Any) -> Delivery:
    given = {"type": TASK_CHECK, "message_id": None, "correlation_id": None, "headers": {}, "redelivered": False}
    return Delivery(**{**given, **fields})


class NoRows:
    """A table of tasks in which nothing is found, so nothing moves."""

    move_each = None

    def get(self, ids: Any) -> dict[Any, Any]:
        for id_ in ids:
            str(id_)
        return {}


check = Check(
    NoRows(),
    None,
    {},
    None,
    retry=RetryPolicy(),
    max_run_seconds={},
    frozen_after_seconds=1.0,
    metrics=MEASURED,
    threads=ContextPool(1),
)


@given(body=bodies, type_=st.sampled_from([TASK_CHECK] * 3) | st.none() | any_text, redelivered=st.booleans())
@example(body=b"[" * 100_000, type_=TASK_CHECK, redelivered=False)
@example(body=b'{"pool": "comfyui", "backend": "gpu-9", "via": "push"}', type_=TASK_CHECK, redelivered=False)
def test_every_check_is_carried_out_or_buried(body: bytes, type_: str | None, redelivered: bool) -> None:
    (outcome,) = check.handle([a_delivery(queue="check.comfyui", body=body, type=type_, redelivered=redelivered)])

    if isinstance(outcome, DeadLetter):
        assert (outcome.reason, outcome.stage) == (Reason.INVALID_MESSAGE, Stage.CHECK)
        dead_letter_headers(reason=outcome.reason, stage=outcome.stage, detail=outcome.detail)["detail"].encode()
    else:
        assert isinstance(outcome, Done)
        assert not outcome.then
        assert type_ == TASK_CHECK
        CheckTasks.model_validate_json(body)


@given(
    queue=st.sampled_from(["orders.dead", "submit.dead", "check.dead"]),
    body=bodies | any_text.map(lambda text: text.encode("utf-8", "surrogatepass")),
    headers=st.dictionaries(names, amqp_values | st.sampled_from([*Reason, *Stage]), max_size=7),
    name=st.none() | any_text | st.text(min_size=100, max_size=300),
)
@example(queue="check.dead", body="é".encode() * MAX_BODY_BYTES, headers={}, name="é" * 200)
@example(queue="check.dead", body=b"\xff" * MAX_BODY_BYTES, headers={"x-death": [{}]}, name="\ud800")
def test_every_letter_fits_into_the_table(queue: str, body: bytes, headers: dict[str, Any], name: str | None) -> None:
    letter = letter_of(a_delivery(queue=queue, body=body, headers=headers, message_id=name, type=name))

    for text in (letter.body, letter.detail, letter.message_id, letter.message_type, letter.pool):
        assert "\x00" not in (text or "")
        (text or "").encode()
    assert len((letter.body or "").encode()) <= MAX_BODY_BYTES
    assert len((letter.message_id or "").encode()) <= 255
    assert "\\u0000" not in json.dumps(letter.headers)
    assert (letter.task_id is None) == (letter.attempt is None)
    shown = redacted_body(letter.body or "")
    assert "\x00" not in shown
    shown.encode()
