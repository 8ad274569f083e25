"""A simulated ComfyUI whose worker is dead: it answers, and nothing on it ever ends before a restart."""

from collections.abc import Iterator

import pytest

from services.poller.check import Check
from shared.domain.retry import RetryPolicy
from shared.domain.task import Status, Task
from shared.observe.logs import ContextPool
from shared.providers.base import Job
from shared.storage import Artifacts
from tests.factories import MEASURED, POOL, Rows, a_check
from tests.integration.comfyui_lab import Lab, running_lab

INPUTS = {"width": 32, "height": 32, "color": 0xFF0000}


@pytest.fixture(scope="module")
def simulator() -> Iterator[Lab]:
    with running_lab("modern") as lab:
        yield lab


class Frozen(Rows):
    """Two jobs on one server whose worker has died with the first."""

    def __init__(self, url: str, simulator: Lab) -> None:
        super().__init__(url)
        self.slots.sync([("gpu-1", POOL, "comfyui", simulator.url, 2, 60.0)])
        self.clock = 0.0
        self.adapter = simulator.adapter
        self.check = Check(
            self.tasks,
            self.slots,
            {"gpu-1": simulator.adapter},
            Artifacts("memory://"),
            retry=RetryPolicy(),
            max_run_seconds={"gpu-1": 60.0},
            frozen_after_seconds=30.0,
            metrics=MEASURED,
            threads=ContextPool(2),
            clock=lambda: self.clock,
        )
        simulator.faults(freeze=True)
        self.stuck, self.waiting = self.sent(), self.sent()
        for seconds in (0.0, 91.0):
            self.clock += seconds
            self.look()

    def sent(self) -> Task:
        task = self.submitting(workflow="solid-invert", inputs=INPUTS)
        accepted = self.adapter.submit(self.adapter.prepare(Job.of(task)))
        recorded = self.record(task, accepted.provider_job_id)
        assert recorded is not None
        return self.age(recorded, changed_at=200)

    def look(self) -> None:
        self.check.handle([a_check(self.now(self.stuck), self.now(self.waiting))])

    def health(self) -> str:
        return self.slots.backends()[0].health


@pytest.fixture
def lab(database_url: str, simulator: Lab) -> Iterator[Frozen]:
    simulator.begin()
    lab = Frozen(database_url, simulator)
    yield lab
    lab.close()


def test_the_job_that_froze_it_and_those_behind_it_stay_until_the_server_was_restarted(
    lab: Frozen, simulator: Lab
) -> None:
    assert lab.health() == "frozen"
    assert [lab.now(task).status for task in (lab.stuck, lab.waiting)] == [Status.PROCESSING] * 2

    simulator.restart()
    lab.look()

    assert lab.health() == "up"
    assert [lab.now(task).status for task in (lab.stuck, lab.waiting)] == [Status.PENDING] * 2


def test_clearing_the_queue_behind_a_dead_worker_proves_nothing(lab: Frozen) -> None:
    lab.tasks.cancel(lab.waiting.id)

    lab.look()

    assert lab.now(lab.waiting).cancel_owed, "its messages are out before its debt is cleared"
    assert lab.health() == "frozen"
