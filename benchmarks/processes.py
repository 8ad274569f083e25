"""Starts the processes of one measurement with the servers of a private stack, and ends them by pid."""

import json
import os
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Watched
from deploy.local.children import Children
from deploy.local.ports import LOOPBACK
from deploy.local.stack import Stack

#: The workers of darkroom that are measured. The producer is left out: orders come over AMQP.
WORKERS: Final = ("submitter", "poller", "ops")

#: For the simulated servers' pictures. Those servers are other machines in earnest: their files must not take part in
#: the waits for this machine's disk.
_MEMORY: Final = {"TMPDIR": "/dev/shm"} if os.access("/dev/shm", os.W_OK) else {}  # noqa: S108 - the simulator makes a folder of its own in it


class Processes(Children):
    """Simulated servers, and either darkroom's workers or the naive ones. Used as a context manager."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        super().__init__(folder)
        self._stack = stack
        self.simulators: list[str] = []

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_simulators(self, count: int, seconds_per_image: float, *, history_lag_seconds: float | None) -> None:
        """history_lag_seconds -- between success and history, None: as measured. 0 makes jobs take no time at all."""
        first = len(self.simulators) + 1
        for number in range(first, first + count):
            port = self.port()
            url = f"http://{LOOPBACK}:{port}"
            name = f"simulator-{number}"
            arguments = ["--port", str(port), "--seconds-per-image", str(seconds_per_image)]
            self.start(name, "services.simulator", arguments, _MEMORY)
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
            module, *arguments = [*through, f"services.{name}"]
            self.serve(name, module, arguments, settings)
        self.wait_until_ready()

    def watched(self) -> dict[str, Watched]:
        """Everything whose CPU time counts: our processes, the broker, the database."""
        servers = {server.name: server.pid for server in self._stack.status() if server.pid is not None}
        found = {name: Watched(pid) for name, pid in self.pids().items()}
        found["broker"] = Watched(servers["rabbitmq"])
        found["database"] = Watched(servers["postgresql"], with_children=True)
        return found
