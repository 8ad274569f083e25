"""Orders that a plan sends to one server alone, by real processes: that server is paused, and then gone for good."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from shared.domain.messages import Order
from tests.e2e.conftest import Build
from tests.e2e.outage import SETTINGS
from tests.e2e.system import System, some_orders
from tests.waiting import eventually


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    system = build(gpus=2, settings={**SETTINGS, "RETRY_MAX_ATTEMPTS": 1, "FALLBACK_AFTER_SECONDS": 1})
    system.start(submitters=2)
    return system


def sent_to_gpu_2(system: System, count: int) -> list[Order]:
    """Orders that died everywhere, and that a plan has sent round to a server that is paused."""
    for gpu in system.gpus:
        gpu.faults(fail_execution={"exception_type": "RuntimeError"})
    orders = some_orders(count)
    system.place(*orders)
    eventually(lambda: all(system.letters(order) for order in orders), within=60, what="all have died")
    for gpu in system.gpus:
        gpu.heal()
    assert system.darkroom("backend", "pause", "gpu-2", "--reason", "new driver")[0] == 0
    plan = darkroom(system, "plan", "--all", "--reason", "execution_failed", "--redirect-to-backend", "gpu-2")
    assert plan["preview"]["outcomes"] == {"blocked": count}
    darkroom(system, "apply", str(plan["id"]), "--rate", "100", "--ramp", "none")
    system.await_status("pending", *orders)
    return orders


def darkroom(system: System, *words: str) -> dict[str, Any]:
    status, said = system.darkroom("dead", *words, "--json")
    assert status == 0, said
    found: dict[str, Any] = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    return found


def made_at(system: System, orders: Sequence[Order]) -> set[str]:
    """Where the last attempts of these orders were."""
    rows = system.sql(
        "select distinct a.backend from attempts a join tasks t on t.id = a.task_id and t.attempt = a.attempt"
        " where t.id = any(cast(:ids as uuid[]))",
        ids=[str(order.task_id) for order in orders],
    )
    return {row.backend for row in rows}


def test_orders_for_a_paused_server_wait_for_it_and_the_others_go_past_them(system: System) -> None:
    alone, others = sent_to_gpu_2(system, 6), some_orders(6)
    system.place(*others)
    system.await_status("completed", *others)
    assert made_at(system, others) == {"gpu-1"}
    assert system.statuses(alone) == {"pending": 6}
    assert system.darkroom("backend", "resume", "gpu-2")[0] == 0
    system.await_status("completed", *alone)
    assert made_at(system, alone) == {"gpu-2"}


def test_orders_for_a_server_that_is_gone_end_and_say_so(system: System) -> None:
    alone = sent_to_gpu_2(system, 3)
    file = system.folder / "backends.toml"
    first, second = file.read_text().split("[[backend]]")[1:]
    assert "gpu-2" in second
    file.write_text(f"[[backend]]{first}")
    for worker in system.workers:
        worker.terminate()
        worker.ended(30)
    system.start()
    rows = system.await_status("failed", *alone)
    assert {row.reason for row in rows} == {"rejected"}
    assert all("gpu-2 is no longer in the backends file" in row.detail for row in rows)
    eventually(lambda: all(len(system.letters(order)) == 2 for order in alone), within=30, what="a second letter each")
    assert [system.events(order) for order in alone] == [["failed", "failed"]] * 3
