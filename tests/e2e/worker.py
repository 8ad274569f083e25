"""One process of ours under test: started with settings of its own, its log in a file, ended by its pid."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

from shared.observe.crash import KILLED
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]


_started: list["Worker"] = []
_is_over = threading.Event()


def end_all() -> None:
    """Stop every one that was started in this process, also by threads that go on: none comes after this."""
    _is_over.set()
    running = [worker for worker in _started if worker.is_alive]
    for worker in running:
        worker.terminate()
    for worker in running:
        worker.stop()


class Worker:
    """`python -m <command>` in `folder`, with nothing of the caller's environment."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, settings: Mapping[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._port: int | None = None
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "TZ": "UTC", **settings}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=folder,  # not the checkout, where .local/env may be
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _started.append(self)
        if _is_over.is_set():
            self.kill()
            raise RuntimeError(f"{name} was started after the end")

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    @property
    def port(self) -> int | None:
        """Of /readyz and /metrics, as its log names it; None before that."""
        if self._port is None:
            self._port = next((line["port"] for line in self.lines() if line.get("event") == "health served"), None)
        return self._port

    def is_ready(self) -> bool:
        """Whether it says so itself."""
        return bool(self._asked("/readyz").get("ok"))

    def is_live(self) -> bool:
        """Whether it says that its loops turn."""
        return bool(self._asked("/livez").get("ok"))

    def unready(self) -> dict[str, str]:
        """The checks that keep it from being ready, and what each says; it must have begun to answer."""
        checks = self._asked("/readyz")["checks"]
        return {name: check["detail"] for name, check in checks.items() if not check["ok"]}

    def _asked(self, path: str) -> dict[str, Any]:
        """Nothing before it answers, and an AssertionError once it has ended."""
        if self.port is None:
            assert self.is_alive, f"{self.name} ended: {self.tail()}"
            return {}
        try:
            return dict(requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=5).json())
        except requests.ConnectionError:
            assert self.is_alive, f"{self.name} ended: {self.tail()}"
            return {}

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it logged; a line that is no JSON object comes as {"raw": text}."""
        for text in self.log.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                line = {"raw": text}
            yield line if isinstance(line, dict) else {"raw": text}

    def said(self, event: str) -> list[dict[str, Any]]:
        """Its log lines of this message."""
        return [line for line in self.lines() if line.get("event") == event]

    def exceptions(self) -> list[dict[str, Any]]:
        """Log lines with a traceback, and whatever got past the log."""
        return [line for line in self.lines() if "exc" in line or "raw" in line or line.get("level") == "critical"]

    def tail(self, lines: int = 25) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(10)

    def died_at(self) -> str | None:
        """The crash point at which it killed itself; None while it lives, and when it ended in another way."""
        if self.is_alive or self.process.returncode != -signal.SIGKILL:
            return None
        return next((line["point"] for line in self.said(KILLED)), None)

    def terminate(self) -> None:
        """SIGTERM, as a deploy does it."""
        self.process.send_signal(signal.SIGTERM)

    def ended(self, within: float = 30.0) -> int:
        """The exit code; -9 for one that was killed."""
        return eventually(
            lambda: None if self.is_alive else (self.process.returncode,), within=within, what=f"end of {self.name}"
        )[0]

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self.is_alive:
            self.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
