"""A simulated ComfyUI server in a process of its own, and the adapter under test beside it."""

import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from shared.domain.task import job_key_for, seed_for
from shared.providers.base import Job, JobState, Running
from shared.providers.comfyui import ComfyUI
from shared.providers.comfyui_http import Timings
from shared.providers.inputs import Pictures
from shared.providers.workflow import Workflows, load_workflows
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "deploy" / "photos"
QUICK = Timings(
    connect=0.2, submit_read=0.5, upload_read=1, read=1, view_read=1, settle=0.2, cancel_wait=1, cancel_poll=0.02
)
WORKFLOWS: Workflows = load_workflows(ROOT / "deploy" / "workflows")


def a_job(workflow: str | None = "solid-invert", *, attempt: int = 1, **inputs: Any) -> Job:
    """A job nobody has seen before, of a graph nobody has run before: its colour is taken from its key."""
    task_id = uuid.uuid4()
    key = job_key_for(task_id, attempt)
    if workflow == "solid-invert":
        inputs = {"width": 32, "height": 32, "color": key.int % 0xFFFFFF} | inputs
    return Job(task_id=task_id, attempt=attempt, job_key=key, seed=seed_for(key), workflow=workflow, inputs=inputs)


class Lab:
    """One simulator. Its statistics are told apart by job, so tests may share it."""

    def __init__(self, url: str, generation: str) -> None:
        self.url = url
        self.generation = generation

    def begin(self) -> None:
        """Forget the last test: no faults, an idle worker that is alive, no adapter that knows anything."""
        self.faults(clear=True)
        if not self.stats()["worker_alive"] or self.stats()["queue_remaining"]:
            self.restart()
        self._posts_before = self._calls("POST /prompt")
        self._uploads_before = self._calls("POST /upload/image")
        self.observed: list[tuple[str, str]] = []
        self.unknown = 0
        self.adapter = self.new_adapter()

    def new_adapter(self, timings: Timings = QUICK) -> ComfyUI:
        return ComfyUI(
            "gpu-1",
            self.url,
            WORKFLOWS,
            Pictures(folders=[PHOTOS]),
            timings=timings,
            observe=lambda operation, result, _: self.observed.append((operation, result)),
            unknown_state=self._count_unknown,
        )

    def _count_unknown(self) -> None:
        self.unknown += 1

    def faults(self, **faults: Any) -> dict[str, Any]:
        return self._call("/_sim/faults", faults)

    def stats(self) -> dict[str, Any]:
        return self._call("/_sim/stats")

    def executions(self, job: Job) -> list[dict[str, Any]]:
        return [row for row in self.stats()["executions"] if row["prompt_id"] == str(job.job_key)]

    def outcomes(self, job: Job) -> list[str]:
        return [row["outcome"] for row in self.executions(job)]

    @property
    def posts(self) -> int:
        return self._calls("POST /prompt") - self._posts_before

    @property
    def uploads(self) -> int:
        return self._calls("POST /upload/image") - self._uploads_before

    def restart(self) -> None:
        starts = self.stats()["starts"]
        self.faults(restart={"down_seconds": 0})
        eventually(lambda: self._starts() > starts, within=5, what="restart")

    def ended(self, *jobs: Job) -> dict[uuid.UUID, JobState]:
        """The states of all jobs, once none of them is running."""

        def states() -> dict[uuid.UUID, JobState] | None:
            found = dict(self.adapter.check(jobs))
            return None if any(isinstance(state, Running) for state in found.values()) else found

        found = eventually(states, within=10, what="jobs ended")
        assert found is not None
        return found

    def _starts(self) -> int:
        try:
            return int(self.stats()["starts"])
        except OSError:
            return 0

    def _calls(self, route: str) -> int:
        return int(self.stats()["calls"].get(route, 0))

    def _call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        response = requests.request("GET" if body is None else "POST", self.url + path, json=body, timeout=5)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer


@contextmanager
def running_lab(generation: str) -> Iterator[Lab]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "services.simulator", "--port", "0", "--generation", generation),
            *("--seconds-per-image", "0.1"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on "), line
        drain = threading.Thread(target=process.stdout.read)
        drain.start()
        yield Lab(line.split()[-1], generation)
    finally:
        process.terminate()
        process.wait(timeout=10)
        drain.join(timeout=5)
        process.stdout.close()
