"""What running services let one see: answers to every query of the dashboards, and the trail of one order."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from deploy.grafana.__main__ import FOLDER
from deploy.local import Stack
from deploy.prometheus import without_rules
from shared.domain.messages import Order, order_placed
from shared.observe.trace import new_trace_id, read_trace_id, traceparent_of
from tests.e2e.conftest import Build
from tests.e2e.prometheus import Prometheus
from tests.e2e.system import System, an_order, some_orders
from tests.servers import free_port
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


def order_over_http(system: System, order: Order, trace_id: str) -> None:
    url = f"http://127.0.0.1:{system.settings['DARKROOM_HTTP_PORT']}/v1/orders"
    body = order.model_dump(mode="json", exclude_defaults=True)
    answer = requests.post(url, json=body, headers={"traceparent": traceparent_of(trace_id)}, timeout=10)
    assert answer.ok, answer.text


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    system = build(settings={"HTTP_PORT": free_port()}, canary=True)
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
    bad, web, good = an_order(), an_order(), some_orders(4)
    gpu = system.gpus[0]
    gpu.faults(
        fail_execution={"match": f'"color": {bad.inputs["color"]}'},
        answer_500={"paths": ["*"], "methods": ["GET"], "times": 2},
    )
    system.place(bad, *good, *good)
    order_over_http(system, web, new_trace_id())
    system.await_status("completed", web, *good)
    system.await_status("failed", bad)
    gpu.heal()

    asked = list(dict.fromkeys(query for board in BOARDS for query in queries(board)))
    assert len(asked) > 80
    for query in asked:
        eventually(lambda query=query: prometheus.values(query), within=10, what=query, every=0.5)


def test_a_trace_leads_from_the_upstream_system_through_a_dead_letter_and_its_replay_to_the_picture(
    system: System,
) -> None:
    order, trace_id = an_order(), new_trace_id()
    gpu = system.gpus[0]
    gpu.faults(fail_execution={"match": f'"color": {order.inputs["color"]}'})
    system.mail.publish([order_placed(order, traceparent=traceparent_of(trace_id))])
    system.await_status("failed", order)
    eventually(lambda: system.letters(order), within=20, what="the letter is recorded")
    gpu.heal()
    (letter,) = system.letters(order)
    assert read_trace_id(letter.headers["traceparent"]) == trace_id
    ended, said = system.darkroom("dead", "replay", str(letter.id), "--by", "ann")
    assert ended == 0, said
    row = system.await_status("completed", order)[0]

    assert row.trace_id == trace_id
    told = [event["event_id"] for event in system.mail.events() if event["task_id"] == str(order.task_id)]
    assert len(told) >= 2
    assert {read_trace_id(system.mail.traces[event_id]) for event_id in told} == {trace_id}
    lines = {
        worker.name.partition("-")[0]: [line for line in worker.lines() if line.get("task_id") == str(order.task_id)]
        for worker in system.workers
    }
    assert {service for service, about in lines.items() if about} >= {"submitter", "poller", "ops"}
    assert {line.get("trace_id") for about in lines.values() for line in about} == {trace_id}
    ended, said = system.darkroom("order", "trace", str(order.task_id))
    assert ended == 0
    assert trace_id in said


def test_a_trace_of_an_order_over_http_is_that_of_the_request_and_a_repetition_names_both(system: System) -> None:
    order, first, second = an_order(), new_trace_id(), new_trace_id()
    order_over_http(system, order, first)
    system.await_status("completed", order)
    assert system.row(order).trace_id == first
    system.mail.publish([order_placed(order, traceparent=traceparent_of(second))])
    submitter = system.living("submitter")[0]

    def repeated() -> list[tuple[str, str]]:
        said = submitter.said("duplicate order")
        return [(line["trace_id"], line["dup_of_trace_id"]) for line in said if line["task_id"] == str(order.task_id)]

    eventually(repeated, within=20, what="the repetition is refused")
    assert repeated() == [(second, first)]


def test_a_canary_order_goes_the_whole_way_and_only_the_probe_tells(system: System, prometheus: Prometheus) -> None:
    def row() -> Any:
        return next(iter(system.sql("select * from tasks where pool = 'canary' and told_at is not null")), None)

    eventually(row, within=30, what="one came through")
    came = row()
    assert (came.status, came.attempt) == ("completed", 1)
    assert [event["event"] for event in system.mail.events() if event["task_id"] == str(came.id)][-1] == "completed"
    lines = {
        worker.name.partition("-")[0]: [line for line in worker.lines() if line.get("task_id") == str(came.id)]
        for worker in system.workers
    }
    assert {line["trace_id"] for about in lines.values() for line in about} == {came.trace_id}
    assert {service for service, about in lines.items() if about} >= {"submitter", "poller"}
    eventually(
        lambda: 0 < prometheus.values("darkroom_probe_duration_seconds")[-1] < 60, within=10, what="its duration"
    )
    last = prometheus.values("darkroom_probe_last_success_timestamp_seconds")[-1]
    assert last >= came.told_at.timestamp() - 1
    assert not prometheus.values('{__name__=~"darkroom_.*",pool="canary"}')
    offered = requests.get(f"http://127.0.0.1:{system.settings['DARKROOM_HTTP_PORT']}/v1/workflows", timeout=10)
    assert "canary" not in offered.text
