"""The dashboard darkroom-overview: its first row answers whether somebody has to act, the others where to look.

Counters come from the workers and are summed; gauges of rows come from every replica of ops alike and are maxed.
"""

from typing import Final

from deploy.grafana.panels import Json, Panel, dashboard, rows
from deploy.grafana.queries import CHOSEN, OUTCOMES, RECENT, none, quantile

_STATUSES: Final = {"pending": "yellow", "submitting": "orange", "processing": "blue"}
_STAGES: Final = {"queue": "yellow", "submit": "orange", "execute": "blue", "detect": "red", "deliver": "text"}
_PERCENTS: Final = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))


_PROMISE: Final = [
    Panel(
        title="Broken promises",
        says="Rows that break one of the promises that `darkroom audit` checks. Anything above 0 is a bug: act now.",
        unit="short",
        kind="stat",
        queries=[("sum(max by (check) (darkroom_invariant_violations))", "rows")],
        alarm=1,
    ),
    Panel(
        title="Failed, last hour",
        leads_to="darkroom-slo",
        says="Share of the orders that ended as failed, among those that completed or failed.",
        unit="percentunit",
        kind="stat",
        queries=[
            (
                f'sum(increase(darkroom_orders_finished_total{{{CHOSEN},outcome="failed"}}[1h]))'
                f' / (sum(increase(darkroom_orders_finished_total{{{CHOSEN},outcome=~"completed|failed"}}[1h])) > 0)'
                " or vector(0)",
                "failed",
            )
        ],
        warn=0.01,
        alarm=0.144,
    ),
    Panel(
        title="Order p95",
        says="19 of 20 orders that completed lately took no longer, from the claim to the picture.",
        unit="s",
        kind="stat",
        queries=[(quantile(0.95, "darkroom_order_duration_seconds", matchers=',outcome="completed"'), "p95")],
        warn=180,
        alarm=300,
    ),
    Panel(
        title="Oldest waiting",
        says="How long the order that waits longest has been pending.",
        unit="s",
        kind="stat",
        queries=[('max(darkroom_task_oldest_age_seconds{status="pending"})', "pending")],
        warn=120,
        alarm=300,
    ),
    Panel(
        title="Time to drain",
        says="How long the slowest pool needs for what is pending now, at the pace of the last ten minutes.",
        unit="s",
        kind="stat",
        queries=[
            (
                'max(sum by (pool) (max by (pool, status) (darkroom_tasks{status="pending"}))'
                f" / (sum by (pool) (rate(darkroom_orders_finished_total{{{CHOSEN}}}[10m])) > 0))",
                "slowest pool",
            )
        ],
        warn=120,
        alarm=300,
    ),
    Panel(
        title="Dead letters open",
        says="What a person must decide: `darkroom dead list`.",
        unit="short",
        kind="stat",
        queries=[("sum(max by (stage, reason) (darkroom_dead_letters_open))", "open")],
        warn=1,
        alarm=10,
        leads_to="darkroom-deadletters",
    ),
]

_FLOW: Final = [
    Panel(
        title="Orders in and out",
        says="Accepted and finished orders per second. The gap between both lines is what piles up.",
        unit="ops",
        queries=[
            (f'sum(rate(darkroom_claims_total{{{CHOSEN},result="won"}}{RECENT}))', "accepted"),
            (f"sum by (outcome) (rate(darkroom_orders_finished_total{{{CHOSEN}}}{RECENT}))", "{{outcome}}"),
        ],
        colours=OUTCOMES,
    ),
    Panel(
        title="Unfinished orders",
        says="Rows by status. Many pending: too few slots. Many processing: a slow backend.",
        unit="short",
        queries=[("sum by (status) (max by (pool, status) (darkroom_tasks))", "{{status}}")],
        stacked=True,
        colours=_STATUSES,
    ),
    Panel(
        title="Duplicates stopped",
        says="Second pictures that did not happen, by the guard that stopped them.",
        unit="ops",
        queries=[(f"sum by (point) (rate(darkroom_duplicates_suppressed_total{{{CHOSEN}}}{RECENT}))", "{{point}}")],
    ),
]

_TIME: Final = [
    Panel(
        title="Order duration by pool",
        says="From the claim to the end, for orders that completed. The promise is 300 s.",
        unit="s",
        queries=[
            (
                quantile(q, "darkroom_order_duration_seconds", "pool", ',outcome="completed"'),
                f"{name} {{{{pool}}}}",
            )
            for name, q in _PERCENTS
        ],
        alarm=300,
    ),
    Panel(
        title="Mean time per stage",
        says="What a finished order spent in each step, all its attempts together: the sum is what its sender waited."
        " queue: too few slots. execute: a slow backend. detect: too few pollers. deliver: until its event is out.",
        unit="s",
        queries=[
            (
                f"sum by (stage) (rate(darkroom_order_stage_seconds_sum{{{CHOSEN}}}{RECENT})) / on () group_left ()"
                f' (sum(rate(darkroom_orders_finished_total{{{CHOSEN},outcome!="refused"}}{RECENT})) > 0)',
                "{{stage}}",
            )
        ],
        stacked=True,
        colours=_STAGES,
    ),
    Panel(
        title="Backend calls p95",
        says="How long a call to a backend takes, by operation.",
        unit="s",
        queries=[
            (
                quantile(0.95, "darkroom_backend_request_seconds", "backend, operation"),
                "{{backend}} {{operation}}",
            )
        ],
    ),
    Panel(
        title="Detection p95",
        says="From the moment a picture was ready to our commit. Above 10 s: too few pollers, or a lost websocket.",
        unit="s",
        queries=[(quantile(0.95, "darkroom_completion_detection_seconds", "backend"), "{{backend}}")],
        alarm=10,
    ),
]

_LOAD: Final = "max by (backend) (darkroom_backend_inflight_tasks) / max by (backend) (darkroom_backend_capacity_tasks)"

_BACKENDS: Final = [
    Panel(
        title="In flight / capacity",
        says="Full is good while orders wait; above 100 % the limit is broken.",
        unit="percentunit",
        kind="bargauge",
        queries=[(_LOAD, "{{backend}}")],
        warn=0.8,
        alarm=1.001,
        maximum=1,
        leads_to="darkroom-backend",
        for_label="backend",
    ),
    Panel(
        title="In flight / capacity over time",
        says="Whether one backend idles while another one is full.",
        unit="percentunit",
        queries=[(_LOAD, "{{backend}}")],
        alarm=1.001,
    ),
    Panel(
        title="Up",
        leads_to="darkroom-backend",
        for_label="backend",
        says="What the last look at each backend found. `darkroom backend list` says why one is down.",
        unit="none",
        kind="stat",
        queries=[("max by (backend) (darkroom_backend_up)", "{{backend}}")],
        alarm_below=1,
        mapped={"0": ("down", "red"), "1": ("up", "green")},
    ),
    Panel(
        title="Calls that failed",
        says="By class: 429 asks for a lower rate, 5xx is the backend's, connect and timeout are the network's.",
        unit="ops",
        queries=[
            (
                f'sum by (backend, result) (rate(darkroom_backend_requests_total{{{CHOSEN},result!="ok"}}{RECENT})) > 0'
                f" or {none('result')}",
                "{{backend}} {{result}}",
            )
        ],
    ),
]

_FAILURES: Final = [
    Panel(
        title="Dead letters per 10 minutes",
        says="By reason; the README says what each means. One reason alone is often one broken workflow.",
        unit="short",
        queries=[
            (
                f"sum by (reason) (increase(darkroom_dead_letters_total{{{CHOSEN}}}[10m])) > 0 or {none('reason')}",
                "{{reason}}",
            )
        ],
        stacked=True,
    ),
    Panel(
        title="Moves refused",
        says="stale: two workers met at one row and one gave way, which is fine. forbidden: a bug.",
        unit="ops",
        queries=[
            (f'sum by (result) (rate(darkroom_transitions_total{{{CHOSEN},result!="applied"}}{RECENT}))', "{{result}}"),
        ],
        colours={"forbidden": "red", "stale": "yellow"},
    ),
    Panel(
        title="Overdue rows",
        says="More than 10 s past a bound. poll and follow_up: the scheduler does not keep up. lease: submitters died.",
        unit="short",
        queries=[("max by (bound) (darkroom_tasks_overdue)", "{{bound}}")],
    ),
    Panel(
        title="Retries",
        says="Attempts that ended while their order goes on, by what ended them.",
        unit="ops",
        queries=[
            (
                f"sum by (stage, reason) (rate(darkroom_retries_total{{{CHOSEN}}}{RECENT})) > 0 or {none('reason')}",
                "{{stage}} {{reason}}",
            )
        ],
    ),
    Panel(
        title="Taken over, and doubts",
        says="Rows and messages of workers that ended, and attempts that may have run twice.",
        unit="ops",
        queries=[
            (f'sum(rate(darkroom_claims_total{{{CHOSEN},result="reclaimed"}}{RECENT}))', "taken over"),
            (f"sum(rate(darkroom_message_redeliveries_total{{{CHOSEN}}}{RECENT}))", "redelivered"),
            (f"sum(rate(darkroom_possible_double_total{{{CHOSEN}}}{RECENT}))", "possible double"),
        ],
        colours={"possible double": "red"},
    ),
]

_PLUMBING: Final = [
    Panel(
        title="Messages ready",
        says="Waiting in each queue. Orders wait in the table, so a queue that grows lacks consumers.",
        unit="short",
        queries=[("sum by (queue) (rabbitmq_detailed_queue_messages_ready)", "{{queue}}")],
    ),
    Panel(
        title="Consumers",
        says="Per queue. None on submit.* is right while all backends of its pool are down or paused; else a fault.",
        unit="short",
        kind="stat",
        queries=[("sum by (queue) (rabbitmq_detailed_queue_consumers)", "{{queue}}")],
        alarm_below=1,
    ),
    Panel(
        title="Broker",
        says="Services without a connection, services that may not publish, the broker's own alarms: all must be 0.",
        unit="short",
        kind="stat",
        queries=[
            (f"sum(1 - darkroom_amqp_connected{{{CHOSEN}}})", "not connected"),
            (f"sum(darkroom_amqp_blocked{{{CHOSEN}}})", "blocked"),
            ("max(rabbitmq_alarms_memory_used_watermark)", "memory alarm"),
            ("max(rabbitmq_alarms_free_disk_space_watermark)", "disk alarm"),
        ],
        alarm=1,
    ),
]

_HOUSE: Final = [
    Panel(
        title="Database connections",
        says="Client connections of PostgreSQL, ours and others', and how many it takes. Above 80 % the next may fail.",
        unit="short",
        queries=[("max by (kind) (darkroom_database_connections)", "{{kind}}")],
        colours={"open": "blue", "limit": "red"},
    ),
    Panel(
        title="Poll lag p95",
        says="From the moment a row came due to the scheduler's taking it. Above 10 s: too few pollers.",
        unit="s",
        queries=[(quantile(0.95, "darkroom_poll_lag_seconds", "pool"), "{{pool}}")],
        alarm=10,
    ),
    Panel(
        title="Age of loops and numbers",
        leads_to="darkroom-workers",
        says="Seconds since each loop turned and since the database answered the exporter.",
        unit="s",
        queries=[
            (
                f"max by (job, loop) (time() - darkroom_loop_last_success_timestamp_seconds{{{CHOSEN}}})",
                "{{job}} {{loop}}",
            ),
            (
                "min by (question) (time() - darkroom_state_last_success_timestamp_seconds)",
                "{{question}}",
            ),
        ],
        alarm=120,
    ),
]


def overview() -> Json:
    """The whole dashboard. Pure."""
    return dashboard(
        "darkroom-overview",
        "darkroom: overview",
        "Do I need to act, and where?",
        rows(
            [
                ("Promise", 4, _PROMISE),
                ("Flow", 8, _FLOW),
                ("Time", 8, _TIME),
                ("Backends", 8, _BACKENDS),
                ("Failures", 8, _FAILURES),
                ("Plumbing", 8, _PLUMBING),
                ("House", 8, _HOUSE),
            ]
        ),
    )
