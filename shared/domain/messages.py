"""Everything that crosses the broker, as pydantic models, and the envelope that carries it.

Bodies are JSON. `type` names model and version (`order.placed.v1`); an unknown type is a dead letter, never a guess.
"""

import json
import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from shared.domain.task import Priority, Reason, Stage, Status, Task, fingerprint_of, task_id_for

#: Largest order anybody may send, in bytes of its JSON. Pictures travel as references.
MAX_ORDER_BYTES: Final = 64 * 1024
#: Pools that one order may go through.
MAX_POOLS: Final = 5
#: Characters kept of any error text that travels in a message.
MAX_DETAIL_CHARS: Final = 2000

T = TypeVar("T")

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Key = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]

_MOST_LEVELS: Final = 16
#: NUL, and halves of characters.
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")

ORDER_PLACED: Final = "order.placed.v1"
TASK_SUBMIT: Final = "task.submit.v1"
TASK_CHECK: Final = "task.check.v1"
DEAD_LETTER: Final = "dead.letter.v1"

_PROGRAM: Final = "darkroom"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message to publish. Persistent and confirmed always; `mandatory` unless nobody need be listening."""

    exchange: str = ""
    routing_key: str
    type: str
    body: bytes
    message_id: str
    correlation_id: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    mandatory: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One message as it arrived. app_id -- the program that sent it, as it says itself"""

    queue: str
    body: bytes
    type: str | None
    message_id: str | None
    correlation_id: str | None
    headers: Mapping[str, Any]
    redelivered: bool
    exchange: str | None = None
    routing_key: str | None = None
    app_id: str | None = None


class Choice(BaseModel):
    """A pool and what an order says there, where that is not what it says to its first pool."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    pool: Name
    workflow: Name | None = None
    inputs: dict[str, Any] = Field(default_factory=dict)

    @field_validator("inputs")
    @classmethod
    def _must_be_storable(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _storable(value)


def _needs_either(schema: dict[str, Any]) -> None:
    """The published schema: `pools` names the first pool too."""
    schema["required"] = [name for name in schema["required"] if name != "pool"]
    named = {"required": ["pools"], "properties": {"pools": {"minItems": 1}}}
    schema["anyOf"] = [{"required": ["pool"]}, named]


class Order(BaseModel):
    """What an upstream system asks for. Unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_needs_either)

    idempotency_key: Key = Field(description="one per order; the same key never makes a second picture")
    order_id: Key | None = Field(None, description="at most one unfinished task per order_id; optional")
    pool: Name = Field(description="which backends may serve it: comfyui, or the name of an API provider")
    pools: list[Name | Choice] = Field(
        default_factory=list,
        max_length=MAX_POOLS,
        description="instead of `pool`: several, of which the next is tried when the one before has surely made no job;"
        " a name takes the order's workflow and inputs, an object brings its own",
    )
    fallback_on: list[Literal["failed", "content_rejected"]] = Field(
        default_factory=list,
        max_length=2,
        description="lets the next pool also try what one has tried in vain, or refused for its content",
    )
    workflow: Name | None = Field(None, description="name of a workflow template; ComfyUI needs one")
    inputs: dict[str, Any] = Field(default_factory=dict, description="values for the workflow's inputs")
    priority: Priority = Field(
        Priority.NORMAL, description="high ones start first; every fifth start goes by age alone"
    )
    # strict: "5" is not a number, here as in the published schema
    deadline_seconds: float | None = Field(
        None, gt=0, le=30 * 86400, strict=True, description="bounds the order; default 24 h"
    )
    metadata: dict[str, Any] = Field(
        default_factory=dict, description="yours; comes back with every event of the order"
    )

    @model_validator(mode="before")
    @classmethod
    def _first_of_its_pools(cls, values: Any) -> Any:
        pools = values.get("pools") if isinstance(values, dict) else None
        if not isinstance(pools, list) or not pools or "pool" in values:
            return values
        first = pools[0].get("pool") if isinstance(pools[0], dict) else pools[0]
        return {**values, "pool": first.pool if isinstance(first, Choice) else first}

    @model_validator(mode="after")
    def _pools_agree(self) -> Self:
        if not self.pools:
            return self
        names = [entry if isinstance(entry, str) else entry.pool for entry in self.pools]
        if names[0] != self.pool:
            raise ValueError("pool must be the first of pools, or left out")
        if len(set(names)) < len(names):
            raise ValueError("pools names one twice")
        return self

    def choices(self) -> list[Choice]:
        """Every pool that may serve it, in order, with what the order says there. Pure."""
        return [
            Choice.model_construct(pool=entry, workflow=self.workflow, inputs=self.inputs)
            if isinstance(entry, str)
            else entry
            for entry in self.pools or [self.pool]
        ]

    @field_validator("inputs", "metadata")
    @classmethod
    def _must_be_storable(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _storable(value)

    @field_validator("idempotency_key", "order_id")
    @classmethod
    def _must_be_text(cls, value: str | None) -> str | None:
        return _storable(value)

    @property
    def task_id(self) -> uuid.UUID:
        return task_id_for(self.idempotency_key)

    @property
    def fingerprint(self) -> str:
        """Fields that came later count only where they say something: an order keeps its fingerprint over a deploy."""
        later = {name for name in ("pools", "fallback_on") if not getattr(self, name)}
        return fingerprint_of(self.model_dump(mode="json", exclude=later))


def _storable(value: T) -> T:
    """The same value. Raises ValueError for what PostgreSQL's jsonb cannot hold, or no reader should have to: NUL, lone
    surrogates, NaN, deep nesting.
    """
    if problem := _problem_of(value, 0):
        raise ValueError(problem)
    return value


def _problem_of(value: object, depth: int) -> str | None:
    if depth > _MOST_LEVELS:
        return f"nested deeper than {_MOST_LEVELS} levels"
    if isinstance(value, str):
        return "text holds a NUL or half a character" if _UNSTORABLE.search(value) else None
    if isinstance(value, float):
        return None if math.isfinite(value) else "numbers must be finite"
    if isinstance(value, dict):
        for key, item in value.items():
            if problem := _problem_of(key, depth + 1) or _problem_of(item, depth + 1):
                return problem
    elif isinstance(value, list):
        for item in value:
            if problem := _problem_of(item, depth + 1):
                return problem
    return None


class SubmitTask(BaseModel):
    """A permit to start one row of `pool`; which one, the table decides."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    pool: Name


class TaskRef(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    task_id: uuid.UUID
    attempt: int = Field(ge=0)


class CheckTasks(BaseModel):
    """Look at these rows now. A row that has moved on to another attempt is left to its own next look.

    via   -- push: an event of the backend made somebody look; poll: their time had come
    tasks -- none: the backend said that its queue got shorter, so look which of ours ended there
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    pool: str
    backend: str | None = None
    via: Literal["poll", "push"] = "poll"
    tasks: list[TaskRef] = Field(default=[], max_length=500)

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.tasks and self.backend is None:
            raise ValueError("names neither tasks nor a backend")
        return self


class Artifact(BaseModel):
    """One stored picture. `key` is its path in the artifact store."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    index: int = Field(ge=0)
    key: str
    sha256: str
    bytes: int
    media_type: Literal["image/png", "image/jpeg"]
    width: int
    height: int


class OrderEvent(BaseModel):
    """What became of an order, on exchange `events` under `order.<event>`. At least once; `event_id` is stable."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    event_id: uuid.UUID = Field(description="the same in every copy of this event; also the AMQP message_id")
    event: Literal["processing", "completed", "failed", "cancelled", "duplicate"]
    at: datetime = Field(description="when the task came into this status")
    task_id: uuid.UUID = Field(
        description="uuid5 of the idempotency key; for duplicate: of the task that answers for it"
    )
    idempotency_key: str = Field(description="of the order this event is about")
    order_id: str | None
    pool: str
    status: Status
    version: int = Field(description="rises with every change of status; ignore an event below what you have seen")
    attempt: int = Field(description="tries so far; 0 before the first")
    reason: str | None = Field(None, description="failed: one of a list that may grow; cancelled: what the caller said")
    detail: str | None = Field(None, description="for people; its wording is no promise")
    artifacts: list[Artifact] = Field(default_factory=list, description="the pictures of a completed order")
    metadata: dict[str, Any] = Field(default_factory=dict, description="the order's own; empty if it was unreadable")


#: Header of an order's message: how it came to whoever published it, and was counted there as received.
RECEIVED: Final = "darkroom-received"


def order_placed(order: Order, *, traceparent: str | None = None, received: Literal["http"] | None = None) -> Message:
    """The message that asks for `order`. Publishing it twice asks once. received -- see RECEIVED; None: not yet"""
    headers = {"traceparent": traceparent, RECEIVED: received}
    return Message(
        exchange="orders",
        routing_key="order.placed",
        type=ORDER_PLACED,
        body=order.model_dump_json(exclude_defaults=True).encode(),
        message_id=str(uuid.uuid4()),
        correlation_id=_correlation_id(order.idempotency_key),
        headers={name: value for name, value in headers.items() if value},
    )


def permit(pool: str) -> Message:
    """task.submit.v1 on submit.<pool>."""
    return Message(
        routing_key=f"submit.{pool}",
        type=TASK_SUBMIT,
        body=SubmitTask(pool=pool).model_dump_json().encode(),
        message_id=str(uuid.uuid4()),
    )


def check(queue_pool: str, message: CheckTasks) -> Message:
    """task.check.v1 on check.<queue_pool>; rows of a pool nobody serves any more go to one that is served."""
    return Message(
        routing_key=f"check.{queue_pool}",
        type=TASK_CHECK,
        body=message.model_dump_json().encode(),
        message_id=str(uuid.uuid4()),
    )


def event(
    task: Task,
    kind: Literal["processing", "completed", "failed", "cancelled", "duplicate"],
    artifacts: list[Artifact] | None = None,
    *,
    duplicate_key: str | None = None,
) -> Message:
    """order.<kind> about `task`. The same row state gives the same event_id, so a repeat can be recognised.

    duplicate_key -- for `duplicate`: the key that made no task of its own; the event carries it.
    """
    event_id = uuid.uuid5(task.id, f"event:{kind}:{duplicate_key or task.version}")
    body = OrderEvent(
        event_id=event_id,
        event=kind,
        at=task.changed_at,
        task_id=task.id,
        idempotency_key=duplicate_key or task.idempotency_key,
        order_id=task.order_id,
        pool=task.pool,
        status=task.status,
        version=task.version,
        attempt=task.attempt,
        reason=task.reason,
        detail=task.detail[:MAX_DETAIL_CHARS] if task.detail else None,
        artifacts=artifacts or [],
        metadata=dict((task.body or {}).get("metadata", {})),
    )
    return Message(
        exchange="events",
        routing_key=f"order.{kind}",
        type=f"order.{kind}.v1",
        body=body.model_dump_json().encode(),
        message_id=str(event_id),
        correlation_id=_correlation_id(task.idempotency_key),
        headers={"traceparent": traceparent_of(task.trace_id)},
        mandatory=False,
    )


def dead_letter(task: Task) -> Message:
    """The letter of a failed row, for the collector. The same (task, attempt, stage) is recorded once."""
    stage = Stage(task.stage or Stage.CHECK)
    return Message(
        routing_key=f"{stage}.dead",
        type=DEAD_LETTER,
        body=json.dumps({"task_id": str(task.id), "attempt": task.attempt, "pool": task.pool}).encode(),
        message_id=str(uuid.uuid5(task.id, f"dead:{stage}:{task.attempt}:{task.version}")),
        correlation_id=_correlation_id(task.idempotency_key),
        headers=dead_letter_headers(
            reason=Reason(task.reason or Reason.BUG),
            stage=stage,
            detail=task.detail or "",
            task_id=task.id,
            attempt=task.attempt,
            trace_id=task.trace_id,
        ),
    )


def dead_letter_headers(
    *,
    reason: Reason,
    stage: Stage,
    detail: str,
    task_id: uuid.UUID | None = None,
    attempt: int | None = None,
    trace_id: str | None = None,
) -> dict[str, Any]:
    """The small header set of every letter: big headers break dead-lettering, so `detail` is cut.

    Error texts of foreign systems may hold half characters, which AMQP cannot carry.
    """
    text = detail[:MAX_DETAIL_CHARS].encode("utf-8", "replace").decode()
    headers: dict[str, Any] = {"reason": str(reason), "stage": str(stage), "detail": text}
    if task_id is not None:
        headers |= {"task_id": str(task_id), "attempt": attempt or 0}
    if trace_id is not None:
        headers["traceparent"] = traceparent_of(trace_id)
    return headers


def app_id_of(version: str) -> str:
    """How this program names itself on every message it sends. Pure."""
    return f"{_PROGRAM}/{version}"


def version_in(app_id: str | None) -> str | None:
    """The version of the program that sent a message, None when it was none of ours. Pure."""
    program, slash, version = (app_id or "").partition("/")
    return version if program == _PROGRAM and slash and version else None


def _correlation_id(idempotency_key: str) -> str:
    """The key, cut to what an AMQP short string holds: 255 bytes, of which a character may take four."""
    return idempotency_key.encode()[:255].decode(errors="ignore")


def traceparent_of(trace_id: str) -> str:
    """A W3C traceparent of this trace with a span of its own: 00-<32 hex>-<16 hex>-01."""
    return f"00-{trace_id}-{uuid.uuid4().hex[:16]}-01"
