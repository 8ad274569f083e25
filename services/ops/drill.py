"""The `drill` command: dies at every crash point, on private servers, and has the audit look what is left."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from shared.observe.crash import CrashPoint
from shared.terminal import fail

_ROOT: Final = Path(__file__).resolve().parents[2]

Only = Annotated[
    list[CrashPoint] | None,
    typer.Option("--only", metavar="POINT", help="Die at this point alone; may be given several times."),
]
Write = Annotated[
    bool, typer.Option("--write", help="Put the lines of drills that kept every promise into docs/drill.md.")
]


def drill(only: Only = None, write: Write = False) -> None:
    """Kill workers at every boundary between two effects and check every promise after each death.

    Each drill: several workers, orders of every kind, each published twice; two processes are armed to kill themselves
    at the point, healthy ones come after them, every order ends as it must, and the audit finds nothing. It starts a
    RabbitMQ, a PostgreSQL and simulated servers of its own and touches no others. Status 0: all kept, 1: not.
    """
    if not (_ROOT / "tests" / "drill").is_dir():
        raise fail("darkroom drill needs a checkout of the source: it starts the servers and simulators of its tests")
    words = [word for point in only or () for word in ("--only", str(point))] + ["--write"] * write
    ended = subprocess.run([sys.executable, "-m", "tests.drill", *words], cwd=_ROOT, check=False)  # noqa: S603 - ours
    raise typer.Exit(ended.returncode)
