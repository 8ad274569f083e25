"""Every metric of the system: its name, its labels with all their values, and the question it answers.

Instruments, docs/metrics.md and the checks of dashboards and alerts are made from this one tuple. A label never
holds an id, a key, a URL, a prompt or the text of an error. Renaming a metric breaks dashboards: keep both names for
one release.
"""

from typing import Final

from shared.observe.label_values import (
    BACKEND_STATES,
    BOUNDS,
    DATABASE_ERRORS,
    INVARIANTS,
    JOB_STATES,
    LOOPS,
    QUESTIONS,
    RECONNECTS,
    REPLAYS,
    STEPS,
    TRANSACTIONS,
    WAITS,
)
from shared.observe.metric import (
    ATTEMPTS,
    BYTES,
    FAST,
    ORDER,
    OTHER,
    PREFIX,
    SERVICES,
    STAY,
    Anything,
    Configured,
    Kind,
    Metric,
    Values,
)
from shared.observe.state_metrics import PROBES, PROCESSES, ROWS
from shared.observe.work_metrics import WORK

__all__ = [
    "ATTEMPTS",
    "BACKEND_STATES",
    "BOUNDS",
    "BYTES",
    "CATALOGUE",
    "DATABASE_ERRORS",
    "FAST",
    "INVARIANTS",
    "JOB_STATES",
    "LOOPS",
    "ORDER",
    "OTHER",
    "PREFIX",
    "QUESTIONS",
    "RECONNECTS",
    "REPLAYS",
    "SERVICES",
    "STAY",
    "STEPS",
    "TRANSACTIONS",
    "WAITS",
    "Anything",
    "Configured",
    "Kind",
    "Metric",
    "Values",
    "catalogue_table",
]

CATALOGUE: Final[tuple[Metric, ...]] = (*WORK, *ROWS, *PROBES, *PROCESSES)


def catalogue_table() -> str:
    """The catalogue as a markdown table for docs/metrics.md: metric, type, labels, meaning, question."""
    lines = ["| metric | type | labels | meaning | question |", "|---|---|---|---|---|"]
    for metric in CATALOGUE:
        labels = "; ".join(_shown(label, values) for label, values in metric.labels.items())
        lines.append(f"| `{PREFIX}{metric.name}` | {metric.kind} | {labels} | {metric.help} | {metric.question} |")
    return "\n".join(lines) + "\n"


def _shown(label: str, values: Values) -> str:
    if isinstance(values, tuple):
        return f"{label} ({' '.join(values)})"
    return f"{label} (as configured)" if isinstance(values, Configured) else label
