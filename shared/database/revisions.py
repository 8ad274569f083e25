"""The table `task_revisions`: inputs that a person changed before a replay.

The key of the order stays, and so does its fingerprint, which is that of the order as it was placed: a copy of the
original that arrives later is a duplicate as before, and nobody can place the edited order under this key.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from pydantic import ValidationError

from shared.database.actions import note_action
from shared.database.adopt import Refused
from shared.database.engine import in_transaction
from shared.database.predictions import Way
from shared.database.redirects import Check, pool_to
from shared.database.rounds import EventOwed, Replay, Rules, locked, predicted_by, replay_in
from shared.domain.messages import MAX_ORDER_BYTES, Order
from shared.domain.task import said_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """What was done. diff -- input -> {before, after}; one that is missing there was not given"""

    replay: Replay
    revision: int | None
    diff: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One row of `task_revisions`."""

    revision: int
    at: datetime
    by_whom: str
    replay_id: int
    diff: Mapping[str, Mapping[str, Any]]


_WRITE: Final = sa.text("update tasks set body = cast(:body as jsonb) where id = :task")
_NOTE: Final = sa.text("""
insert into task_revisions (task_id, revision, by_whom, replay_id, diff)
select :task, coalesce(max(revision), 0) + 1, :by_whom, :replay, cast(:diff as jsonb)
from task_revisions where task_id = :task
returning revision
""")
_OF: Final = sa.text(
    "select revision, at, by_whom, replay_id, diff from task_revisions where task_id = :task order by revision"
)


def revisions_of(engine: sa.Engine, task_id: uuid.UUID) -> list[Revision]:
    """What people changed in an order, oldest first. Raises DatabaseAway."""
    rows = in_transaction(engine, lambda c: c.execute(_OF, {"task": task_id}).all())
    return [Revision(**row._mapping) for row in rows]


def edit_in(
    c: sa.Connection, letter: int, changes: Mapping[str, Any], by_whom: str, rules: Rules, *, check: Check
) -> Edited | EventOwed | Refused:
    """Change inputs of the letter's order and send it round, in the caller's transaction; or write nothing.

    changes -- input -> value, None: it is not given any more
    """
    pool = pool_to(c, rules.pool, rules.backend) if rules.backend is not None else rules.pool
    if isinstance(pool, Refused):
        return pool
    rules = replace(rules, pool=pool)
    tasks = locked(c, [letter])
    seen = predicted_by(c, [letter], rules)
    if not seen:
        return Refused(f"there is no dead letter {letter}")
    (prediction,) = seen
    if prediction.way is Way.REFUSED:
        return Refused(prediction.why)
    if prediction.task_id is None or prediction.pool is None:
        return Refused("it has no task, so there are no inputs to change: replay it, or have its sender place it anew")
    task = tasks[prediction.task_id]
    body = dict(task.body or {})
    said = said_in(body, prediction.pool)
    before: Mapping[str, Any] = said.get("inputs") or {}
    after = {name: value for name, value in {**before, **changes}.items() if value is not None}
    diff = _diff(before, after)
    if not diff and prediction.pool == task.pool and rules.backend is None:
        return Refused("these are its inputs already: replay it as it is")
    if problems := [
        *check(prediction.pool, said.get("workflow"), after),
        *_order_problems(body, prediction.pool, after),
    ]:
        return Refused("; ".join(problems))
    answer = replay_in(c, [letter], by_whom, rules)[letter]
    if isinstance(answer, EventOwed):
        return answer
    if answer.id is None:
        return Refused(answer.prediction.why)
    if not diff:
        return Edited(replay=answer, revision=None, diff={})
    c.execute(_WRITE, {"task": task.id, "body": json.dumps(_with_inputs(body, prediction.pool, after))})
    values = {"task": task.id, "by_whom": by_whom, "replay": answer.id, "diff": json.dumps(diff)}
    revision = int(c.execute(_NOTE, values).scalar_one())
    # What the values are stands in the revision alone: they are the customer's.
    detail = {"letter": letter, "revision": revision, "inputs": list(diff)}
    note_action(c, by_whom, "order edit", str(task.id), detail)
    return Edited(replay=answer, revision=revision, diff=diff)


def _with_inputs(body: Mapping[str, Any], pool: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The order with other inputs for this pool, where it says something of its own to it; its own otherwise. Pure."""
    said = said_in(body, pool)
    if said is body:
        return {**body, "inputs": dict(inputs)}
    return {**body, "pools": [{**entry, "inputs": dict(inputs)} if entry is said else entry for entry in body["pools"]]}


def _order_problems(body: Mapping[str, Any], pool: str, inputs: Mapping[str, Any]) -> list[str]:
    """What no order may say, whatever its workflow takes."""
    try:
        order = Order.model_validate(_with_inputs(body, pool, inputs))
    except ValidationError as error:
        return [str(problem["msg"]) for problem in error.errors(include_url=False, include_input=False)]
    size = len(order.model_dump_json(exclude_defaults=True).encode())
    return [f"the order has {size} bytes then, at most {MAX_ORDER_BYTES} are allowed"] if size > MAX_ORDER_BYTES else []


def _diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: {moment: values[name] for moment, values in (("before", before), ("after", after)) if name in values}
        for name in sorted({*before, *after})
        if name not in before or name not in after or before[name] != after[name]
    }
