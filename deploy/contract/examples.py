"""One example of every public message, made by the models themselves. Pure."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from deploy.contract.schemas import EVENT_STATUS
from shared.domain.messages import ORDER_PLACED, Artifact, Order, OrderEvent
from shared.domain.task import Reason, Status, task_id_for

TRACEPARENT: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

_ORDER: Final = Order(
    idempotency_key="shop-4711-1",
    order_id="4711",
    pool="comfyui",
    workflow="photo-invert",
    inputs={"photo": "https://shop.example/uploads/4711.jpg", "width": 512, "height": 512},
    deadline_seconds=3600,
    metadata={"customer": 42},
)
_PLACED_AT: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def example(message_type: str) -> dict[str, Any]:
    """The body of one message of this type."""
    if message_type == ORDER_PLACED:
        return _ORDER.model_dump(mode="json", exclude_defaults=True)
    return _event(message_type.split(".")[1]).model_dump(mode="json")


def _event(kind: str) -> OrderEvent:
    status = EVENT_STATUS[kind] or Status.PROCESSING
    version = 3 if status is Status.PROCESSING else 4
    values: dict[str, Any] = {}
    match kind:
        case "completed":
            values = {"artifacts": [_picture()]}
        case "failed":
            values = {"reason": Reason.INPUT_UNAVAILABLE, "detail": "https://shop.example/uploads/4711.jpg: HTTP 404"}
        case "cancelled":
            values = {"reason": "refunded"}
        case "duplicate":
            values = {"idempotency_key": "shop-4711-2"}
    return OrderEvent(
        **{
            "event_id": uuid.uuid5(_ORDER.task_id, kind),
            "event": kind,
            "at": _PLACED_AT + timedelta(seconds=3 * version),
            "task_id": _ORDER.task_id,
            "idempotency_key": _ORDER.idempotency_key,
            "order_id": _ORDER.order_id,
            "pool": _ORDER.pool,
            "status": status,
            "version": version,
            "attempt": 1,
            "metadata": _ORDER.metadata,
            **values,
        }
    )


def _picture() -> Artifact:
    return Artifact(
        index=0,
        key=f"{task_id_for(_ORDER.idempotency_key)}/1/0.png",
        sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        bytes=183204,
        media_type="image/png",
        width=512,
        height=512,
    )
