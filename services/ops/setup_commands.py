"""What is done before anything runs: the database's schema, and a look at the workflow templates."""

from pathlib import Path
from typing import Annotated

import typer

from shared.providers.workflow import InvalidWorkflows, Workflows, load_workflows
from shared.terminal import AsJson, fail, print_json, settings, tell

workflow_app = typer.Typer(no_args_is_help=True, help="The workflow templates.")


def migrate(as_json: AsJson = False) -> None:
    """Bring the database to the newest schema. Safe at any time, also while workers run."""
    from shared.database.migrate import upgrade  # noqa: PLC0415 - Alembic costs every other command 0.1 s

    revision = upgrade(settings().database_url.get_secret_value())
    if as_json:
        print_json({"revision": revision})
    else:
        typer.echo(f"the database is at schema {revision}")


@workflow_app.command()
def check(
    name: Annotated[str, typer.Argument(help="One workflow; all when left out.")] = "",
    folder: Annotated[Path | None, typer.Option("--dir", help="Folder of the templates; else the setting's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Name every mistake in the workflow templates. Exit status 1 when there is one."""
    folder = folder or settings(database=False).workflows_dir
    workflows, problems = _load(folder)
    if name:
        if not (folder / name).is_dir():
            raise fail(f"{folder} holds no workflow {name!r}", 1)
        problems = [problem for problem in problems if problem.startswith(f"{name}: ")]
    names = [name] if name else workflows.names()
    if as_json:
        print_json({"ok": not problems, "workflows": [] if problems else names, "problems": problems})
    for problem in problems if not as_json else ():
        tell(problem)
    if problems:
        raise typer.Exit(1)
    for sound in names if not as_json else ():
        workflow = workflows.get(sound)
        typer.echo(f"{sound}: ok" + (f", {workflow.binding.title}" if workflow is not None else ""))


def _load(folder: Path) -> tuple[Workflows, list[str]]:
    try:
        return load_workflows(folder), []
    except InvalidWorkflows as error:
        return Workflows({}), list(error.problems)
