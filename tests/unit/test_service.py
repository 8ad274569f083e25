"""What every process does, whatever its settings."""

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shared import service
from shared.broker.topology import topology
from shared.observe.health import Health
from shared.observe.metrics import build


@pytest.mark.parametrize(("port", "is_served"), [(-1, False), (0, True)])
def test_the_watchdog_runs_with_and_without_a_port(monkeypatch: pytest.MonkeyPatch, port: int, is_served: bool) -> None:
    watched: list[Health] = []
    monkeypatch.setattr(service, "Watchdog", lambda health: SimpleNamespace(start=lambda: watched.append(health)))
    metrics = build("poller")
    health = Health(metrics)
    ours = service.Service(
        name="poller",
        settings=cast(Any, SimpleNamespace(metrics_port=port, metrics_host="127.0.0.1")),
        backends=(),
        tables={},
        topology=topology([]),
        metrics=metrics,
        health=health,
        engine=cast(Any, None),
        readiness_engine=cast(Any, None),
        stopping=threading.Event(),
    )

    server = ours.serve_health()

    assert (watched, server is not None) == ([health], is_served)
    if server is not None:
        server.close()
