"""What a task is: its states, the moves between them, its names. Pure."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

#: Every task id is uuid5 of this and the idempotency key, so a producer can name the task before a row exists.
TASK_NAMESPACE: Final = uuid.UUID("6f1d6c1e-6a0b-5f0e-9d0c-0d5a4b6f7a11")
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class Status(StrEnum):
    PENDING = "pending"
    SUBMITTING = "submitting"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in FINAL


FINAL: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
ACTIVE: Final = frozenset(Status) - FINAL

#: The same pairs stand in the table `legal_moves`, which task_moves references: an illegal move is an IntegrityError.
LEGAL_MOVES: Final[frozenset[tuple[Status, Status]]] = frozenset(
    {
        (Status.PENDING, Status.SUBMITTING),
        (Status.PENDING, Status.FAILED),
        (Status.PENDING, Status.CANCELLED),
        (Status.SUBMITTING, Status.SUBMITTING),  # lease over: another worker takes over
        (Status.SUBMITTING, Status.PENDING),  # provably nothing was created
        (Status.SUBMITTING, Status.PROCESSING),
        (Status.SUBMITTING, Status.COMPLETED),  # a synchronous provider answered with the pictures
        (Status.SUBMITTING, Status.FAILED),
        (Status.SUBMITTING, Status.CANCELLED),
        (Status.PROCESSING, Status.PENDING),  # the job is known to have failed or vanished, tries are left
        (Status.PROCESSING, Status.COMPLETED),
        (Status.PROCESSING, Status.FAILED),
        (Status.PROCESSING, Status.CANCELLED),
        (Status.FAILED, Status.PENDING),  # replay, by a named person
        (Status.FAILED, Status.PROCESSING),  # adopt, by a named person
    }
)


class Reason(StrEnum):
    """Why an order ended as a dead letter. A closed list: dashboards, alerts and runbooks name each one."""

    INVALID_MESSAGE = "invalid_message"
    CONFLICT = "conflict"
    INVALID_WORKFLOW = "invalid_workflow"
    INPUT_UNAVAILABLE = "input_unavailable"
    REJECTED = "rejected"
    CONTENT_REJECTED = "content_rejected"
    OUTCOME_UNKNOWN = "outcome_unknown"
    EXECUTION_FAILED = "execution_failed"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    DEADLINE = "deadline"
    LOST = "lost"
    NO_OUTPUTS = "no_outputs"
    STORE_FAILED = "store_failed"
    BUG = "bug"
    DELIVERY_LIMIT = "delivery_limit"

    @property
    def is_orders_fault(self) -> bool:
        """The order could never be made, by anybody: no mark of how well the service works."""
        return self in _ORDERS_FAULT


_ORDERS_FAULT: Final = frozenset(
    {
        Reason.INVALID_MESSAGE,
        Reason.CONFLICT,
        Reason.INVALID_WORKFLOW,
        Reason.INPUT_UNAVAILABLE,
        Reason.CONTENT_REJECTED,
    }
)


class Stage(StrEnum):
    """The step an order died in; also the name of its dead queue, `<stage>.dead`."""

    ORDERS = "orders"
    SUBMIT = "submit"
    CHECK = "check"


class Priority(StrEnum):
    NORMAL = "normal"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a job costs, as its provider counts: pictures, tokens, seconds, dollars."""

    amount: float
    unit: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider has the job under this id.

    handle -- what it gave with the id to ask about the job, kept with the row
    cost   -- what the job will cost, as far as somebody can say
    """

    provider_job_id: str
    handle: Mapping[str, str] = field(default_factory=dict, repr=False)
    cost: Cost | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """What is known of the POSTs of one attempt.

    posts           -- how many left; the first one at first_at
    looks           -- how often the provider was asked in vain what became of them
    provider_job_id -- what somebody learned later, such as by a callback
    """

    posts: int
    looks: int
    first_at: datetime | None
    now: datetime
    provider_job_id: str | None = None

    @property
    def age_seconds(self) -> float:
        """Since the first POST; 0 when none left."""
        return 0.0 if self.first_at is None else (self.now - self.first_at).total_seconds()


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One row of `tasks` as somebody read it. `status` and `version` are what a write must name.

    Moments are the database's. `now` is its clock at the time of the read, so ages need no clock of ours.
    """

    id: uuid.UUID
    idempotency_key: str
    order_id: str | None
    fingerprint: str
    pool: str
    priority: Priority
    body: Mapping[str, Any] | None = field(repr=False)
    status: Status
    version: int
    attempt: int
    charged: int
    backend: str | None
    job_key: uuid.UUID | None
    provider_job_id: str | None
    free_at: datetime
    due_at: datetime | None
    deadline_at: datetime
    created_at: datetime
    changed_at: datetime
    cancel_owed: bool
    avoid_backend: str | None
    reason: str | None
    detail: str | None
    stage: str | None
    trace_id: str
    now: datetime
    #: When the event and the letter of a final row were confirmed; None: they are not known to be out.
    told_at: datetime | None = None
    #: What the provider gave with its job id to ask about the job.
    job_handle: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: The only backend that may make it; None: any of its pool.
    pinned_backend: str | None = None
    #: True only on a row that `take` handed out although somebody had it before: ask the provider first.
    taken_over: bool = False
    #: False only on such a row whose backend takes no work: the provider may be asked, and sent nothing.
    may_send: bool = True
    #: True only on a row that `take` handed out to see whether its backend answers orders again.
    is_probe: bool = False

    @property
    def workflow(self) -> str | None:
        return self._said_here.get("workflow")

    @property
    def inputs(self) -> Mapping[str, Any]:
        inputs: Mapping[str, Any] = self._said_here.get("inputs", {})
        return inputs

    @property
    def pools(self) -> list[str]:
        """The pools that may serve it, in the order they are tried; empty where there is no choice."""
        return [entry if isinstance(entry, str) else entry["pool"] for entry in (self.body or {}).get("pools") or ()]

    @property
    def _said_here(self) -> Mapping[str, Any]:
        return said_in(self.body or {}, self.pool)

    def lasted_ms(self, until: "Task") -> int:
        """How long the row was in this status, given the row as it left it. Both moments are the database's."""
        return round((until.changed_at - self.changed_at).total_seconds() * 1000)

    @property
    def is_past_deadline(self) -> bool:
        return self.now >= self.deadline_at


def said_in(body: Mapping[str, Any], pool: str) -> Mapping[str, Any]:
    """What an order says to this pool: `workflow` and `inputs`. Pure."""
    entries = (entry for entry in body.get("pools") or () if not isinstance(entry, str))
    return next((entry for entry in entries if entry["pool"] == pool), body)


def task_id_for(idempotency_key: str) -> uuid.UUID:
    """The task's name, known to everybody who knows the key. Pure."""
    return uuid.uuid5(TASK_NAMESPACE, idempotency_key)


def job_key_for(task_id: uuid.UUID, attempt: int) -> uuid.UUID:
    """The name under which the provider knows this attempt; its str() is canonical lowercase. Pure."""
    return uuid.uuid5(task_id, str(attempt))


def seed_for(job_key: uuid.UUID) -> int:
    """A seed that anybody can derive again from the job key: 0 .. 2**53 - 1, exact in every JSON reader. Pure."""
    return job_key.int >> 75


def fingerprint_of(order: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the canonical order: sorted keys, no spaces, defaults filled in by the model. Pure."""
    return hashlib.sha256(_CANONICAL.encode(order).encode()).hexdigest()
