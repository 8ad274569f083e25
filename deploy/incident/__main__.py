"""`make incident`: a ComfyUI server dies under load, the alert fires for real, the server comes back.

Prints what was seen when: by Prometheus, and what Alertmanager sent to whom. Exit status 0 only if the alert fired,
was sent, resolved, and every order became one picture. About two minutes.

The rules and routes are those that ship, but that everything they wait for is a twelfth: an alert that waits for two
minutes waits for ten seconds here, and is evaluated every second instead of every thirty.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from rich.console import Console

from deploy.demo.orders import PHOTOS
from deploy.demo.running import all_as_expected
from deploy.demo.system import System
from deploy.incident import scaled
from deploy.incident.monitoring import Monitoring, about
from deploy.incident.shop import EVERY_SECONDS, Shop
from deploy.incident.timeline import Timeline
from deploy.local.children import NotStarted
from deploy.local.interrupted import end_with
from deploy.local.ports import LOOPBACK
from deploy.local.problem import StackProblem
from deploy.local.stack import ROOT, Stack
from shared.database.audit import count_violations
from shared.database.engine import connect
from shared.database.migrate import upgrade
from shared.database.tasks import Tasks
from shared.domain.task import Status
from shared.observe import metrics

_VICTIM: Final = 2
_ALERT: Final = ("BackendDown", f"gpu-{_VICTIM}")
#: The demo looks at jobs twice a second. Whoever looks less often has more in hand when a server dies.
_UNHURRIED: Final = {"DARKROOM_CHECK_INTERVAL_SECONDS": "5"}
_SECONDS_PER_IMAGE: Final = 0.8
_CALM_SECONDS: Final = 15.0
_FIRES_WITHIN: Final = 75.0
_RESOLVES_WITHIN: Final = 75.0
_ENDS_WITHIN: Final = 60.0


class Incident:
    """One run. Raises nothing of its own: what did not happen in time is missing in the timeline."""

    def __init__(self, console: Console, stack: Stack, system: System, monitoring: Monitoring) -> None:
        self._stack = stack
        self._system = system
        self._monitoring = monitoring
        self._timeline = Timeline(console)
        self._states: dict[tuple[str, str], str] = {}
        self._told = 0
        self._shop = Shop(stack)

    def run(self) -> dict[str, tuple[object, object]]:
        """What was found and what it must be, by name."""
        say = self._timeline.say
        try:
            self._shop.open()
            say("shop", f"orders a picture every {EVERY_SECONDS:g} s")
            self._watch_until(lambda: False, _CALM_SECONDS)
            calm = {alert for alert, _ in self._states} - {"Watchdog"}
            say("Prometheus", f"fires {', '.join(sorted(calm)) or 'nothing but Watchdog'}")
            self._system.kill(f"comfyui-{_VICTIM}")
            say("we", f"kill gpu-{_VICTIM} with SIGKILL, with what it had in hand")
            fired = self._watch_until(lambda: self._was_sent("firing"), _FIRES_WITHIN)
            self._system.start_again(f"comfyui-{_VICTIM}")
            say("we", f"start gpu-{_VICTIM} again")
            resolved = fired and self._watch_until(lambda: self._was_sent("resolved"), _RESOLVES_WITHIN)
        finally:
            self._shop.close()
        placed = len(self._shop.placed)
        say("shop", f"has placed {placed} orders and stops")
        tasks = Tasks(connect(self._stack.database_url, pool_size=1), "incident", metrics.build("producer"))
        ids = [order.task_id for order in self._shop.placed]

        def ended() -> bool:
            rows = tasks.get(ids)
            return len(rows) == placed and all(row.status.is_final for row in rows.values())

        self._watch_until(ended, _ENDS_WITHIN)
        rows = tasks.get(ids)
        by_status = Counter(row.status for row in rows.values())
        again = sum(row.attempt > 1 for row in rows.values())
        say("shop", f"{by_status[Status.COMPLETED]} of {placed} are completed, {again} of them at another try")
        engine = connect(self._stack.database_url, pool_size=1)
        broken = sum(count_violations(engine, 3600.0).values())
        engine.dispose()
        return {
            "alerts while it was calm": (len(calm), 0),
            f"{' '.join(_ALERT)} fired and was sent": (fired, True),
            "and resolved": (resolved, True),
            "orders completed": (by_status[Status.COMPLETED], placed),
            "promises broken": (broken, 0),
        }

    def _was_sent(self, status: str) -> bool:
        notes = self._monitoring.pager.notes
        return any((note.alert, about(note.labels)) == _ALERT and note.status == status for note in notes)

    def _watch_until(self, happened: Callable[[], bool], within_seconds: float) -> bool:
        """Write down what Prometheus and Alertmanager say meanwhile; whether it happened in time."""
        deadline = time.monotonic() + within_seconds
        while not (done := happened()) and time.monotonic() < deadline:
            self._look()
            time.sleep(0.2)
        self._look()
        return done

    def _look(self) -> None:
        before, self._states = self._states, self._monitoring.alerts()
        for alert in sorted({*before, *self._states}):
            state = self._states.get(alert, "over")
            if state != before.get(alert) and alert[0] != "Watchdog":
                self._timeline.say("Prometheus", f"{' '.join(alert).strip()} is {state}")
        notes = self._monitoring.pager.notes
        for note in notes[self._told :]:
            if note.alert != "Watchdog":
                what = f"tells {note.receiver}: {note.status} {note.alert}, {note.summary}"
                self._timeline.say("Alertmanager", what, note.at)
        self._told = len(notes)


def main() -> int:
    console = Console()
    folder = ROOT / ".local" / "incident"
    stack = Stack(folder, say=lambda text: console.print(f"[dim]{text}[/dim]"))
    stack.down(wipe=True)  # what an interrupted run left
    for name in ("logs", "monitoring", "pictures"):
        shutil.rmtree(folder / name, ignore_errors=True)
    system = System(stack, folder / "logs", folder / "pictures", PHOTOS, more=_UNHURRIED)
    monitoring: Monitoring | None = None
    try:
        stack.up()
        upgrade(stack.database_url)
        console.print("[dim]starting two simulated ComfyUI servers, the services, Prometheus and Alertmanager[/dim]")
        system.start(simulated_seconds=_SECONDS_PER_IMAGE)
        monitoring = Monitoring(folder / "monitoring", _targets(stack, system))
        monitoring.start()
        console.print(
            f"The rules that ship, but each alert waits for 1/{scaled.FACTOR} of its time and is evaluated every"
            f" {scaled.EVALUATION_SECONDS} s; Alertmanager groups for 1/{scaled.FACTOR} of its time, too."
        )
        console.print("[dim]waiting until every target has been scraped[/dim]")
        monitoring.wait_until_calm()
        found = Incident(console, stack, system, monitoring).run()
        fine = all_as_expected(console, found, {}, title="What came of it")
        console.print(f"Logs           {folder / 'logs'}\nRules, routes  {folder / 'monitoring'}", soft_wrap=True)
        return 0 if fine else 1
    finally:
        if monitoring is not None:
            monitoring.stop()
        system.stop()
        stack.down(wipe=True)


def _targets(stack: Stack, system: System) -> dict[str, list[str]]:
    targets: dict[str, list[str]] = {"rabbitmq": [f"{LOOPBACK}:{stack.prometheus_port}"]}
    for name, url in system.health.items():
        targets.setdefault(name.partition("-")[0], []).append(url.removeprefix("http://"))
    return targets


if __name__ == "__main__":
    end_with(main, StackProblem, NotStarted)
