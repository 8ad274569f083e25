"""The clock of some workers is an hour off: the database's clock decides, so nothing comes too early or too late."""

from datetime import UTC, datetime

import pytest

from tests.e2e.clock import wrong_by
from tests.e2e.conftest import Build
from tests.e2e.outage import SETTINGS, assert_all_made_once, nobody_dies, under_way
from tests.e2e.system import QUICK, System
from tests.e2e.worker import Worker
from tests.waiting import eventually

HOUR = 3600


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    return build(gpus=2, settings=SETTINGS)


def clock_of(worker: Worker) -> datetime:
    """As its last log line has it."""
    *_, last = [line["ts"] for line in worker.lines() if "ts" in line]
    return datetime.fromisoformat(last)


@pytest.mark.parametrize("seconds", [HOUR, -HOUR], ids=["ahead", "behind"])
def test_workers_whose_clock_is_an_hour_off_take_nothing_over_too_early_and_lose_nothing(
    system: System, seconds: int
) -> None:
    """One worker of each kind is right, one wrong; then the right submitter dies with leases in its hands."""
    for worker in system.living(""):
        worker.terminate()
        worker.ended()
    [dying, *_] = system.start()
    wrong = [
        system.add(service, via="tests.e2e.clock", environment=wrong_by(seconds))
        for service in ("submitter", "poller", "ops")
    ]
    orders = under_way(system)
    for gpu in system.gpus:
        gpu.faults(slow={"seconds": 0.4, "paths": ["/prompt"]})  # just within the limit of a POST
    eventually(lambda: system.statuses(orders).get("submitting", 0) >= 2, within=30, what="POSTs are on their way")
    dying.kill()
    with nobody_dies(system):
        assert_all_made_once(system, orders)
    for worker in wrong:
        assert abs((clock_of(worker) - datetime.now(UTC)).total_seconds() - seconds) < HOUR / 2
    waits = system.sql(
        "select extract(epoch from b.at - a.at) as seconds from task_moves a join task_moves b on"
        " b.task_id = a.task_id and b.version = a.version + 1"
        " where a.to_status = 'submitting' and b.from_status = 'submitting' and b.to_status = 'submitting'"
    )
    assert all(wait.seconds >= QUICK["LEASE_SECONDS"] for wait in waits)
    ours = {worker.name for worker in wrong}
    movers = {row.actor.rpartition("@")[2] for row in system.sql("select distinct actor from task_moves")}
    assert ours & movers >= {worker.name for worker in wrong if not worker.name.startswith("ops")}
