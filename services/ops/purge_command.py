"""`darkroom purge`: orders that ended long ago go, with their history, pictures and dead letters."""

from typing import Annotated

import typer

from services.ops.opened import opened
from services.ops.purge import Purged, run_purge
from shared.database.purge import TOMBSTONE_DAYS, Purge
from shared.storage import Artifacts
from shared.terminal import AsJson, ByWhom, plain, print_json, seconds_of, settings, tell


def purge(
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="TIME", help="Orders that ended before that, such as 90d.")
    ],
    by: ByWhom,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would go; change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete orders that ended long ago and dead letters that were closed as long ago. Open letters keep their orders.

    A late copy of a purged order makes no second one: its key is kept for 90 days more. Killed, call it again.
    """
    chosen = settings()
    with opened(chosen, statement_timeout_seconds=600.0) as engine:
        work = Purge(engine, seconds_of(older_than))
        before = f"what ended before {work.cutoff:%Y-%m-%d %H:%M:%S} UTC"
        if dry_run:
            counts = work.count()
            if as_json:
                print_json({"ended_before": work.cutoff, **plain(counts)})
            else:
                size = f"{counts.picture_bytes / 1e6:.1f} MB"
                rows = f"{counts.tasks} tasks, {counts.letters} dead letters"
                typer.echo(f"{before}: {rows}, {counts.pictures} pictures ({size})")
                typer.echo(f"{counts.keys} keys of orders purged over {TOMBSTONE_DAYS} days ago would be forgotten")
                tell("nothing was changed")
            return

        def say(done: Purged) -> None:
            if not as_json:
                tell(f"{done.tasks} tasks, {done.letters} dead letters without a task")

        done = run_purge(work, Artifacts(chosen.artifacts_url), by, say)
    if as_json:
        print_json({"ended_before": work.cutoff, **plain(done)})
    else:
        typer.echo(f"{before} is gone: {done.tasks} tasks and {done.letters} dead letters without one")
