"""`make demo`: 24 orders, each published twice, become pictures; shows what happened and where everything is.

PROVIDERS=1 orders from image APIs too. DEAD=1 lets 300 orders die instead, to practise on. KEEP=1 leaves the system
running until Ctrl-C and prints its addresses.
"""

import os
import shutil
import time
import uuid
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from deploy.demo import dead, providers
from deploy.demo.orders import BROKEN_COLOUR, COUNT, PHOTOS, demo_orders
from deploy.demo.running import (
    COPIES,
    all_as_expected,
    dead_letters,
    duplicates,
    eventually,
    follow,
    keep,
    post,
    publish,
    sheet_of,
)
from deploy.demo.system import System
from deploy.local.children import NotStarted
from deploy.local.interrupted import end_with
from deploy.local.problem import StackProblem
from deploy.local.stack import ROOT, Stack
from shared.database.engine import connect
from shared.database.migrate import upgrade
from shared.database.tasks import Tasks
from shared.domain.task import Reason, Status
from shared.observe import metrics


def main() -> int:
    console = Console()
    folder = ROOT / ".local" / "demo"
    pictures = ROOT / "pictures"
    with_apis = bool(os.environ.get("PROVIDERS"))
    shutil.rmtree(folder / "logs", ignore_errors=True)
    stack = Stack(folder, say=lambda text: console.print(f"[dim]{text}[/dim]"))
    stack.down(wipe=True)  # what an interrupted demo left
    of_the_dead = bool(os.environ.get("DEAD"))
    system = (
        dead.system(stack, folder / "logs", pictures)
        if of_the_dead
        else System(stack, folder / "logs", pictures, PHOTOS, with_apis=with_apis)
    )
    try:
        stack.up()
        upgrade(stack.database_url)
        more = ", five simulated image APIs" if with_apis else ""
        console.print(f"[dim]starting simulated ComfyUI servers{more} and the services[/dim]")
        system.start(simulated_seconds=0.05 if of_the_dead else 0.25)
        show = dead.show if of_the_dead else providers.show if with_apis else _show
        fine = show(console, stack, system, pictures)
        if os.environ.get("KEEP"):
            keep(console, stack, system, dead.steps(system) if of_the_dead else ())
        return 0 if fine else 1
    finally:
        system.stop()
        stack.down(wipe=True)


def _show(console: Console, stack: Stack, system: System, pictures: Path) -> bool:
    """Run the orders, print the table; True when every number is what it must be."""
    orders = demo_orders(f"demo-{uuid.uuid4().hex[:8]}")
    for url in system.simulators:
        post(f"{url}/_sim/faults", {"fail_execution": {"match": f'"color": {BROKEN_COLOUR}'}})
    tasks = Tasks(connect(stack.database_url), "demo", metrics.build("producer"))
    begun = time.monotonic()
    publish(stack, orders)
    rows = follow(console, tasks, orders)
    seconds = time.monotonic() - begun
    letters = eventually(lambda: dead_letters(stack), 2)
    stopped = eventually(lambda: duplicates(system), COUNT)
    kept = tasks.artifacts(rows)
    sheet = sheet_of(orders, kept, pictures)
    by_status = Counter(row.status for row in rows.values())
    reasons = sorted(str(row.reason) for row in rows.values() if row.status is Status.FAILED)
    fine = all_as_expected(
        console,
        {
            "orders": (len(rows), COUNT),
            "messages": (len(orders) * COPIES, COUNT * COPIES),
            "duplicates stopped": (stopped, COUNT),
            "completed": (by_status[Status.COMPLETED], COUNT - 2),
            "dead letters": (letters, 2),
            "their reasons": (", ".join(reasons), f"{Reason.EXECUTION_FAILED}, {Reason.INVALID_WORKFLOW}"),
        },
        {"pictures": sum(len(artifacts) for artifacts in kept.values()), "seconds": f"{seconds:.1f}"},
    )
    for row in rows.values():
        if row.status is Status.FAILED:
            console.print(f"[yellow]{row.idempotency_key}[/yellow] {row.reason}: {escape((row.detail or '')[:160])}")
    console.print(f"\nPictures       {pictures}\nContact sheet  {sheet}\nLogs           {stack.directory / 'logs'}")
    console.print(
        "\nNext: `KEEP=1 make demo` leaves all of it running; `make up` starts the servers alone;"
        "\nREADME.md shows how to send your own orders and what to do with a dead letter."
    )
    return fine


if __name__ == "__main__":
    end_with(main, StackProblem, NotStarted)
