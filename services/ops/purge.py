"""A whole purge: tasks and letters in batches, their pictures, what is left over. Safe to kill and to call again."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID

from shared.database.purge import Purge


class Store(Protocol):
    """What a purge needs of the artifact store."""

    def remove(self, task_ids: Iterable[UUID]) -> None:
        """Nothing of these tasks is stored any more. Raises StorageAway."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """How many are gone. letters -- those that had no task; pictures -- tasks whose pictures are deleted"""

    tasks: int = 0
    letters: int = 0
    pictures: int = 0
    keys: int = 0


def run_purge(purge: Purge, store: Store, by_whom: str, say: Callable[[Purged], object] = lambda _: None) -> Purged:
    """Everything old is gone, and what an earlier purge that died had left. Raises DatabaseAway, StorageAway: again.

    say -- told after each batch how far it is
    """
    done = Purged()
    place = None
    while True:
        count, place = purge.tasks(by_whom, place)
        done = replace(done, tasks=done.tasks + count, pictures=done.pictures + _remove_pictures(purge, store))
        if count:
            say(done)
        if place is None:
            break
    while count := purge.letters(by_whom):
        done = replace(done, letters=done.letters + count)
        say(done)
    purge.remains()
    while count := purge.keys(by_whom):
        done = replace(done, keys=done.keys + count)
        say(done)
    return done


def _remove_pictures(purge: Purge, store: Store) -> int:
    removed = 0
    while left := purge.pictures_left():
        store.remove(left)
        purge.pictures_gone(left)
        removed += len(left)
    return removed
