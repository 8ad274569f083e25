"""Counts looks at jobs by what they found."""

from collections import Counter
from collections.abc import Sequence

from shared.domain.task import Task
from shared.observe.metrics import Metrics
from shared.providers.base import Failed, Gone, JobState, Running, Succeeded


def count_looks(metrics: Metrics, looked: Sequence[tuple[Task, JobState | None]]) -> None:
    """One look at each of these rows' jobs; None: nothing was learned."""
    found = Counter((row.backend or "", _word(state)) for row, state in looked)
    for (backend, result), jobs in found.items():
        metrics.count("polls_total", jobs, backend=backend, result=result)


def _word(state: JobState | None) -> str:
    """One of catalog.JOB_STATES."""
    match state:
        case Running(waiting=waiting):
            return "pending" if waiting else "running"
        case Succeeded():
            return "done"
        case Failed():
            return "failed"
        case Gone():
            return "missing"
        case None:
            return "unknown"
