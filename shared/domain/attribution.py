"""Is it the order or the backend? Judged by which orders failed where, with the evidence. Pure."""

import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shared.domain.task import Reason

#: Ends of an attempt that say nothing against the backend it ran on: they are the order's fault, or our own.
NOT_THE_BACKEND: Final = frozenset(reason for reason in Reason if reason.is_orders_fault) | {
    Reason.STORE_FAILED,
    Reason.BUG,
}
#: An order that fails on so many backends is marked.
_BACKENDS_OF_AN_ORDER: Final = 2
#: A backend is marked from so many failed orders on,
_ORDERS_OF_A_BACKEND: Final = 5
#: that are at least this share of the orders tried there,
_SHARE: Final = 0.5
#: while of those tried on the others at most this part of that share failed.
_OTHERS: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What happened on one backend in a window of time, in orders.

    tried     -- how many had an attempt there that has ended
    failed    -- those with an attempt that ended badly, and the word it ended with
    recovered -- those of them that are completed now
    """

    backend: str
    pool: str
    tried: int
    failed: Mapping[uuid.UUID, str]
    recovered: Collection[uuid.UUID] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderMark:
    """This order failed on several backends, and worked on none. outcomes -- backend -> how it ended there"""

    task_id: uuid.UUID
    outcomes: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendMark:
    """Orders fail on this backend that do well on others.

    failed, tried               -- orders on it, marked ones left aside
    others_failed, others_tried -- on `others`, with which it is compared
    task_ids                    -- the failed ones
    """

    backend: str
    pool: str
    failed: int
    tried: int
    others: Sequence[str]
    others_failed: int
    others_tried: int
    task_ids: Sequence[uuid.UUID]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """backends -- the worst first; orders -- those that failed in the most places first"""

    orders: Sequence[OrderMark]
    backends: Sequence[BackendMark]


def attribute(seen: Sequence[Seen]) -> Attribution:
    """Marks with their evidence. Pure.

    The same order failing on two backends, and completed on none, marks the order, and it counts for nothing else. Of
    what is left, a backend is marked when at least five orders failed there, these are at least half of the orders
    tried there, and on the others at most half that share failed. The others are those of its pool on which orders were
    tried, or else all others; without any there is nothing to compare with, and nobody is marked. What is the fault of
    an order for sure, or our own, is not held against a backend. When everything fails everywhere no backend is marked:
    then it is the workflow, or something that all of them share.
    """
    outcomes: dict[uuid.UUID, dict[str, str]] = defaultdict(dict)
    for one in seen:
        for task_id, outcome in one.failed.items():
            outcomes[task_id][one.backend] = outcome
    recovered = {task_id for one in seen for task_id in one.recovered}
    poison = {
        task_id: ends
        for task_id, ends in outcomes.items()
        if len(ends) >= _BACKENDS_OF_AN_ORDER and task_id not in recovered
    }
    left = [_without(one, poison) for one in seen]
    marks = [mark for one in left if (mark := _mark(one, left)) is not None]
    return Attribution(
        orders=sorted(
            (OrderMark(task_id=task_id, outcomes=ends) for task_id, ends in poison.items()),
            key=lambda mark: (-len(mark.outcomes), str(mark.task_id)),
        ),
        backends=sorted(marks, key=lambda mark: (-mark.failed, mark.backend)),
    )


def _without(one: Seen, poison: Mapping[uuid.UUID, object]) -> Seen:
    left = {
        task_id: outcome
        for task_id, outcome in one.failed.items()
        if task_id not in poison and outcome not in NOT_THE_BACKEND
    }
    aside = sum(task_id in poison for task_id in one.failed)
    return Seen(backend=one.backend, pool=one.pool, tried=one.tried - aside, failed=left)


def _mark(one: Seen, seen: Sequence[Seen]) -> BackendMark | None:
    if len(one.failed) < _ORDERS_OF_A_BACKEND or len(one.failed) < _SHARE * one.tried:
        return None
    others = [other for other in seen if other.backend != one.backend and other.tried]
    others = [other for other in others if other.pool == one.pool] or others
    tried, failed = sum(other.tried for other in others), sum(len(other.failed) for other in others)
    if not tried or failed / tried > _OTHERS * len(one.failed) / one.tried:
        return None
    return BackendMark(
        backend=one.backend,
        pool=one.pool,
        failed=len(one.failed),
        tried=one.tried,
        others=sorted(other.backend for other in others),
        others_failed=failed,
        others_tried=tried,
        task_ids=sorted(one.failed),
    )
