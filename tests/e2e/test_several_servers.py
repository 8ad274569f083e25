"""Three servers of one pool, of which one at a time is dead, away, frozen, forgetful or broken."""

from collections.abc import Iterator

import pytest

from shared.domain.messages import Order
from tests.e2e.conftest import Build
from tests.e2e.gpu import Gpu
from tests.e2e.system import System, an_order, some_orders
from tests.waiting import eventually

#: Seconds a job may run. The frozen server is found that late; nothing else here may take so long.
LIMIT = 10.0
#: A run that only a cancel or the end of its server ends.
ENDLESS = 600.0


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    system = build(gpus=3, capacity=2, settings={"MAX_RUN_SECONDS": LIMIT})
    system.start(submitters=2)
    return system


@pytest.fixture(autouse=True)
def _all_are_well(system: System) -> Iterator[None]:
    """Idle servers that all take work: of such, the first one by name is the next to get an order."""
    eventually(lambda: {health(system, gpu) for gpu in system.gpus} == {"up"}, within=20, what="all are up")
    yield
    for gpu in system.gpus:
        gpu.heal()


def health(system: System, gpu: Gpu) -> str:
    [row] = system.sql("select health from backends where name = :name", name=gpu.name)
    return str(row.health)


def await_health(system: System, gpu: Gpu, wanted: str) -> None:
    eventually(lambda: health(system, gpu) == wanted, within=30, what=f"{gpu.name} is {wanted}")


def running_on(system: System, gpu: Gpu) -> Order:
    """An order whose job this server, idle and the first one, has begun to draw. It must be slow, or nobody look."""
    order = an_order()
    system.place(order)
    [row] = system.await_status("processing", order)
    assert row.backend == gpu.name
    eventually(lambda: gpu.of(row.job_key)[0]["started_at"], within=10, what="the job runs")
    return order


def servers_of(system: System, order: Order) -> list[str]:
    """Where each of its attempts was made."""
    rows = system.sql("select backend from attempts where task_id = :id order by attempt", id=order.task_id)
    return [row.backend for row in rows]


def outcomes(system: System, order: Order) -> list[str]:
    """What became of its prompts, in the order of acceptance."""
    return [run["outcome"] for run in sorted(system.runs_of(order), key=lambda run: run["accepted_at"])]


def pictures(system: System, order: Order) -> int:
    return len(list((system.folder / "pictures" / str(order.task_id)).rglob("*.png")))


def stop_pollers(system: System) -> None:
    """Nobody looks at servers or jobs until another poller is added."""
    pollers = system.living("poller")
    for poller in pollers:
        poller.terminate()
    assert [poller.ended() for poller in pollers] == [0] * len(pollers)


# --- where an order goes


def test_the_least_loaded_server_gets_the_next_order(system: System) -> None:
    for gpu in system.gpus:
        gpu.faults(seconds_per_image=ENDLESS)
    names = [gpu.name for gpu in system.gpus]
    first, second = some_orders(3), some_orders(3)
    system.place(*first)
    assert sorted(row.backend for row in system.await_status("processing", *first)) == names
    system.place(*second)
    assert sorted(row.backend for row in system.await_status("processing", *second)) == names
    emptied = [order for order in [*first, *second] if system.row(order).backend == names[2]]
    eased = next(order for order in first if system.row(order).backend == names[0])
    for order in [*emptied, eased]:
        system.cancel(order)
    system.await_status("cancelled", *emptied, eased)
    last = an_order()
    system.place(last)
    [row] = system.await_status("processing", last)
    assert row.backend == names[2]

    left = [order for order in [*first, *second, last] if system.row(order).status == "processing"]
    for order in left:
        system.cancel(order)
    system.await_status("cancelled", *left)


def test_an_order_refused_by_a_dead_server_goes_to_another_and_nothing_is_charged(system: System) -> None:
    dead = system.gpus[0]
    stop_pollers(system)  # or they would know of it before a submitter does
    dead.kill()
    order = an_order()
    system.place(order)
    eventually(lambda: health(system, dead) == "down", within=20, what="a submitter says so")
    eventually(lambda: system.statuses([order]) == {"pending": 1}, within=20, what="the row is given back")
    others = some_orders(3)
    system.place(*others)  # each brings a permit, and the row given back is the oldest
    [row] = system.await_status("processing", order)
    assert (row.backend != dead.name, row.attempt, row.charged) == (True, 2, 0)

    dead.start()
    dead.wait_until_up()
    system.add("poller")
    system.await_status("completed", order, *others)
    assert [servers_of(system, order)[0], outcomes(system, order)] == [dead.name, ["success"]]
    await_health(system, dead, "up")
    later = an_order()
    system.place(later)
    [row] = system.await_status("completed", later)
    assert row.backend == dead.name


# --- what becomes of a job whose server is in trouble


def test_the_job_of_a_dead_server_goes_nowhere_before_the_server_is_back_and_was_asked(system: System) -> None:
    dead = system.gpus[0]
    dead.faults(seconds_per_image=ENDLESS)
    order = running_on(system, dead)
    dead.kill()
    await_health(system, dead, "down")
    others = some_orders(4)
    system.place(*others)
    assert dead.name not in {row.backend for row in system.await_status("completed", *others)}
    row = system.row(order)
    assert (row.status, row.backend, row.attempt) == ("processing", dead.name, 1)

    dead.start()
    dead.wait_until_up()
    [completed] = system.await_status("completed", order)
    assert (completed.attempt, completed.charged) == (2, 1)
    assert outcomes(system, order) == ["lost", "success"]
    assert pictures(system, order) == 1
    # Its files were looked for before anybody sent the job again.
    probe = dead.calls("HEAD", str(row.job_key))
    assert [call["status"] for call in probe] == [404]
    assert probe[0]["t"] < max(run["accepted_at"] for run in system.runs_of(order))


def test_a_server_that_cannot_be_reached_for_a_while_keeps_its_job(system: System) -> None:
    away = system.gpus[0]
    away.faults(seconds_per_image=3)
    order = running_on(system, away)
    away.faults(refuse={"seconds": 5})
    await_health(system, away, "down")
    others = some_orders(2)
    system.place(*others)

    system.await_status("completed", *others)
    [row] = system.await_status("completed", order)
    assert (row.backend, row.attempt) == (away.name, 1)
    assert outcomes(system, order) == ["success"]


def test_a_server_that_forgot_a_running_job_runs_it_again_and_one_set_of_pictures_is_kept(system: System) -> None:
    forgetful = system.gpus[0]
    forgetful.faults(seconds_per_image=ENDLESS)
    order = running_on(system, forgetful)
    first_key = system.row(order).job_key
    forgetful.heal()  # from the next job on
    forgetful.restart()

    [row] = system.await_status("completed", order)
    assert (row.attempt, row.charged) == (2, 1)
    assert outcomes(system, order) == ["lost", "success"]
    assert [call["status"] for call in forgetful.calls("HEAD", str(first_key))] == [404]
    kept = system.sql("select attempt from artifacts where task_id = :id", id=order.task_id)
    assert [artifact.attempt for artifact in kept] == [2]
    assert pictures(system, order) == 1


def test_a_server_that_forgot_a_finished_job_is_asked_for_its_files_and_runs_nothing_again(system: System) -> None:
    forgetful = system.gpus[0]
    stop_pollers(system)
    order = running_on(system, forgetful)
    eventually(lambda: outcomes(system, order) == ["success"], within=10, what="the picture is drawn")
    forgetful.restart()
    system.add("poller")

    [row] = system.await_status("completed", order)
    assert (row.attempt, row.charged) == (1, 0)
    assert outcomes(system, order) == ["success"]
    assert pictures(system, order) == 1


def test_a_frozen_server_keeps_the_job_it_runs_and_gets_no_work_until_it_was_restarted(system: System) -> None:
    frozen = system.gpus[0]
    frozen.faults(freeze=True)
    stuck = running_on(system, frozen)
    await_health(system, frozen, "frozen")
    others = some_orders(6)
    system.place(*others)
    assert frozen.name not in {row.backend for row in system.await_status("completed", *others)}
    row = system.row(stuck)
    assert (row.status, row.backend, row.attempt) == ("processing", frozen.name, 1)
    assert outcomes(system, stuck) == ["running"]

    frozen.restart()
    [row] = system.await_status("completed", stuck)
    assert (row.attempt, outcomes(system, stuck)) == (2, ["lost", "success"])
    assert pictures(system, stuck) == 1
    await_health(system, frozen, "up")


# --- jobs that fail on one server


def test_an_execution_error_gets_one_more_attempt_on_another_server_and_then_ends_the_order(system: System) -> None:
    order = an_order()
    for gpu in system.gpus:
        gpu.faults(fail_execution={"match": f'"color": {order.inputs["color"]}'})
    system.place(order)

    [row] = system.await_status("failed", order)
    assert (row.reason, row.attempt, row.charged) == ("execution_failed", 2, 2)
    assert len(set(servers_of(system, order))) == 2
    assert outcomes(system, order) == ["error", "error"]
    [letter] = eventually(lambda: system.letters(order), within=20)
    assert (letter.reason, letter.stage, letter.attempt) == ("execution_failed", "check", 2)
    assert system.events(order) == ["failed"]


@pytest.mark.parametrize("error", ["RuntimeError", "torch.OutOfMemoryError"])
def test_what_fails_on_one_server_succeeds_on_another(system: System, error: str) -> None:
    broken = system.gpus[0]
    broken.faults(fail_execution={"exception_type": error})
    orders = some_orders(6)
    system.place(*orders)

    system.await_status("completed", *orders)
    hit = [order for order in orders if servers_of(system, order)[0] == broken.name]
    assert hit
    for order in hit:
        assert outcomes(system, order) == ["error", "success"]
        assert broken.name not in servers_of(system, order)[1:]
        assert pictures(system, order) == 1
    for order in [order for order in orders if order not in hit]:
        assert outcomes(system, order) == ["success"]
