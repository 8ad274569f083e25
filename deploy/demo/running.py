"""What both demos do: place orders twice, follow them to their ends, ask what came of them, stay until Ctrl-C."""

import json
import re
import secrets
import signal
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.demo.sheet import Pair, contact_sheet
from deploy.demo.system import System
from deploy.local.stack import Stack
from shared.broker.broker import Broker
from shared.broker.topology import topology
from shared.database.engine import connect
from shared.database.tasks import Tasks
from shared.database.users import Role, Users
from shared.domain.messages import Artifact, Order, order_placed
from shared.domain.password import hash_password
from shared.domain.task import Status, Task
from shared.observe import metrics

#: How often each order is published.
COPIES: Final = 2
_WITHIN_SECONDS: Final = 110.0
_DUPLICATES = re.compile(r'^darkroom_duplicates_suppressed_total\{point="claim"\} (\S+)', re.MULTILINE)


def publish(stack: Stack, orders: Sequence[Order]) -> None:
    """Every order twice, as an upstream system does that did not see its first confirm."""
    pools = sorted({order.pool for order in orders})
    broker = Broker([stack.amqp_url], topology(pools), name="demo", metrics=metrics.build("producer"))
    broker.start()
    try:
        for _ in range(COPIES):
            broker.publish([order_placed(order) for order in orders]).result(30)
    finally:
        broker.stop()


def follow(console: Console, tasks: Tasks, orders: Sequence[Order]) -> dict[uuid.UUID, Task]:
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


def all_as_expected(
    console: Console,
    expected: Mapping[str, tuple[object, object]],
    more: Mapping[str, object],
    title: str = "What became of them",
) -> bool:
    """Print what was found; a number that is not what it must be in red, and False then."""
    table = Table(title=title, show_header=False)
    for name, (found, wanted) in expected.items():
        table.add_row(name, str(found) if found == wanted else f"[red]{found}, not {wanted}[/red]")
    for name, value in more.items():
        table.add_row(name, str(value))
    console.print(table)
    return all(found == wanted for found, wanted in expected.values())


def sheet_of(orders: Sequence[Order], kept: Mapping[uuid.UUID, Sequence[Artifact]], pictures: Path) -> Path:
    """The contact sheet of what was made."""
    sheet = pictures / "contact-sheet.png"
    by_id = {order.task_id: order for order in orders}
    pairs = [Pair(order, [pictures / a.key for a in kept[id_]]) for id_, order in by_id.items() if id_ in kept]
    if pairs:
        contact_sheet(pairs, sheet)
    return sheet


def eventually(ask: Callable[[], int], wanted: int) -> int:
    """What `ask` says once it is `wanted`, or after some seconds: the collector and the counters come last."""
    deadline = time.monotonic() + 15
    while (found := ask()) != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def dead_letters(stack: Stack) -> int:
    engine = connect(stack.database_url, pool_size=1)
    try:
        with engine.connect() as connection:
            return int(connection.execute(sa.text("select count(*) from dead_letters")).scalar_one())
    finally:
        engine.dispose()


def duplicates(system: System) -> int:
    """What the submitters' own counters say."""
    found = 0.0
    for name, url in system.health.items():
        if name.startswith("submitter"):
            with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:  # noqa: S310 - our own loopback address
                match = _DUPLICATES.search(answer.read().decode())
                found += float(match[1]) if match else 0.0
    return int(found)


def post(url: str, value: object) -> None:
    request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=5):  # noqa: S310 - our own loopback address
        pass


def user_for(stack: Stack) -> tuple[str, str]:
    """A person who may do everything in the console: name and password."""
    name, password = "demo", secrets.token_urlsafe(9)
    engine = connect(stack.database_url, pool_size=1)
    Users(engine).add(name, Role.EDITOR, hash_password(password), "demo")
    engine.dispose()
    return name, password


def keep(console: Console, stack: Stack, system: System, steps: Sequence[str] = ()) -> None:
    """Wait for Ctrl-C beside the running system. steps -- what a person may do now, in their order"""
    console.print("\n[bold]Running until Ctrl-C[/bold]")
    name, password = user_for(stack)
    console.print(f"console     {system.console}  sign in as {name} with the password {password}", soft_wrap=True)
    console.print(f"orders    POST {system.api}/v1/orders")
    for name, url in system.health.items():
        console.print(f"{name:<12}{url}/metrics  {url}/readyz")
    for number, url in enumerate(system.simulators, start=1):
        console.print(f"comfyui-{number:<4}{url}/_sim/stats?log=0")
    if system.apis:
        console.print(f"apis        {system.apis}/_sim/stats?log=0")
    for name, value in system.settings.items():
        console.print(f"export {name}={value}", soft_wrap=True)
    for number, step in enumerate(steps, start=1):
        console.print(f"{number}. {step}", soft_wrap=True, markup=False, highlight=False)
    with suppress(KeyboardInterrupt):
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
