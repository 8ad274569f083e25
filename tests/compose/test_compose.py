"""The stack of docker-compose.yml at work: orders, crashes from outside, a drain, and its data over down and up."""

import itertools
import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
import requests

from deploy.grafana.__main__ import files
from tests.compose.project import Project
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(1200)

COUNT = 24
#: Work for about 20 s: enough to be killed in the middle, also on a machine that takes some seconds for the kill.
MANY = 80
SERVERS = ("gpu-1", "gpu-2")
WORKERS = ("producer", "submitter", "poller", "ops")
_colours = itertools.count(1_000_000)


def some_orders(count: int) -> list[dict[str, Any]]:
    """Half of them draw a plain picture, half change a photograph from the folder of inputs."""
    plain = {"workflow": "solid-invert", "inputs": {"width": 64, "height": 64}}
    photo = {"workflow": "photo-invert", "inputs": {"photo": "file:///inputs/cat.jpg", "width": 128, "height": 128}}
    made = []
    for number in range(count):
        order: dict[str, Any] = {"idempotency_key": str(uuid.uuid4()), "pool": "comfyui", **(photo, plain)[number % 2]}
        if order["workflow"] == "solid-invert":
            order["inputs"] = {**order["inputs"], "color": next(_colours)}
        made.append(order)
    return made


def await_all_completed(project: Project, addresses: Sequence[str], within: float) -> None:
    def reached() -> bool:
        return project.statuses(addresses) == {"completed": len(addresses)}

    try:
        eventually(reached, within=within, every=0.5, what=f"{len(addresses)} x completed")
    except AssertionError as error:
        raise AssertionError(f"{error}; they are {project.statuses(addresses)}") from None


def test_orders_placed_twice_over_http_are_each_made_once(project: Project) -> None:
    orders = some_orders(COUNT)
    addresses = [project.place(order) for order in orders]
    assert [project.place(order) for order in orders] == addresses

    await_all_completed(project, addresses, within=120)
    ids = [run["prompt_id"] for run in project.executions()]
    assert len(ids) == len(set(ids)) == COUNT
    assert "broken" not in project.darkroom("audit")


def test_workers_and_the_broker_killed_in_mid_run_lose_nothing_and_make_nothing_twice(project: Project) -> None:
    before = len(project.executions())
    killed = [project.containers("submitter")[0], project.containers("poller")[0], *project.containers("rabbitmq")]
    for server in SERVERS:
        project.darkroom("backend", "pause", server, "--reason", "until all is placed")
    addresses = [project.place(order) for order in some_orders(MANY)]
    for server in SERVERS:
        project.darkroom("backend", "resume", server)
    first, last = addresses[:10], addresses[-10:]
    eventually(lambda: project.statuses(first).get("completed", 0) >= 3, within=60, what="work has begun")
    project.crash(killed)
    assert project.statuses(last).get("completed", 0) < len(last), "the kills came too late to prove anything"

    await_all_completed(project, addresses, within=240)
    for container in killed:
        assert project.restarts(container) >= 1
        eventually(lambda c=container: project.state(c)["Health"]["Status"] == "healthy", within=120, what=container)
    runs = project.executions()
    assert len({run["prompt_id"] for run in runs}) == len(runs)
    assert len(runs) - before == MANY
    project.darkroom("audit")


def test_workers_drain_with_exit_code_0_and_down_and_up_keeps_rows_queues_and_pictures(project: Project) -> None:
    first = [project.place(order) for order in some_orders(6)]
    eventually(lambda: project.statuses(first).get("processing", 0) > 0, within=60, every=0.1, what="work has begun")
    project.compose("stop", "submitter")
    queued = [project.place(order) for order in some_orders(6)]  # nobody takes them from the queue
    project.compose("stop", *WORKERS)
    ends = {container: project.state(container) for container in project.containers(*WORKERS)}
    assert len(ends) == 3 + 2 + 1 + 1
    assert {end["ExitCode"] for end in ends.values()} == {0}

    project.down()
    assert project.containers() == []
    project.up(submitters=3, pollers=2)
    await_all_completed(project, [*first, *queued], within=120)
    project.darkroom("audit")  # reads every picture again, those from before as well


def test_prometheus_finds_every_replica_and_grafana_has_the_dashboards(project: Project) -> None:
    def replicas(job: str) -> int:
        """Those scraped now; a query would still show those from before `down`, for five minutes."""
        answer = requests.get(f"{project.prometheus}/api/v1/targets", params={"state": "active"}, timeout=10)
        targets = answer.json()["data"]["activeTargets"]
        return sum(target["labels"]["job"] == job and target["health"] == "up" for target in targets)

    for job, count in {"producer": 1, "submitter": 3, "poller": 2, "ops": 1, "rabbitmq-detailed": 1}.items():
        eventually(lambda job=job, count=count: replicas(job) == count, within=60, every=1, what=f"{count} x {job}")
    for name, text in files().items():
        uid = name.removesuffix(".json")
        answer = requests.get(f"{project.grafana}/api/dashboards/uid/{uid}", timeout=10)
        assert answer.status_code == 200, name
        assert answer.json()["dashboard"]["title"] == json.loads(text)["title"]


def test_every_panel_that_grafana_has_is_answered_by_prometheus(project: Project) -> None:
    orders = [project.place(order) for order in some_orders(6)]
    await_all_completed(project, orders, within=120)

    def series(query: str) -> list[Any]:
        answer = requests.get(f"{project.prometheus}/api/v1/query", params={"query": query}, timeout=10)
        assert answer.status_code == 200, f"{query}: {answer.text}"
        return list(answer.json()["data"]["result"])

    asked = []
    for name in files():
        answer = requests.get(f"{project.grafana}/api/dashboards/uid/{name.removesuffix('.json')}", timeout=10)
        panels = answer.json()["dashboard"]["panels"]
        asked += [target["expr"] for panel in panels for target in panel.get("targets", ())]
    assert len(asked) > 100
    for query in dict.fromkeys(asked):
        whole = re.sub(r"\$(job|instance|backend)\b", ".*", query.replace("$__rate_interval", "5m"))
        eventually(lambda whole=whole: series(whole), within=90, every=2, what=whole)


def test_our_containers_run_without_root_and_cannot_write_to_their_image(project: Project) -> None:
    for service in (*WORKERS, "comfyui-1"):
        said = project.compose("exec", "-T", service, "sh", "-c", "id -u; touch /app/x 2>&1 || true")
        uid, refusal = said.splitlines()
        assert uid == "10001"
        assert "Read-only file system" in refusal
