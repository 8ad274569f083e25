"""Request bodies and paths made from an order's inputs. A value keeps its type: no text is put together. Pure.

A string that begins with `$` names a value and is replaced by it as a whole; `$name?` leaves its place out when there
is no such value. The key `...` puts the fields of an object value into the object it stands in.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

#: The key whose value's fields are put into the object.
SPREAD: Final = "..."
_NAME: Final = re.compile(r"\$([a-z_][a-z0-9_]*)(\??)")
#: {name} in a path; {name:2} is the first two parts of it.
_PLACE: Final = re.compile(r"\{([a-z_][a-z0-9_]*)(?::([1-9]))?\}")
_ABSENT: Final = object()


def names_in(template: Any) -> Iterator[tuple[str, bool]]:
    """Every (name, is optional) the template uses. Raises ValueError for a `$` that names nothing."""
    match template:
        case str() if template.startswith("$"):
            found = _NAME.fullmatch(template)
            if found is None:
                raise ValueError(f"{template!r} names no value")
            yield found[1], bool(found[2])
        case dict():
            for item in template.values():
                yield from names_in(item)
        case list():
            for item in template:
                yield from names_in(item)


def filled(template: Any, values: Mapping[str, Any]) -> Any:
    """The template with its values. Raises KeyError for one that is missing and not optional."""
    made = _filled(template, values)
    return None if made is _ABSENT else made


def _filled(template: Any, values: Mapping[str, Any]) -> Any:
    match template:
        case str() if template.startswith("$"):
            name = template[1:].removesuffix("?")
            return values.get(name, _ABSENT) if template.endswith("?") else values[name]
        case dict():
            made: dict[str, Any] = {}
            for key, item in template.items():
                value = _filled(item, values)
                if value is _ABSENT:
                    continue
                if key == SPREAD:
                    made = {**value, **made}  # what the table says itself wins
                else:
                    made[key] = value
            return made
        case list():
            return [value for item in template if (value := _filled(item, values)) is not _ABSENT]
    return template


def places_in(path: str) -> set[str]:
    """The names in the braces of a path."""
    return {name for name, _ in _PLACE.findall(path)}


def path_of(path: str, values: Mapping[str, str]) -> str:
    """The path with its braces filled, each value quoted so that it stays where it stands. Raises KeyError.

    A value may have several parts (`owner/model`), none of which leads upwards. Raises ValueError for one that does.
    """

    def place(found: re.Match[str]) -> str:
        parts = values[found[1]].split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"{found[1]} is no path")
        return "/".join(quote(part, safe="") for part in parts[: int(found[2])] if part) if found[2] else _quoted(parts)

    return _PLACE.sub(place, path)


def _quoted(parts: list[str]) -> str:
    return "/".join(quote(part, safe="") for part in parts)
