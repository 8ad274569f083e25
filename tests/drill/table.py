"""The table of a drill, for the terminal and for docs/drill.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from shared.observe.crash import CrashPoint
from tests.drill.lane import Report
from tests.drill.matrix import MATRIX

HEADINGS: Final = (
    "point",
    "dies in",
    "orders",
    "tasks",
    "provider jobs",
    "pictures",
    "dead letters",
    "verdict",
)
DOCUMENT: Final = Path(__file__).resolve().parents[2] / "docs" / "drill.md"
_BEGIN: Final = "<!-- table -->\n"
_END: Final = "<!-- /table -->"


def cells(report: Report) -> tuple[str, ...]:
    """One line of the table."""
    numbers = (report.orders, report.tasks, report.provider_jobs, report.pictures, report.dead_letters)
    verdict = report.verdict.replace("\n", " ").replace("|", "/")
    return (report.drill.point, report.drill.victim, *map(str, numbers), verdict)


def markdown(lines: Mapping[str, Sequence[str]]) -> str:
    """All of it, in the order of the matrix. lines -- cells by the drill's name; a drill without is left out"""
    table = ["| " + " | ".join(HEADINGS) + " |", "|---|---|" + "--:|" * 5 + "---|"]
    for drill in MATRIX:
        if drill.name in lines:
            point, victim, *rest = lines[drill.name]
            table.append("| " + " | ".join((f"`{point}`", victim, *rest)) + " |")
    return "\n".join(table) + "\n"


def write(report: Report) -> None:
    """Put one line into the table of docs/drill.md, in place of the drill's last one. From one thread at a time."""
    before, _, rest = DOCUMENT.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    lines = {f"{line[0]} in {line[1]}": line for line in documented()} | {report.drill.name: cells(report)}
    DOCUMENT.write_text(before + _BEGIN + markdown(lines) + _END + after)


def documented() -> list[tuple[str, ...]]:
    """The lines that stand in docs/drill.md: their cells."""
    _, _, rest = DOCUMENT.read_text().partition(_BEGIN)
    lines, _, _ = rest.partition(_END)
    return [tuple(cell.strip(" `") for cell in line.strip("|").split("|")) for line in lines.splitlines()[2:]]


def missing() -> set[CrashPoint]:
    """Points of the code at which nobody dies."""
    return set(CrashPoint) - {drill.point for drill in MATRIX}
