"""`make demo DEAD=1`: 300 orders die of four causes, so that one can practise what docs/runbooks.md says about it.

A server without memory: they can go round again once it has some. A colour that breaks a graph: each must be edited.
Photographs that are gone, messages that nobody can read: discarded, and their senders told.
"""

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deploy.demo.orders import BROKEN_COLOUR, PHOTOS, demo_orders
from deploy.demo.running import all_as_expected, eventually, follow, post
from deploy.demo.system import Gpu, System
from deploy.local.stack import Stack
from shared.broker.broker import Broker
from shared.broker.topology import topology
from shared.database.engine import connect
from shared.database.tasks import Tasks
from shared.domain.messages import ORDER_PLACED, Message, Order, order_placed
from shared.domain.task import Reason, Status
from shared.observe import metrics

#: The pool of gpu-3 alone, which is the one without memory.
PORTRAITS: Final = "portraits"
_QUICK: Final = {
    "DARKROOM_RETRY_MAX_ATTEMPTS": "3",
    "DARKROOM_RETRY_FIRST_SECONDS": "0.2",
    "DARKROOM_RETRY_CAP_SECONDS": "0.5",
}


@dataclass(frozen=True)
class Counts:
    """How many die of what. again -- of `memory`, those that the shop has ordered again since, and got.

    fine, fine_portraits -- placed before, and completed
    """

    memory: int = 150
    broken: int = 60
    missing: int = 50
    unreadable: int = 40
    again: int = 10
    fine: int = 22
    fine_portraits: int = 8

    @property
    def letters(self) -> dict[str, int]:
        """How many letters there are of each reason."""
        return {
            Reason.EXECUTION_FAILED: self.memory + self.broken,
            Reason.INPUT_UNAVAILABLE: self.missing,
            Reason.INVALID_MESSAGE: self.unreadable,
        }


def system(stack: Stack, folder: Path, pictures: Path) -> System:
    """Two servers of one pool and a third of another, and services that soon give up."""
    gpus = [Gpu(capacity=4), Gpu(capacity=4), Gpu(PORTRAITS, capacity=8)]
    return System(stack, folder, pictures, PHOTOS, gpus=gpus, more=_QUICK)


def kill(system: System, stack: Stack, tasks: Tasks, counts: Counts, console: Console) -> Sequence[Order]:
    """Orders that are completed, and the letters of those that are not; returns all orders that could be read."""
    run = f"dead-{uuid.uuid4().hex[:6]}"
    fine = demo_orders(run)[: counts.fine]
    memory = [_plain(f"{run}-portrait-{n:03}", n, pool=PORTRAITS) for n in range(counts.memory)]
    broken = [_plain(f"{run}-poster-{n:03}", BROKEN_COLOUR) for n in range(counts.broken)]
    missing = [_photo(f"{run}-photo-{n:03}", Path(f"/photos/removed-{n:03}.jpg")) for n in range(counts.missing)]
    fine += [_plain(f"{run}-well-{n:03}", 0x909090 + n, pool=PORTRAITS) for n in range(counts.fine_portraits)]
    _publish(stack, [order_placed(order) for order in fine])
    follow(console, tasks, fine)
    no_colour = {
        "match": f'"color": {BROKEN_COLOUR}',
        "exception_type": "ValueError",
        "message": f"no picture can have the colour {BROKEN_COLOUR}",
    }
    for url in system.simulators[:2]:
        post(f"{url}/_sim/faults", {"fail_execution": no_colour})
    no_memory = {"exception_type": "torch.OutOfMemoryError", "message": "Allocation on device"}
    post(f"{system.simulators[2]}/_sim/faults", {"fail_execution": no_memory})
    unreadable = [_cut_off(order_placed(order)) for order in memory[: counts.unreadable]]
    orders = [*fine, *memory, *broken, *missing]
    _publish(stack, [*map(order_placed, orders[len(fine) :]), *unreadable])
    follow(console, tasks, orders[len(fine) :])
    again = [_plain(f"{order.idempotency_key}-again", n, order_id=order.order_id) for n, order in enumerate(memory)]
    again = again[: counts.again]
    _publish(stack, [order_placed(order) for order in again])
    follow(console, tasks, again)
    return [*orders, *again]


def steps(system: System) -> Sequence[str]:
    """What one who has read docs/runbooks.md does now."""
    cure = f"curl --json '{{\"clear\": true}}' {system.simulators[2]}/_sim/faults"
    return [
        "Overview: 300 letters wait. Dead letters: four kinds; 150 are gpu-3's, which has no memory left.",
        f"Give it some, as whoever looks after that server would: {cure}",
        "That kind, all of this list, Plan a replay…: 140 will run, 10 are superseded (ordered again since). Apply.",
        "The 60 colours fail on every server, so it is the orders: open one, Edit and replay…, another colour.",
        "Photographs that are gone, messages cut off, the 10 superseded: discard them, and tell their senders.",
        "In another terminal, after the exports above: .venv/bin/darkroom audit (nothing ran twice)",
    ]


def show(console: Console, stack: Stack, system: System, pictures: Path) -> bool:
    """Let the orders die, say of what; True when every number is what it must be."""
    counts = Counts()
    tasks = Tasks(connect(stack.database_url), "demo", metrics.build("producer"))
    orders = kill(system, stack, tasks, counts, console)
    expected = sum(counts.letters.values())
    eventually(lambda: sum(count for count, _, _ in _groups(stack)), expected)
    groups = _groups(stack)
    found = Counter[str]()
    kinds = Table("letters", "reason", "what happened to one of them", title="What they died of")
    for count, reason, example in groups:
        found[reason] += count
        kinds.add_row(str(count), reason, escape(" ".join(example.split())[:160]))
    console.print(kinds)
    by_status = Counter(row.status for row in tasks.get([order.task_id for order in orders]).values())
    by_reason: dict[str, tuple[object, object]] = {
        reason: (found[reason], count) for reason, count in counts.letters.items()
    }
    fine = all_as_expected(
        console,
        {
            **by_reason,
            "dead letters": (found.total(), expected),
            "kinds of them": (len(groups), 4),
            "completed": (by_status[Status.COMPLETED], counts.fine + counts.fine_portraits + counts.again),
        },
        {},
    )
    console.print(f"\nPictures       {pictures}\nLogs           {stack.directory / 'logs'}")
    console.print("\nNext: `KEEP=1 make demo DEAD=1` leaves it running, so that you can do what docs/runbooks.md says.")
    return fine


def _plain(key: str, colour: int, *, pool: str = "comfyui", order_id: str | None = None) -> Order:
    inputs = {"color": colour, "width": 64, "height": 64}
    return _order(key, "solid-invert", inputs, pool=pool, order_id=order_id)


def _photo(key: str, photo: Path) -> Order:
    return _order(key, "photo-invert", {"photo": photo.as_uri(), "width": 64, "height": 64})


def _order(
    key: str, workflow: str, inputs: dict[str, Any], *, pool: str = "comfyui", order_id: str | None = None
) -> Order:
    return Order(
        idempotency_key=key,
        order_id=order_id or key.replace("dead-", "order-", 1),
        pool=pool,
        workflow=workflow,
        inputs=inputs,
        metadata={"customer": "demo"},
    )


def _cut_off(message: Message) -> Message:
    """The message of an upstream system that stopped in the middle of writing it."""
    body = message.body.partition(b'"inputs"')[0]
    return Message(
        exchange=message.exchange,
        routing_key=message.routing_key,
        type=ORDER_PLACED,
        body=body,
        message_id=message.message_id,
    )


def _publish(stack: Stack, messages: Sequence[Message]) -> None:
    broker = Broker([stack.amqp_url], topology(["comfyui", PORTRAITS]), name="demo", metrics=metrics.build("producer"))
    broker.start()
    try:
        broker.publish(list(messages)).result(30)
    finally:
        broker.stop()


def _groups(stack: Stack) -> list[tuple[int, str, str]]:
    """How many letters there are of each kind, with their reason and what happened to one of them."""
    engine = connect(stack.database_url, pool_size=1)
    try:
        with engine.connect() as connection:
            rows = connection.execute(
                sa.text(
                    "select count(*) as letters, reason, min(detail) as example from dead_letters"
                    " group by fingerprint, reason order by 1 desc"
                )
            ).all()
            return [(int(row.letters), row.reason, row.example) for row in rows]
    finally:
        engine.dispose()
