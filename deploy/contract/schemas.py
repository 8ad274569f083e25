"""JSON Schemas (draft 2020-12) of the public messages, from the pydantic models that read and write them. Pure."""

from collections.abc import Mapping
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from shared.domain.messages import MAX_ORDER_BYTES, ORDER_PLACED, Order, OrderEvent
from shared.domain.task import Reason, Status

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"

#: Every event, and the status of the task it tells of; None: whatever status that task has.
EVENT_STATUS: Final[Mapping[str, Status | None]] = {
    kind: None if kind == "duplicate" else Status(kind)
    for kind in get_args(OrderEvent.model_fields["event"].annotation)
}

EVENT_MEANING: Final[Mapping[str, str]] = {
    "processing": "A provider has begun an attempt. Best effort: it may be missing, and comes once per attempt.",
    "completed": "The pictures are stored. The order never changes again.",
    "failed": "The order cannot go on by itself. A person may send it round again; then further events follow.",
    "cancelled": "The order was cancelled on request. It never changes again.",
    "duplicate": (
        "The key made no task: another order with the same order_id was unfinished. task_id, status, version and"
        " metadata are those of that other order's task, which answers for this key from now on."
    ),
}

#: What the code refuses beyond its schema, since a schema cannot say it (or not so that anybody could read it).
BEYOND_THE_SCHEMA: Final = (
    f"Beyond this schema: at most {MAX_ORDER_BYTES} bytes of JSON; inputs and metadata nested at most 16 levels deep;"
    " no NUL and no lone surrogate in any text."
)


def schemas() -> dict[str, dict[str, Any]]:
    """Message type -> schema of its body."""
    placed = _schema(Order, "validation") | {"title": ORDER_PLACED}
    placed["description"] = f"{placed['description']} {BEYOND_THE_SCHEMA}"
    return {ORDER_PLACED: placed} | {f"order.{kind}.v1": _event(kind) for kind in EVENT_STATUS}


def _event(kind: str) -> dict[str, Any]:
    """OrderEvent, narrowed to what is always true of this kind. Unknown fields are allowed: there may be more later."""
    schema = _schema(OrderEvent, "serialization") | {"title": f"order.{kind}.v1", "description": EVENT_MEANING[kind]}
    properties = schema["properties"]
    schema["required"] = list(properties)  # written without exclusions, so every field is there
    properties["event"] = {"const": kind}
    if status := EVENT_STATUS[kind]:
        properties["status"] = {"const": str(status)}
        schema["$defs"].pop("Status")
    match kind:
        case "completed":
            properties["artifacts"]["minItems"] = 1
        case "failed":
            described = properties["reason"]["description"]
            # No enum: a new reason is no break of the contract, so a validator must let it pass.
            properties["reason"] = {"type": "string", "description": described, "examples": [str(r) for r in Reason]}
    return schema


def _schema(model: type[BaseModel], mode: JsonSchemaMode) -> dict[str, Any]:
    return {"$schema": DRAFT, **model.model_json_schema(mode=mode, schema_generator=_WithoutFieldTitles)}


class _WithoutFieldTitles(GenerateJsonSchema):
    """ "Event Id" says nothing that event_id does not."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
        return False
