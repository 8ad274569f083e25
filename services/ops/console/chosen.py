"""Which letters an address means: the same filter as `darkroom dead list`, its window of time always absolute."""

import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
from fastapi import Path

from services.ops.console.forms import Form, moment_of
from services.ops.console.problem import Refused
from services.ops.console.rendering import link
from shared.database.letters import LetterFilter, Letters
from shared.domain.letters import LetterState
from shared.terminal import seconds_of

ANY: Final = "any"
#: Names in addresses and forms, and what they narrow.
_TEXTS: Final = {
    "reason": "reason",
    "stage": "stage",
    "pool": "pool",
    "backend": "backend",
    "workflow": "workflow",
    "group": "fingerprint",
    "order": "order_id",
    "text": "text",
}
_LONGEST: Final = 300

#: The number of a row in a path; what no database has is no page.
Id = Annotated[int, Path(ge=1, le=2**63 - 1)]


def filter_of(query: Mapping[str, str], letters: Letters) -> tuple[LetterFilter, bool]:
    """The filter an address names, and whether its window was relative and is now two moments. Raises Refused.

    Without `state` it means open letters; `state=any` all of them.
    """
    given: dict[str, Any] = {column: value for name, column in _TEXTS.items() if (value := _text(query, name))}
    state = _text(query, "state") or LetterState.OPEN
    if state != ANY and state not in set(LetterState):
        raise Refused(422, "This cannot be looked for", f"There is no state {state!r} of a letter.")
    wanted = LetterFilter(**given, state=None if state == ANY else state, task_id=_task(query))
    since, until = _edge(query, "since"), _edge(query, "until")
    if not isinstance(since, float) and not isinstance(until, float):
        return replace(wanted, since=since, until=until), False
    window = letters.frozen(
        wanted, since if isinstance(since, float) else None, until if isinstance(until, float) else 0.0
    )
    since = since if isinstance(since, datetime) else window.since
    until = until if isinstance(until, datetime) else window.until
    return replace(wanted, since=since, until=until), True


def posted_filter(form: Form, letters: Letters) -> LetterFilter:
    """The filter that a form carries in hidden fields. Raises Refused."""
    names = (*_TEXTS, "state", "task", "since", "until")
    return filter_of({name: form.text(name) for name in names}, letters)[0]


def fields_of(wanted: LetterFilter) -> dict[str, str]:
    """The names and values by which an address or a form means this filter. Pure."""
    values: dict[str, Any] = asdict(wanted)
    found = {name: values[column] for name, column in _TEXTS.items() if values[column] is not None}
    if wanted.state != LetterState.OPEN:
        found["state"] = ANY if wanted.state is None else wanted.state
    if wanted.task_id is not None:
        found["task"] = str(wanted.task_id)
    for name in ("since", "until"):
        if values[name] is not None:
            found[name] = values[name].astimezone(UTC).isoformat()
    return found


def address_of(wanted: LetterFilter, path: str = "/letters/list", **more: object) -> str:
    """Where the letters of this filter are listed. Pure."""
    return link(path, **fields_of(wanted), **more)


def whole_number(query: Mapping[str, str], name: str) -> int | None:
    """A number in an address; None: it is not there. Raises Refused."""
    text = _text(query, name)
    if not text:
        return None
    if not text.isdecimal() or len(text) > 18:
        raise Refused(422, "This cannot be looked for", f"{name} is a number.")
    return int(text)


def _text(query: Mapping[str, str], name: str) -> str:
    value = query.get(name, "").strip()
    if len(value) > _LONGEST:
        raise Refused(422, "This cannot be looked for", f"{name} has {_LONGEST} characters at most.")
    return value


def _task(query: Mapping[str, str]) -> uuid.UUID | None:
    text = _text(query, "task")
    try:
        return uuid.UUID(text) if text else None
    except ValueError:
        raise Refused(422, "This cannot be looked for", "A task's id is 32 hexadecimal digits with dashes.") from None


def _edge(query: Mapping[str, str], name: str) -> datetime | float | None:
    """A moment, or seconds ago."""
    text = _text(query, name)
    if not text:
        return None
    try:
        # An address that was typed has + for what forms write as %2B, and that is a space.
        return moment_of(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        pass
    try:
        return seconds_of(text)
    except typer.BadParameter:
        why = f"{name} is a time ago such as 30m, 2h or 7d, or a moment such as 2026-11-26T03:00 (UTC)."
        raise Refused(422, "This cannot be looked for", why) from None
