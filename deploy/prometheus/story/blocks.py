"""Writes a story into blocks and serves them by a private Prometheus on loopback."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import requests
import yaml

from deploy.local.install import prometheus
from deploy.local.ports import LOOPBACK, free_port
from deploy.local.problem import StackProblem
from deploy.local.process import Process, launch
from deploy.prometheus import recorded, without_rules

_START_SECONDS: Final = 60
_RULES: Final = "recording.yml"


@contextmanager
def served(text: str, *, rules_seconds: int = 0, begin: int = 0, end: int = 0) -> Iterator[str]:
    """The address of a Prometheus that has scraped `text`, which is in OpenMetrics' format.

    rules_seconds -- between evaluations of the recording rules from `begin` to `end`; 0: there are none

    Raises StackProblem.
    """
    program = prometheus(print)
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "story").write_text(text, encoding="utf-8")
        _promtool(program, folder, "create-blocks-from", "openmetrics", "-q", "story", "data")
        (folder / "prometheus.yml").write_text("", encoding="utf-8")
        if rules_seconds:
            (folder / _RULES).write_text(_flat_rules(), encoding="utf-8")
            with _running(program, folder) as url:
                span = [f"--start={begin}", f"--end={end}", f"--eval-interval={rules_seconds}s"]
                where = [f"--url={url}", "--output-dir=data"]
                _promtool(program, folder, "create-blocks-from", "rules", *where, *span, _RULES)
        with _running(program, folder) as url:  # it finds new blocks when it starts
            yield url


def _promtool(program: Path, folder: Path, *arguments: str) -> None:
    """In the folder: when within a minute it evaluates rules depends on the name of their file as it is given."""
    command = [str(program.with_name("promtool")), "tsdb", *arguments]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise StackProblem(f"promtool tsdb {arguments[1]}: {answer.stderr[-2000:]}")


def _flat_rules() -> str:
    """The recording rules without one that reads another: promtool evaluates each on its own."""
    rules = [{"record": name, "expr": without_rules(expression)} for name, expression in recorded().items()]
    text: str = yaml.safe_dump({"groups": [{"name": "recording", "rules": rules}]})
    return text


@contextmanager
def _running(program: Path, folder: Path) -> Iterator[str]:
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
        yield f"http://{address}"
    finally:
        server.stop((signal.SIGTERM, 10))


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
