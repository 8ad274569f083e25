"""The HTTP interface of the producer with a publisher and rows that take their time, asked without a network."""

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
from fastapi import FastAPI

from services.producer.api import create_app
from services.producer.orders import Offer
from shared.database.listing import Filter, Place
from shared.domain.messages import Artifact, Message, Order
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
        self.tombstones: dict[uuid.UUID, Status] = {}

    def find(self, task_id: uuid.UUID) -> Task | None:
        time.sleep(0.01)
        self.outage()
        return self.kept[task_id][0] if task_id in self.kept else self.rows.get(task_id)

    def purged(self, task_id: uuid.UUID) -> Status | None:
        return self.tombstones.get(task_id)

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
        self.read_tokens: list[str] = []
        self.callbacks: Any = None

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
            read_tokens=self.read_tokens,
            confirm_timeout_seconds=self.confirm_timeout,
            callbacks=self.callbacks,
        )

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app(), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, **request)

        return asyncio.run(call())

    def place(self, order: Any, **request: Any) -> httpx.Response:
        body = order if isinstance(order, bytes) else json.dumps(order).encode()
        return self.ask("POST", "/v1/orders", content=body, **request)

    def received(self, result: str) -> float:
        return self.metrics.value("orders_received_total", source="http", result=result)


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
