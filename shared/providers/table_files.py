"""Reads provider tables: those that come with the product, and a folder of one's own."""

import re
import tomllib
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from shared.providers.table import InvalidTables, Table

#: The tables that come with the product.
CATALOG: Final = Path(__file__).parent / "catalog"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def read_tables(text: str, source: str) -> dict[str, Table]:
    """Every `[provider.<name>]` of one file. Raises InvalidTables with every mistake in it."""
    try:
        values = tomllib.loads(text)
    except ValueError as error:
        raise InvalidTables([f"{source} cannot be read: {error}"]) from error
    providers = values.pop("provider", None)
    problems = [f"{source}: unknown key {key}" for key in values]
    if not isinstance(providers, dict) or not providers:
        raise InvalidTables([*problems, f"{source} has no [provider.<name>]"])
    tables = {}
    for name, value in providers.items():
        if not _NAME.fullmatch(name):
            problems.append(f"{source}: {name!r} is no name for a provider")
        try:
            tables[name] = Table.model_validate(value)
        except ValidationError as error:
            problems += [_sentence(source, name, problem) for problem in error.errors(include_url=False)]
    if problems:
        raise InvalidTables(problems)
    return tables


def load_tables(folder: Path | None = None) -> dict[str, Table]:
    """The shipped tables and those of `folder`, whose tables take the place of shipped ones of the same name.

    Raises InvalidTables with every mistake of every file.
    """
    if folder is not None and not folder.is_dir():
        raise InvalidTables([f"{folder}: no such folder"])
    tables: dict[str, Table] = {}
    problems: list[str] = []
    for place in [CATALOG, *([folder] if folder is not None else [])]:
        here: dict[str, Path] = {}
        for file in sorted(place.glob("*.toml")):
            try:
                found = read_tables(file.read_text(encoding="utf-8"), file.name)
            except InvalidTables as error:
                problems += error.problems
                continue
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"{file.name} cannot be read: {error}")
                continue
            problems += [f"{file.name}: provider {n} is in {here[n].name} too" for n in found if n in here]
            here |= dict.fromkeys(found, file)
            tables |= found
    if problems:
        raise InvalidTables(problems)
    return tables


def _sentence(source: str, name: str, problem: Any) -> str:
    """One mistake. The value itself is not shown: somebody may have written a key into the file."""
    place = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{source}: provider {name}: {f'{place}: ' if place else ''}{message}"
