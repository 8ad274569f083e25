"""What the HTTP interface says about orders and workflows, as pydantic models."""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from services.producer.orders import Offer
from shared.domain.messages import Artifact
from shared.domain.task import Priority, Status, Task
from shared.providers.values import InputSpec

_ID: Final = "b2c1f0de-58b6-5c0a-9d52-6f3a1c0f7d11"
_PICTURE: Final[dict[str, Any]] = {
    "index": 0,
    "url": f"/v1/orders/{_ID}/artifacts/0",
    "key": f"{_ID}/1/0.png",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "bytes": 183204,
    "media_type": "image/png",
    "width": 768,
    "height": 768,
}
_COMPLETED: Final[dict[str, Any]] = {
    "task_id": _ID,
    "status": "completed",
    "version": 4,
    "attempt": 1,
    "pool": "comfyui",
    "workflow": "solid-invert",
    "priority": "normal",
    "order_id": "4711",
    "idempotency_key": "shop-4711-1",
    "reason": None,
    "detail": None,
    "queue_position": None,
    "created_at": "2026-01-02T03:04:05Z",
    "changed_at": "2026-01-02T03:04:14Z",
    "finished_at": "2026-01-02T03:04:14Z",
    "not_before": None,
    "due_at": None,
    "deadline_at": "2026-01-03T03:04:05Z",
    "artifacts": [_PICTURE],
    "metadata": {"shop": 7},
}


class Accepted(BaseModel):
    """The order is in the broker's hands, or has a row already. Asking again with the same content changes nothing."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"task_id": _ID, "idempotency_key": "shop-4711-1", "status_url": f"/v1/orders/{_ID}"}]
        }
    )
    task_id: uuid.UUID
    idempotency_key: str
    status_url: str


class Picture(Artifact):
    """One stored picture, and where to get it."""

    url: str

    @classmethod
    def of(cls, task_id: uuid.UUID, artifact: Artifact) -> Self:
        return cls(url=f"/v1/orders/{task_id}/artifacts/{artifact.index}", **artifact.model_dump())


class OrderStatus(BaseModel):
    """The row of one order. `version` rises with every change of status."""

    model_config = ConfigDict(json_schema_extra={"examples": [_COMPLETED]})
    task_id: uuid.UUID
    status: Status
    version: int
    attempt: int = Field(description="tries so far; 0 before the first")
    pool: str
    workflow: str | None
    priority: Priority
    order_id: str | None
    idempotency_key: str
    reason: str | None = Field(description="why it failed (a closed list) or was cancelled")
    detail: str | None
    queue_position: int | None = Field(
        description="where one order was asked for that is waiting its turn: 1 is next, 1001 is any place behind 1000"
    )
    created_at: datetime
    changed_at: datetime
    finished_at: datetime | None
    not_before: datetime | None = Field(description="pending: the end of a backoff after a failed attempt")
    due_at: datetime | None = Field(description="when darkroom looks at it again; null once nothing is owed")
    deadline_at: datetime
    artifacts: list[Picture] = Field(description="the pictures of a completed order")
    metadata: dict[str, Any]

    @classmethod
    def of(cls, task: Task, artifacts: Sequence[Artifact], queue_position: int | None = None) -> Self:
        backs_off = task.status is Status.PENDING and task.free_at > task.now
        return cls(
            task_id=task.id,
            status=task.status,
            version=task.version,
            attempt=task.attempt,
            pool=task.pool,
            workflow=task.workflow,
            priority=task.priority,
            order_id=task.order_id,
            idempotency_key=task.idempotency_key,
            reason=task.reason,
            detail=task.detail,
            queue_position=queue_position,
            created_at=task.created_at,
            changed_at=task.changed_at,
            finished_at=task.changed_at if task.status.is_final else None,
            not_before=task.free_at if backs_off else None,
            due_at=task.due_at,
            deadline_at=task.deadline_at,
            artifacts=[Picture.of(task.id, artifact) for artifact in artifacts],
            metadata=dict((task.body or {}).get("metadata", {})),
        )


class OrderPage(BaseModel):
    """Some orders, the newest first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"orders": [_COMPLETED], "next_cursor": "MjAyNi0wMS0wMlQwMzowNDowNSswMDowMA"}]}
    )
    orders: list[OrderStatus]
    next_cursor: str | None = Field(description="give it as `cursor` for the next page; null: this is the last")


class Cancellation(BaseModel):
    """Why an order is cancelled."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra={"examples": [{"reason": "refunded"}]})
    reason: str | None = Field(
        None, min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$", description="kept, and told in the event"
    )


class WorkflowInput(BaseModel):
    """One value an order may give. Bounds that do not apply are null."""

    type: Literal["int", "float", "string", "choice", "image", "seed"]
    is_required: bool
    default: int | float | str | None
    min: int | float | None
    max: int | float | None
    max_length: int | None
    choices: list[str] | None

    @classmethod
    def of(cls, spec: InputSpec) -> Self:
        return cls(is_required=spec.is_required, **spec.model_dump(exclude={"node", "field"}))


class WorkflowOffer(BaseModel):
    """A workflow an order may name."""

    name: str
    title: str
    inputs: dict[str, WorkflowInput]


class PoolOffer(BaseModel):
    """A pool an order may name. needs_workflow -- or else the provider says what it takes"""

    name: str
    needs_workflow: bool


class WhatCanBeOrdered(BaseModel):
    """Every pool and every workflow, by name."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "pools": [{"name": "comfyui", "needs_workflow": True}],
                    "workflows": [
                        {
                            "name": "solid-invert",
                            "title": "One colour, inverted",
                            "inputs": {
                                "width": {
                                    "type": "int",
                                    "is_required": False,
                                    "default": 512,
                                    "min": 16,
                                    "max": 4096,
                                    "max_length": None,
                                    "choices": None,
                                }
                            },
                        }
                    ],
                }
            ]
        }
    )
    pools: list[PoolOffer]
    workflows: list[WorkflowOffer]

    @classmethod
    def of(cls, offer: Offer) -> Self:
        workflows = [workflow for name in offer.workflows.names() if (workflow := offer.workflows.get(name))]
        return cls(
            pools=[PoolOffer(name=name, needs_workflow=offer.needs_workflow(name)) for name in sorted(offer.pools)],
            workflows=[
                WorkflowOffer(
                    name=workflow.name,
                    title=workflow.binding.title,
                    inputs={name: WorkflowInput.of(spec) for name, spec in workflow.binding.inputs.items()},
                )
                for workflow in workflows
            ],
        )
