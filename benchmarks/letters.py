"""How quickly a flood of dead letters is in the table: a real broker, the collector as a process of its own."""

import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Meter
from benchmarks.orders import Rows, Upstream, some_orders
from benchmarks.processes import Processes
from deploy.local.stack import Stack
from shared.database.claims import Claim, Claimed
from shared.database.engine import connect
from shared.database.migrate import upgrade
from shared.database.moves import Change
from shared.database.tasks import Tasks
from shared.domain.messages import Message, Order, dead_letter, dead_letter_headers
from shared.domain.outcome import FollowUp
from shared.domain.task import Reason, Stage, Status, Task
from shared.terminal import Quiet

_BATCH: Final = 500
_WITHIN_SECONDS: Final = 120.0
#: One letter in so many is of a message that made no row.
_ONE_ROWLESS_IN: Final = 10
#: Kinds of failure, by turns: so many groups are written to by every batch.
_KINDS: Final = (
    (Reason.EXECUTION_FAILED, "KSampler: CUDA out of memory, tried to allocate {number} MiB"),
    (Reason.LOST, "the server was restarted and knows nothing of job {number}"),
    (Reason.REJECTED, "node {number}: checkpoint not found"),
    (Reason.BUG, 'Traceback (most recent call last):\n  File "check.py", line 7, in look\nKeyError: {number}'),
)


def measure_letters(stack: Stack, folder: Path, letters: int) -> dict[str, Any]:
    """From the first publish until all of them are recorded; the rows they are about have failed before."""
    database_url = stack.create_database("letters")
    upgrade(database_url)
    rowless = letters // _ONE_ROWLESS_IN
    messages = [*_about_rows(database_url, letters - rowless), *_rowless(rowless)]
    rows = Rows(database_url)
    with Processes(stack, folder / "letters") as processes, Upstream(stack) as upstream:
        processes.start_simulators(1, 0, history_lag_seconds=None)  # its backends file must name a server
        processes.start_workers(database_url, 1, only=["ops"])
        meter = Meter(processes.watched())
        began = time.monotonic()
        upstream.publish(messages)
        published = time.monotonic() - began
        rows.wait_until("select count(*) from dead_letters", lambda found: found == letters, _WITHIN_SECONDS)
        seconds = time.monotonic() - began
        used, others = meter.used(), meter.others()
    groups = rows.number("select count(*) from letter_groups")
    counted = rows.number("select sum(total) from letter_groups")
    rows.close()
    return {
        "letters": letters,
        "ingest_seconds": seconds,
        "published_after_seconds": published,
        "groups": groups,
        "miscounted": abs(counted - letters),
        "cpu_seconds": used,
        "busy_cores_of_others": others,
    }


def _about_rows(database_url: str, count: int) -> list[Message]:
    engine = connect(database_url, pool_size=1)
    tasks = Tasks(engine, "bench", Quiet())
    found: list[Message] = []
    orders = some_orders(count)
    for start in range(0, count, _BATCH):
        claimed = tasks.claim([_claim(order) for order in orders[start : start + _BATCH]])
        rows = [one.task for one in claimed if isinstance(one, Claimed)]
        failed = tasks.move(list(_ends(rows, start))).values()
        tasks.clear_due([FollowUp(row.id, row.version) for row in failed])
        found += [dead_letter(row) for row in failed]
    engine.dispose()
    return found


def _claim(order: Order) -> Claim:
    return Claim(
        idempotency_key=order.idempotency_key,
        order_id=None,
        fingerprint=order.fingerprint,
        pool=order.pool,
        priority=order.priority,
        deadline_seconds=3600.0,
        body=order.model_dump(mode="json"),
        trace_id=uuid.uuid4().hex,
    )


def _ends(rows: Sequence[Task], first: int) -> Iterator[Change]:
    for number, row in enumerate(rows, start=first):
        reason, detail = _KINDS[number % len(_KINDS)]
        text = detail.format(number=number)
        yield Change(task=row, to=Status.FAILED, reason=reason, detail=text, stage=Stage.CHECK)


def _rowless(count: int) -> list[Message]:
    headers = dead_letter_headers(
        reason=Reason.INVALID_MESSAGE, stage=Stage.ORDERS, detail="no readable idempotency_key"
    )
    return [
        Message(
            routing_key="orders.dead",
            type="order.placed.v1",
            body=b'{"number": %d}' % number,
            message_id=str(uuid.uuid4()),
            headers=headers,
        )
        for number in range(count)
    ]
