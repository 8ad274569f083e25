"""A `Submit` on one test's database, with one backend of capacity 5 and a provider that fails as planned."""

import threading
from concurrent.futures import Future
from typing import Any

from services.submitter.submit import Submit
from shared.domain.retry import RetryPolicy
from shared.domain.task import Task
from shared.observe.logs import ContextPool
from shared.providers.base import Provider
from shared.storage import Artifacts
from tests.factories import MEASURED, POOL, FakeProvider, Rows, permits


class Lab(Rows):
    """A submitter with one fake backend of capacity 5 and a real database."""

    def __init__(self, url: str, provider: FakeProvider | None = None, *, lease_seconds: float = 60) -> None:
        super().__init__(url, threads=20)
        self.backends(gpu_1=5)
        self.provider = provider or FakeProvider()
        self.providers: dict[str, Provider] = {"gpu-1": self.provider}
        self.stopping = threading.Event()
        self.store = Artifacts("memory://")
        self.calls = ContextPool(10)
        self.submit = Submit(
            POOL,
            self.tasks,
            self.slots,
            self.providers,
            calls=self.calls,
            lease_seconds=lease_seconds,
            first_look_seconds=7,
            retry=RetryPolicy(max_charged=3, first_seconds=0),
            metrics=MEASURED,
            stopping=self.stopping,
            artifacts=self.store,
        )

    def close(self) -> None:
        self.stopping.set()
        self.calls.shutdown()
        super().close()

    def handle(self, count: int = 1) -> list[Any]:
        """The verdicts; what is in the future is waited for."""
        answers = self.submit.handle(permits(count))
        return [answer.result(20) if isinstance(answer, Future) else answer for answer in answers]

    def ended(self, task: Task) -> tuple[Any, Task]:
        """The verdict of the one permit, and the row afterwards."""
        (verdict,) = self.handle()
        return verdict, self.now(task)

    def health(self) -> str:
        return self.slots.backends()[0].health


def names(verdict: Any) -> list[str]:
    return [message.routing_key for message in verdict.then]
