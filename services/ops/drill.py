"""The `drill` command: dies at every crash point, on private servers, and has the audit look what is left."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
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
    command = [sys.executable, "-m", "tests.drill", *words]
    # A session of its own: a terminal interrupts it through us alone, so once.
    with subprocess.Popen(command, cwd=_ROOT, start_new_session=True) as process, _passing_on(process):  # noqa: S603 - ours
        process.wait()
    raise typer.Exit(process.returncode)


@contextmanager
def _passing_on(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Whoever interrupts us interrupts it, and we wait: it has servers to stop. `subprocess.run` would kill it."""

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
