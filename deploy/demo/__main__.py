"""`make demo`: 24 orders, each published twice, become pictures; shows what happened and where everything is.

KEEP=1 leaves the system running until Ctrl-C and prints its addresses.
"""

import json
import os
import re
import shutil
import signal
import sys
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.demo.orders import BROKEN_COLOUR, COUNT, PHOTOS, demo_orders
from deploy.demo.sheet import Pair, contact_sheet
from deploy.demo.system import NotStarted, System
from deploy.local.problem import StackProblem
from deploy.local.stack import ROOT, Stack
from shared.broker.broker import Broker
from shared.broker.topology import topology
from shared.database.engine import connect
from shared.database.migrate import upgrade
from shared.database.tasks import Tasks
from shared.domain.messages import Order, order_placed
from shared.domain.task import Reason, Status, Task
from shared.observe import metrics

_COPIES: Final = 2
_WITHIN_SECONDS: Final = 110.0
_DUPLICATES = re.compile(r'^darkroom_duplicates_suppressed_total\{point="claim"\} (\S+)', re.MULTILINE)


def main() -> int:
    console = Console()
    folder = ROOT / ".local" / "demo"
    pictures = ROOT / "pictures"
    shutil.rmtree(folder / "logs", ignore_errors=True)
    stack = Stack(folder, say=lambda text: console.print(f"[dim]{text}[/dim]"))
    stack.down(wipe=True)  # what an interrupted demo left
    system = System(stack, folder / "logs", pictures, PHOTOS)
    try:
        stack.up()
        upgrade(stack.database_url)
        console.print("[dim]starting two simulated ComfyUI servers and the services[/dim]")
        system.start(simulated_seconds=0.25)
        fine = _show(console, stack, system, pictures)
        if os.environ.get("KEEP"):
            _keep(console, stack, system)
        return 0 if fine else 1
    finally:
        system.stop()
        stack.down(wipe=True)


def _show(console: Console, stack: Stack, system: System, pictures: Path) -> bool:
    """Run the orders, print the table; True when every number is what it must be."""
    orders = demo_orders(f"demo-{uuid.uuid4().hex[:8]}")
    for url in system.simulators:
        _post(f"{url}/_sim/faults", {"fail_execution": {"match": f'"color": {BROKEN_COLOUR}'}})
    tasks = Tasks(connect(stack.database_url), "demo", metrics.build("producer"))
    begun = time.monotonic()
    _publish(stack, orders)
    rows = _follow(console, tasks, orders)
    seconds = time.monotonic() - begun
    letters = _eventually(lambda: _dead_letters(stack), 2)
    duplicates = _eventually(lambda: _duplicates(system), COUNT)
    kept = tasks.artifacts(rows)
    sheet = pictures / "contact-sheet.png"
    by_id = {order.task_id: order for order in orders}
    pairs = [Pair(order, [pictures / a.key for a in kept[id_]]) for id_, order in by_id.items() if id_ in kept]
    if pairs:
        contact_sheet(pairs, sheet)
    by_status = Counter(row.status for row in rows.values())
    reasons = sorted(str(row.reason) for row in rows.values() if row.status is Status.FAILED)
    expected: dict[str, tuple[object, object]] = {
        "orders": (len(rows), COUNT),
        "messages": (len(orders) * _COPIES, COUNT * _COPIES),
        "duplicates stopped": (duplicates, COUNT),
        "completed": (by_status[Status.COMPLETED], COUNT - 2),
        "dead letters": (letters, 2),
        "their reasons": (", ".join(reasons), f"{Reason.EXECUTION_FAILED}, {Reason.INVALID_WORKFLOW}"),
    }
    table = Table(title="What became of them", show_header=False)
    for name, (found, wanted) in expected.items():
        table.add_row(name, str(found) if found == wanted else f"[red]{found}, not {wanted}[/red]")
    table.add_row("pictures", str(sum(len(artifacts) for artifacts in kept.values())))
    table.add_row("seconds", f"{seconds:.1f}")
    console.print(table)
    for row in rows.values():
        if row.status is Status.FAILED:
            console.print(f"[yellow]{row.idempotency_key}[/yellow] {row.reason}: {escape((row.detail or '')[:160])}")
    console.print(f"\nPictures       {pictures}\nContact sheet  {sheet}\nLogs           {stack.directory / 'logs'}")
    console.print(
        "\nNext: `KEEP=1 make demo` leaves all of it running; `make up` starts the servers alone;"
        "\nREADME.md shows how to send your own orders and what to do with a dead letter."
    )
    return all(found == wanted for found, wanted in expected.values())


def _publish(stack: Stack, orders: Sequence[Order]) -> None:
    """Every order twice, as an upstream system does that did not see its first confirm."""
    broker = Broker([stack.amqp_url], topology(["comfyui"]), name="demo", metrics=metrics.build("producer"))
    broker.start()
    try:
        for _ in range(_COPIES):
            broker.publish([order_placed(order) for order in orders]).result(30)
    finally:
        broker.stop()


def _follow(console: Console, tasks: Tasks, orders: Sequence[Order]) -> dict[uuid.UUID, Task]:
    """The rows, once all are final, or as they are when time is up."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("orders", total=len(orders))
        deadline = time.monotonic() + _WITHIN_SECONDS
        while True:
            rows = tasks.get([order.task_id for order in orders])
            count = Counter(row.status for row in rows.values())
            done = sum(count[status] for status in Status if status.is_final)
            shown = "  ".join(f"{count[status]} {status}" for status in Status if count[status])
            progress.update(bar, completed=done, description=shown or "published")
            if done == len(orders) or time.monotonic() > deadline:
                return rows
            time.sleep(0.1)


def _eventually(ask: Callable[[], int], wanted: int) -> int:
    """What `ask` says once it is `wanted`, or after some seconds: the collector and the counters come last."""
    deadline = time.monotonic() + 15
    while (found := ask()) != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _dead_letters(stack: Stack) -> int:
    engine = connect(stack.database_url, pool_size=1)
    try:
        with engine.connect() as connection:
            return int(connection.execute(sa.text("select count(*) from dead_letters")).scalar_one())
    finally:
        engine.dispose()


def _duplicates(system: System) -> int:
    """What the submitters' own counters say."""
    found = 0.0
    for name, url in system.health.items():
        if name.startswith("submitter"):
            with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:  # noqa: S310 - our own loopback address
                match = _DUPLICATES.search(answer.read().decode())
                found += float(match[1]) if match else 0.0
    return int(found)


def _post(url: str, value: object) -> None:
    request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=5):  # noqa: S310 - our own loopback address
        pass


def _keep(console: Console, stack: Stack, system: System) -> None:
    """Wait for Ctrl-C beside the running system."""
    console.print("\n[bold]Running until Ctrl-C[/bold]")
    console.print(f"orders    POST {system.api}/v1/orders")
    for name, url in system.health.items():
        console.print(f"{name:<12}{url}/metrics  {url}/readyz")
    for number, url in enumerate(system.simulators, start=1):
        console.print(f"comfyui-{number:<4}{url}/_sim/stats?log=0")
    for name, value in stack.environment().items():
        console.print(f"export {name}={value}", soft_wrap=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (StackProblem, NotStarted) as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit(130)
