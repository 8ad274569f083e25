"""What every command of `darkroom` does alike: settings, JSON lines, tables, and mistakes as sentences."""

import dataclasses
import getpass
import json
import os
import re
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final

import typer
from pydantic import BaseModel

from shared.config import Settings, load_settings
from shared.observe import crash


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in some containers
        return "unknown"


#: The option that every command has.
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line on standard output.")]
#: The option of every command that changes something.
ByWhom = Annotated[
    str,
    typer.Option(
        "--by",
        metavar="NAME",
        help="Who does this; your user name when left out.",
        default_factory=_user,
        show_default=False,
    ),
]

#: Addresses that stand in for settings a command does not use, so that it asks for no more than it needs.
_UNUSED: Final = {"DARKROOM_DATABASE_URL": "postgresql://unused", "DARKROOM_AMQP_URL": "amqp://unused"}
#: A hundred years: before and after come moments that no database can tell.
_LONGEST_SECONDS: Final = 100 * 365 * 86_400
_DURATION: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", re.ASCII)


class Quiet:
    """Metrics of a process that ends before anybody could read them."""

    def count(self, name: str, amount: float = 1, /, **labels: str) -> None:
        """Nothing."""

    def observe(self, name: str, seconds: float, /, **labels: str) -> None:
        """Nothing."""

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Nothing."""


def settings(*, database: bool = True, broker: bool = False) -> Settings:
    """The settings; an address the command does not use need not be set. Raises SettingsError."""
    needed = {"DARKROOM_DATABASE_URL"} if database else set()
    needed |= {"DARKROOM_AMQP_URL"} if broker else set()
    unused = {name: address for name, address in _UNUSED.items() if name not in needed}
    found = load_settings(os.environ | unused | {f"{name}_FILE": "" for name in unused})
    crash.arm(found.kill_at)
    return found


def tell(text: str) -> None:
    """A line for the person, on standard error: standard output is for what was asked for."""
    sys.stderr.write(f"{text}\n")


def fail(text: str, status: int = 2) -> typer.Exit:
    """Say why, and give the exception that ends the command: `raise fail(...)`."""
    tell(text)
    return typer.Exit(status)


def print_json(value: Any) -> None:
    """One line of JSON."""
    typer.echo(json.dumps(plain(value), ensure_ascii=False))


def plain(value: Any) -> Any:
    """The same in types that JSON has: moments as ISO 8601, enums and UUIDs as text. Pure."""
    match value:
        case BaseModel():
            return value.model_dump(mode="json")
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {part.name: plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
        case str():
            return str(value)
        case datetime():
            return value.isoformat()
        case uuid.UUID():
            return str(value)
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
    return value


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest text, the same on a terminal and in a pipe. Pure."""
    lines = [list(headings), *([_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def seconds_of(text: str) -> float:
    """`90`, `90s`, `10m`, `1h30m`, `2d` in seconds. Raises typer.BadParameter."""
    match = _DURATION.fullmatch(text.strip().lower())
    days, hours, minutes, rest = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
    seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise typer.BadParameter("give a time such as 90s, 10m, 1h30m or 2d")
    return float(seconds)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0.25 s, 12.3 s, 4m 05s, 2h 10m. Pure."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours < 48 else f"{hours // 24}d {hours % 24}h"


def printable(text: str) -> str:
    """Foreign text without control characters, which could rewrite the terminal. Pure."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return printable(str(value))
