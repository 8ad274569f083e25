"""Orders that are to be made in another pool than their own, or at one backend: whether it takes what they say."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from shared.database.adopt import Refused
from shared.domain.task import said_in

#: pool, workflow, inputs -> a sentence for each mistake; none: they can be started there.
Check = Callable[[str, str | None, Mapping[str, Any]], Sequence[str]]

#: Orders read together: each may be large.
_TOGETHER: Final = 500
#: Kinds of mistakes that are told; the others are counted.
_TOLD: Final = 3

_BODIES: Final = sa.text("""
select d.id, t.body from dead_letters d join tasks t on t.id = d.task_id
where d.id = any(cast(:ids as bigint[])) and t.body is not null order by d.id
""")
_SERVED: Final = sa.text("select name, pool from backends where enabled order by pool, name")


def pool_to(c: sa.Connection, pool: str | None, backend: str | None) -> str | Refused | None:
    """The pool that orders go to when somebody names it, or one backend, which then serves it; None: their own."""
    if pool is None and backend is None:
        return None
    served: dict[str, str] = {row.name: row.pool for row in c.execute(_SERVED)}
    if backend is not None and backend not in served:
        return Refused(f"no backend in use is called {backend!r}; there are: {', '.join(served) or 'none'}")
    if pool is not None and pool not in (pools := dict.fromkeys(served.values())):
        return Refused(f"no backend serves pool {pool!r}; there are: {', '.join(pools) or 'none'}")
    if backend is None:
        return pool
    if pool is not None and pool != served[backend]:
        return Refused(f"{backend} serves pool {served[backend]}, not {pool}")
    return served[backend]


def misfits_in(c: sa.Connection, letters: Sequence[int], pool: str, check: Check) -> str | None:
    """What is wrong with the orders of these letters for this pool, in the caller's transaction; None: nothing.

    Orders that say the same are checked once.
    """
    checked: dict[str, str] = {}
    wrong: dict[str, list[int]] = {}
    for start in range(0, len(letters), _TOGETHER):
        for row in c.execute(_BODIES, {"ids": list(letters[start : start + _TOGETHER])}):
            said = said_in(row.body, pool)
            workflow, inputs = said.get("workflow"), said.get("inputs") or {}
            same = json.dumps([workflow, inputs], sort_keys=True)
            if same not in checked:
                checked[same] = "; ".join(check(pool, workflow, inputs))
            if problem := checked[same]:
                wrong.setdefault(problem, []).append(row.id)
    if not wrong:
        return None
    told = [f"{problem} (letter {ids[0]}{_more(len(ids) - 1)})" for problem, ids in list(wrong.items())[:_TOLD]]
    others = len(wrong) - len(told)
    rest = [f"and {others} other mistakes"] if others else []
    count = sum(map(len, wrong.values()))
    return f"pool {pool} does not take {count} of {len(letters)} orders: {'; '.join([*told, *rest])}"


def _more(count: int) -> str:
    return f" and {count} more" if count else ""
