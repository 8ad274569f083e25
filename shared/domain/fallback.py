"""Where an order goes on that its pool cannot make. Never with a job in doubt, and never past a refusal of its content
or jobs that failed unless the order says so. Pure.
"""

from typing import Final

from shared.domain.task import Reason, Task

#: Ends of an order that another pool may do better with. All others are the order's fault, or nobody knows.
_MAY_HELP: Final = frozenset(
    {
        Reason.REJECTED,
        Reason.INVALID_WORKFLOW,
        Reason.EXECUTION_FAILED,
        Reason.ATTEMPTS_EXHAUSTED,
        Reason.LOST,
        Reason.NO_OUTPUTS,
    }
)


def following(task: Task) -> str | None:
    """The pool after the one it is in; None for the last."""
    pools = task.pools
    place = pools.index(task.pool) + 1 if task.pool in pools else len(pools)
    return pools[place] if place < len(pools) else None


def next_pool(task: Task, reason: str | None, *, made_a_job: bool) -> str | None:
    """Where it goes on instead of failing for this reason; None: nowhere.

    made_a_job -- the provider had a job, which is known to be over
    """
    if task.is_past_deadline:
        return None
    allowed = (task.body or {}).get("fallback_on") or ()
    if reason == Reason.CONTENT_REJECTED:
        may_go_on = "content_rejected" in allowed
    else:
        may_go_on = reason in _MAY_HELP and (not made_a_job or "failed" in allowed)
    return following(task) if may_go_on else None
