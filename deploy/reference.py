"""`python -m deploy.reference` writes docs/metrics.md from the catalogue (`make docs`); a test compares."""

from pathlib import Path
from typing import Final

from shared.observe.catalog import ATTEMPTS, BYTES, CATALOGUE, FAST, ORDER, PREFIX, STAY, Kind, catalogue_table

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
## Not kept

Other systems of this kind have these. Here they would be a second word for something above, or there is nothing they
could measure.

| not kept | because |
|---|---|
| an outbox and its age | there is none: what a row still owes is in the row (`tasks_overdue{bound="follow_up"}`) |
| rows rescued by a reaper | there is none: others take over what is left (`claims_total{result="reclaimed"}`) |
| messages requeued | a worker never nacks; what comes back is `message_redeliveries_total` |
| pictures stored, missing | `artifact_bytes` counts what is kept; the rest has `reason="no_outputs"` |
| a circuit breaker | a backend's state in the table is one for all workers (`backend_up`, `pool_backends`) |
| slots of one worker | they belong to a backend, counted from rows; who lacks them says `backend_wait_seconds` |
| replays as a counter | commands end before a scrape; the rows are there (`dead_letter_replays`) |
| completed, failed, cancelled tasks in `tasks` | counting them reads the whole table; they are counted as they end |
| a role of its own for the gauges | `ops` writes letters anyway; gauges are asked for in read-only transactions |
| drift between broker and table | a letter that is not in the table yet is still in its dead queue |

The last one is `rabbitmq_detailed_queue_messages_ready{queue=~".+\\.dead"}`, and the alert DeadQueueNotDraining.
Permits and checks that are lost or doubled are no drift: the scheduler makes them from the rows.
"""


def page() -> str:
    """The text of docs/metrics.md. Pure."""
    written = "\n".join(f"| `{service}` | {_names(service)} |" for service in _services())
    ladders = "\n".join(
        f"| {' '.join(f'{_plain(bound)}' for bound in bounds)} | {_with(bounds)} |"
        for bounds in (FAST, STAY, ORDER, BYTES, ATTEMPTS)
    )
    return (
        f"{_BEGIN}{catalogue_table()}"
        f"\n## Who writes what\n\n| service | its metrics, without `{PREFIX}` |\n|---|---|\n{written}\n"
        "\n## Buckets\n\nIn seconds, bytes or attempts, as the name says.\n"
        f"\n| bounds | of |\n|---|---|\n{ladders}\n{_DROPPED}"
    )


def _services() -> list[str]:
    return list(dict.fromkeys(service for metric in CATALOGUE for service in metric.services))


def _names(service: str) -> str:
    return " ".join(f"`{metric.name}`" for metric in CATALOGUE if service in metric.services)


def _with(bounds: tuple[float, ...]) -> str:
    return " ".join(f"`{m.name}`" for m in CATALOGUE if m.kind is Kind.HISTOGRAM and m.buckets == bounds)


def _plain(bound: float) -> str:
    """1048576, not 1.04858e+06."""
    return f"{bound:.0f}" if bound.is_integer() else f"{bound:g}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
