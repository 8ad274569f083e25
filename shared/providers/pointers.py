"""JSON Pointers (RFC 6901) in which `*` stands for every item of a list or every value of an object. Pure."""

from collections.abc import Iterator
from typing import Any


def problem(pointer: str) -> str | None:
    """What is wrong with the pointer, as the end of a sentence; None when nothing is."""
    return None if pointer == "" or pointer.startswith("/") else "must begin with /"


def found(document: Any, pointer: str) -> list[Any]:
    """Everything there that is not null, in order."""
    return [value for _, value in places(document, pointer)]


def first(document: Any, pointers: list[str]) -> Any:
    """What the first pointer that finds anything finds first; None when none does."""
    return next((value for pointer in pointers for value in found(document, pointer)), None)


def places(document: Any, pointer: str) -> Iterator[tuple[Any, Any]]:
    """Each value with the list or object it stands in."""
    yield from _walk(None, document, [_unescaped(part) for part in pointer.split("/")[1:]])


def _walk(parent: Any, here: Any, parts: list[str]) -> Iterator[tuple[Any, Any]]:
    if not parts:
        if here is not None:
            yield parent, here
        return
    part, *rest = parts
    match here:
        case dict() if part == "*":
            children = list(here.values())
        case list() if part == "*":
            children = here
        case dict():
            children = [here.get(part)]
        case list() if part.isdecimal() and int(part) < len(here):
            children = [here[int(part)]]
        case _:
            children = []
    for child in children:
        yield from _walk(here, child, rest)


def _unescaped(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")
