"""Starts the processes of one measurement with the servers of a private stack, and ends them by pid."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Watched
from deploy.local.ports import LOOPBACK, free_port
from deploy.local.stack import ROOT, Stack

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 20.0
#: The workers of darkroom that are measured. The producer is left out: orders come over AMQP.
WORKERS: Final = ("submitter", "poller", "ops")


class NotStarted(Exception):
    """A process did not come up; the text names it and its log."""


class Processes:
    """Simulated servers, and either darkroom's workers or the naive ones. Used as a context manager."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._taken: list[int] = []
        self.simulators: list[str] = []
        self.health: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running.values()):
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self._running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start_simulators(self, count: int, seconds_per_image: float, *, history_lag_seconds: float | None) -> None:
        """history_lag_seconds -- between success and history, None: as measured. 0 makes jobs take no time at all."""
        first = len(self.simulators) + 1
        for number in range(first, first + count):
            port = self._port()
            url = f"http://{LOOPBACK}:{port}"
            name = f"simulator-{number}"
            arguments = ["--port", str(port), "--seconds-per-image", str(seconds_per_image)]
            self.start(name, "services.simulator", arguments, {})
            self.wait_for(name, f"{url}/prompt")
            self.simulators.append(url)
        if history_lag_seconds is not None:
            self.tell_simulators({"history_lag_seconds": history_lag_seconds})

    def tell_simulators(self, faults: Mapping[str, Any]) -> None:
        body = json.dumps(faults).encode()
        for url in self.simulators:
            request = urllib.request.Request(f"{url}/_sim/faults", body, {"Content-Type": "application/json"})  # noqa: S310 - our own loopback address
            with urllib.request.urlopen(request, timeout=10):  # noqa: S310 - as above
                pass

    def statistics(self) -> list[dict[str, Any]]:
        """What each simulated server has recorded, see services/simulator."""
        found = []
        for url in self.simulators:
            with urllib.request.urlopen(f"{url}/_sim/stats", timeout=30) as answer:  # noqa: S310 - our own loopback address
                found.append(json.load(answer))
        return found

    def start_workers(
        self,
        database_url: str,
        capacity: int,
        *,
        only: Sequence[str] = WORKERS,
        pools: Sequence[str] = (),
        through: Sequence[str] = (),
    ) -> None:
        """One submitter, one poller and ops, or some of them, all with default settings.

        pools   -- of each simulator
        through -- a module that runs the module it is given
        """
        names = pools or ["comfyui"] * len(self.simulators)
        backends = self._folder / "backends.toml"
        backends.write_text(
            "\n".join(
                f'[[backend]]\nname = "gpu-{number}"\npool = "{pool}"\nadapter = "comfyui"\nurl = "{url}"\n'
                f"capacity = {capacity}\n"
                for number, (url, pool) in enumerate(zip(self.simulators, names, strict=True), start=1)
            )
        )
        settings = {
            **self._stack.environment(),
            "DARKROOM_DATABASE_URL": database_url,
            "DARKROOM_BACKENDS_FILE": str(backends),
            "DARKROOM_CONSOLE_PORT": "-1",
            "DARKROOM_ARTIFACTS_URL": (self._folder / "pictures").as_uri(),
            "DARKROOM_PREFETCH_COMFYUI": str(min(64, max(10, capacity * len(self.simulators)))),
        }
        for name in only:
            port = self._port()
            self.health[name] = f"http://{LOOPBACK}:{port}"
            more = {"DARKROOM_METRICS_PORT": str(port), "DARKROOM_INSTANCE": name}
            module, *arguments = [*through, f"services.{name}"]
            self.start(name, module, arguments, {**settings, **more})
        for name, url in self.health.items():
            self.wait_for(name, f"{url}/readyz")

    def start(self, name: str, module: str, arguments: Sequence[str], settings: Mapping[str, str]) -> None:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("DARKROOM_")}
        with (self._folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env={**clean, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to pass on
            )

    def wait_for(self, name: str, url: str) -> None:
        """Returns when the process answers there. Raises NotStarted."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._running[name].poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own loopback address
                    return
            except OSError:
                time.sleep(0.1)
        raise NotStarted(f"{name} did not start; its log is {self._folder / (name + '.log')}")

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def watched(self) -> dict[str, Watched]:
        """Everything whose CPU time counts: our processes, the broker, the database."""
        servers = {server.name: server.pid for server in self._stack.status() if server.pid is not None}
        found = {name: Watched(process.pid) for name, process in self._running.items()}
        found["broker"] = Watched(servers["rabbitmq"])
        found["database"] = Watched(servers["postgresql"], with_children=True)
        return found

    def _port(self) -> int:
        self._taken.append(free_port(self._taken))
        return self._taken[-1]
