"""A real Prometheus on loopback that scrapes what a test runs, with the configuration that ships."""

import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

from deploy.local.install import prometheus as installed
from deploy.local.process import launch
from deploy.prometheus import on_loopback
from tests.servers import free_port


class Prometheus:
    """Scrapes every second. targets -- container's name -> addresses, beside its own"""

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[str]]) -> None:
        folder.mkdir()
        address = f"127.0.0.1:{free_port()}"
        config = folder / "prometheus.yml"
        config.write_text(on_loopback({**targets, "localhost": [address]}, interval_seconds=1))
        self.url = f"http://{address}"
        self.started = time.time()
        self._process = launch(
            [
                installed(print),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            environment={"PATH": "/usr/bin:/bin"},
            folder=folder,
            output=folder / "log",
        )
        self._log = folder / "log"

    def down(self) -> list[str]:
        """Targets that do not answer yet; one entry while Prometheus itself does not."""
        assert self._process.is_alive, self._log.read_text()
        try:
            targets = self._get("targets", state="active")["activeTargets"]
        except requests.ConnectionError:
            return ["prometheus"]
        return [target["scrapeUrl"] for target in targets if target["health"] != "up"] if targets else ["no target"]

    def values(self, query: str) -> list[float]:
        """All values since the start, second by second, that are numbers. AssertionError when the query is refused."""
        found = self._get("query_range", query=query, start=self.started, end=time.time(), step=1)["result"]
        values = [float(value) for series in found for _, value in series["values"]]
        return [value for value in values if value == value]  # noqa: PLR0124 - NaN differs from itself

    def stop(self) -> None:
        self._process.stop((signal.SIGTERM, 10))

    def _get(self, what: str, **parameters: Any) -> Any:
        answer = requests.get(f"{self.url}/api/v1/{what}", params=parameters, timeout=10)
        if what != "targets":
            assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"] if answer.status_code == 200 else {"activeTargets": []}
