"""Plans by real processes: what a person types, workers that run, and an ops service that is killed in the middle."""

import json
from typing import Any

import pytest

from shared.domain.messages import Order
from tests.e2e.conftest import Build
from tests.e2e.system import System, some_orders
from tests.waiting import eventually


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    return build(seconds_per_image=0.1, settings={"RETRY_MAX_ATTEMPTS": 1})


def _dead(system: System, count: int) -> list[Order]:
    """Orders that a broken server has let die, and their letters recorded."""
    orders = some_orders(count)
    system.gpus[0].faults(fail_execution={"exception_type": "RuntimeError"})
    system.place(*orders)
    eventually(lambda: all(system.letters(order) for order in orders), within=60, what="all have died")
    return orders


def _darkroom(system: System, *words: str) -> dict[str, Any]:
    status, said = system.darkroom("dead", *words, "--json")
    assert status == 0, said
    return json.loads(next(line for line in said.splitlines() if line.startswith("{")))


def test_a_plan_outlives_the_processes_that_carry_it_out_and_makes_no_order_twice(system: System) -> None:
    workers = system.start(ops=2)
    orders = _dead(system, 12)
    plan = _darkroom(system, "plan", "--all", "--reason", "execution_failed", "--by", "ann")
    assert plan["preview"]["outcomes"] == {"will_run": 12}
    system.gpus[0].heal()
    plan_id = str(plan["id"])
    _darkroom(system, "apply", plan_id, "--by", "ann", "--rate", "20", "--ramp", "1,3")
    eventually(lambda: system.sql("select 1 from plan_items where result = 'completed'"), within=30)
    for worker in workers:
        if worker.name.startswith("ops"):
            worker.kill()
    system.add("ops")
    system.await_status("completed", *orders, within=60)
    eventually(lambda: _darkroom(system, "status", plan_id)["state"] == "done", within=30)
    progress = _darkroom(system, "status", plan_id)["progress"]
    assert (progress["completed"], progress["waiting"], progress["refused"]) == (12, 0, 0)
    for order in orders:
        assert [run["outcome"] for run in system.runs_of(order)].count("success") == 1


def test_a_plan_stops_itself_at_the_first_letter_that_fails_again(system: System) -> None:
    _dead(system, 4)
    plan_id = str(_darkroom(system, "plan", "--all", "--reason", "execution_failed")["id"])
    _darkroom(system, "apply", plan_id, "--rate", "20")
    eventually(lambda: system.sql("select 1 from plans where state = 'stopped'"), within=30)
    status, said = system.darkroom("dead", "status", plan_id)
    assert status == 1
    assert "1 of the last 1 failed" in said
    assert len(system.sql("select 1 from plan_items where plan_id = :id and state <> 'waiting'", id=int(plan_id))) == 1


def test_a_plan_of_letters_that_nobody_can_read_stops_when_the_first_one_dies_again(system: System) -> None:
    for number in range(6):
        system.mail.send(b"no order %d" % number)
    eventually(lambda: len(system.letters()) == 6, within=30)
    ids = [str(letter.id) for letter in system.letters()]
    plan_id = str(_darkroom(system, "plan", *ids)["id"])
    _darkroom(system, "apply", plan_id, "--rate", "20", "--ramp", "1,5")
    eventually(
        lambda: system.sql("select 1 from plans where id = :id and state = 'stopped'", id=int(plan_id)), within=30
    )
    assert len(system.letters()) == 7
    progress = _darkroom_progress(system, plan_id)
    assert (progress["failed"], progress["waiting"]) == (1, 5)


def _darkroom_progress(system: System, plan_id: str) -> dict[str, int]:
    """Of a plan that stopped: the status of the command says so."""
    _, said = system.darkroom("dead", "status", plan_id, "--json")
    return json.loads(next(line for line in said.splitlines() if line.startswith("{")))["progress"]
