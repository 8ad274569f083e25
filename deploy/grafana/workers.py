"""The dashboard darkroom-workers: the processes themselves, their broker, their database."""

from typing import Final

from deploy.grafana.panels import Json, Panel, dashboard, rows
from deploy.grafana.queries import CHOSEN, none, quantile, rate

_WHO: Final = "{{job}} {{instance}}"

_PROCESSES: Final = [
    Panel(
        title="Connected to the broker",
        says="A process without a connection holds what it has and tries again.",
        kind="stat",
        queries=[(f"min by (job) (darkroom_amqp_connected{{{CHOSEN}}})", "{{job}}")],
        alarm_below=1,
        mapped={"0": ("no", "red"), "1": ("yes", "green")},
    ),
    Panel(
        title="May publish",
        says="The broker blocks publishers while it is short of memory or disk.",
        kind="stat",
        queries=[(f"max by (job) (darkroom_amqp_blocked{{{CHOSEN}}})", "{{job}}")],
        alarm=1,
        mapped={"0": ("yes", "green"), "1": ("blocked", "red")},
    ),
    Panel(
        title="Starts, last hour",
        says="How often a process on this address began anew.",
        unit="short",
        kind="stat",
        queries=[(f"max by (job) (changes(process_start_time_seconds{{{CHOSEN}}}[1h]))", "{{job}}")],
        warn=1,
        alarm=4,
    ),
    Panel(
        title="Draining",
        says="A process that was told to stop finishes what it has. All of a service at once: nobody does its work.",
        kind="stat",
        queries=[(f"max by (job) (darkroom_draining{{{CHOSEN}}})", "{{job}}")],
        warn=1,
        mapped={"0": ("no", "green"), "1": ("yes", "orange")},
    ),
    Panel(
        title="Builds",
        says="Which build runs where. Two at once: a deploy is under way, or one was forgotten.",
        unit="short",
        kind="table",
        queries=[(f"max by (job, instance, version, revision, python) (darkroom_build_info{{{CHOSEN}}})", _WHO)],
    ),
]

_LOOPS: Final = [
    Panel(
        title="Age of loops",
        says="Seconds since each loop turned. The watchdog ends a process whose loop hangs.",
        unit="s",
        queries=[
            (
                f"max by (job, loop) (time() - darkroom_loop_last_success_timestamp_seconds{{{CHOSEN}}})",
                "{{job}} {{loop}}",
            )
        ],
        alarm=120,
    ),
    Panel(
        title="Turns that ended in a bug",
        says="The loop goes on after a pause; the log has the traceback.",
        unit="ops",
        queries=[(rate("darkroom_loop_bugs_total", "job, loop"), "{{job}} {{loop}}")],
    ),
    Panel(
        title="Poll lag p95",
        says="How late rows that came due are looked at. Above 10 s: too few pollers or a slow database.",
        unit="s",
        queries=[(quantile(0.95, "darkroom_poll_lag_seconds", "pool"), "{{pool}}")],
        alarm=10,
    ),
]

_MESSAGES: Final = [
    Panel(
        title="Deliveries settled",
        says="By queue.",
        unit="ops",
        queries=[(rate("darkroom_messages_total", "queue"), "{{queue}}")],
    ),
    Panel(
        title="Time in hand p95",
        says="From a delivery's arrival to its verdict. Permits wait in hand for a slot; orders and checks should not.",
        unit="s",
        queries=[(quantile(0.95, "darkroom_message_handle_seconds", "queue"), "{{queue}}")],
    ),
    Panel(
        title="Redeliveries",
        says="Messages that came back because a worker ended with them in hand.",
        unit="ops",
        queries=[(rate("darkroom_message_redeliveries_total", "queue"), "{{queue}}")],
    ),
    Panel(
        title="In hand",
        says="Deliveries that workers hold, as the broker counts them. Permits wait in hand for a slot.",
        unit="short",
        queries=[("sum by (queue) (rabbitmq_detailed_queue_messages_unacked)", "{{queue}}")],
    ),
]

_PUBLISHING: Final = [
    Panel(
        title="Publishes",
        says="By what the broker answered. Anything but confirmed is tried again.",
        unit="ops",
        queries=[(rate("darkroom_publishes_total", "result"), "{{result}}")],
        colours={"confirmed": "green", "nacked": "red", "returned": "orange", "timeout": "red"},
    ),
    Panel(
        title="Confirm p95",
        says="From a publish to the broker's confirm. A slow disk of the broker shows here first.",
        unit="s",
        queries=[(quantile(0.95, "darkroom_publish_confirm_seconds", "job"), "{{job}}")],
    ),
    Panel(
        title="Reconnects",
        says="Connections to the broker that were made again, by why the last one went.",
        unit="ops",
        queries=[
            (rate("darkroom_amqp_reconnects_total", "job, reason") + f" > 0 or {none('reason')}", "{{job}} {{reason}}")
        ],
    ),
    Panel(
        title="Rows taken over",
        says="Their lease had ended: a submitter died, or was slower than its lease.",
        unit="ops",
        queries=[(rate("darkroom_claims_total", "pool", ',result="reclaimed"'), "{{pool}}")],
    ),
]

_SAID: Final = [
    Panel(
        title="Warnings and errors",
        says="Lines logged. An error is for a person to look at.",
        unit="ops",
        queries=[(rate("darkroom_log_messages_total", "job, level") + f" > 0 or {none('level')}", "{{job}} {{level}}")],
    ),
    Panel(
        title="Transactions p95",
        says="By what they are for; each serves a batch. All of them slow: PostgreSQL or its disk.",
        unit="s",
        queries=[(quantile(0.95, "darkroom_database_seconds", "operation"), "{{operation}}")],
    ),
    Panel(
        title="Connections in use",
        says="Of all processes of a service, beside those that wait to be used.",
        unit="short",
        queries=[(f"sum by (job, state) (darkroom_database_pool_connections{{{CHOSEN}}})", "{{job}} {{state}}")],
    ),
]

_HOST: Final = [
    Panel(
        title="Memory",
        says="Resident. A steady climb is a leak.",
        unit="bytes",
        queries=[(f"max by (job, instance) (process_resident_memory_bytes{{{CHOSEN}}})", _WHO)],
    ),
    Panel(
        title="CPU",
        says="Cores in use; one process cannot use much more than one.",
        unit="none",
        queries=[(f"sum by (job) (rate(process_cpu_seconds_total{{{CHOSEN}}}[$__rate_interval]))", "{{job}}")],
    ),
    Panel(
        title="Open files",
        says="Sockets included.",
        unit="short",
        queries=[(f"max by (job, instance) (process_open_fds{{{CHOSEN}}})", _WHO)],
    ),
    Panel(
        title="Database",
        says="Connections of PostgreSQL, ours and others', beside its limit.",
        unit="short",
        queries=[("max by (kind) (darkroom_database_connections)", "{{kind}}")],
    ),
    Panel(
        title="Database errors",
        says="deadlock, serialization and lock_timeout were repeated; other is a bug.",
        unit="ops",
        queries=[
            (
                rate("darkroom_database_errors_total", "error_class") + f" > 0 or {none('error_class')}",
                "{{error_class}}",
            )
        ],
        colours={"other": "red"},
    ),
]


def workers() -> Json:
    """The whole dashboard. Pure."""
    return dashboard(
        "darkroom-workers",
        "darkroom: workers",
        "Are the processes well?",
        rows(
            [
                ("Processes", 6, _PROCESSES),
                ("Loops", 8, _LOOPS),
                ("Messages", 8, _MESSAGES),
                ("Publishing and takeovers", 8, _PUBLISHING),
                ("Log and database", 8, _SAID),
                ("Resources", 8, _HOST),
            ]
        ),
    )
