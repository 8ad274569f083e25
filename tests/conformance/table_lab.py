"""A shipped table's provider before the simulated APIs, with a submitter and a poller that work for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from services.poller.check import Check
from shared.domain.retry import RetryPolicy
from shared.domain.task import Status, Task
from shared.observe.logs import ContextPool
from shared.providers.base import Job
from shared.providers.http_api import HttpApi
from shared.providers.table import Timeouts
from shared.providers.workflow import load_workflows
from tests.conformance.simulated_apis import SimulatedApis
from tests.factories import MEASURED, a_check
from tests.integration.api_lab import SHIPPED, provider
from tests.integration.submit_lab import Lab
from tests.waiting import eventually

WORKFLOWS: Final = load_workflows(Path(__file__).parents[2] / "deploy" / "workflows")
#: Where the simulator has each table's provider, and what an order for it says.
PLACES: Final = {
    "openai_images": "/openai/v1",
    "dashscope": "/dashscope/api/v1",
    "fal": "/fal",
    "replicate": "/replicate/v1",
    "runpod_comfyui": "/runpod/v2/endpoint",
}
ORDERS: Final[dict[str, dict[str, Any]]] = {
    "openai_images": {"inputs": {"model": "gpt-image-1", "prompt": "a lighthouse"}},
    "dashscope": {"inputs": {"model": "wan2.2-t2i-flash", "prompt": "a lighthouse"}},
    "fal": {"inputs": {"model": "fal-ai/flux/dev", "arguments": {"prompt": "a lighthouse"}}},
    "replicate": {"inputs": {"model": "black-forest-labs/flux-schnell", "input": {"prompt": "a lighthouse"}}},
    "runpod_comfyui": {"workflow": "solid-invert", "inputs": {"color": 4711}},
}
#: What stands in what each of these orders sends, for faults that choose by it.
WORDS: Final = {name: "4711" if name == "runpod_comfyui" else "a lighthouse" for name in PLACES}
#: What takes seconds in production takes parts of one here.
_QUICK: Final = Timeouts(connect_s=1, submit_read_s=1, poll_read_s=1, settle_s=0.4)


def quick_provider(name: str, apis: SimulatedApis) -> HttpApi:
    table = SHIPPED[name].model_copy(update={"timeouts": _QUICK, "rate_limit_wait_s": 0.1})
    return provider(table, apis.url + PLACES[name], name="gpu-1", workflows=WORKFLOWS)


class TableLab(Lab):
    """One order at a time; `api` is the table's provider, and `posts` and `stats` are what the simulator saw of it."""

    def __init__(self, url: str, name: str, apis: SimulatedApis) -> None:
        super().__init__(url, lease_seconds=5)  # longer than the longest call
        # One database for many tests: a new one costs more than most of them.
        self.sql("truncate tasks cascade")
        self.sql("update backends set health = 'up', paused_until = null, probe_at = null, doubts = 0")
        self.name = name
        self.apis = apis
        self.api = quick_provider(name, apis)
        self.providers["gpu-1"] = self.api
        self.threads = ContextPool(4)
        self.check = Check(
            self.tasks,
            self.slots,
            self.providers,
            self.store,
            retry=RetryPolicy(max_charged=3, first_seconds=0),
            max_run_seconds={"gpu-1": 100.0},
            frozen_after_seconds=50.0,
            metrics=MEASURED,
            threads=self.threads,
        )
        self._before = self._seen()

    def close(self) -> None:
        self.threads.shutdown()
        super().close()

    def order(self) -> Task:
        return self.pending(**ORDERS[self.name])

    def _seen(self) -> dict[str, int]:
        place = PLACES[self.name].split("/")[1]
        return self.apis.stats(place) | {"posts": self.apis.posts()}

    def seen(self, what: str) -> int:
        """What the simulator counted since this lab began: posts, jobs, downloads, cancelled."""
        return self._seen()[what] - self._before[what]

    def until(self, task: Task, *statuses: Status, within: float = 20) -> Task:
        """The row, once submitter and poller have brought it to one of these, each looking whenever it may."""

        def step() -> Task | None:
            row = self.now(task)
            if row.status in statuses:
                return row
            if row.status in (Status.PENDING, Status.SUBMITTING):
                self.handle()
            else:
                self.check.handle([a_check(row)])
            return None

        return eventually(step, within=within, what=" or ".join(statuses), every=0.02)

    def killed(self, *, after_the_post: bool) -> Task:
        """An order whose worker died when it was about to send it, or when the provider had just answered."""
        self.order()
        (task,) = self.take()
        prepared = self.api.prepare(Job.of(task))
        assert self.may_post(task, prepared.body_hash)
        if after_the_post:
            self.api.submit(prepared)
        return self.age(task, free_at=1)
