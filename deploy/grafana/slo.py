"""The dashboard darkroom-slo: what is left of the error budgets of 30 days, and how fast they burn; orders by pool."""

from typing import Final

from deploy.grafana.panels import Json, Panel, dashboard, rows

#: Shares of orders that may fail, and that may take over 300 s, and of the producers' publishes that may stay without a
#: confirm; the alerts of deploy/prometheus count with the same.
FAILED_BUDGET: Final = 0.01
SLOW_BUDGET: Final = 0.05
UNCONFIRMED_BUDGET: Final = 0.001

_WINDOWS: Final = ("5m", "30m", "1h", "6h", "3d")
_FINISHED: Final = 'darkroom_orders_finished_total{outcome=~"completed|failed"}[30d]'
_DURATION: Final = "darkroom_order_duration_seconds"

_FAILED: Final = (
    'sum by (pool) (increase(darkroom_orders_finished_total{outcome="failed"}[30d]))'
    f" / (sum by (pool) (increase({_FINISHED})) > 0)"
)
_SLOW: Final = (
    f'1 - sum by (pool) (increase({_DURATION}_bucket{{outcome="completed",le="300.0"}}[30d]))'
    f' / (sum by (pool) (increase({_DURATION}_count{{outcome="completed"}}[30d])) > 0)'
)
_UNCONFIRMED: Final = (
    'sum(increase(darkroom_publishes_total{job="producer",result!="confirmed"}[30d]))'
    ' / (sum(increase(darkroom_publishes_total{job="producer"}[30d])) > 0)'
)


def _left(title: str, says: str, share: str, budget: float, *, legend: str = "{{pool}}") -> Panel:
    return Panel(
        title=title,
        says=says,
        unit="percentunit",
        kind="bargauge",
        queries=[(f"1 - ({share}) / {budget}", legend)],
        alarm_below=0,
        maximum=1,
    )


def _burn(title: str, says: str, recorded: str, budget: float, page_at: float, *, legend: str = "{{pool}}") -> Panel:
    return Panel(
        title=title,
        says=says,
        unit="none",
        queries=[(f"{recorded}{window} / {budget}", f"{legend} {window}") for window in _WINDOWS],
        warn=1,
        alarm=page_at,
    )


_BUDGETS: Final = [
    _left(
        "Left for failed orders",
        "Of the 1 % of 30 days, or of as long as Prometheus keeps. Below 0 the promise is broken.",
        _FAILED,
        FAILED_BUDGET,
    ),
    _left(
        "Left for late orders",
        "Of the 5 % of 30 days that may take over 300 s. Only orders that end are counted.",
        _SLOW,
        SLOW_BUDGET,
    ),
    _left(
        "Left for unconfirmed publishes",
        "Of the 0.1 % of 30 days. Publishes of producers that the broker refused, returned or did not confirm in time.",
        _UNCONFIRMED,
        UNCONFIRMED_BUDGET,
        legend="producers",
    ),
    Panel(
        title="Finished in 30 days",
        says="Completed or failed. Refused and cancelled orders belong to no budget.",
        unit="short",
        kind="stat",
        queries=[(f"sum by (pool) (increase({_FINISHED}))", "{{pool}}")],
    ),
]

_BURN: Final = [
    _burn(
        "Burn of the budget for failures",
        "1 uses the budget up in exactly 30 days. Long and short window together above 14.4 (1 h) or 6 (6 h) page.",
        "darkroom:order_errors:ratio_rate",
        FAILED_BUDGET,
        6,
    ),
    _burn(
        "Burn of the budget for lateness",
        "1 uses the budget up in exactly 30 days. Long and short window together above 6 (1 h) or 3 (6 h) page.",
        "darkroom:order_slow:ratio_rate",
        SLOW_BUDGET,
        3,
    ),
    _burn(
        "Burn of the budget for unconfirmed publishes",
        "1 uses the budget up in exactly 30 days. Long and short window together above 14.4 (1 h) or 6 (6 h) page.",
        "darkroom:publish_errors:ratio_rate",
        UNCONFIRMED_BUDGET,
        6,
        legend="producers",
    ),
]

_LEADING: Final = [
    Panel(
        title="Finished per hour",
        says="A burn needs 10, 20 or 50 finished orders in its long window, or one failure at night would page.",
        unit="short",
        queries=[("darkroom:orders_finished:increase1h", "{{pool}}")],
    ),
    Panel(
        title="Time to drain",
        says="How long each pool needs for what is pending at its pace. Rises long before late orders have ended.",
        unit="s",
        queries=[("darkroom:drain:seconds", "{{pool}}")],
        alarm=300,
    ),
    Panel(
        title="Oldest waiting",
        says="How long the order that waits longest has been pending, by pool.",
        unit="s",
        queries=[('max by (pool) (darkroom_task_oldest_age_seconds{status="pending"})', "{{pool}}")],
        alarm=300,
    ),
]


_CANARY: Final = [
    Panel(
        title="Since the last canary order",
        says="One is sent every minute. The page comes at 300 s. Empty: no backend of adapter canary.",
        unit="s",
        kind="stat",
        queries=[("time() - max by (probe) (darkroom_probe_last_success_timestamp_seconds)", "{{probe}}")],
        warn=120,
        alarm=300,
    ),
    Panel(
        title="Canary order",
        says="How long it took from its publish to its confirmed event: the way itself, without a server.",
        unit="s",
        queries=[("max by (probe) (darkroom_probe_duration_seconds)", "{{probe}}")],
    ),
]


def slo() -> Json:
    """The whole dashboard. Pure."""
    return dashboard(
        "darkroom-slo",
        "darkroom: promises and budgets",
        "Do we keep what we promise, and for how long at this pace?",
        rows(
            [
                ("Budgets of 30 days", 7, _BUDGETS),
                ("Burn", 9, _BURN),
                ("What comes next", 8, _LEADING),
                ("Canary", 6, _CANARY),
            ]
        ),
    )
