"""ComfyUI forgets, freezes, is gone for good, answers 500 though it queued, answers garbage."""

from collections.abc import Iterator

import pytest

from shared.domain.messages import Order
from tests.e2e import states
from tests.e2e.conftest import Build
from tests.e2e.gpu import Gpu
from tests.e2e.outage import (
    SETTINGS,
    assert_all_made_once,
    attempts_beyond_one,
    nobody_dies,
    possible_doubles,
)
from tests.e2e.system import System, some_orders
from tests.waiting import eventually

#: Seconds a job may run; nothing but a frozen server takes so long.
LIMIT = 6.0
JSON_PATHS = ["/prompt", "/api/jobs*", "/queue", "/history*"]


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    system = build(gpus=2, settings={**SETTINGS, "MAX_RUN_SECONDS": LIMIT})
    system.start(submitters=2, pollers=2)
    return system


@pytest.fixture(autouse=True)
def _all_are_well(system: System, _audited: None) -> Iterator[None]:
    yield
    for gpu in system.gpus:
        gpu.heal()


def await_health(system: System, gpu: Gpu, wanted: str) -> None:
    def found() -> bool:
        [row] = system.sql("select health from backends where name = :name", name=gpu.name)
        return bool(row.health == wanted)

    eventually(found, within=40, what=f"{gpu.name} is {wanted}")


def stuck_at(system: System, gpu: Gpu) -> list[Order]:
    """Of four endless jobs the two that this server has."""
    for each in system.gpus:
        each.faults(seconds_per_image=states.FOREVER)
    orders = some_orders(4)
    system.place(*orders)
    system.await_status("processing", *orders)
    return [order for order in orders if system.row(order).backend == gpu.name]


def test_a_server_that_dies_and_comes_back_without_memory_makes_what_it_forgot_once_more(
    system: System, orders: list[Order]
) -> None:
    gpu = system.gpus[0]
    with nobody_dies(system):
        gpu.kill()
        await_health(system, gpu, "down")
        gpu.start()
        gpu.wait_until_up()
        await_health(system, gpu, "up")
        assert_all_made_once(system, orders)
        assert attempts_beyond_one(system, orders) <= gpu.capacity
        assert [run["outcome"] for run in gpu.executions].count("lost") >= 1


def test_a_frozen_server_gets_no_work_and_its_jobs_are_made_again_once_it_was_restarted(
    system: System, orders: list[Order]
) -> None:
    gpu, other = system.gpus
    with nobody_dies(system):
        gpu.faults(freeze=True)
        await_health(system, gpu, "frozen")
        other.heal()
        waiting = [order for order in orders if system.row(order).backend == gpu.name]
        stuck = [order for order in waiting if system.row(order).status == "processing"]
        assert 1 <= len(stuck) <= gpu.capacity
        system.await_status("completed", *(order for order in orders if order not in stuck))
        assert [system.row(order).status for order in stuck] == ["processing"] * len(stuck)
        gpu.restart()
        await_health(system, gpu, "up")
        assert_all_made_once(system, orders)
        assert attempts_beyond_one(system, orders) <= len(stuck)


def test_of_a_server_that_is_gone_for_good_orders_end_at_their_deadline_or_go_elsewhere_when_a_person_says_so(
    system: System,
) -> None:
    gone, other = system.gpus
    late, patient = stuck_at(system, gone)
    with nobody_dies(system):
        gone.kill()
        await_health(system, gone, "down")
        other.faults(seconds_per_image=None)
        other.restart()
        others = some_orders(10)
        system.place(*others)
        system.await_status("completed", *others)
        assert {row.backend for row in system.rows(others)} == {other.name}

        system.pass_deadline(late)
        eventually(lambda: system.events(late) == ["failed"], within=30, what="upstream is told")
        assert [letter.reason for letter in eventually(lambda: system.letters(late), within=20)] == ["deadline"]
        assert system.row(patient).status == "processing"

        status, said = system.darkroom("backend", "forget", gone.name, "--why", "it burned")
        assert status == 0, said
        [row] = system.await_status("completed", patient)
        assert (row.backend, row.attempt) == (other.name, 2)
        assert possible_doubles(system, [late, patient, *others]) == 0
    system.await_status("failed", late)
    gone.start()
    gone.wait_until_up()
    await_health(system, gone, "up")


@pytest.mark.parametrize("fault", ["answer_500", "drop_after_accept"])
def test_a_server_that_fails_though_it_queued_is_asked_and_gets_no_second_job(system: System, fault: str) -> None:
    for gpu in system.gpus:
        gpu.faults(**{fault: {"probability": 0.5} | ({"queue": True} if fault == "answer_500" else {})})
    orders = some_orders(30)
    with nobody_dies(system):
        system.place(*orders)
        system.await_status("completed", *orders, within=90)
        assert sum(gpu.faults()[fault] for gpu in system.gpus) >= 5
        assert_all_made_once(system, orders)


@pytest.mark.parametrize(("kind", "paths"), [("html", ["*"]), ("cut_body", ["*"]), ("cut_json", JSON_PATHS)], ids=str)
def test_garbage_in_place_of_answers_delays_orders_and_loses_none(system: System, kind: str, paths: list[str]) -> None:
    for gpu in system.gpus:
        gpu.faults(garbage={"kind": kind, "paths": paths, "probability": 0.3})
    orders = some_orders(20)
    with nobody_dies(system):
        system.place(*orders)
        # A look-up after a lost answer takes several good ones, and waits a lease for its next try.
        system.await_status("completed", *orders, within=300)
        assert sum(gpu.faults()["garbage"] for gpu in system.gpus) >= 5
        assert_all_made_once(system, orders)
        assert attempts_beyond_one(system, orders) <= len(orders) // 2
