"""`darkroom dead edit`: one letter with other inputs, or elsewhere. For editors, see docs/runbooks.md."""

import json
from typing import Annotated, Any

import typer

from services.ops.edits import edit
from services.ops.opened import opened
from services.ops.publishing import publishing
from services.ops.replay import Replayer
from shared.config import Settings
from shared.database.adopt import Refused
from shared.database.redirects import Check
from shared.database.replays import Replays
from shared.database.slots import Slots
from shared.terminal import AsJson, ByWhom, Quiet, fail, print_json, settings

RedirectTo = Annotated[
    str | None, typer.Option("--redirect-to", metavar="POOL", help="Have it made in this pool instead.")
]
RedirectToBackend = Annotated[
    str | None, typer.Option("--redirect-to-backend", metavar="NAME", help="Have it made at this backend alone.")
]


def edit_letter(
    *,
    letter_id: Annotated[int, typer.Argument(metavar="ID", help="As `darkroom dead list` shows it.")],
    by_whom: ByWhom,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=VALUE", help="A JSON value, or else text; null takes the input out."),
    ] = None,
    redirect_to: RedirectTo = None,
    redirect_to_backend: RedirectToBackend = None,
    why: Annotated[str | None, typer.Option("--why", metavar="TEXT", help="Kept with the deed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send one letter round with other inputs, or elsewhere. Its key stays, and what was changed is kept."""
    changes = dict(map(_change, inputs or ()))
    if not changes and redirect_to is None and redirect_to_backend is None:
        ways = "--input NAME=VALUE, --redirect-to POOL or --redirect-to-backend NAME"
        raise fail(f"say what is to be changed: {ways}")
    chosen = settings(broker=True)
    check = offered_check(chosen)
    with opened(chosen) as engine:
        pools = sorted({backend.pool for backend in Slots(engine, by_whom, Quiet()).backends()})
        replays = Replays(engine, chosen.default_deadline_seconds)
        with publishing(chosen, pools) as publish:
            replayer = Replayer(replays, publish=publish, pools=pools, metrics=Quiet())
            done = edit(
                replays,
                replayer,
                letter_id,
                changes,
                by_whom,
                check=check,
                why=why,
                pool=redirect_to,
                backend=redirect_to_backend,
            )
    if isinstance(done, Refused):
        raise fail(f"nothing was changed: {done.why}", 1)
    seen = done.replay.prediction
    task_id, where = seen.task_id, seen.pool if seen.backend is None else f"{seen.pool}, at {seen.backend} alone"
    if as_json:
        fields = {"id": letter_id, "task_id": task_id, "pool": seen.pool, "backend": seen.backend}
        print_json(fields | {"revision": done.revision, "diff": done.diff})
        return
    changed = f"with other {', '.join(done.diff)} (revision {done.revision})" if done.diff else "with the same inputs"
    typer.echo(f"task {task_id} is pending again in {where}, {changed}")


def offered_check(chosen: Settings) -> Check:
    """What is wrong with an order for a pool, by the files of this machine."""
    if chosen.backends_file is None:
        raise fail("DARKROOM_BACKENDS_FILE is not set: it says what each pool takes")
    # Other commands need not wait for what makes providers.
    from shared.providers.offered import Offered  # noqa: PLC0415
    from shared.providers.registry import load_backends  # noqa: PLC0415
    from shared.providers.table_files import load_tables  # noqa: PLC0415
    from shared.providers.workflow import load_workflows  # noqa: PLC0415

    tables = load_tables(chosen.providers_dir)
    backends = load_backends(chosen.backends_file, tables)
    return Offered.of(backends, tables, load_workflows(chosen.workflows_dir)).problems


def _change(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{text!r} is no NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
