"""A `Check` on one test's database, with a provider and a store that fail as planned."""

import uuid
from collections.abc import Sequence
from typing import Any, BinaryIO

from services.poller.check import Check
from shared.domain.messages import Artifact
from shared.domain.outcome import Done
from shared.domain.retry import RetryPolicy
from shared.domain.task import Reason, Task
from shared.observe.logs import ContextPool
from shared.providers.base import Failed, JobState, Running
from shared.storage import Artifacts
from tests.factories import MEASURED, FakeProvider, Rows, a_check


class FaultyStore(Artifacts):
    """In memory; raises what was planned first."""

    def __init__(self) -> None:
        super().__init__("memory://")
        self.faults: list[Exception] = []
        self.faults_at_disk: list[Exception] = []
        self.kept: list[str] = []
        self.settled: list[int] = []

    def settle(self, written: Sequence[Artifact]) -> None:
        if self.faults_at_disk:
            raise self.faults_at_disk.pop(0)
        super().settle(written)
        self.settled.append(len(written))

    def write(self, task_id: uuid.UUID, attempt: int, index: int, file: BinaryIO) -> Artifact:
        if self.faults:
            raise self.faults.pop(0)
        artifact = super().write(task_id, attempt, index, file)
        self.kept.append(artifact.key)
        return artifact


class Lab(Rows):
    def __init__(self, url: str, provider: FakeProvider | None = None) -> None:
        super().__init__(url, threads=10)
        self.backends(gpu_1=20, gpu_2=20)
        self.slots.set_health("gpu-2", "down")
        self.provider = provider or FakeProvider(seconds=0.005)
        self.store = FaultyStore()
        self.clock = 0.0
        self.check = self.another_check()

    def another_check(self) -> Check:
        """That of another process."""
        return Check(
            self.tasks,
            self.slots,
            {"gpu-1": self.provider},
            self.store,
            retry=RetryPolicy(max_charged=3),
            max_run_seconds={"gpu-1": 100.0},
            frozen_after_seconds=50.0,
            metrics=MEASURED,
            threads=ContextPool(8),
            clock=lambda: self.clock,
        )

    def running(self, state: JobState | None = None, **fields: Any) -> Task:
        task = self.processing(**fields)
        self.provider.finish(task, state or Running())
        return task

    def look(self, *tasks: Task, check: Check | None = None) -> Done:
        (outcome,) = (check or self.check).handle([a_check(*tasks)])
        assert isinstance(outcome, Done)
        return outcome

    def health(self) -> str:
        return self.slots.backends()[0].health


def names(outcome: Done) -> list[str]:
    return [message.routing_key for message in outcome.then]


def broken(reason: Reason = Reason.LOST, **fields: Any) -> Failed:
    values: dict[str, Any] = {"reason": reason, "why": "it broke", "retryable": True}
    return Failed(**values | fields)


def all_columns(lab: Lab, task: Task) -> Any:
    return lab.sql("select *, xmin from tasks where id = :id", id=task.id)
