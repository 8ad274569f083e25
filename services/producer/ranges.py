"""The headers that ask for part of a picture, or for one that is not had already (RFC 9110). Pure."""

import re
from typing import Final

_ONE_RANGE: Final = re.compile(r"^bytes=(\d{0,18})-(\d{0,18})$", re.ASCII | re.IGNORECASE)


class NotSatisfiable(ValueError):
    """The range lies beyond the end, or is empty."""


def wanted_bytes(header: str | None, size: int) -> range | None:
    """The bytes asked for; None: all of them. Raises NotSatisfiable.

    Several ranges at once and what is no range are answered with the whole, as a server may.
    """
    found = _ONE_RANGE.match((header or "").replace(" ", ""))
    first, last = found.groups() if found else ("", "")
    if not first and not last:
        return None
    if not first:  # the last so many
        wanted = range(max(0, size - int(last)), size)
    elif last and int(last) < int(first):
        return None
    else:
        wanted = range(int(first), min(size, int(last) + 1) if last else size)
    if not wanted:
        raise NotSatisfiable
    return wanted


def names(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names this tag; weak ones count, as they must there."""
    given = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return etag in given or given == ["*"]
