"""The dashboard darkroom-deadletters: what a person must decide, how it came, and the commands that decide it."""

from typing import Final

from deploy.grafana.panels import Json, Panel, dashboard, rows
from deploy.grafana.queries import CHOSEN, OUTCOMES, none, rate

_OPEN: Final = "max by (stage, reason) (darkroom_dead_letters_open)"
#: A reload of the page must not make the table flicker, so a row that is no longer above 0 simply goes.
_TABLE: Final = f"{_OPEN} > 0 or {none('reason')}"

_COMMANDS: Final = """\
    darkroom dead groups                    # what died, how many of a kind, since when; orders or a backend
    darkroom dead show 17                   # one letter: its text, its row, its attempts
    darkroom dead plan --all --group GROUP  # what a replay would do; `dead apply PLAN` does it
    darkroom dead discard 17 --why "..."    # nobody needs it any more
    darkroom order trace ID                 # the whole story of one order

A replay makes no second picture of an order that has one. docs/runbooks.md goes through a night with 300 letters.
"""

_DECIDE: Final = [
    Panel(
        title="Open",
        says="Letters that nobody has replayed or discarded.",
        unit="short",
        kind="stat",
        queries=[(f"sum({_OPEN})", "open")],
        warn=1,
        alarm=10,
    ),
    Panel(
        title="Open, by stage and reason",
        says="One reason alone is often one broken workflow, one backend or one deploy.",
        unit="short",
        kind="table",
        queries=[(_TABLE, "{{stage}} {{reason}}")],
    ),
    Panel(title="What to do", says=_COMMANDS, kind="text"),
]

_ARRIVALS: Final = [
    Panel(
        title="Recorded per 10 minutes",
        says="By reason. Ten in ten minutes page.",
        unit="short",
        queries=[
            (
                f"sum by (reason) (increase(darkroom_dead_letters_total{{{CHOSEN}}}[10m])) > 0 or {none('reason')}",
                "{{reason}}",
            )
        ],
        stacked=True,
        alarm=10,
    ),
    Panel(
        title="Open over time",
        says="A replay lowers it; what fails again comes back.",
        unit="short",
        queries=[
            (
                f"sum by (reason) (max by (stage, reason) (darkroom_dead_letters_open)) > 0 or {none('reason')}",
                "{{reason}}",
            )
        ],
        stacked=True,
    ),
    Panel(
        title="Replays",
        says="By what has become of them, since the beginning. published: a letter without a row, sent to the queue of"
        " orders again.",
        unit="short",
        queries=[("max by (result) (darkroom_dead_letter_replays)", "{{result}}")],
        colours=OUTCOMES,
    ),
]

_WAY: Final = [
    Panel(
        title="Not yet recorded",
        says="Letters in the broker's dead queues. They are recorded within seconds unless the collector stopped.",
        unit="short",
        queries=[('sum by (queue) (rabbitmq_detailed_queue_messages_ready{queue=~".+\\\\.dead"})', "{{queue}}")],
        alarm=1,
    ),
    Panel(
        title="Buried by handlers",
        says="Deliveries that ended in a dead queue, by the queue they came from.",
        unit="ops",
        queries=[(rate("darkroom_messages_total", "queue", ',result="dead_lettered"'), "{{queue}}")],
    ),
    Panel(
        title="Orders that ended badly",
        says="failed: a letter of each is above. refused: nobody could have made what the order asks for.",
        unit="ops",
        queries=[
            (
                rate("darkroom_orders_finished_total", "pool, outcome", ',outcome=~"failed|refused"'),
                "{{pool}} {{outcome}}",
            )
        ],
    ),
]


def dead_letters() -> Json:
    """The whole dashboard. Pure."""
    return dashboard(
        "darkroom-deadletters",
        "darkroom: dead letters",
        "What must a person decide?",
        rows([("Decide", 8, _DECIDE), ("Arrivals", 8, _ARRIVALS), ("The way here", 8, _WAY)]),
    )
