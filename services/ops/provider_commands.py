"""`darkroom provider`: reads provider tables, and runs them against answers whose meaning is known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.providers.samples import Judged, judge, sample_file
from shared.providers.table import InvalidTables, Table
from shared.providers.table_files import load_tables, read_tables
from shared.terminal import AsJson, fail, plain, print_json, settings, table, tell

provider_app = typer.Typer(no_args_is_help=True, help="The tables of the API providers.")


@provider_app.callback()
def _group() -> None:
    """The tables of the API providers."""


@provider_app.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="One file of tables; all when left out.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option("--samples", metavar="FILE", help="Answers to run the one table against.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Name every mistake in the tables, and run them against sample answers. Exit status 1 when anything is wrong."""
    try:
        tables = _tables(file)
    except InvalidTables as error:
        if as_json:
            print_json({"ok": False, "problems": error.problems})
        else:
            tell(str(error))
        raise typer.Exit(1) from None
    if samples is not None and len(tables) != 1:
        raise fail("--samples goes with a file that holds one table")
    judged: list[Judged] = []
    for name, one in tables.items():
        answers = samples or sample_file(name)
        found = _judged(name, one, answers) if answers is not None else []
        judged += found
        if not as_json:
            typer.echo(f"{name}: {_summary(found)}")
    wrong = [case for case in judged if not case.is_right]
    if as_json:
        for case in judged:
            print_json(plain(case) | {"ok": case.is_right})
    elif wrong:
        rows = [(one.provider, one.case, _shown(one.expected), _shown(one.got)) for one in wrong]
        typer.echo(table(("provider", "case", "expected", "got"), rows))
    if wrong:
        raise typer.Exit(1)


def _tables(file: Path | None) -> dict[str, Table]:
    if file is None:
        return load_tables(settings(database=False).providers_dir)
    try:
        return read_tables(file.read_text(encoding="utf-8"), file.name)
    except (OSError, UnicodeDecodeError) as error:
        raise fail(f"{file} cannot be read: {error}") from None


def _judged(name: str, one: Table, answers: Path) -> list[Judged]:
    try:
        return judge(name, one, answers)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise fail(f"{answers} holds no samples: {error}") from None


def _summary(judged: list[Judged]) -> str:
    if not judged:
        return "the table can be used; there are no samples for it"
    asked = [one for one in judged if not one.skipped]
    right = sum(one.is_right for one in asked)
    skipped = [one for one in judged if one.skipped]
    not_asked = f"; {len(skipped)} not asked ({skipped[0].skipped})" if skipped else ""
    return f"{right} of {len(asked)} verdicts as expected{not_asked}"


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "nothing"
