"""docs/messages is what the code says, what the code sends is what docs/messages says, and so is what it takes."""

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker, ValidationError
from jsonschema.validators import extend

from deploy.contract.__main__ import DOCS, generated
from deploy.contract.page import with_examples
from deploy.contract.schemas import BEYOND_THE_SCHEMA, EVENT_STATUS
from services.producer.orders import BadOrder, read_order
from shared.broker.topology import topology
from shared.domain import messages
from shared.domain.messages import MAX_ORDER_BYTES, ORDER_PLACED, Artifact, Message, Order, OrderEvent
from shared.domain.task import TASK_NAMESPACE, Priority, Reason, Stage, Status, Task, task_id_for

FOLDER = DOCS / "messages"
EVENTS = [f"order.{kind}.v1" for kind in EVENT_STATUS]
NOW = datetime.now(UTC)
TASK = Task(
    id=task_id_for("key-1"),
    idempotency_key="key-1",
    order_id="4711",
    fingerprint="0" * 64,
    pool="comfyui",
    priority=Priority.NORMAL,
    body={"metadata": {"customer": "ä"}},
    status=Status.PENDING,
    version=4,
    attempt=1,
    charged=1,
    backend="gpu-1",
    job_key=uuid.uuid4(),
    provider_job_id="7",
    free_at=NOW,
    due_at=None,
    deadline_at=NOW,
    created_at=NOW,
    changed_at=NOW,
    cancel_owed=False,
    avoid_backend=None,
    reason=None,
    detail=None,
    stage=None,
    trace_id=uuid.uuid4().hex,
    now=NOW,
)
PICTURE = Artifact(index=0, key="a/1/0.png", sha256="0" * 64, bytes=70, media_type="image/png", width=8, height=8)


# --- the files


def test_the_files_are_what_the_generator_writes() -> None:
    wanted = generated()
    there = {path: path.read_text() for path in [*FOLDER.glob("*.json"), DOCS / "upstream.md"]}
    assert there == wanted, "run `make docs` and look at the difference: it is what upstream systems will see"


def test_every_event_of_the_code_has_a_schema() -> None:
    kinds = get_args(OrderEvent.model_fields["event"].annotation)
    assert {path.stem for path in FOLDER.glob("*.json")} == {
        ORDER_PLACED,
        "asyncapi",
        *(f"order.{k}.v1" for k in kinds),
    }


@pytest.mark.parametrize("name", [ORDER_PLACED, *EVENTS])
def test_every_schema_is_one_of_draft_2020_12(name: str) -> None:
    Draft202012Validator.check_schema(file(name))


def test_a_page_includes_the_present_text_of_a_file_and_keeps_the_rest() -> None:
    page = "before\n<!-- include a.py -->\nold\n<!-- /include -->\nafter\n"
    new = with_examples(page, {"a.py": "x = 1\n"}.__getitem__)
    assert new == "before\n<!-- include a.py -->\n```python\nx = 1\n```\n<!-- /include -->\nafter\n"
    assert with_examples(new, {"a.py": "x = 1\n"}.__getitem__) == new


def test_the_page_for_upstream_teams_names_every_reason_event_and_field_and_the_namespace() -> None:
    page = (DOCS / "upstream.md").read_text()
    wanted = {f"`{name}`" for name in (*Reason, *(f"order.{kind}" for kind in EVENT_STATUS), *Order.model_fields)}
    assert {name for name in wanted if name not in page} == set()
    assert str(TASK_NAMESPACE) in page
    included = {path.name for path in (DOCS / "examples").iterdir()}
    assert {name for name in included if f"<!-- include {name} -->" not in page} == set()


# --- what the code sends


def event_of(kind: str, **fields: Any) -> Message:
    values = {"status": EVENT_STATUS[kind] or Status.PENDING} | fields
    if kind == "failed":
        values |= {"reason": Reason.REJECTED, "detail": "x" * 9000, "stage": Stage.SUBMIT}
    pictures = [PICTURE] if kind == "completed" else None
    return messages.event(replace(TASK, **values), kind, pictures)  # type: ignore[arg-type]  # one of its kinds


@pytest.mark.parametrize("kind", sorted(EVENT_STATUS))
@pytest.mark.parametrize("fields", [{}, {"order_id": None}, {"body": None}, {"idempotency_key": "ü" * 200}])
def test_an_event_and_its_properties_are_as_documented(kind: str, fields: dict[str, Any]) -> None:
    message = event_of(kind, **fields)
    check(file(message.type), json.loads(message.body))
    assert_as_described(message)
    channel = asyncapi()["channels"]["events"]
    assert message.exchange == channel["bindings"]["amqp"]["exchange"]["name"]
    assert message.routing_key == channel["address"].replace("{event}", kind)
    assert kind in channel["parameters"]["event"]["enum"]


@pytest.mark.parametrize("reason", Reason)
def test_a_failed_event_may_have_every_reason_and_a_new_one_too(reason: Reason) -> None:
    body = json.loads(event_of("failed").body)
    check(file("order.failed.v1"), body | {"reason": str(reason)})
    check(file("order.failed.v1"), body | {"reason": "a_later_one", "a_later_field": 1})
    assert str(reason) in file("order.failed.v1")["properties"]["reason"]["examples"]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("order.completed.v1", {"event": "failed"}),
        ("order.completed.v1", {"status": "processing"}),
        ("order.completed.v1", {"artifacts": []}),
        ("order.failed.v1", {"reason": None}),
        ("order.processing.v1", {"version": "4"}),
        ("order.processing.v1", {"task_id": "4711"}),
        ("order.duplicate.v1", {"status": "lost"}),
    ],
)
def test_a_wrong_event_does_not_pass(name: str, wrong: dict[str, Any]) -> None:
    body = json.loads(event_of(name.split(".")[1]).body)
    check(file(name), body)
    with pytest.raises(ValidationError):
        check(file(name), body | wrong)


@pytest.mark.parametrize("field", OrderEvent.model_fields)
def test_an_event_without_one_of_its_fields_does_not_pass(field: str) -> None:
    body = json.loads(event_of("cancelled").body)
    del body[field]
    with pytest.raises(ValidationError, match=field):
        check(file("order.cancelled.v1"), body)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"order_id": "4711", "workflow": "solid-invert", "inputs": {"color": 1}, "metadata": {"a": [None, 1.5]}},
        {"priority": "high", "deadline_seconds": 0.5},
        {"order_id": None, "workflow": None, "deadline_seconds": None},
    ],
)
def test_an_order_that_our_producers_send_is_as_documented(more: dict[str, Any]) -> None:
    order = Order(idempotency_key="ünï 1", pool="comfyui", **more)
    message = messages.order_placed(order, traceparent=messages.traceparent_of(TASK.trace_id))
    check(file(ORDER_PLACED), json.loads(message.body))
    assert_as_described(message)
    channel = asyncapi()["channels"]["orders"]
    assert (message.exchange, message.routing_key) == (
        channel["bindings"]["amqp"]["exchange"]["name"],
        channel["address"],
    )


# --- what the code takes


BAD: list[dict[str, Any]] = [
    {"idempotency_key": ""},
    {"idempotency_key": "a\nb"},
    {"idempotency_key": "a\n"},
    {"idempotency_key": "k" * 201},
    {"idempotency_key": None},
    {"idempotency_key": 7},
    {"pool": "Comfy UI"},
    {"pool": "comfyui\n"},
    {"pool": None},
    {"order_id": ""},
    {"order_id": 4711},
    {"workflow": "../graph"},
    {"inputs": []},
    {"inputs": None},
    {"priority": "urgent"},
    {"priority": None},
    {"deadline_seconds": 0},
    {"deadline_seconds": "5"},
    {"deadline_seconds": True},
    {"deadline_seconds": 31 * 86400},
    {"deadline": 5},
    {"metadata": "x"},
]


@pytest.mark.parametrize("wrong", BAD)
def test_the_schema_and_the_code_refuse_the_same_order(wrong: dict[str, Any]) -> None:
    body = {"idempotency_key": "key-1", "pool": "comfyui"} | wrong
    assert (schema_takes(body), code_takes(body)) == (False, False)


@pytest.mark.parametrize("missing", ["idempotency_key", "pool"])
def test_the_schema_and_the_code_need_the_same_fields(missing: str) -> None:
    body = {"idempotency_key": "key-1", "pool": "comfyui"}
    del body[missing]
    assert (schema_takes(body), code_takes(body)) == (False, False)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["comfyui", "a", "photo-invert", "9_", "-a", "A", "a" * 64, "a" * 65])
NUMBERS = st.sampled_from([5, 0.5, 2592000, 0, -1, 2592000.5])
ORDERS = st.fixed_dictionaries(
    {"idempotency_key": st.sampled_from(["k", "ä" * 200]) | JSON, "pool": NAMES | JSON},
    optional={
        "order_id": st.sampled_from(["4711", None]) | JSON,
        "workflow": NAMES | st.none() | JSON,
        "inputs": st.dictionaries(TEXT, JSON, max_size=3) | JSON,
        "priority": st.sampled_from(["normal", "high", "HIGH"]) | JSON,
        "deadline_seconds": NUMBERS | st.none() | JSON,
        "metadata": st.dictionaries(TEXT, JSON, max_size=3) | JSON,
        "unknown": JSON,
    },
)


@settings(deadline=None)
@given(ORDERS)
def test_the_schema_and_the_code_agree_on_any_order(body: dict[str, Any]) -> None:
    assert schema_takes(body) == code_takes(body)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"inputs": {"a": "\0"}}, "no NUL"),
        ({"metadata": {"a": ["\ud800"]}}, "no lone surrogate"),
        ({"idempotency_key": "\udfff"}, "no lone surrogate"),
        ({"inputs": {"a": json.loads("[" * 17 + "]" * 17)}}, "nested at most 16 levels"),
        ({"metadata": {"a": "x" * MAX_ORDER_BYTES}}, f"at most {MAX_ORDER_BYTES} bytes"),
    ],
)
def test_what_only_the_code_refuses_is_named_in_the_schema(more: dict[str, Any], named: str) -> None:
    body = {"idempotency_key": "key-1", "pool": "comfyui"} | more
    assert (schema_takes(body), code_takes(body)) == (True, False)
    assert named in BEYOND_THE_SCHEMA
    assert BEYOND_THE_SCHEMA in file(ORDER_PLACED)["description"]


# --- the AsyncAPI document


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    found = list(references(asyncapi()))
    assert found
    for reference in found:
        if reference.startswith("./"):
            assert (FOLDER / reference).is_file(), reference
        else:
            assert isinstance(target(reference), dict), reference


def test_every_channel_has_an_operation_for_each_of_its_messages_and_nothing_else_is_defined() -> None:
    document = asyncapi()
    operations = {o["channel"]["$ref"].removeprefix("#/channels/"): o for o in document["operations"].values()}
    assert operations.keys() == document["channels"].keys()
    for name, channel in document["channels"].items():
        offered = {f"#/channels/{name}/messages/{message}" for message in channel["messages"]}
        assert {ref["$ref"] for ref in operations[name]["messages"]} == offered
    used = {message for channel in document["channels"].values() for message in channel["messages"]}
    assert used == document["components"]["messages"].keys() == {ORDER_PLACED, *EVENTS}


def test_the_exchanges_are_those_that_the_services_declare() -> None:
    bindings = [channel["bindings"]["amqp"]["exchange"] for channel in asyncapi()["channels"].values()]
    assert {(b["name"], b["type"], b["durable"]) for b in bindings} == {
        (exchange.name, exchange.type, True) for exchange in topology([]).exchanges
    }
    (orders,) = (queue for queue in topology([]).queues if queue.binding is not None)
    assert orders.binding == ("orders", asyncapi()["channels"]["orders"]["address"])


@pytest.mark.parametrize("name", [ORDER_PLACED, *EVENTS])
def test_every_example_validates(name: str) -> None:
    message = asyncapi()["components"]["messages"][name]
    assert message["payload"]["schema"] == {"$ref": f"./{name}.json"}
    assert message["bindings"]["amqp"]["messageType"] == name
    for example in message["examples"]:
        check(file(name), example["payload"])
        check(message["headers"], example["headers"])
    if name == ORDER_PLACED:
        assert all(code_takes(example["payload"]) for example in message["examples"])


# --- helpers


def _pattern(_: object, pattern: str, value: object, __: object) -> Iterator[ValidationError]:
    """As ECMA-262 has it: `$` is the end, where Python's also stands before a last line break."""
    if isinstance(value, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


Validator: Any = extend(Draft202012Validator, {"pattern": _pattern})


@cache
def file(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / f"{name}.json").read_text()))


def asyncapi() -> dict[str, Any]:
    return file("asyncapi")


def check(schema: dict[str, Any], value: Any) -> None:
    """Raises jsonschema's ValidationError."""
    Validator(schema, format_checker=FormatChecker()).validate(value)


def schema_takes(body: Any) -> bool:
    return bool(Validator(file(ORDER_PLACED)).is_valid(body))


def code_takes(body: Any) -> bool:
    """As the intake reads it, after json.loads; the producer, which reads the bytes, must say the same."""
    raw = json.dumps(body).encode()
    by_producer = by_intake = len(raw) <= MAX_ORDER_BYTES
    try:
        Order.model_validate(body)
    except ValueError:
        by_intake = False
    try:
        read_order(raw)
    except BadOrder:
        by_producer = False
    assert by_intake == by_producer
    return by_intake


def assert_as_described(message: Message) -> None:
    described = asyncapi()["components"]["messages"][message.type]
    properties = {"content_type": "application/json", "delivery_mode": 2}  # of every message, see publisher.py
    properties |= {name: getattr(message, name) for name in ("type", "message_id", "correlation_id")}
    check(described["x-amqp-properties"], properties)
    check(described["headers"], dict(message.headers))
    (operation,) = (
        operation
        for operation in asyncapi()["operations"].values()
        if any(ref["$ref"].endswith(f"/{message.type}") for ref in operation["messages"])
    )
    assert operation["bindings"]["amqp"]["mandatory"] == message.mandatory


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def target(reference: str) -> Any:
    place: Any = asyncapi()
    for step in reference.removeprefix("#/").split("/"):
        place = place[step]
    return place
