"""Rows of `tasks` in every status, made the way the services make them."""

import io
import itertools
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from PIL import Image

from shared.database.engine import connect, in_transaction
from shared.database.moves import Change
from shared.database.slots import Slots
from shared.database.tasks import Tasks
from shared.domain.messages import Artifact, Delivery, dead_letter
from shared.domain.outcome import FollowUp
from shared.domain.task import Accepted, Reason, Stage, Status, Task
from shared.observe import metrics
from shared.storage import Artifacts
from tests.factories import a_claim

POOL = "comfyui"
#: A session of this test's database that waits for a lock.
WAITING = "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
#: Of what the lab itself does nobody reads the counts.
_ANYTHING = metrics.build(metrics.EVERYTHING, pools=[POOL], strict=True)
_numbers = itertools.count(1)


class Lab:
    """One test's database, with one ComfyUI of capacity 100, and a store in memory."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = connect(url, pool_size=12)
        self.metrics = metrics.build("ops", pools=[POOL], backends=["gpu-1"], queues=["orders.dead"], strict=True)
        self.tasks = Tasks(self.engine, "lab", _ANYTHING)
        self.slots = Slots(self.engine, "lab", _ANYTHING)
        self.artifacts = Artifacts("memory://")
        self.slots.sync([("gpu-1", POOL, "comfyui", "http://127.0.0.1:1", 100, 60.0)])

    def close(self) -> None:
        self.engine.dispose()

    def empty(self) -> None:
        """No row of another test's orders stays; quicker than a database of one's own.

        Repeated when it meets a process of the last test that still reads, each with a table the other one wants.
        """
        everything = sa.text(
            "truncate tasks, duplicate_keys, task_moves, attempts, artifacts, dead_letters, letter_groups, replays,"
            " operator_actions, purged_keys, purged_pictures restart identity cascade"
        )
        in_transaction(self.engine, lambda c: c.execute(everything))

    def sql(self, statement: str, **values: Any) -> list[sa.Row[Any]]:
        with self.engine.begin() as connection:
            result = connection.execute(sa.text(statement), values)
            return list(result) if result.returns_rows else []

    def pending(self, **fields: Any) -> Task:
        return self.tasks.claim([a_claim(**fields)])[0].task

    def submitting(self, **fields: Any) -> Task:
        task = self.pending(**fields)
        return next(row for row in self.take() if row.id == task.id)

    def take(self) -> Sequence[Task]:
        return self.slots.take(POOL, at_most=100, lease_seconds=60, known=["gpu-1"]).tasks

    def processing(self, **fields: Any) -> Task:
        task = self.submitting(**fields)
        recorded = self.tasks.record([(task, Accepted(str(task.job_key)))], due_in=60)[0]
        assert recorded is not None
        return recorded

    def completed(self, **fields: Any) -> Task:
        task = self.processing(**fields)
        picture = self.artifacts.put(task.id, task.attempt, 0, a_picture())
        return self.paid(self.end(task, Status.COMPLETED, artifacts=[picture], attempt_outcome="completed"))

    def failed(self, reason: Reason = Reason.EXECUTION_FAILED, detail: str = "node 7 broke", **fields: Any) -> Task:
        """Failed at attempt 1 in the stage check; nothing is owed any more."""
        task = self.processing(**fields)
        return self.paid(
            self.end(
                task,
                Status.FAILED,
                reason=reason,
                detail=detail,
                stage=Stage.CHECK,
                charge=True,
                attempt_outcome=reason,
            )
        )

    def failed_at_once(self, task: Task) -> Task:
        """pending -> failed in the stage orders, without an attempt; nothing is owed any more."""
        return self.paid(
            self.end(task, Status.FAILED, reason=Reason.INVALID_WORKFLOW, detail="no workflow", stage=Stage.ORDERS)
        )

    def end(self, task: Task, to: Status, **fields: Any) -> Task:
        return self.tasks.move([Change(task=task, to=to, **fields)])[task.id]

    def paid(self, task: Task) -> Task:
        self.tasks.clear_due([FollowUp(task.id, task.version)])
        return self.tasks.refresh(task)

    def row(self, task: Task) -> Task:
        return self.tasks.refresh(task)


def a_picture(colour: str = "red") -> io.BytesIO:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    file.seek(0)
    return file


def letter_about(task: Task) -> Delivery:
    """What arrives in the dead queue about a failed row."""
    message = dead_letter(task)
    return a_delivery(
        queue=message.routing_key,
        body=message.body,
        type=message.type,
        message_id=message.message_id,
        headers=message.headers,
    )


def a_delivery(**fields: Any) -> Delivery:
    return Delivery(
        **{
            "queue": "orders.dead",
            "body": b"{}",
            "type": None,
            "message_id": None,
            "correlation_id": None,
            "headers": {},
            "redelivered": False,
        }
        | fields
    )


__all__ = ["POOL", "Artifact", "Lab", "a_delivery", "a_picture", "letter_about"]
