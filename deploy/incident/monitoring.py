"""Prometheus and Alertmanager on loopback, and the pager they write to."""

import json
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from deploy.incident import scaled
from deploy.local.install import alertmanager, prometheus
from deploy.local.ports import LOOPBACK, free_port
from deploy.local.problem import StackProblem
from deploy.local.process import Process, launch
from deploy.prometheus import on_loopback

_START_SECONDS: Final = 30
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin"}


@dataclass(frozen=True, slots=True)
class Note:
    """One alert in one message of Alertmanager. at -- of the monotonic clock"""

    at: float
    receiver: str
    status: str
    alert: str
    summary: str
    labels: Mapping[str, str]


class Pager:
    """Takes Alertmanager's webhooks and keeps what they said, in order."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        notes = self.notes

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                notes.extend(
                    Note(
                        at=time.monotonic(),
                        receiver=self.path.strip("/"),
                        status=alert["status"],
                        alert=alert["labels"]["alertname"],
                        summary=alert["annotations"].get("summary", ""),
                        labels=alert["labels"],
                    )
                    for alert in body["alerts"]
                )
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing: the timeline says it."""

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self.url = f"http://{LOOPBACK}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, name="pager", daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Monitoring:
    """Both servers, with the rules and routes that ship, made quick. targets -- container's name -> addresses"""

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[str]]) -> None:
        self._folder = folder
        self._targets = targets
        self._processes: list[Process] = []
        self.pager = Pager()
        self.url = ""

    def start(self) -> None:
        """Return when both answer. Raises StackProblem."""
        self._folder.mkdir(parents=True)
        ports = [free_port()]
        ports.append(free_port(ports))
        here, manager = (f"{LOOPBACK}:{port}" for port in ports)
        routes, config = self._folder / "alertmanager.yml", self._folder / "prometheus.yml"
        routes.write_text(scaled.routes(self.pager.url), encoding="utf-8")
        scaled.write_rules(self._folder / "rules")
        targets = {**self._targets, "localhost": [here]}
        text = on_loopback(targets, scaled.EVALUATION_SECONDS, alertmanagers=[manager])
        config.write_text(text, encoding="utf-8")
        data = self._folder / "alertmanager"
        self._launch(
            alertmanager(print),
            f"--config.file={routes}",
            f"--storage.path={data}",
            f"--web.listen-address={manager}",
            "--cluster.listen-address=",
        )
        self._launch(
            prometheus(print),
            f"--config.file={config}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={here}",
        )
        self.url = f"http://{here}"
        for url in (f"http://{manager}", self.url):
            self._wait(f"{url}/-/ready")

    def wait_until_calm(self) -> None:
        """Return when every target has answered and nothing but Watchdog fires. Raises StackProblem.

        Until ops was scraped for the first time, StateStale fires: nothing is known about the table.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not (self._scraped() and {alert for alert, _ in self.alerts()} <= {"Watchdog"}):
            if time.monotonic() > deadline:
                raise StackProblem(f"alerts fire before anything has happened: {self.alerts()}")
            time.sleep(0.2)

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.stop((signal.SIGTERM, 10))
        self.pager.stop()

    def alerts(self) -> dict[tuple[str, str], str]:
        """State of each alert that is pending or firing in Prometheus, by its name and what it is about."""
        with urllib.request.urlopen(f"{self.url}/api/v1/alerts", timeout=5) as answer:  # noqa: S310 - our own address
            found = json.load(answer)["data"]["alerts"]
        return {(alert["labels"]["alertname"], about(alert["labels"])): alert["state"] for alert in found}

    def _scraped(self) -> bool:
        """Whether every target has answered at least once."""
        with urllib.request.urlopen(f"{self.url}/api/v1/targets?state=active", timeout=5) as answer:  # noqa: S310 - as above
            targets: list[dict[str, Any]] = json.load(answer)["data"]["activeTargets"]
        return bool(targets) and all(target["health"] == "up" for target in targets)

    def _launch(self, program: Path, *arguments: str) -> None:
        log = self._folder / f"{program.name}.log"
        self._processes.append(launch([program, *arguments], environment=_ENVIRONMENT, folder=self._folder, output=log))

    def _wait(self, url: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and all(process.is_alive for process in self._processes):
            with suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=2):  # noqa: S310 - as above
                return
            time.sleep(0.1)
        raise StackProblem(f"{url} does not answer; the logs are in {self._folder}")


def about(labels: Mapping[str, str]) -> str:
    """What tells the alert from others of its name. Pure."""
    said = ("alertname", "severity", "team", "source", "instance")
    return " ".join(value for name, value in sorted(labels.items()) if name not in said)
