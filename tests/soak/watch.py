"""What the workers say of themselves while they live: their counters, and how much memory they take."""

import re
import threading
from collections import defaultdict
from pathlib import Path
from typing import Final

import requests

from tests.e2e.system import System
from tests.e2e.worker import Worker

_EVERY_SECONDS: Final = 2.0
_COUNTERS: Final = {
    "redeliveries": re.compile(r"^darkroom_message_redeliveries_total\{[^}]*\} (\S+)", re.MULTILINE),
    "duplicates": re.compile(r"^darkroom_duplicates_suppressed_total\{[^}]*\} (\S+)", re.MULTILINE),
    "possible doubles": re.compile(r"^darkroom_possible_double_total\{[^}]*\} (\S+)", re.MULTILINE),
}


class Watch:
    """memory -- MiB of resident memory by worker, one value per look"""

    def __init__(self, system: System) -> None:
        self._system = system
        self._last: dict[str, dict[str, float]] = defaultdict(dict)
        self._ports: dict[str, int] = {}
        self.memory: dict[str, list[float]] = defaultdict(list)

    def run(self, stopping: threading.Event) -> None:
        """One thread's whole life."""
        while not stopping.wait(_EVERY_SECONDS):
            self.look()

    def look(self) -> None:
        for worker in list(self._system.workers):
            if not worker.is_alive:
                continue
            port = self._ports.get(worker.name) or worker.port  # which reads the whole log
            if port is not None:
                self._ports[worker.name] = port
                self._look_at(worker, port)

    def total(self, counter: str) -> int:
        """Over all workers, the dead ones as they were last seen."""
        return round(sum(values.get(counter, 0.0) for values in self._last.values()))

    def _look_at(self, worker: Worker, port: int) -> None:
        try:
            text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text
            status = Path(f"/proc/{worker.process.pid}/status").read_text()
        except (requests.RequestException, OSError):
            return  # it died just now
        for name, pattern in _COUNTERS.items():
            self._last[worker.name][name] = sum(float(value) for value in pattern.findall(text))
        if resident := re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE):
            self.memory[worker.name].append(int(resident[1]) / 1024)
