"""The whole matrix, a table of it, and an exit status. `darkroom drill` calls it; see there for the options."""

import argparse
import sys
import threading

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.local.interrupted import end_with
from deploy.local.problem import StackProblem
from shared.terminal import table
from tests.drill.lane import Report
from tests.drill.matrix import MATRIX
from tests.drill.run import run
from tests.drill.table import HEADINGS, cells, write


def main() -> int:
    parser = argparse.ArgumentParser(prog="darkroom drill")
    parser.add_argument("--only", action="append", default=[], metavar="POINT")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    drills = [drill for drill in MATRIX if not given.only or drill.point in given.only]
    errors = Console(stderr=True)
    writing = threading.Lock()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as progress:
        bar = progress.add_task("starting RabbitMQ and PostgreSQL", total=len(drills))

        def told(report: Report) -> None:
            progress.update(bar, advance=1, description=report.drill.name)
            if not report.is_kept:
                progress.console.print(f"[red]{report.drill.name}[/red]: {escape(report.verdict)}")
            elif given.write:
                with writing:
                    write(report)

        reports, folder = run(drills, told)
    sys.stdout.write(table(HEADINGS, map(cells, reports)) + "\n")
    broken = sum(not report.is_kept for report in reports)
    if broken:
        errors.print(f"{broken} of {len(reports)} not kept; the logs are in {folder}")
    return 1 if broken else 0


if __name__ == "__main__":
    end_with(main, StackProblem)
