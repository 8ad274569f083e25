"""What people do with letters besides sending them round: discard, archive, restore; the same for CLI and console."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shared.database.letter_states import Deed, do
from shared.database.letters import Letters, StoredLetter
from shared.domain.letters import LetterState


class Closing(StrEnum):
    DISCARDED = "discarded"
    ARCHIVED = "archived"
    RESTORED = "restored"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """What became of one letter, or would."""

    letter_id: int
    result: Closing
    why: str
    task_id: uuid.UUID | None = None


_RESULTS: Final = {
    Deed.DISCARD: Closing.DISCARDED,
    Deed.ARCHIVE: Closing.ARCHIVED,
    Deed.RESTORE: Closing.RESTORED,
}


def close(letters: Letters, deed: Deed, ids: Sequence[int], by_whom: str, why: str) -> list[Closed]:
    """Do it to each of these letters that allows it, in the order of `ids`. Raises DatabaseAway."""
    done = do(letters.engine, deed, ids, by_whom, why)
    return _items(letters, deed, ids, done, why)


def would_close(letters: Letters, deed: Deed, ids: Sequence[int], why: str) -> list[Closed]:
    """What `close` would answer now, but for orders that have moved on since they were archived. Changes nothing."""
    allowed = {letter.id for letter in letters.get(ids).values() if letter.state == _STATE_BEFORE[deed]}
    return _items(letters, deed, ids, allowed, why)


_STATE_BEFORE: Final = {
    Deed.DISCARD: LetterState.OPEN,
    Deed.ARCHIVE: LetterState.OPEN,
    Deed.RESTORE: LetterState.ARCHIVED,
}


def _items(letters: Letters, deed: Deed, ids: Sequence[int], done: set[int], why: str) -> list[Closed]:
    left = letters.get([letter_id for letter_id in ids if letter_id not in done])
    return [
        Closed(letter_id=letter_id, result=_RESULTS[deed], why=why)
        if letter_id in done
        else _refused(letter_id, left.get(letter_id), deed)
        for letter_id in ids
    ]


def _refused(letter_id: int, letter: StoredLetter | None, deed: Deed) -> Closed:
    if letter is None:
        why = "no such letter"
    elif letter.state == LetterState.ARCHIVED and deed is Deed.RESTORE:
        why = "its order has moved on since it was archived"
    elif letter.state == LetterState.OPEN:
        why = "it is open"
    else:
        why = f"already {letter.state} by {letter.closed_by}"
    return Closed(
        letter_id=letter_id, result=Closing.REFUSED, why=why, task_id=letter.task_id if letter is not None else None
    )
