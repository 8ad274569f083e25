"""Rows that may be taken, while they are locked for it."""

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from shared.domain.task import Status

#: Columns of a Candidate, in the order of its fields.
CANDIDATE_COLUMNS: Final = (
    "id",
    "status",
    "version",
    "attempt",
    "backend",
    "avoid_backend",
    "pinned_backend",
    "priority",
    "changed_at",
    "free_at",
    "created_at",
)
#: The select list of these; the alias of `tasks` is always t.
CANDIDATE: Final = ", ".join(f"t.{column}" for column in CANDIDATE_COLUMNS)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Of a row of `tasks` what its taking depends on; the rest is read once it is taken. Moments are the database's.

    priority -- its place in rows.PRIORITIES
    """

    id: uuid.UUID
    status: Status
    version: int
    attempt: int
    backend: str | None
    avoid_backend: str | None
    pinned_backend: str | None
    priority: int
    changed_at: datetime
    free_at: datetime
    created_at: datetime


def candidate_of(row: sa.Row[Any]) -> Candidate:
    """The Candidate in a row whose select list is CANDIDATE."""
    id_, status, *rest = tuple(row)
    return Candidate(id_, Status(status), *rest)
