"""What people did by hand: one line each in operator_actions, in the transaction of the deed itself."""

from typing import Any

import sqlalchemy as sa


def note_action(connection: sa.Connection, by_whom: str, action: str, subject: str, detail: dict[str, Any]) -> None:
    """One line of operator_actions, in the caller's transaction."""
    connection.execute(
        sa.text(
            "insert into operator_actions (by_whom, action, subject, detail)"
            " values (:by_whom, :action, :subject, cast(:detail as jsonb))"
        ).bindparams(sa.bindparam("detail", type_=sa.JSON)),
        {"by_whom": by_whom, "action": action, "subject": subject, "detail": detail},
    )
