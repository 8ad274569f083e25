"""Orders in over HTTP: what is answered, and what is published."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from shared.domain.errors import BrokerAway, DatabaseAway
from shared.domain.messages import MAX_ORDER_BYTES, RECEIVED, Order
from shared.domain.task import Status, task_id_for
from tests.unit.api_lab import RED, Api, SlowPublisher, SlowRows, a_task, fields_of, problem_of


@pytest.fixture
def api() -> Api:
    return Api()


def test_an_order_is_accepted_once_the_broker_has_confirmed_it(api: Api) -> None:
    answer = api.place(RED)
    task_id = str(task_id_for("k-1"))
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/orders/{task_id}"
    assert answer.json() == {
        "task_id": task_id,
        "idempotency_key": "k-1",
        "status_url": f"/v1/orders/{task_id}",
    }
    assert [future.done() for future in api.publisher.futures] == [True]
    assert api.received("accepted") == 1


def test_the_message_is_an_order_placed_that_reads_back_as_the_same_order(api: Api) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    api.place(RED, headers={"Traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"})
    (message,) = api.publisher.published
    assert (message.exchange, message.routing_key, message.type) == ("orders", "order.placed", "order.placed.v1")
    assert Order.model_validate_json(message.body) == Order.model_validate(RED)
    assert trace_id in message.headers["traceparent"]
    assert message.headers[RECEIVED] == "http", "counted here, so not where it is claimed"


KEYLESS = {name: value for name, value in RED.items() if name != "idempotency_key"}


@pytest.mark.parametrize("key", ["k-1", "schlüssel", '"quoted"', "a" * 200])
def test_a_key_in_the_header_is_the_key_of_the_order(api: Api, key: str) -> None:
    answer = api.place(KEYLESS, headers={"Idempotency-Key": key.encode()})
    assert (answer.status_code, answer.json()["task_id"]) == (202, str(task_id_for(key)))
    (message,) = api.publisher.published
    assert Order.model_validate_json(message.body) == Order.model_validate(KEYLESS | {"idempotency_key": key})


def test_the_same_key_in_header_and_body_is_one_key_and_another_is_refused(api: Api) -> None:
    assert api.place(RED, headers={"Idempotency-Key": "k-1"}).status_code == 202
    problem_of(api.place(RED, headers={"Idempotency-Key": "k-2"}), 400, "keys_differ")
    twice = [("Idempotency-Key", "k-1"), ("Idempotency-Key", "k-1")]
    problem_of(api.place(RED, headers=twice), 400, "keys_differ")
    assert len(api.publisher.published) == 1
    assert api.received("invalid") == 2


@pytest.mark.parametrize("key", ["", "a" * 201])
def test_a_key_in_the_header_keeps_the_bounds_of_every_key(api: Api, key: str) -> None:
    assert fields_of(api.place(KEYLESS, headers={"Idempotency-Key": key})) == {"idempotency_key"}


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"inputs": {"width": NaN}}'])
def test_a_key_in_the_header_hides_no_mistake_of_the_body(api: Api, body: bytes) -> None:
    plain = api.place(body).json()
    assert "idempotency_key" not in str(api.place(body, headers={"Idempotency-Key": "k-1"}).json())
    assert api.place(body, headers={"Idempotency-Key": "k-1"}).json()["code"] == plain["code"]


def test_every_wrong_field_is_named_at_once(api: Api) -> None:
    answer = api.place({"pool": "No Pool!", "priority": "urgent", "deadline_seconds": 0, "colour": "red", "inputs": []})
    assert fields_of(answer) == {"idempotency_key", "pool", "priority", "deadline_seconds", "colour", "inputs"}
    assert api.publisher.published == []
    assert api.received("invalid") == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"pool": "elsewhere"}, "pool"),
        ({"workflow": "sculpt"}, "workflow"),
        ({"workflow": None}, "workflow"),
        ({"inputs": {"width": 3}}, "inputs.width"),
        ({"inputs": {"width": "512"}}, "inputs.width"),
        ({"inputs": {"height": 512}}, "inputs.height"),
        ({"metadata": {"note": "a\x00b"}}, "metadata"),
    ],
)
def test_what_cannot_be_made_here_is_refused_at_once(api: Api, change: dict[str, Any], field: str) -> None:
    assert fields_of(api.place(RED | change)) == {field}
    assert api.publisher.published == []


def test_a_pool_of_an_api_provider_needs_no_workflow(api: Api) -> None:
    assert api.place({"idempotency_key": "k-1", "pool": "openai", "inputs": {"prompt": "a cat"}}).status_code == 202


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"pool": "\\ud800"}', b"[" * 60_000])
def test_a_body_that_is_not_json_is_told_apart(api: Api, body: bytes) -> None:
    problem_of(api.place(body), 400, "malformed_json")


@pytest.mark.parametrize("body", [b"null", b"[]", b'"order"', b"1"])
def test_json_that_is_no_object_is_no_order(api: Api, body: bytes) -> None:
    assert fields_of(api.place(body)) == {"order"}


def test_numbers_that_are_not_finite_are_refused(api: Api) -> None:
    body = b'{"idempotency_key": "k-1", "pool": "comfyui", "deadline_seconds": NaN, "inputs": {"width": Infinity}}'
    assert fields_of(api.place(body)) == {"deadline_seconds", "inputs"}


def test_an_order_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(api: Api) -> None:
    empty = len(json.dumps(RED | {"metadata": {"note": ""}}))
    fits = json.dumps(RED | {"metadata": {"note": "x" * (MAX_ORDER_BYTES - empty)}}).encode()
    assert len(fits) == MAX_ORDER_BYTES
    assert api.place(fits).status_code == 202
    problem_of(api.place(fits + b" "), 413, "too_large")
    assert len(api.publisher.published) == 1


def test_an_order_that_only_grows_too_large_on_its_way_is_refused(api: Api) -> None:
    body = json.dumps(RED)[:-1] + ', "metadata": {"n": [' + ",".join(["1e15"] * 12_000) + "]}}"
    assert len(body) < MAX_ORDER_BYTES
    problem_of(api.place(body.encode()), 413, "too_large")


def test_no_more_than_the_limit_of_an_endless_body_is_read(api: Api) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while sent < 50 * MAX_ORDER_BYTES:
            sent += 8192
            yield b" " * 8192

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app=api.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/v1/orders", content=endless())

    problem_of(asyncio.run(call()), 413, "too_large")
    assert sent <= 2 * MAX_ORDER_BYTES


def test_the_same_order_again_is_accepted_and_not_published_again(api: Api) -> None:
    api.rows = SlowRows(a_task(status=Status.COMPLETED))
    answer = api.place(RED)
    assert (answer.status_code, answer.json()["task_id"]) == (202, str(task_id_for("k-1")))
    assert api.publisher.published == []
    assert api.received("duplicate") == 1


def test_a_key_with_another_content_is_a_conflict_that_names_the_task(api: Api) -> None:
    api.rows = SlowRows(a_task())
    body = problem_of(api.place(RED | {"priority": "high"}), 409, "key_reused")
    assert body["task_id"] == str(task_id_for("k-1"))
    assert api.publisher.published == []
    assert api.received("conflict") == 1


def test_a_key_kept_with_another_task_is_compared_with_its_own_order(api: Api) -> None:
    active = a_task(idempotency_key="k-0", fingerprint="of k-0")
    api.rows = SlowRows(kept={task_id_for("k-1"): (active, Order.model_validate(RED).fingerprint)})
    assert api.place(RED).status_code == 202
    problem_of(api.place(RED | {"priority": "high"}), 409, "key_reused")


def test_without_a_database_orders_are_published_all_the_same(api: Api) -> None:
    def outage() -> None:
        raise DatabaseAway("connection refused")

    api.rows.outage = outage
    assert api.place(RED).status_code == 202
    assert len(api.publisher.published) == 1


def test_a_database_that_hangs_holds_an_order_up_for_a_second_only(api: Api) -> None:
    api.rows.outage = lambda: time.sleep(2.5)
    began = time.monotonic()
    assert api.place(RED).status_code == 202
    assert len(api.publisher.published) == 1
    assert time.monotonic() - began < 4  # asyncio.run waits for nothing of ours; the margin is for a busy machine


def test_no_confirm_in_time_is_503_and_the_message_is_given_up(api: Api) -> None:
    api.publisher = SlowPublisher(is_away=True)
    api.confirm_timeout = 0.1
    answer = api.place(RED)
    problem_of(answer, 503, "broker_away")
    assert int(answer.headers["retry-after"]) > 0
    assert api.publisher.futures[0].cancelled()
    assert api.metrics.value("publishes_total", result="timeout") == 1
    assert api.received("accepted") == 0


def test_a_publisher_that_stops_meanwhile_is_503_too(api: Api) -> None:
    api.publisher = SlowPublisher(error=BrokerAway("this publisher is closed"))
    assert "retry-after" in api.place(RED).headers


def test_many_orders_wait_for_their_confirms_at_the_same_time(api: Api) -> None:
    async def call() -> list[int]:
        transport = httpx.ASGITransport(app=api.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            orders = [RED | {"idempotency_key": f"k-{n}"} for n in range(50)]
            answers = await asyncio.gather(*(client.post("/v1/orders", json=order) for order in orders))
            return [answer.status_code for answer in answers]

    assert asyncio.run(call()) == [202] * 50
    assert len(api.publisher.published) == 50
