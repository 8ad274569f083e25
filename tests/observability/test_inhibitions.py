"""A real Alertmanager with the routes that ship: which alert is not sent while which other one is."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from deploy.local.install import alertmanager
from deploy.local.process import launch
from tests.observability.test_rules import ALERTS, ROUTES
from tests.servers import free_port
from tests.waiting import eventually


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    address = f"127.0.0.1:{free_port()}"
    server = launch(
        [
            alertmanager(print),
            f"--config.file={ROUTES}",
            f"--storage.path={tmp_path / 'data'}",
            f"--web.listen-address={address}",
            "--cluster.listen-address=",
        ],
        environment={"PATH": "/usr/bin:/bin"},
        folder=tmp_path,
        output=tmp_path / "log",
    )

    def is_ready() -> bool:
        try:
            return requests.get(f"http://{address}/-/ready", timeout=5).ok
        except requests.ConnectionError:
            return False

    try:
        eventually(is_ready, within=20, what="Alertmanager answers")
        yield f"http://{address}"
    finally:
        server.stop((signal.SIGTERM, 10))


def silenced(url: str, *alerts: dict[str, str]) -> set[str]:
    """Which of these, firing together, Alertmanager does not send. Labels are those of the rules, and what is given."""
    labels = [{"alertname": alert["alertname"], **ALERTS[alert["alertname"]]["labels"], **alert} for alert in alerts]
    requests.post(f"{url}/api/v2/alerts", json=[{"labels": one} for one in labels], timeout=5).raise_for_status()

    def states() -> dict[str, str]:
        found = requests.get(f"{url}/api/v2/alerts", timeout=5).json()
        return {alert["labels"]["alertname"]: alert["status"]["state"] for alert in found}

    eventually(
        lambda: len(states()) == len(alerts) and "unprocessed" not in states().values(), within=20, what="all are known"
    )
    return {name for name, state in states().items() if state == "suppressed"}


def test_a_stale_exporter_silences_what_is_read_from_rows_and_nothing_else(url: str) -> None:
    alerts = [
        {"alertname": "StateStale"},
        {"alertname": "InvariantsStale"},
        {"alertname": "BacklogOld", "pool": "comfyui"},
        {"alertname": "BackendDown", "backend": "gpu-2"},
        {"alertname": "QueueWithoutConsumer", "queue": "orders"},
    ]
    assert silenced(url, *alerts) == {"BacklogOld", "BackendDown", "InvariantsStale"}


def test_the_brokers_alarm_and_a_very_old_backlog_speak_for_what_follows_from_them(url: str) -> None:
    alerts = [
        {"alertname": "BrokerAlarm"},
        {"alertname": "BrokerBlocked", "job": "poller"},
        {"alertname": "QueueWithoutConsumer", "queue": "submit.comfyui"},
        {"alertname": "BacklogVeryOld", "pool": "comfyui"},
        {"alertname": "BacklogOld", "pool": "comfyui"},
        {"alertname": "OrderSlowBurn1h", "pool": "fal"},
        {"alertname": "OrderSlowBurn3d", "pool": "comfyui"},
        {"alertname": "PublishErrorBurn1h"},
        {"alertname": "PublishErrorBurn3d"},
    ]
    assert silenced(url, *alerts) == {"BrokerBlocked", "QueueWithoutConsumer", "BacklogOld", "PublishErrorBurn3d"}
