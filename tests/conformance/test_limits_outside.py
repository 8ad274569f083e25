"""Six submitters and one provider with limits of its own: what it counted, not what we meant to send."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from services.submitter.submit import Submit
from shared.database.engine import connect
from shared.database.slots import Slots
from shared.database.tasks import Tasks
from shared.domain.rate import Rate
from shared.domain.retry import RetryPolicy
from shared.domain.task import Status, Task
from shared.observe.logs import ContextPool
from tests.conformance.simulated_apis import simulated_apis
from tests.conformance.table_lab import TableLab
from tests.factories import MEASURED, POOL, a_check, permits
from tests.waiting import eventually

SUBMITTERS = 6


@contextmanager
def at_work(lab: TableLab) -> Iterator[None]:
    """Six submitters, each with connections and threads of its own, and one poller, for as long as the block lasts."""
    stopping = threading.Event()

    def submit(number: int) -> None:
        engine = connect(lab.url, pool_size=6)
        calls = ContextPool(5)
        submitter = Submit(
            POOL,
            Tasks(engine, f"submitter-{number}", MEASURED),
            Slots(engine, f"submitter-{number}", MEASURED),
            lab.providers,
            calls=calls,
            lease_seconds=60,
            first_look_seconds=7,
            retry=RetryPolicy(max_charged=3, first_seconds=0),
            metrics=MEASURED,
            stopping=stopping,
            artifacts=lab.store,
        )
        while not stopping.wait(0.05):
            submitter.handle(permits(3))
        calls.shutdown()
        engine.dispose()

    def poll() -> None:
        while not stopping.wait(0.05):
            ids = [row.id for row in lab.sql("select id from tasks where status = 'processing'")]
            if ids:
                lab.check.handle([a_check(*lab.tasks.get(ids).values())])

    threads = [threading.Thread(target=submit, args=[number]) for number in range(SUBMITTERS)]
    threads.append(threading.Thread(target=poll))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join(20)


def all_ended(lab: TableLab, tasks: Sequence[Task]) -> list[Task]:
    """Their rows when all are final."""
    rows = list(lab.tasks.get(task.id for task in tasks).values())
    return rows if all(row.status.is_final for row in rows) else []


def test_neither_limit_is_exceeded_and_the_provider_stays_in_use(database_url: str) -> None:
    with ExitStack() as stack:
        limits = ("--seconds-per-image", "3", "--max-in-flight", "5", "--starts-per-second", "2")
        apis = stack.enter_context(simulated_apis(*limits))
        lab = TableLab(database_url, "replicate", apis)
        stack.callback(lab.close)
        lab.slots.sync([("gpu-1", POOL, "http", apis.url, 5, 60.0)], rates={"gpu-1": Rate.read("2/s")})
        tasks = [lab.order() for _ in range(10)]
        began = time.monotonic()
        with at_work(lab):
            rows = eventually(lambda: all_ended(lab, tasks), within=60)
        spent = time.monotonic() - began
        told = apis.stats("replicate")

    assert {(row.status, row.attempt) for row in rows} == {(Status.COMPLETED, 1)}
    assert (told["over_in_flight"], told["over_rate"], told["jobs"]) == (0, 0, 10)
    assert (told["most_in_flight"], told["most_starts_in_a_second"]) == (5, 2)
    # Two rounds of five jobs of 3 s, the first begun at 2 a second: nobody could do it in less than 8 s.
    assert spent < 12


def test_a_provider_that_takes_less_than_we_were_told_gets_less(database_url: str) -> None:
    with ExitStack() as stack:
        apis = stack.enter_context(simulated_apis("--seconds-per-image", "0.3", "--max-in-flight", "3"))
        lab = TableLab(database_url, "dashscope", apis)
        stack.callback(lab.close)
        lab.slots.sync([("gpu-1", POOL, "http", apis.url, 12, 60.0)])
        tasks = [lab.order() for _ in range(40)]
        limits = []

        def ended() -> list[Task]:
            limits.append(lab.slots.backends()[0].limit)
            return all_ended(lab, tasks)

        with at_work(lab):
            rows = eventually(ended, within=60)
        told = apis.stats("dashscope")

    assert {(row.status, row.charged) for row in rows} == {(Status.COMPLETED, 0)}
    assert (limits[0], min(limits) <= 3) == (12, True)
    # 12 where it was measured; 144 with a capacity that stays at 12.
    assert told["over_in_flight"] < 40
    assert (told["jobs"], told["most_in_flight"]) == (40, 3)
