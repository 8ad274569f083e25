"""Every metric of the system: its name, its labels with all their values, and the question it answers.

Instruments, docs/metrics.md and the checks of dashboards and alerts are made from this one tuple. A label never
holds an id, a key, a URL, a prompt or the text of an error. Renaming a metric breaks dashboards: keep both names for
one release.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from shared.domain.task import LEGAL_MOVES, Reason, Stage, Status

PREFIX: Final = "darkroom_"

#: Seconds. For SQL, the broker and HTTP calls.
FAST: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
#: Seconds. For whole orders and waits; a quantile read from it was 3 % off, from the client's own ladder 92 %.
# fmt: off
ORDER: Final = (
    0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 1.5, 2.5, 4.0, 6.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0,
    240.0, 300.0, 420.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
)
# fmt: on

#: Stands for a pool or backend that this process was not configured with: an order may name any pool.
OTHER: Final = "other"


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Configured(StrEnum):
    """A set of label values that the configuration closes when the instruments are built."""

    POOL = "pool"
    BACKEND = "backend"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class Anything:
    """A label whose one value is fixed at start and cannot be listed here, such as a version."""


Values = tuple[str, ...] | Configured | Anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row. `name` has neither the prefix nor anything left to guess: `messages_total`.

    labels    -- label -> its closed set of values
    only      -- the combinations of values that can occur, in the order of `labels`; every combination when None
    services  -- who writes it; the others do not export it
    """

    name: str
    kind: Kind
    help: str
    question: str
    services: tuple[str, ...]
    labels: Mapping[str, Values] = field(default_factory=dict)
    only: frozenset[tuple[str, ...]] | None = None
    buckets: tuple[float, ...] | None = None

    def combinations(self, configured: Mapping[Configured, tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Every combination of label values that may be written; none when a label cannot be listed."""
        if self.only is not None:
            return sorted(self.only)
        sets: list[Iterable[str]] = []
        for values in self.labels.values():
            if isinstance(values, Anything):
                return []
            sets.append(configured[values] if isinstance(values, Configured) else values)
        return list(itertools.product(*sets))


SERVICES: Final = ("producer", "submitter", "poller", "ops")

_STATUSES: Final = tuple(Status)
_UNFINISHED = tuple(status for status in Status if not status.is_final)
_ILLEGAL = frozenset(itertools.product(_STATUSES, repeat=2)) - LEGAL_MOVES
_MOVES = frozenset(
    [(str(a), str(b), result) for a, b in LEGAL_MOVES for result in ("applied", "stale")]
    + [(str(a), str(b), "forbidden") for a, b in _ILLEGAL]
)

_BACKEND_OPERATIONS = ("upload", "submit", "poll", "download", "cancel", "health")
_BACKEND_RESULTS = ("ok", "timeout", "connect", "http_429", "http_4xx", "http_5xx", "bad_response", "other")

#: The loops that stamp themselves; shared/observe/health.py writes the gauge.
LOOPS: Final = ("consume", "schedule", "watch", "collect", "replay", "export")
#: What the exporter asks the database; each answer goes stale by itself.
QUESTIONS: Final = ("state", "invariants")
#: Whether a backend takes work, see Backend.state in shared/database/slots.py.
BACKEND_STATES: Final = ("working", "paused", "away")
#: Classes of SQLSTATE, see shared/database/engine.py.
DATABASE_ERRORS: Final = ("deadlock", "serialization", "lock_timeout", "disconnect", "other")
#: Bounds of a row's time, see shared/database/state.py.
BOUNDS: Final = ("lease", "poll", "deadline", "follow_up")
#: SQL questions whose answer must be 0, see shared/database/audit.py.
INVARIANTS: Final = (
    "duplicate_task",
    "duplicate_order",
    "double_submit",
    "lost_order",
    "missing_artifact",
    "missing_letter",
    "over_capacity",
    "zombie",
    "bad_history",
    "legal_moves",
)

CATALOGUE: Final[tuple[Metric, ...]] = (
    Metric(
        name="orders_received_total",
        kind=Kind.COUNTER,
        help="Orders that reached us, by the way they came and what was done with them. What `darkroom submit` sends"
        " comes as amqp.",
        question="How much comes in, and how much of it is repeated or bad?",
        services=("producer", "submitter"),
        labels={"source": ("http", "amqp"), "result": ("accepted", "duplicate", "invalid", "conflict")},
    ),
    Metric(
        name="callbacks_total",
        kind=Kind.COUNTER,
        help="Calls of providers that said a job had ended: taken, about no job of ours, with a wrong signature, or not"
        " checked.",
        question="Do callbacks arrive, and does somebody forge them?",
        services=("producer",),
        labels={"result": ("taken", "unknown", "forged", "unchecked")},
    ),
    Metric(
        name="fallbacks_total",
        kind=Kind.COUNTER,
        help="Orders that went on in their next pool, by the pool they left.",
        question="How much goes elsewhere, because a pool is shut or refuses?",
        services=("submitter", "poller"),
        labels={"pool": Configured.POOL},
    ),
    Metric(
        name="publishes_total",
        kind=Kind.COUNTER,
        help="Messages published, by what the broker answered; timeout means it has not answered yet.",
        question="Does the broker accept what we publish?",
        services=SERVICES,
        labels={"result": ("confirmed", "nacked", "returned", "timeout")},
    ),
    Metric(
        name="publish_confirm_seconds",
        kind=Kind.HISTOGRAM,
        help="From the last send of a message to the broker's confirm.",
        question="Is the broker slow?",
        services=SERVICES,
        buckets=FAST,
    ),
    Metric(
        name="messages_total",
        kind=Kind.COUNTER,
        help="Deliveries settled. dead_lettered: published to the dead queue, confirmed, then acked.",
        question="What is the throughput of each queue?",
        services=("submitter", "poller", "ops"),
        labels={"queue": Configured.QUEUE, "result": ("acked", "dead_lettered")},
    ),
    Metric(
        name="message_handle_seconds",
        kind=Kind.HISTOGRAM,
        help="From a delivery's arrival in this process to the verdict about it. Permits may wait in hand for a slot.",
        question="Does a handler hold up its queue?",
        services=("submitter", "poller", "ops"),
        labels={"queue": Configured.QUEUE},
        buckets=FAST,
    ),
    Metric(
        name="message_redeliveries_total",
        kind=Kind.COUNTER,
        help="Deliveries that carried the redelivered flag.",
        question="Are consumers dying with work in hand?",
        services=("submitter", "poller", "ops"),
        labels={"queue": Configured.QUEUE},
    ),
    Metric(
        name="claims_total",
        kind=Kind.COUNTER,
        help="Outcomes of claiming an order's row (won, duplicate, conflict) and of taking over a row whose lease"
        " had ended (reclaimed), after the commit.",
        question="Did exactly one worker win each order?",
        services=("submitter",),
        labels={"pool": Configured.POOL, "result": ("won", "duplicate", "conflict", "reclaimed")},
    ),
    Metric(
        name="duplicates_suppressed_total",
        kind=Kind.COUNTER,
        help="Second pictures that did not happen. publish: the producer already knew the order. claim: the key or the"
        " order_id had a task. submit: a takeover found the job instead of sending it again. complete: another worker"
        " had completed the row.",
        question="How many duplicate pictures were prevented, and by which guard?",
        services=SERVICES,
        labels={"point": ("publish", "claim", "submit", "complete")},
    ),
    Metric(
        name="possible_double_total",
        kind=Kind.COUNTER,
        help="Attempts that may have made two provider jobs: a POST that was or may be still in flight past the lease,"
        " or an owner that stalled between its last look at the lease and the send.",
        question="How often could the provider have been paid twice?",
        services=("submitter", "poller"),
        labels={"backend": Configured.BACKEND},
    ),
    Metric(
        name="transitions_total",
        kind=Kind.COUNTER,
        help="Status changes, after the commit. stale: the row had moved on and nothing was written."
        " forbidden: an illegal move was asked for and the database refused it.",
        question="How often do workers collide on a row, and did any try an illegal move?",
        services=SERVICES,
        labels={
            "from_status": _STATUSES,
            "to_status": _STATUSES,
            "result": ("applied", "stale", "forbidden"),
        },
        only=_MOVES,
    ),
    Metric(
        name="backend_requests_total",
        kind=Kind.COUNTER,
        help="Calls to a backend that ended, by operation and class of result.",
        question="What is the error rate of each backend, by class?",
        services=("submitter", "poller", "ops"),
        labels={"backend": Configured.BACKEND, "operation": _BACKEND_OPERATIONS, "result": _BACKEND_RESULTS},
    ),
    Metric(
        name="backend_request_seconds",
        kind=Kind.HISTOGRAM,
        help="Duration of one call to a backend.",
        question="Is a backend slow to answer?",
        services=("submitter", "poller", "ops"),
        labels={"backend": Configured.BACKEND, "operation": _BACKEND_OPERATIONS},
        buckets=FAST,
    ),
    Metric(
        name="unknown_states_total",
        kind=Kind.COUNTER,
        help="Answers of a backend with a job state we do not know; each was read as still running.",
        question="Did a provider invent a new state?",
        services=("submitter", "poller", "ops"),
        labels={"backend": Configured.BACKEND},
    ),
    Metric(
        name="completion_detection_seconds",
        kind=Kind.HISTOGRAM,
        help="From the backend's own finish stamp to our commit; below zero counts as zero."
        " push: an event made us look, poll: the schedule did.",
        question="How late do we notice that a picture is ready?",
        services=("poller",),
        labels={"backend": Configured.BACKEND, "via": ("poll", "push")},
        buckets=ORDER,
    ),
    Metric(
        name="orders_finished_total",
        kind=Kind.COUNTER,
        help="Orders that reached a final status, after the commit. refused: failed for what the order itself says or"
        " names, so nobody could have made it.",
        question="Which share of the orders fails?",
        services=SERVICES,
        labels={"pool": Configured.POOL, "outcome": ("completed", "failed", "refused", "cancelled")},
    ),
    Metric(
        name="order_duration_seconds",
        kind=Kind.HISTOGRAM,
        help="From the claim of an order to its final status, both stamps from the database; without refused ones.",
        question="How long does an order take?",
        services=SERVICES,
        labels={"pool": Configured.POOL, "outcome": ("completed", "failed")},
        buckets=ORDER,
    ),
    Metric(
        name="dead_letters_total",
        kind=Kind.COUNTER,
        help="Dead letters recorded, after the commit of their row.",
        question="Why do orders die?",
        services=("ops",),
        labels={"stage": tuple(Stage), "reason": tuple(Reason)},
    ),
    Metric(
        name="invariant_violations",
        kind=Kind.GAUGE,
        help="Rows that break a promise, by check; absent while the database cannot be asked. Any value above 0 pages.",
        question="Is the promise kept?",
        services=("ops",),
        labels={"check": INVARIANTS},
    ),
    Metric(
        name="tasks",
        kind=Kind.GAUGE,
        help="Unfinished tasks in the table. Finished ones are counted as they finish: orders_finished_total.",
        question="What is where?",
        services=("ops",),
        labels={"pool": Configured.POOL, "status": _UNFINISHED},
    ),
    Metric(
        name="task_oldest_age_seconds",
        kind=Kind.GAUGE,
        help="How long the task that came first has been in this status; 0 when there is none.",
        question="Is anything rotting?",
        services=("ops",),
        labels={"pool": Configured.POOL, "status": _UNFINISHED},
    ),
    Metric(
        name="tasks_overdue",
        kind=Kind.GAUGE,
        help="Tasks more than 10 s past the end of their lease, their next poll, their deadline, or the moment their"
        " follow-up (event, dead letter, cancel) should have left.",
        question="Does the scheduler keep up?",
        services=("ops",),
        labels={"bound": BOUNDS},
    ),
    Metric(
        name="backend_inflight_tasks",
        kind=Kind.GAUGE,
        help="Tasks that occupy a slot of the backend, over all workers.",
        question="Is the limit respected, across all workers?",
        services=("ops",),
        labels={"backend": Configured.BACKEND},
    ),
    Metric(
        name="backend_capacity_tasks",
        kind=Kind.GAUGE,
        help="Slots of the backend.",
        question="Is there room left?",
        services=("ops",),
        labels={"backend": Configured.BACKEND},
    ),
    Metric(
        name="backend_limit_tasks",
        kind=Kind.GAUGE,
        help="Slots of the backend that are used now: its capacity, or less since it answered 429.",
        question="Which provider takes less than we were told?",
        services=("ops",),
        labels={"backend": Configured.BACKEND},
    ),
    Metric(
        name="backend_up",
        kind=Kind.GAUGE,
        help="1 when the last look at the backend found it up; 0: down, frozen, refused or silent.",
        question="Which server needs a person?",
        services=("ops",),
        labels={"backend": Configured.BACKEND},
    ),
    Metric(
        name="backend_account_refused",
        kind=Kind.GAUGE,
        help="1 while the provider takes nothing from this account: no money, or no valid key. Its orders wait.",
        question="Which account must be paid or repaired?",
        services=("ops",),
        labels={"backend": Configured.BACKEND},
    ),
    Metric(
        name="results_at_risk",
        kind=Kind.GAUGE,
        help="Jobs that nobody has seen running for half of the time for which the provider keeps a result.",
        question="Are paid pictures about to vanish?",
        services=("ops",),
        labels={"backend": Configured.BACKEND},
    ),
    Metric(
        name="pool_backends",
        kind=Kind.GAUGE,
        help="Backends of the pool by whether they take work: working, paused (by a person, or by the provider's own"
        " word), away (down, frozen or silent).",
        question="Can the pool make anything at all?",
        services=("ops",),
        labels={"pool": Configured.POOL, "state": BACKEND_STATES},
    ),
    Metric(
        name="dead_letters_open",
        kind=Kind.GAUGE,
        help="Dead letters that nobody has replayed or discarded yet.",
        question="What must a person decide?",
        services=("ops",),
        labels={"stage": tuple(Stage), "reason": tuple(Reason)},
    ),
    Metric(
        name="database_connections",
        kind=Kind.GAUGE,
        help="Client connections of PostgreSQL. open: there are now, ours and others'; limit: its max_connections.",
        question="Will the next worker find a connection?",
        services=("ops",),
        labels={"kind": ("open", "limit")},
    ),
    Metric(
        name="database_errors_total",
        kind=Kind.COUNTER,
        help="Statements that the database or the way to it refused. deadlock, serialization and lock_timeout were"
        " repeated; disconnect: the connection or the server went away; other is a bug, also where a constraint"
        " refused an illegal move.",
        question="Do our statements get in each other's way?",
        services=SERVICES,
        labels={"error_class": DATABASE_ERRORS},
    ),
    Metric(
        name="poll_lag_seconds",
        kind=Kind.HISTOGRAM,
        help="From the moment a row came due to the scheduler's taking it, both from the database's clock.",
        question="Are there too few pollers?",
        services=("poller",),
        labels={"pool": Configured.POOL},
        buckets=FAST,
    ),
    Metric(
        name="state_last_success_timestamp_seconds",
        kind=Kind.GAUGE,
        help="Unix time of the database's last answer: state is the gauges of rows, invariants the broken promises.",
        question="Are these numbers fresh?",
        services=("ops",),
        labels={"question": QUESTIONS},
    ),
    Metric(
        name="state_query_seconds",
        kind=Kind.GAUGE,
        help="How long that answer took.",
        question="Do these questions load the database?",
        services=("ops",),
        labels={"question": QUESTIONS},
    ),
    Metric(
        name="amqp_connected",
        kind=Kind.GAUGE,
        help="1 while this process has its connections to the broker.",
        question="Is it consuming at all?",
        services=SERVICES,
    ),
    Metric(
        name="amqp_blocked",
        kind=Kind.GAUGE,
        help="1 while the broker blocks our publishes.",
        question="Is the broker short of memory or disk?",
        services=SERVICES,
    ),
    Metric(
        name="loop_last_success_timestamp_seconds",
        kind=Kind.GAUGE,
        help="Unix time of a loop's last turn without a bug; absent before the first.",
        question="Does a loop hang?",
        services=SERVICES,
        labels={"loop": LOOPS},
    ),
    Metric(
        name="loop_bugs_total",
        kind=Kind.COUNTER,
        help="Turns of a loop that ended in an exception nobody had planned for; the loop goes on after a pause.",
        question="Does a loop make no progress?",
        services=("poller", "ops"),
        labels={"loop": ("schedule", "watch", "replay", "export")},
    ),
    Metric(
        name="build_info",
        kind=Kind.GAUGE,
        help="1, with what this process was built from as labels.",
        question="Which build runs where?",
        services=SERVICES,
        labels={"version": Anything(), "revision": Anything(), "python": Anything()},
    ),
)


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
