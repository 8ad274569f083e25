"""The process that plays the five image APIs, for a test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import requests


class SimulatedApis:
    """One running `services.simulator.apis`. url -- without a slash at its end; each API is below its own name."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        """With a key and a patience of ten seconds."""
        headers = {"Authorization": "Bearer a-key", **options.pop("headers", {})}
        return requests.request(method, self.url + path, headers=headers, timeout=10, **options)

    def faults(self, **faults: Any) -> None:
        answer = requests.post(self.url + "/_sim/faults", json=faults, timeout=10)
        assert answer.status_code == 200, answer.text

    def stats(self, name: str) -> dict[str, Any]:
        """What reached one API."""
        return dict(requests.get(self.url + "/_sim/stats?log=0", timeout=10).json()["apis"][name])

    def posts(self) -> int:
        """POSTs that reached any API and would start a job, answered or not."""
        return sum(count for call, count in self.calls().items() if call.startswith("POST ") and "cancel" not in call)

    def calls(self) -> dict[str, int]:
        """How often each method and route was called at any API."""
        return dict(requests.get(self.url + "/_sim/stats?log=0", timeout=10).json()["calls"])


@contextmanager
def simulated_apis(*options: str) -> Iterator[SimulatedApis]:
    """Runs until the block ends. AssertionError when it does not end by itself then."""
    command = [sys.executable, "-m", "services.simulator.apis", "--port", "0", *options]
    # A terminal's Ctrl-C is for whoever runs this; the process is ended below.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            yield SimulatedApis(process.stdout.readline().split()[-1])
        finally:
            process.terminate()
            assert process.wait(10) == 0


def quick_apis() -> AbstractContextManager[SimulatedApis]:
    """As `simulated_apis`; a job takes a tenth of a second."""
    return simulated_apis("--seconds-per-image", "0.1")
