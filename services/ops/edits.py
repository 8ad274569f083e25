"""An order with other inputs goes round: the same for CLI and console. Who may do it, they ask before."""

from collections.abc import Mapping
from typing import Any

from services.ops.replay import Replayer
from shared.database.adopt import Refused
from shared.database.redirects import Check
from shared.database.replays import EventOwed, Replays
from shared.database.revisions import Edited
from shared.domain.errors import BrokerAway


def edit(
    replays: Replays,
    replayer: Replayer,
    letter: int,
    changes: Mapping[str, Any],
    by_whom: str,
    *,
    check: Check,
    why: str | None = None,
    pool: str | None = None,
    backend: str | None = None,
) -> Edited | Refused:
    """Replay one letter with these inputs changed, in another pool or at one backend alone if it is named; nothing when
    anything is wrong.

    changes -- input -> value, None: it is not given any more
    check   -- what is wrong with inputs; nothing is written before it has nothing to say

    Raises DatabaseAway: it may have worked, and a second call then says "already replayed".
    """
    done = replays.edit(letter, changes, by_whom, check=check, why=why, pool=pool, backend=backend)
    if isinstance(done, EventOwed):
        try:
            paid = replayer.pay([done.task])
        except BrokerAway as error:
            return Refused(f"the broker is away: {error}")
        done = replays.edit(letter, changes, by_whom, paid, check=check, why=why, pool=pool, backend=backend)
    if isinstance(done, EventOwed):
        return Refused("the task failed once more at this moment")
    if isinstance(done, Edited):
        replayer.carry_out([done.replay])
    return done
