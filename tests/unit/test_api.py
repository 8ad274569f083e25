"""The HTTP interface of the producer: what it answers, and what it publishes."""

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from services.producer.api import create_app
from services.producer.auth import is_loopback
from services.producer.orders import Offer
from shared.database.listing import Filter, Place
from shared.domain.errors import BrokerAway, DatabaseAway
from shared.domain.messages import MAX_ORDER_BYTES, Artifact, Message, Order
from shared.domain.task import Priority, Status, Task, task_id_for
from shared.observe import metrics
from shared.observe.metrics import Metrics
from shared.providers.workflow import Binding, Workflow, Workflows
from shared.storage import Artifacts

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RED = {"idempotency_key": "k-1", "pool": "comfyui", "workflow": "paint", "inputs": {"width": 512}}

BINDING = {
    "title": "Paint",
    "inputs": {
        "width": {"node": "1", "field": "width", "type": "int", "min": 64, "max": 2048, "default": 512},
        "photo": {"node": "2", "field": "image", "type": "string", "default": ""},
    },
    "outputs": [{"node": "3", "images": 1}],
}


class SlowPublisher:
    """Confirms a little later, as a broker does; never while `is_away`."""

    def __init__(self, is_away: bool = False, error: Exception | None = None) -> None:
        self.is_away = is_away
        self.error = error
        self.published: list[Message] = []
        self.futures: list[Future[None]] = []

    def publish(self, messages: Sequence[Message]) -> "Future[None]":
        future: Future[None] = Future()
        self.published += messages
        self.futures.append(future)
        if not self.is_away:
            threading.Timer(0.02, self._confirm, [future]).start()
        return future

    def _confirm(self, future: "Future[None]") -> None:
        if future.set_running_or_notify_cancel():
            future.set_exception(self.error) if self.error else future.set_result(None)


class SlowRows:
    """Rows that take a moment to be read."""

    def __init__(self, *rows: Task, kept: dict[uuid.UUID, tuple[Task, str]] | None = None) -> None:
        self.rows = {row.id: row for row in rows}
        self.kept = kept or {}
        self.pictures: dict[uuid.UUID, list[Artifact]] = {}
        self.outage: Callable[[], None] = lambda: None
        self.cancelled: list[tuple[uuid.UUID, str | None, str | None]] = []
        self.looks: list[dict[uuid.UUID, int]] = []

    def find(self, task_id: uuid.UUID) -> Task | None:
        time.sleep(0.01)
        self.outage()
        return self.kept[task_id][0] if task_id in self.kept else self.rows.get(task_id)

    def kept_fingerprint(self, task_id: uuid.UUID) -> str | None:
        return self.kept[task_id][1]

    def artifacts(self, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, list[Artifact]]:
        return {id_: self.pictures[id_] for id_ in ids if id_ in self.pictures}

    def cancel(self, task_id: uuid.UUID, reason: str | None = None, by_whom: str | None = None) -> Task | None:
        self.cancelled.append((task_id, reason, by_whom))
        task = self.find(task_id)
        if task is None or task.status.is_final:
            return task
        self.rows[task.id] = replace(task, status=Status.CANCELLED, version=task.version + 1, reason=reason)
        return self.rows[task.id]

    def page(self, wanted: Filter, *, behind: Place | None, limit: int) -> list[Task]:
        self.outage()
        return list(self.rows.values())[:limit]

    def ahead_of(self, task: Task) -> int | None:
        return 16 if task.status is Status.PENDING else None

    def changed(self, seen: Mapping[uuid.UUID, int]) -> dict[uuid.UUID, Task]:
        self.looks.append(dict(seen))
        self.outage()
        return {id_: self.rows[id_] for id_ in seen if id_ in self.rows and self.rows[id_].version > seen[id_]}


def a_task(**changes: Any) -> Task:
    key = changes.get("idempotency_key", "k-1")
    values: dict[str, Any] = {
        "id": task_id_for(key),
        "idempotency_key": key,
        "order_id": None,
        "fingerprint": Order.model_validate(RED).fingerprint,
        "pool": "comfyui",
        "priority": Priority.NORMAL,
        "body": RED | {"metadata": {"shop": 7}},
        "status": Status.PENDING,
        "version": 1,
        "attempt": 0,
        "charged": 0,
        "backend": None,
        "job_key": None,
        "provider_job_id": None,
        "free_at": NOW,
        "due_at": NOW,
        "deadline_at": NOW + timedelta(days=1),
        "created_at": NOW,
        "changed_at": NOW,
        "cancel_owed": False,
        "avoid_backend": None,
        "reason": None,
        "detail": None,
        "stage": None,
        "trace_id": "0" * 32,
        "now": NOW,
    }
    return Task(**values | changes)


class Api:
    """The interface with its collaborators, asked without a network."""

    def __init__(self) -> None:
        self.publisher = SlowPublisher()
        self.rows = SlowRows()
        self.metrics: Metrics = metrics.build("producer", pools=["comfyui"], strict=True)
        self.confirm_timeout = 5.0
        self.store = Artifacts("memory://")
        self.tokens: list[str] = []

    def app(self) -> FastAPI:
        paint = Workflow("paint", {}, Binding.model_validate(BINDING))
        return create_app(
            publisher=self.publisher,
            tasks=self.rows,
            listing=self.rows,
            store=self.store,
            offer=Offer({"comfyui": "comfyui", "openai": "openai_images"}, Workflows({"paint": paint})),
            metrics=self.metrics,
            tokens=self.tokens,
            confirm_timeout_seconds=self.confirm_timeout,
        )

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app(), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return await client.request(method, path, **request)

        return asyncio.run(call())

    def place(self, order: Any, **request: Any) -> httpx.Response:
        body = order if isinstance(order, bytes) else json.dumps(order).encode()
        return self.ask("POST", "/v1/orders", content=body, **request)

    def received(self, result: str) -> float:
        return self.metrics.value("orders_received_total", source="http", result=result)


@pytest.fixture
def api() -> Api:
    return Api()


def problem_of(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    body: dict[str, Any] = answer.json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["type"]
    assert body["title"]
    assert body["detail"]
    return body


def fields_of(answer: httpx.Response) -> set[str]:
    return {error["field"] for error in problem_of(answer, 422, "invalid_order")["errors"]}


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
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
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
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            orders = [RED | {"idempotency_key": f"k-{n}"} for n in range(50)]
            answers = await asyncio.gather(*(client.post("/v1/orders", json=order) for order in orders))
            return [answer.status_code for answer in answers]

    assert asyncio.run(call()) == [202] * 50
    assert len(api.publisher.published) == 50


def test_the_status_of_an_order_names_its_pictures_and_its_metadata(api: Api) -> None:
    task = a_task(status=Status.COMPLETED, version=4, attempt=1, order_id="o-9", changed_at=NOW + timedelta(seconds=9))
    picture = {"index": 0, "key": "k/1/0.png", "sha256": "ab", "bytes": 10, "media_type": "image/png"}
    picture |= {"width": 5, "height": 6}
    api.rows = SlowRows(task)
    api.rows.pictures = {task.id: [Artifact.model_validate(picture)]}
    answer = api.ask("GET", f"/v1/orders/{task.id}")
    assert answer.status_code == 200
    assert answer.json() == {
        "task_id": str(task.id),
        "status": "completed",
        "version": 4,
        "attempt": 1,
        "pool": "comfyui",
        "workflow": "paint",
        "priority": "normal",
        "order_id": "o-9",
        "idempotency_key": "k-1",
        "reason": None,
        "detail": None,
        "queue_position": None,
        "created_at": "2026-01-02T03:04:05Z",
        "changed_at": "2026-01-02T03:04:14Z",
        "finished_at": "2026-01-02T03:04:14Z",
        "not_before": None,
        "due_at": "2026-01-02T03:04:05Z",
        "deadline_at": "2026-01-03T03:04:05Z",
        "artifacts": [picture | {"url": f"/v1/orders/{task.id}/artifacts/0"}],
        "metadata": {"shop": 7},
    }


def test_a_row_whose_order_could_not_be_read_still_has_a_status(api: Api) -> None:
    task = a_task(body=None, status=Status.FAILED, reason="invalid_message", stage="orders")
    api.rows = SlowRows(task)
    body = api.ask("GET", f"/v1/orders/{task.id}").json()
    assert (body["status"], body["reason"], body["workflow"]) == ("failed", "invalid_message", None)


def test_before_the_row_exists_the_status_is_404_not_claimed_yet(api: Api) -> None:
    problem_of(api.ask("GET", f"/v1/orders/{uuid.uuid4()}"), 404, "not_claimed_yet")


def test_a_status_without_a_database_is_503(api: Api) -> None:
    def outage() -> None:
        raise DatabaseAway("connection refused")

    api.rows.outage = outage
    answer = api.ask("GET", f"/v1/orders/{uuid.uuid4()}")
    problem_of(answer, 503, "database_away")
    assert int(answer.headers["retry-after"]) > 0


def test_an_id_that_is_none_is_named(api: Api) -> None:
    body = problem_of(api.ask("GET", "/v1/orders/nothing"), 422, "invalid_request")
    assert [error["field"] for error in body["errors"]] == ["task_id"]


def test_without_the_right_token_nothing_is_done_and_nothing_is_learned(api: Api) -> None:
    api.tokens = ["0123456789abcdef", "fedcba9876543210"]
    for given in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Bearer schlüssel".encode()}):
        answer = api.place(RED, headers=given)
        problem_of(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        problem_of(api.ask("GET", "/v1/orders/no-id", headers=given), 401, "unauthorized")
    assert api.publisher.published == []
    for token in api.tokens:
        assert api.place(RED, headers={"Authorization": f"bearer {token}"}).status_code == 202


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_only_addresses_that_cannot_lead_elsewhere_are_loopback(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local


def test_wrong_addresses_and_methods_are_problems_too(api: Api) -> None:
    problem_of(api.ask("GET", "/v2/orders"), 404, "not_found")
    answer = api.ask("DELETE", "/v1/orders")
    problem_of(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"


def test_a_bug_of_ours_shows_no_traceback(api: Api) -> None:
    def bug() -> None:
        raise ZeroDivisionError("secret")

    api.rows.outage = bug
    answer = api.ask("GET", f"/v1/orders/{uuid.uuid4()}")
    problem_of(answer, 500, "internal_error")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_the_openapi_document_names_every_answer_and_every_field_of_an_order(api: Api) -> None:
    document = api.ask("GET", "/openapi.json").json()
    place = document["paths"]["/v1/orders"]["post"]
    assert set(place["responses"]) == {"202", "400", "401", "409", "413", "422", "503"}
    schema = place["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == set(Order.model_fields)
    references = [part.split('"')[0] for part in json.dumps(document).split('"$ref": "#/components/schemas/')[1:]]
    assert set(references) <= set(document["components"]["schemas"])


def test_the_page_for_readers_has_every_operation_and_runs_no_script(api: Api) -> None:
    api.tokens = ["0123456789abcdef"]
    answer = api.ask("GET", "/docs")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    for path, operations in api.ask("GET", "/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            assert f"{method.upper()} {path}" in answer.text
            assert operation["summary"] in answer.text
    for example in ("shop-4711-1", "key_reused", "event: processing", "refunded"):
        assert example in answer.text
