"""The producer as a process of its own, and the orders it is sent."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
#: A start takes 2 s of CPU time; with ten processes per core it took more than 20 s.
START_SECONDS = 60.0


class Running:
    """One `python -m services.producer`, its log lines and its two addresses."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.log = folder / "log"
        backends = folder / "backends.toml"
        backends.write_text('[[backend]]\nname = "gpu-1"\nadapter = "comfyui"\nurl = "http://127.0.0.1:1"\n')
        environment = {
            "DARKROOM_BACKENDS_FILE": str(backends),
            "DARKROOM_WORKFLOWS_DIR": str(ROOT / "deploy/workflows"),
            "DARKROOM_HTTP_PORT": "0",
            "DARKROOM_METRICS_PORT": "0",
            "PYTHONPATH": str(ROOT),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.producer"],
                cwd=folder,
                env=os.environ | environment | settings,
                stderr=log,
            )

    def lines(self, event: str) -> list[dict[str, Any]]:
        texts = [text for text in self.log.read_text().splitlines(keepends=True) if text.endswith("\n")]
        return [line for line in map(json.loads, texts) if line["event"] == event]

    def port(self, event: str) -> int:
        def found() -> list[dict[str, Any]]:
            assert self.process.poll() is None, self.log.read_text()
            return self.lines(event)

        return int(eventually(found, within=START_SECONDS, what=event)[0]["port"])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port('listening')}"

    @property
    def health_url(self) -> str:
        return f"http://127.0.0.1:{self.port('health served')}"

    def is_ready(self) -> bool:
        return httpx.get(f"{self.health_url}/readyz").status_code == 200

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


Start = Callable[..., Running]


@contextmanager
def producers(folder: Path) -> Iterator[Start]:
    """Starts producers, each in a folder of its own, and ends those that are left."""
    started: list[Running] = []

    def start(database_url: str, amqp_url: str, **settings: str) -> Running:
        own = folder / str(len(started))
        own.mkdir()
        addresses = {"DARKROOM_DATABASE_URL": database_url, "DARKROOM_AMQP_URL": amqp_url}
        started.append(Running(own, **addresses | settings))
        return started[-1]

    try:
        yield start
    finally:
        for running in started:
            if running.process.poll() is None:
                running.process.kill()
            running.process.wait()


def an_order(key: str = "k-1", **fields: Any) -> dict[str, Any]:
    return {"idempotency_key": key, "pool": "comfyui", "workflow": "solid-invert", **fields}
