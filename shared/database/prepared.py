"""Statements that the server plans once per connection and not at each call: see docs/decisions/0028."""

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

_IS_PREPARED: Final = "prepared"
#: What the server says of a statement whose result a migration has changed, which it does not have, or has already.
_DISAGREEING: Final = frozenset({"0A000", "26000", "42P05"})
#: A connection plans anew each time it has executed so many times as much as when it last did: a plan for empty tables
#: reads them from end to end, and the server itself makes another one only after autovacuum, up to a minute later.
_REPLAN_FACTOR: Final = 4


def prepared(sql: str, *returns: str) -> sa.Executable:
    """`sql` for a statement that is run all the time: its plan is kept, whatever values it is given.

    Lists become arrays; the type of each parameter must follow from where it stands.
    returns -- names of all columns of the answer, in order; SQLAlchemy would find them out anew at each call
    """
    statement = sa.text(sql).columns(*map(sa.column, returns)) if returns else sa.text(sql)
    return statement.execution_options(**{_IS_PREPARED: True})


def prepare_on(engine: sa.Engine) -> None:
    """From now on this engine keeps the plans of such statements, for as long as each connection lives."""
    sa.event.listen(engine, "do_execute", _execute)
    sa.event.listen(engine, "handle_error", _leave_what_disagrees)


class _Numbered(dict[str, str]):
    """By name the place of a parameter; each one that is asked for gets the next."""

    def __missing__(self, name: str) -> str:
        self[name] = f"${len(self) + 1}"
        return self[name]


class _Plans:
    """What one connection has prepared."""

    def __init__(self) -> None:
        self._calls: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._made = 0
        self._replan_at = _REPLAN_FACTOR

    def execute(self, cursor: Any, statement: str, parameters: Mapping[str, Any]) -> None:
        self._made += 1
        if self._made >= self._replan_at:
            cursor.execute("discard plans")
            self._replan_at *= _REPLAN_FACTOR
        if statement not in self._calls:
            self._calls[statement] = self._prepare(cursor, statement)
        call, names = self._calls[statement]
        cursor.execute(call, {name: _value(parameters[name]) for name in names})

    def _prepare(self, cursor: Any, statement: str) -> tuple[str, tuple[str, ...]]:
        """How to call it in the driver's words, and the parameters in it."""
        places = _Numbered()
        name = f"darkroom_{len(self._calls)}"
        cursor.execute(f"prepare {name} as {statement % places}")
        arguments = ", ".join(f"%({place})s" for place in places)
        return f"execute {name}" + (f"({arguments})" if places else ""), tuple(places)


def _execute(cursor: Any, statement: str, parameters: Mapping[str, Any], context: Any) -> bool:
    """True: it was one of them and has been executed."""
    if not context.execution_options.get(_IS_PREPARED):
        return False
    info = context.root_connection.info
    if _IS_PREPARED not in info:
        info[_IS_PREPARED] = _Plans()
    info[_IS_PREPARED].execute(cursor, statement, parameters)
    return True


def _value(value: Any) -> Any:
    """An array as text, which takes the type of its parameter; the driver would write text[] of its elements."""
    if not isinstance(value, list | tuple):
        return value
    return "{" + ",".join(map(_element, value)) + "}"


def _element(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


def _leave_what_disagrees(context: sa.engine.ExceptionContext) -> None:
    """New connections prepare anew."""
    execution = context.execution_context
    if (
        execution is not None
        and execution.execution_options.get(_IS_PREPARED)
        and getattr(context.original_exception, "pgcode", None) in _DISAGREEING
    ):
        context.is_disconnect = True
