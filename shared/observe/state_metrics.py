"""What is in the table, and how the processes are that work on it."""

from typing import Final

from shared.domain.task import Reason, Stage
from shared.observe.label_values import (
    BACKEND_STATES,
    BOUNDS,
    DATABASE_ERRORS,
    INVARIANTS,
    LOOPS,
    QUESTIONS,
    RECONNECTS,
    REPLAYS,
    TRANSACTIONS,
    UNFINISHED,
)
from shared.observe.metric import FAST, SERVICES, Anything, Configured, Kind, Metric

#: Read from the rows by `ops` alone.
ROWS: Final[tuple[Metric, ...]] = (
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
        labels={"pool": Configured.POOL, "status": UNFINISHED},
    ),
    Metric(
        name="task_oldest_age_seconds",
        kind=Kind.GAUGE,
        help="How long the task that came first has been in this status; 0 when there is none.",
        question="Is anything rotting?",
        services=("ops",),
        labels={"pool": Configured.POOL, "status": UNFINISHED},
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
        name="dead_letter_replays",
        kind=Kind.GAUGE,
        help="Replays in the table, by what has become of them. published: the letter had no row, and its body went to"
        " the queue of orders again.",
        question="Do replays help?",
        services=("ops",),
        labels={"result": REPLAYS},
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
)

#: What ops finds out by an order of its own.
PROBES: Final[tuple[Metric, ...]] = (
    Metric(
        name="probe_last_success_timestamp_seconds",
        kind=Kind.GAUGE,
        help="Unix time at which the last canary order was seen to have come through; before the first, when ops began"
        " to send them. Absent without a backend of adapter canary.",
        question="Is the whole way alive, also at no traffic?",
        services=("ops",),
        labels={"probe": ("canary",)},
    ),
    Metric(
        name="probe_duration_seconds",
        kind=Kind.GAUGE,
        help="How long the last canary order took, from its publish to its confirmed event.",
        question="Does the way itself get slower?",
        services=("ops",),
        labels={"probe": ("canary",)},
    ),
)

#: What each process says of itself.
PROCESSES: Final[tuple[Metric, ...]] = (
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
        name="database_seconds",
        kind=Kind.HISTOGRAM,
        help="Duration of one transaction, commit and repetitions included; each serves a whole batch.",
        question="Is PostgreSQL slow?",
        services=SERVICES,
        labels={"operation": TRANSACTIONS},
        buckets=FAST,
    ),
    Metric(
        name="database_pool_connections",
        kind=Kind.GAUGE,
        help="Connections of this process, looked at every second.",
        question="Do threads wait for a connection?",
        services=SERVICES,
        labels={"state": ("in_use", "idle")},
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
        name="amqp_reconnects_total",
        kind=Kind.COUNTER,
        help="Connections to the broker that ended or could not be opened, and were tried again. heartbeat: it was"
        " silent. closed_by_broker: it said goodbye, as at a restart. given_up: by us, as something on it was wrong.",
        question="Why do connections go?",
        services=SERVICES,
        labels={"reason": RECONNECTS},
    ),
    Metric(
        name="draining",
        kind=Kind.GAUGE,
        help="1 from SIGTERM on: it takes nothing more and finishes what it has.",
        question="Is a deploy in progress?",
        services=SERVICES,
    ),
    Metric(
        name="log_messages_total",
        kind=Kind.COUNTER,
        help="Lines logged as a warning, or as an error or worse.",
        question="Does a process complain more than it did?",
        services=SERVICES,
        labels={"level": ("warning", "error")},
    ),
    Metric(
        name="loop_last_success_timestamp_seconds",
        kind=Kind.GAUGE,
        help="Unix time of a loop's last turn without a bug, of several with one name the one that is furthest behind;"
        " absent before the first.",
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
        labels={"loop": ("schedule", "watch", "replay", "plans", "export", "canary")},
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
