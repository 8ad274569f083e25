"""Orders become rows: one per idempotency key, claimed in batches, each with a permit to be started."""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from shared.database.claims import Claim, Claimed, ClaimResult, Purged
from shared.database.moves import Change
from shared.database.tasks import Tasks
from shared.domain.canary_order import CANARY_POOL
from shared.domain.messages import (
    MAX_ORDER_BYTES,
    ORDER_PLACED,
    RECEIVED,
    Choice,
    Delivery,
    Key,
    Message,
    Name,
    Order,
    event,
    permit,
)
from shared.domain.mistakes import mistakes_in
from shared.domain.outcome import DeadLetter, Done, FollowUp, Outcome
from shared.domain.task import Priority, Reason, Stage, Status, Task
from shared.observe.logs import bound
from shared.observe.metrics import Metrics
from shared.observe.trace import trace_id_from

log = logging.getLogger(__name__)

_KEY: TypeAdapter[str] = TypeAdapter(Key)
_NAME: TypeAdapter[str] = TypeAdapter(Name)
#: Stands for the pool of an order whose own cannot be read.
_NO_POOL = "unknown"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an order cannot be started."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class _Read:
    """A delivery that names a key: the claim to make, and why it fails at once if it does."""

    claim: Claim
    problem: Problem | None


class Intake:
    """Handler of the queue `orders`.

    pools     -- the pools this process serves
    pools_now -- asks the table `backends` which pools there are; a newer process may have brought one
    problems  -- what is wrong with what an order says to one of `pools`; empty when it can be started
    fallbacks -- pools that are tried after a pool, for orders that name no choice of their own
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        pools: Collection[str],
        pools_now: Callable[[], Collection[str]],
        problems: Callable[[Choice], Sequence[str]],
        default_deadline_seconds: float,
        metrics: Metrics,
        fallbacks: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._tasks = tasks
        self._pools = frozenset(pools)
        self._pools_now = pools_now
        self._problems = problems
        self._fallbacks = fallbacks or {}
        self._deadline = default_deadline_seconds
        self._metrics = metrics

    def handle(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """Claim what can be claimed. A redelivered order finds its own row and goes on from its status."""
        pools_now = cache(self._pools_now)  # asked at most once per batch
        read = [self._read(delivery, pools_now) for delivery in deliveries]
        claimed = iter(self._tasks.claim([r.claim for r in read if isinstance(r, _Read)]))
        pairs = [(r, next(claimed)) if isinstance(r, _Read) else (r, None) for r in read]
        failed = self._fail_unstartable(pairs)
        return [
            self._outcome(delivery, r, found, failed) for delivery, (r, found) in zip(deliveries, pairs, strict=True)
        ]

    def _read(self, delivery: Delivery, pools_now: Callable[[], Collection[str]]) -> _Read | Problem:
        """What the delivery asks for; a bare Problem when not even its key can be read."""
        try:
            body = json.loads(delivery.body)
        except (ValueError, RecursionError) as error:
            return Problem(Reason.INVALID_MESSAGE, f"not JSON: {error}")
        key = body.get("idempotency_key") if isinstance(body, dict) else None
        try:
            key = _KEY.validate_python(key, strict=True)
            key.encode()
        except (ValidationError, UnicodeEncodeError):
            return Problem(Reason.INVALID_MESSAGE, "no readable idempotency_key")
        trace_id = trace_id_from(delivery.headers)
        order = _order(delivery, body)
        if isinstance(order, Problem):
            return _Read(self._unreadable(key, body, delivery.body, trace_id), order)
        return _Read(self._claim(order, trace_id), self._problem_of(order, pools_now))

    def _claim(self, order: Order, trace_id: str) -> Claim:
        return Claim(
            idempotency_key=order.idempotency_key,
            order_id=order.order_id,
            fingerprint=order.fingerprint,
            pool=order.pool,
            priority=order.priority,
            deadline_seconds=order.deadline_seconds or self._deadline,
            body=order.model_dump(mode="json") | self._choice_for(order),
            trace_id=trace_id,
        )

    def _choice_for(self, order: Order) -> dict[str, list[str]]:
        """The pools of an order that names one: those after it that take what it says."""
        if order.pools or order.pool not in self._fallbacks:
            return {}
        said = order.choices()[0]
        others = [
            pool
            for pool in self._fallbacks[order.pool]
            if pool in self._pools and not self._problems(said.model_copy(update={"pool": pool}))
        ]
        return {"pools": [order.pool, *others]} if others else {}

    def _unreadable(self, key: str, body: dict[str, Any], raw: bytes, trace_id: str) -> Claim:
        """A row that only says why it failed. It takes no order_id: an order that never starts blocks no other."""
        try:
            pool = _NAME.validate_python(body.get("pool"), strict=True)
        except ValidationError:
            pool = _NO_POOL
        return Claim(
            idempotency_key=key,
            order_id=None,
            fingerprint=hashlib.sha256(raw).hexdigest(),
            pool=pool,
            priority=Priority.NORMAL,
            deadline_seconds=self._deadline,
            body=None,
            trace_id=trace_id,
        )

    def _problem_of(self, order: Order, pools_now: Callable[[], Collection[str]]) -> Problem | None:
        """Of the first pool that has one: what cannot be started somewhere is a mistake of the order's."""
        for choice in order.choices():
            if choice.pool in self._pools:
                if found := self._problems(choice):
                    where = f"pool {choice.pool}: " if order.pools else ""
                    return Problem(Reason.INVALID_WORKFLOW, where + "; ".join(found))
                continue
            known = self._pools.union(pools_now())
            if choice.pool not in known:
                there_are = ", ".join(sorted(known)) or "none"
                return Problem(Reason.INVALID_MESSAGE, f"no pool {choice.pool!r}; there are {there_are}")
            # A newer process serves it, and knows what it takes.
        return None

    def _fail_unstartable(self, pairs: Sequence[tuple[_Read | Problem, Claimed | Purged | None]]) -> dict[Any, Task]:
        """pending -> failed for rows that cannot be started: new ones, and those a dying worker left behind.

        Not one that a person sent round again: its inputs may be others than those that came once more.
        """
        changes = {}
        for read, found in pairs:
            if not isinstance(read, _Read) or read.problem is None or not isinstance(found, Claimed):
                continue
            is_untouched = found.task.status is Status.PENDING and found.task.version == 1
            if is_untouched and found.result in {ClaimResult.WON, ClaimResult.DUPLICATE}:
                changes[found.task.id] = Change(
                    task=found.task,
                    to=Status.FAILED,
                    reason=read.problem.reason,
                    detail=read.problem.detail,
                    stage=Stage.ORDERS,
                )
        failed = self._tasks.move(list(changes.values()))
        for row in failed.values():
            with bound(trace_id=row.trace_id, task_id=row.id):
                log.warning("task failed", extra={"reason": row.reason, "why": row.detail})
        return failed

    def _outcome(
        self, delivery: Delivery, read: _Read | Problem, found: Claimed | Purged | None, failed: dict[Any, Task]
    ) -> Outcome:
        if isinstance(read, Problem) or found is None:
            assert isinstance(read, Problem)  # noqa: S101 - only a Problem has no claim
            self._received(delivery, "invalid")
            return DeadLetter(reason=read.reason, detail=read.detail, stage=Stage.ORDERS)
        if isinstance(found, Purged):
            return self._late_copy(delivery, read, found)
        task = found.task
        match found.result:
            case ClaimResult.WON:
                self._count(delivery, task.pool, "won", "invalid" if read.problem else "accepted")
                if task.id in failed:
                    return self._buried(failed, task)
                # A row with a problem that somebody moved in between: nobody may serve its pool.
                return Done(then=[] if read.problem else self._permits(task.pool))
            case ClaimResult.DUPLICATE:
                self._count(delivery, task.pool, "duplicate", "duplicate")
                traces = {"trace_id": read.claim.trace_id, "dup_of_trace_id": task.trace_id}
                log.info("duplicate order", extra={"task_id": task.id, "redelivered": delivery.redelivered, **traces})
                if delivery.redelivered and task.id in failed:
                    return self._buried(failed, task)
                if delivery.redelivered and read.problem and task.status is Status.FAILED and task.due_at is not None:
                    return _letter(task)  # the worker that failed it died before its letter left
                # The worker that claimed it may have died before its permit left; a second permit does nothing.
                again = delivery.redelivered and task.status is Status.PENDING and not read.problem
                return Done(then=self._permits(task.pool) if again else [])
            case ClaimResult.CONFLICT:
                self._count(delivery, task.pool, "conflict", "conflict")
                traces = {"trace_id": read.claim.trace_id, "dup_of_trace_id": task.trace_id}
                log.warning("idempotency key reused", extra={"task_id": task.id, **traces})
                detail = f"task {task.id} already has this idempotency_key with another content; it is untouched"
                return DeadLetter(reason=Reason.CONFLICT, detail=detail, stage=Stage.ORDERS)
            case ClaimResult.ACTIVE_ORDER:
                self._count(delivery, task.pool, "duplicate", "duplicate")
                key = read.claim.idempotency_key
                # Every copy says so again: the one that kept the key may have died before its event left.
                return Done(then=[event(task, "duplicate", duplicate_key=key)])

    def _late_copy(self, delivery: Delivery, read: _Read, found: Purged) -> Outcome:
        """An order whose key belongs to one that ended so long ago that its row is purged."""
        if not found.is_same:
            self._count(delivery, read.claim.pool, "conflict", "conflict")
            detail = (
                f"task {found.task_id} had this idempotency_key with another content; it is {found.status} and purged"
            )
            return DeadLetter(reason=Reason.CONFLICT, detail=detail, stage=Stage.ORDERS)
        self._count(delivery, read.claim.pool, "duplicate", "duplicate")
        log.info("duplicate order", extra={"task_id": str(found.task_id), "trace_id": read.claim.trace_id})
        return Done()

    def _permits(self, pool: str) -> list[Message]:
        """None for a pool only others serve: its queue may not be there yet, and their scheduler makes one."""
        return [permit(pool)] if pool in self._pools else []

    def _buried(self, failed: dict[Any, Task], task: Task) -> DeadLetter:
        return _letter(failed.pop(task.id))  # the first delivery of it in the batch is the letter

    def _count(self, delivery: Delivery, pool: str, claim: str, received: str) -> None:
        if pool == CANARY_POOL:
            return
        self._metrics.count("claims_total", pool=pool, result=claim)
        self._received(delivery, received)
        if claim == "duplicate":
            self._metrics.count("duplicates_suppressed_total", point="claim")

    def _received(self, delivery: Delivery, result: str) -> None:
        if RECEIVED not in delivery.headers:  # else whoever took it over HTTP has counted it
            self._metrics.count("orders_received_total", source="amqp", result=result)


def _order(delivery: Delivery, body: dict[str, Any]) -> Order | Problem:
    if delivery.type != ORDER_PLACED:
        return Problem(Reason.INVALID_MESSAGE, f"message type {delivery.type!r} is not {ORDER_PLACED}")
    if len(delivery.body) > MAX_ORDER_BYTES:
        return Problem(Reason.INVALID_MESSAGE, f"{len(delivery.body)} bytes, an order has at most {MAX_ORDER_BYTES}")
    try:
        return Order.model_validate(body)
    except ValidationError as error:
        return Problem(Reason.INVALID_MESSAGE, "; ".join(map(str, mistakes_in(error))))


def _letter(row: Task) -> DeadLetter:
    """The delivery is the letter of its own failed row, whose follow-up goes with it."""
    return DeadLetter(
        reason=Reason(row.reason or Reason.INVALID_MESSAGE),
        detail=row.detail or "",
        stage=Stage.ORDERS,
        task_id=row.id,
        attempt=row.attempt,
        then=[event(row, "failed")],
        follow_up_of=[FollowUp(row.id, row.version)],
    )
