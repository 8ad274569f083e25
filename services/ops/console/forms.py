"""What a browser posts: fields as text, read once and not without end."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qs

from fastapi import Request

from services.ops.console.problem import Refused

#: Room for the inputs of an order that somebody edits, and ids of a few thousand letters.
MAX_BYTES: Final = 512 * 1024
_MAX_FIELDS: Final = 20_000
_TYPE: Final = "application/x-www-form-urlencoded"


class Form:
    """The fields of one form, as they were typed."""

    def __init__(self, fields: Mapping[str, list[str]]) -> None:
        self._fields = fields

    def all(self, name: str) -> list[str]:
        """Every value of a field that may come several times, such as boxes that are ticked."""
        return self._fields.get(name, [])

    def text(self, name: str, *, at_most: int = 2000, needed: str | None = None) -> str:
        """The field without the space around it, its line ends as the browser's users know them.

        needed -- what to say when it is empty. Raises Refused.
        """
        value = "\n".join(self._fields.get(name, [""])[0].splitlines()).strip()
        if "\0" in value:
            raise Refused(422, "This cannot be stored", f"{name} holds a character with the code 0.")
        if len(value) > at_most:
            raise Refused(422, "This is too long", f"{name} takes {at_most} characters, not {len(value)}.")
        if not value and needed is not None:
            raise Refused(422, "Something is missing", needed)
        return value


def moment_of(text: str) -> datetime:
    """In UTC, as which it is read when it names no zone. Raises ValueError, also when UTC has no such year. Pure."""
    moment = datetime.fromisoformat(text)
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{text} is out of the calendar") from error


async def read_form(request: Request) -> Form:
    """Raises Refused."""
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BYTES:
            raise Refused(413, "This is too much", f"A form may have {MAX_BYTES // 1024} KiB.")
    if body and kind != _TYPE:
        raise Refused(415, "This is no form", f"The console takes {_TYPE} alone.")
    try:
        return Form(parse_qs(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS))
    except ValueError:
        raise Refused(400, "This is no form", "Its fields cannot be read.") from None
