"""The dashboard darkroom-backend: one server or provider account, or all of them beside each other."""

from typing import Final

from deploy.grafana.panels import Json, Panel, choice, dashboard, rows
from deploy.grafana.queries import none, quantile, rate

_THIS: Final = '{backend=~"$backend"}'
_MATCHED: Final = ',backend=~"$backend"'
_PERCENTS: Final = (("p50", 0.5), ("p95", 0.95))


def _now(metric: str) -> str:
    return f"max by (backend) ({metric}{_THIS})"


_ENDED: Final = '"done|failed|missing"'

_STATE: Final = [
    Panel(
        title="Up",
        says="What the last look found. `darkroom backend list` says why one is down.",
        kind="stat",
        queries=[(_now("darkroom_backend_up"), "{{backend}}")],
        alarm_below=1,
        mapped={"0": ("down", "red"), "1": ("up", "green")},
    ),
    Panel(
        title="Account",
        says="Refused: no money or no valid key. Its orders wait, and one of them asks again now and then.",
        kind="stat",
        queries=[(_now("darkroom_backend_account_refused"), "{{backend}}")],
        alarm=1,
        mapped={"0": ("good", "green"), "1": ("refused", "red")},
    ),
    Panel(
        title="Results at risk",
        says="Paid jobs that nobody has looked at for half of the time for which the provider keeps a result.",
        unit="short",
        kind="stat",
        queries=[(_now("darkroom_results_at_risk"), "{{backend}}")],
        alarm=1,
    ),
    Panel(
        title="Possible doubles, last hour",
        says="Attempts for which the provider may have worked twice.",
        unit="short",
        kind="stat",
        queries=[
            (
                'sum by (backend) (increase(darkroom_possible_double_total{job=~"$job",instance=~"$instance"'
                f"{_MATCHED}}}[1h]))",
                "{{backend}}",
            )
        ],
        warn=1,
    ),
]

_LOAD: Final = [
    Panel(
        title="In flight",
        says="Rows that occupy a slot, over all workers.",
        unit="short",
        queries=[(_now("darkroom_backend_inflight_tasks"), "{{backend}}")],
    ),
    Panel(
        title="Limit and capacity",
        says="The limit falls below the capacity after the provider answered 429, and rises again by one at a time.",
        unit="short",
        queries=[
            (_now("darkroom_backend_limit_tasks"), "{{backend}} limit"),
            (_now("darkroom_backend_capacity_tasks"), "{{backend}} capacity"),
        ],
    ),
    Panel(
        title="Backends of each pool",
        says="By whether they take work. A pool with none working makes nothing.",
        unit="short",
        queries=[("max by (pool, state) (darkroom_pool_backends)", "{{pool}} {{state}}")],
        stacked=True,
    ),
]

_CALLS: Final = [
    Panel(
        title="Calls by operation",
        says="poll: one call asks about all running jobs of a backend.",
        unit="ops",
        queries=[
            (rate("darkroom_backend_requests_total", "backend, operation", _MATCHED), "{{backend}} {{operation}}")
        ],
    ),
    Panel(
        title="Calls that failed",
        says="By class: 429 asks for a lower rate, 5xx is the backend's, connect and timeout are the network's.",
        unit="ops",
        queries=[
            (
                rate("darkroom_backend_requests_total", "backend, operation, result", f'{_MATCHED},result!="ok"')
                + f" > 0 or {none('result')}",
                "{{backend}} {{operation}} {{result}}",
            )
        ],
    ),
    Panel(
        title="Answers nobody knows",
        says="States that no table maps; each was read as still running. Map them.",
        unit="ops",
        queries=[(rate("darkroom_unknown_states_total", "backend", _MATCHED), "{{backend}}")],
    ),
]

_TIME: Final = [
    Panel(
        title="Submit",
        says="How long the POST of one job takes.",
        unit="s",
        queries=[
            (
                quantile(q, "darkroom_backend_request_seconds", "backend", f'{_MATCHED},operation="submit"'),
                f"{{{{backend}}}} {name}",
            )
            for name, q in _PERCENTS
        ],
    ),
    Panel(
        title="Poll and download p95",
        says="Slow answers here delay every job of the backend.",
        unit="s",
        queries=[
            (
                quantile(
                    0.95,
                    "darkroom_backend_request_seconds",
                    "backend, operation",
                    f'{_MATCHED},operation=~"poll|download"',
                ),
                "{{backend}} {{operation}}",
            )
        ],
    ),
    Panel(
        title="Detection p95",
        says="From the moment a picture was ready to our commit, by what made us look.",
        unit="s",
        queries=[
            (quantile(0.95, "darkroom_completion_detection_seconds", "backend, via", _MATCHED), "{{backend}} {{via}}")
        ],
        alarm=10,
    ),
    Panel(
        title="Wrong clocks",
        says="Pictures that a backend says were finished after we had them. Its clock or ours is wrong, and so is the"
        " detection.",
        unit="ops",
        queries=[(rate("darkroom_clock_skew_total", "backend", _MATCHED), "{{backend}}")],
    ),
]


_WORK: Final = [
    Panel(
        title="Wait for a start p95",
        says="By pool and by what kept free rows: slot: all in use. rate: too soon. closed: no backend takes work."
        " permit: no submitter asked.",
        unit="s",
        queries=[(quantile(0.95, "darkroom_backend_wait_seconds", "pool, reason"), "{{pool}} {{reason}}")],
    ),
    Panel(
        title="Run of a job",
        says="By pool, from the accepted POST to the backend's own finish stamp, or to our commit where it gives none.",
        unit="s",
        queries=[
            (
                quantile(q, "darkroom_order_stage_seconds", "pool", ',stage="execute"'),
                f"{{{{pool}}}} {name}",
            )
            for name, q in _PERCENTS
        ],
    ),
    Panel(
        title="Looks per ended job",
        says="Looks at jobs for each that turned out to have ended. One call may look at many.",
        unit="none",
        queries=[
            (
                rate("darkroom_polls_total", "backend", _MATCHED)
                + f" / ({rate('darkroom_polls_total', 'backend', f'{_MATCHED},result=~{_ENDED}')} > 0)",
                "{{backend}}",
            )
        ],
    ),
    Panel(
        title="Attempts per order",
        says="Of orders that completed or failed, by pool. Above 1 they need retries.",
        unit="none",
        queries=[
            (
                rate("darkroom_task_attempts_sum", "pool") + f" / ({rate('darkroom_task_attempts_count', 'pool')} > 0)",
                "{{pool}}",
            )
        ],
    ),
    Panel(
        title="Pictures kept",
        says="Bytes per second that the store grows by, by pool.",
        unit="Bps",
        queries=[(rate("darkroom_artifact_bytes_sum", "pool"), "{{pool}}")],
    ),
]


def backend() -> Json:
    """The whole dashboard. Pure."""
    return dashboard(
        "darkroom-backend",
        "darkroom: backend",
        "Is it the backend, the network or us?",
        rows([("State", 5, _STATE), ("Load", 8, _LOAD), ("Calls", 8, _CALLS), ("Time", 8, _TIME), ("Jobs", 8, _WORK)]),
        [choice("backend", "Backend", "label_values(darkroom_backend_capacity_tasks, backend)")],
    )
