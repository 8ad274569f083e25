"""The processes of one run: each started with a log of its own, waited for, and ended by pid."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from deploy.local.ports import LOOPBACK, free_port
from deploy.local.stack import ROOT

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 20.0


class NotStarted(Exception):
    """A process did not come up; the text names it and its log."""


class Children:
    """Modules of this project that run as processes, by name.

    folder -- of their logs
    health -- where each that was started with `serve` says how it is, without a slash at its end
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, tuple[str, Sequence[str], Mapping[str, str]]] = {}
        self._taken: list[int] = []
        self.health: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, module: str, arguments: Sequence[str], settings: Mapping[str, str]) -> None:
        """settings -- all that it has: none of the caller's own reach it"""
        self._commands[name] = (module, arguments, settings)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("DARKROOM_")}
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env={**clean, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to pass on
            )

    def serve(self, name: str, module: str, arguments: Sequence[str], settings: Mapping[str, str]) -> None:
        """Start a service under this name, which tells its health on a port of its own."""
        port = self.port()
        self.health[name] = f"http://{LOOPBACK}:{port}"
        more = {"DARKROOM_METRICS_PORT": str(port), "DARKROOM_INSTANCE": name}
        self.start(name, module, arguments, {**settings, **more})

    def start_again(self, name: str) -> None:
        """One that was killed, with what it was started with; it may take a moment until it answers."""
        self.start(name, *self._commands[name])

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

    def wait_until_ready(self) -> None:
        """Returns when all that were started with `serve` are ready. Raises NotStarted."""
        for name, url in self.health.items():
            self.wait_for(name, f"{url}/readyz")

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._running.items()}

    def kill(self, name: str) -> None:
        """The process dies as it stands."""
        self._running[name].kill()
        self._running[name].wait()

    def stop(self) -> None:
        """Workers drain, then everything ends; what does not is killed."""
        for process in reversed(self._running.values()):
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self._running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def port(self) -> int:
        """A free one that no other of these processes was given."""
        self._taken.append(free_port(self._taken))
        return self._taken[-1]
