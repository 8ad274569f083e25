"""What people did by hand: one line each in operator_actions, in the transaction of the deed itself."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import sqlalchemy as sa

_NOTE: Final = sa.text("""
insert into operator_actions (by_whom, action, subject, detail)
select :by_whom, :action, s.subject, cast(:detail as jsonb)
from unnest(cast(:subjects as text[])) with ordinality as s(subject, place) order by s.place
""").bindparams(sa.bindparam("detail", type_=sa.JSON))
_NOTE_EACH: Final = sa.text("""
insert into operator_actions (by_whom, action, subject, detail)
select :by_whom, :action, s.subject, s.detail
from unnest(cast(:subjects as text[]), cast(:details as jsonb[])) with ordinality as s(subject, detail, place)
order by s.place
""")


def note_action(connection: sa.Connection, by_whom: str, action: str, subject: str, detail: dict[str, Any]) -> None:
    """One line of operator_actions, in the caller's transaction."""
    note_actions(connection, by_whom, action, [subject], detail)


def note_actions(
    connection: sa.Connection, by_whom: str, action: str, subjects: Iterable[str], detail: dict[str, Any]
) -> None:
    """The same deed on many subjects, a line for each."""
    values = {"by_whom": by_whom, "action": action, "subjects": list(subjects), "detail": detail}
    connection.execute(_NOTE, values)


def note_each(connection: sa.Connection, by_whom: str, action: str, details: Mapping[str, Mapping[str, Any]]) -> None:
    """The same deed on many subjects, a line for each with a detail of its own."""
    values = {"by_whom": by_whom, "action": action, "subjects": list(details)}
    connection.execute(_NOTE_EACH, values | {"details": [json.dumps(detail) for detail in details.values()]})
