"""The table `replays`: letters sent round again, each by one person at a time, and what came of it."""

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from shared.database.adopt import Refused
from shared.database.engine import in_transaction
from shared.database.letters import WHOLE, StoredLetter
from shared.database.predictions import Outcome, Prediction, Way, predictions_in
from shared.database.redirects import Check
from shared.database.revisions import Edited, edit_in
from shared.database.rounds import EventOwed, Replay, Rules, replay_in
from shared.observe.crash import CrashPoint, crash_point

__all__ = ["EventOwed", "Outcome", "Prediction", "Published", "Replay", "Replays", "Way"]

#: What its message becomes is looked for until its item ends: that it is at the broker is no result.
_PUBLISHED: Final = sa.text("""
with closed as (
    update replays set state = 'closed', closed_at = now(), result = 'published'
    where id = any(cast(:ids as bigint[])) and state = 'open' and task_id is null returning id
)
update plan_items i set dies_as = v.dies_as, becomes = v.becomes
from closed join unnest(cast(:ids as bigint[]), cast(:deaths as text[]), cast(:tasks as uuid[]))
    as v(id, dies_as, becomes) on v.id = closed.id
where i.replay_id = closed.id and i.state = 'sent'
""")
_LEFT: Final = f"select r.id as replay_id, {WHOLE} from replays r join dead_letters d on d.id = r.dead_letter_id"
_MESSAGES: Final = sa.text(f"{_LEFT} where r.id = any(cast(:ids as bigint[])) order by r.id")
_UNPUBLISHED: Final = sa.text(f"""
{_LEFT} where r.state = 'open' and r.task_id is null and r.at < now() - :older * interval '1 second'
order by r.id limit 100
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The message of a replay of a letter without a row, confirmed.

    dies_as -- identity of the letter that it leaves when it dies again
    becomes -- the task that it becomes, None: its key cannot be read
    """

    replay_id: int
    dies_as: str
    becomes: uuid.UUID | None


class Replays:
    """Previews and replays. default_deadline_seconds -- for orders that name none."""

    def __init__(self, engine: sa.Engine, default_deadline_seconds: float) -> None:
        self._engine = engine
        self._deadline = default_deadline_seconds

    def preview(self, ids: Sequence[int]) -> list[Prediction]:
        """What a replay of each letter would do now, oldest letter first; unknown ids are missing. Writes nothing."""
        return in_transaction(self._engine, lambda c: predictions_in(c, ids, self._deadline))

    def replay(
        self,
        letters: Sequence[int],
        by_whom: str,
        paid: Mapping[uuid.UUID, int] | None = None,
        *,
        why: str | None = None,
        despite: Collection[Outcome] = (),
        pool: str | None = None,
    ) -> dict[int, Replay | EventOwed]:
        """Send letters round, in one transaction; of any number of callers at once exactly one does, for each letter.

        paid    -- task -> version of the row whose `failed` event the caller knows to be out
        why     -- what the person says about it; kept with the deed
        despite -- outcomes that are not to be refused
        pool    -- where the orders go instead of their own pool

        Letters that are missing do not exist. Raises DatabaseAway: it may have worked, and a second call then says
        "already replayed".
        """
        rules = Rules(
            default_deadline=self._deadline,
            despite=frozenset(despite),
            pool=pool,
            paid=paid or {},
            noted={} if why is None else {"why": why},
        )
        found = in_transaction(self._engine, lambda c: replay_in(c, letters, by_whom, rules))
        _committed(found.values())
        return found

    def edit(
        self,
        letter: int,
        changes: Mapping[str, Any],
        by_whom: str,
        paid: Mapping[uuid.UUID, int] | None = None,
        *,
        check: Check,
        why: str | None = None,
        pool: str | None = None,
        backend: str | None = None,
    ) -> Edited | EventOwed | Refused:
        """Send one letter round with other inputs, under the same key; or nothing is written. Like `replay` otherwise.

        changes -- input -> value, None: it is not given any more
        check   -- what is wrong with inputs, before anything is written
        backend -- the only one that makes it; its pool is where it goes
        """
        rules = Rules(
            default_deadline=self._deadline,
            pool=pool,
            backend=backend,
            paid=paid or {},
            noted={} if why is None else {"why": why},
        )
        found = in_transaction(self._engine, lambda c: edit_in(c, letter, changes, by_whom, rules, check=check))
        if isinstance(found, Edited):
            _committed([found.replay])
        return found

    def messages(self, replay_ids: Sequence[int]) -> list[tuple[int, StoredLetter]]:
        """The letters without a row of these replays, with their bodies as they came."""
        return self._letters(_MESSAGES, {"ids": list(replay_ids)})

    def unpublished(self, older_than_seconds: float) -> list[tuple[int, StoredLetter]]:
        """Replays of letters without a row whose message is not known to be out: their replayer may have died."""
        return self._letters(_UNPUBLISHED, {"older": older_than_seconds})

    def published(self, messages: Sequence[Published]) -> None:
        """These messages are confirmed."""
        values = {
            "ids": [message.replay_id for message in messages],
            "deaths": [message.dies_as for message in messages],
            "tasks": [None if message.becomes is None else str(message.becomes) for message in messages],
        }
        in_transaction(self._engine, lambda c: c.execute(_PUBLISHED, values))
        crash_point(CrashPoint.REPLAY_NOTED)

    def _letters(self, statement: sa.TextClause, values: Mapping[str, Any]) -> list[tuple[int, StoredLetter]]:
        def read(row: sa.Row[Any]) -> tuple[int, StoredLetter]:
            found = dict(row._mapping)
            return found.pop("replay_id"), StoredLetter(**found)

        return in_transaction(self._engine, lambda c: [read(row) for row in c.execute(statement, values)])


def _committed(answers: Iterable[Replay | EventOwed]) -> None:
    if any(isinstance(answer, Replay) and answer.id is not None for answer in answers):
        crash_point(CrashPoint.REPLAY_COMMITTED)
