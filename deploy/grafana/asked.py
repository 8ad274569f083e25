"""A private Prometheus that has scraped the story, to be asked what the dashboards ask."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import requests

from deploy.grafana.story import BEGIN, END, STEP_SECONDS, Story, at_this_moment
from deploy.local.install import prometheus
from deploy.local.ports import LOOPBACK, free_port
from deploy.local.problem import StackProblem
from deploy.local.process import Process, launch
from deploy.prometheus import without_rules

_START_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a panel. points -- (Unix time, value), one point for a panel that shows one moment."""

    labels: dict[str, str]
    points: list[tuple[float, float]]


class Asked:
    """Answers of the Prometheus at this address."""

    def __init__(self, url: str) -> None:
        self._url = url

    def series(self, query: str, *, instant: bool) -> list[Series]:
        """In the order of their labels; without NaN. Raises requests.HTTPError for a query that is refused."""
        text = without_rules(at_this_moment(query))
        if instant:
            found = self._get("query", query=text, time=END)
        else:
            found = self._get("query_range", query=text, start=BEGIN + 600, end=END, step=STEP_SECONDS)
        series = [
            Series(one["metric"], [(at, float(v)) for at, v in one.get("values", [one.get("value")]) if v != "NaN"])
            for one in found
        ]
        return sorted((one for one in series if one.points), key=lambda one: sorted(one.labels.items()))

    def _get(self, what: str, **parameters: str | int) -> Any:
        answer = requests.get(f"{self._url}/api/v1/{what}", params=parameters, timeout=60)
        answer.raise_for_status()
        return answer.json()["data"]["result"]


@contextmanager
def scraped() -> Iterator[Asked]:
    """Writes the story into blocks and serves them on loopback meanwhile. Raises StackProblem."""
    program = prometheus(print)
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "story").write_text(Story().text(), encoding="utf-8")
        subprocess.run(
            [
                program.with_name("promtool"),
                "tsdb",
                "create-blocks-from",
                "openmetrics",
                "-q",
                folder / "story",
                folder / "data",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (folder / "prometheus.yml").write_text("", encoding="utf-8")
        address = f"{LOOPBACK}:{free_port()}"
        server = launch(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--storage.tsdb.retention.time=100y",
                f"--web.listen-address={address}",
            ],
            environment={"PATH": "/usr/bin:/bin"},
            folder=folder,
            output=folder / "log",
        )
        try:
            _wait_until_ready(server, f"http://{address}", folder / "log")
            yield Asked(f"http://{address}")
        finally:
            server.stop((signal.SIGTERM, 10), (signal.SIGKILL, 5))


def _wait_until_ready(server: Process, url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while server.is_alive and time.monotonic() < deadline:
        try:
            if requests.get(f"{url}/-/ready", timeout=5).status_code == 200:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    raise StackProblem(f"Prometheus does not start: {log.read_text(encoding='utf-8')[-2000:]}")
