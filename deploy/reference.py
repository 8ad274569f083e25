"""`python -m deploy.reference` writes docs/metrics.md from the catalogue (`make docs`); a test compares."""

from pathlib import Path
from typing import Final

from shared.observe.catalog import CATALOGUE, FAST, ORDER, PREFIX, Kind, catalogue_table

PAGE: Final = Path(__file__).parents[1] / "docs" / "metrics.md"

_BEGIN: Final = """\
# Metrics

Written by `make docs` from `shared/observe/catalog.py`; every instrument, dashboard query and alert is checked against
the same list. Workers export what they did, as counters and histograms; `ops` exports what is in the table, as gauges,
and no series at all while the database cannot be asked. Every replica of `ops` exports the same rows, so read its
gauges with `max by`, never `sum`. A counter's series all exist at 0 from the start of the process.

Pools and backends are those of the backends file, and `other`; queues are those of the topology. No label holds an id,
a key, a URL, a prompt or the text of an error.

"""

_DROPPED: Final = """
## What is not measured here

| not measured | because |
|---|---|
| an outbox and its age | there is none: what a row still owes is in the row (`tasks_overdue{bound="follow_up"}`) |
| rows rescued by a reaper | there is none: submitters take over what others left (`claims_total{result="reclaimed"}`) |
| messages requeued | a worker never nacks; what comes back is `message_redeliveries_total` |
| retries | they are moves: `transitions_total{from_status="processing",to_status="pending",result="applied"}` |
| looks per job | a look asks for all jobs of a backend at once (`backend_requests_total{operation="poll"}`) |
| completed, failed, cancelled tasks in `tasks` | counting them reads the whole table; they are counted as they end |
| a circuit breaker | a backend's state in the table is one for all workers (`backend_up`, `pool_backends`) |
| clock skew between us and a backend | a finish stamp from the future counts as 0 in `completion_detection_seconds` |
| slots of one worker | slots belong to a backend and are counted from rows (`backend_inflight_tasks`) |
"""


def page() -> str:
    """The text of docs/metrics.md. Pure."""
    written = "\n".join(f"| `{service}` | {_names(service)} |" for service in _services())
    ladders = "\n".join(
        f"| {' '.join(f'{bound:g}' for bound in bounds)} | {_with(bounds)} |" for bounds in (FAST, ORDER)
    )
    return (
        f"{_BEGIN}{catalogue_table()}"
        f"\n## Who writes what\n\n| service | its metrics, without `{PREFIX}` |\n|---|---|\n{written}\n"
        f"\n## Buckets, in seconds\n\n| bounds | of |\n|---|---|\n{ladders}\n{_DROPPED}"
    )


def _services() -> list[str]:
    return list(dict.fromkeys(service for metric in CATALOGUE for service in metric.services))


def _names(service: str) -> str:
    return " ".join(f"`{metric.name}`" for metric in CATALOGUE if service in metric.services)


def _with(bounds: tuple[float, ...]) -> str:
    return " ".join(f"`{m.name}`" for m in CATALOGUE if m.kind is Kind.HISTOGRAM and m.buckets == bounds)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
