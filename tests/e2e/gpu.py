"""One simulated ComfyUI server of a test: may be killed and started again where it was."""

import time
from pathlib import Path
from typing import Any

import requests

from tests.e2e.worker import Worker
from tests.servers import free_port
from tests.waiting import eventually

#: Ends of a prompt at the server that made pictures.
PAID = frozenset({"success", "cached"})


class Gpu:
    """A simulator process. What one that was killed knew stays in `executions`."""

    def __init__(
        self, name: str, folder: Path, capacity: int, seconds_per_image: float, disk: Path | None = None
    ) -> None:
        self.name = name
        self.capacity = capacity
        self._folder = folder
        self._disk = disk or folder / f"{name}-disk"
        self._seconds_per_image = seconds_per_image
        self._before_kill: list[dict[str, Any]] = []
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """The same address and the same disk; nothing in memory."""
        self._disk.mkdir(exist_ok=True)
        command = ["services.simulator", "--port", str(self.port), "--directory", str(self._disk)]
        command += ["--seconds-per-image", str(self._seconds_per_image)]
        self.process = Worker(self.name, command, self._folder, {})

    def kill(self) -> None:
        """kill -9: what was queued or running is lost, and nobody can say so."""
        runs = self.stats()["executions"]
        self.process.kill()
        now = time.monotonic()  # the same clock as the server's
        self._before_kill += [run if run["ended_at"] else {**run, "ended_at": now, "outcome": "lost"} for run in runs]

    def is_up(self) -> bool:
        try:
            return requests.get(f"{self.url}/prompt", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    def wait_until_up(self) -> None:
        eventually(self.is_up, within=20, what=f"{self.name} answers")

    def faults(self, **faults: Any) -> dict[str, Any]:
        """Switch faults on; answers how often each has struck."""
        answer = requests.post(f"{self.url}/_sim/faults", json=faults, timeout=10)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["hits"])

    def heal(self) -> None:
        """No faults any more. What is running goes on, at the usual speed from the next picture on."""
        self.faults(clear=True)

    def restart(self) -> None:
        """As a crash and a supervisor do it: all but the disk is forgotten, a frozen worker works again."""
        self.faults(restart={"down_seconds": 0})
        self.wait_until_up()

    def calls(self, method: str, part: str) -> list[dict[str, Any]]:
        """Calls since the process was started: t, method, path with query, status. part -- of their path"""
        log = requests.get(f"{self.url}/_sim/stats?executions=0", timeout=10).json()["log"]
        return [call for call in log if call["method"] == method and part in call["path"]]

    def stats(self) -> dict[str, Any]:
        return dict(requests.get(f"{self.url}/_sim/stats?log=0", timeout=10).json())

    @property
    def executions(self) -> list[dict[str, Any]]:
        """Every prompt it ever accepted, in that order."""
        return self._before_kill + (list(self.stats()["executions"]) if self.process.is_alive else [])

    def of(self, job_key: object) -> list[dict[str, Any]]:
        """The executions of one prompt id."""
        return [run for run in self.executions if run["prompt_id"] == str(job_key)]

    def most_at_once(self) -> int:
        """The most prompts that were queued or running here at one moment, by its own records."""
        changes = [(run["accepted_at"], 1) for run in self.executions]
        changes += [(run["ended_at"], -1) for run in self.executions if run["ended_at"] is not None]
        present = most = 0
        for _, change in sorted(changes):  # at the same moment an end counts before a start
            present += change
            most = max(most, present)
        return max(most, int(self.stats()["max_queue_remaining"]) if self.process.is_alive else 0)
