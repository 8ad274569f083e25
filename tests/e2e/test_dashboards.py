"""Every query of every dashboard, asked of a real Prometheus that scrapes the running services and the broker."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.grafana.__main__ import FOLDER
from deploy.local import Stack
from deploy.prometheus import without_rules
from tests.e2e.conftest import Build
from tests.e2e.prometheus import Prometheus
from tests.e2e.system import System, an_order, some_orders
from tests.waiting import eventually

BOARDS = sorted(FOLDER.glob("*.json"))


def queries(board: Path) -> Iterator[str]:
    """All of panels and of process starts, as the browser sends them for "All" and a short time range."""
    content = json.loads(board.read_text())
    found = [target["expr"] for panel in content["panels"] for target in panel.get("targets", ())]
    found += [annotation["expr"] for annotation in content["annotations"]["list"] if annotation["name"] != "Alerts"]
    for query in found:
        short = query.replace("$__rate_interval", "5s")
        yield without_rules(re.sub(r"\$(job|instance|backend)\b", ".*", short))


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    system = build(settings={"HTTP_PORT": 0})
    system.start(ops=0)
    system.add("producer")
    system.add("ops")  # last: it asks for the backends at once and then every ten seconds
    return system


@pytest.fixture(scope="module")
def prometheus(system: System, stack: Stack) -> Iterator[Prometheus]:
    broker = [f"127.0.0.1:{stack.prometheus_port}"]
    services = {worker.name.partition("-")[0]: [f"127.0.0.1:{worker.port}"] for worker in system.workers}
    server = Prometheus(system.folder / "prometheus", {**services, "rabbitmq": broker})
    try:
        eventually(lambda: not server.down(), within=20, what="every target is scraped")
        yield server
    finally:
        server.stop()


def test_every_query_has_an_answer_once_orders_went_well_badly_and_twice(
    system: System, prometheus: Prometheus
) -> None:
    bad, good = an_order(), some_orders(4)
    gpu = system.gpus[0]
    gpu.faults(
        fail_execution={"match": f'"color": {bad.inputs["color"]}'},
        answer_500={"paths": ["*"], "methods": ["GET"], "times": 2},
    )
    system.place(bad, *good, *good)
    system.await_status("completed", *good)
    system.await_status("failed", bad)
    gpu.heal()

    asked = list(dict.fromkeys(query for board in BOARDS for query in queries(board)))
    assert len(asked) > 80
    for query in asked:
        eventually(lambda query=query: prometheus.values(query), within=10, what=query, every=0.5)
