"""A message, a row or a picture that kills whoever has it in hand ends alone, and everything beside it is made."""

import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from shared.broker.topology import DELIVERY_LIMIT
from shared.domain.messages import Order
from shared.domain.retry import DEATHS
from tests.e2e.conftest import Build
from tests.e2e.deadly import DEADLY_ORDER, DEADLY_TO_FETCH, DEADLY_TO_START
from tests.e2e.system import System, an_order, some_orders
from tests.e2e.worker import Worker
from tests.waiting import eventually

#: Deaths by which no row comes under suspicion: the first, and by each hint or check message that was made meanwhile,
#: as those come for the first time.
_UNSUSPECTED = {"submitter": 1, "poller": 9}


class Supervisor:
    """Starts a worker again as soon as it has died, as systemd does."""

    def __init__(self, system: System, service: str, count: int) -> None:
        self._system = system
        self._service = service
        self._workers = [self._new() for _ in range(count)]
        self._is_over = threading.Event()
        self.deaths = 0
        system.wait_ready(self._workers)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _new(self) -> Worker:
        return self._system.add(self._service, via="tests.e2e.deadly", wait=False)

    def _run(self) -> None:
        while not self._is_over.wait(0.1):
            for place, worker in enumerate(self._workers):
                if not worker.is_alive:
                    self.deaths += 1
                    self._workers[place] = self._new()

    def end(self) -> None:
        self._is_over.set()
        self._thread.join()


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    # The takeovers of a row that kills are a lease apart.
    return build(settings={"PREFETCH_INTAKE": 50, "PREFETCH_COMFYUI": 10, "CHECK_INTERVAL_SECONDS": 1})


@pytest.fixture(scope="module")
def submitters(system: System) -> Iterator[Supervisor]:
    system.start(submitters=0, pollers=0)
    supervisor = Supervisor(system, "submitter", 2)
    yield supervisor
    supervisor.end()


@pytest.fixture(scope="module", autouse=True)
def pollers(system: System, submitters: Supervisor) -> Iterator[Supervisor]:
    supervisor = Supervisor(system, "poller", 2)
    yield supervisor
    supervisor.end()


def among(deadly: Order) -> list[Order]:
    """Others before it and behind it."""
    return [*some_orders(20), deadly, *some_orders(20)]


def test_an_order_that_kills_whoever_reads_it_is_buried_by_the_broker_and_no_other_is(
    system: System, submitters: Supervisor
) -> None:
    deadly = an_order(metadata={"note": DEADLY_ORDER})
    orders = among(deadly)
    before = submitters.deaths

    system.place(*orders)
    system.await_status("completed", *(order for order in orders if order is not deadly), within=240)
    letters = eventually(system.letters, within=240, what="the broker has had enough")

    assert [(letter.reason, DEADLY_ORDER in letter.body) for letter in letters] == [("delivery_limit", True)]
    assert system.row(deadly) is None
    assert submitters.deaths - before == DELIVERY_LIMIT + 1


@pytest.mark.parametrize(
    ("colour", "who"), [(DEADLY_TO_START, "submitter"), (DEADLY_TO_FETCH, "poller")], ids=["a row", "a picture"]
)
def test_what_kills_whoever_looks_at_it_fails_as_a_bug_and_everything_beside_it_is_made(
    system: System, submitters: Supervisor, pollers: Supervisor, colour: int, who: str
) -> None:
    dying = submitters if who == "submitter" else pollers
    deadly = an_order(inputs={"width": 32, "height": 32, "color": colour})
    orders = among(deadly)
    before = dying.deaths

    system.place(*orders)
    others = [order for order in orders if order is not deadly]
    system.await_status("completed", *others, within=120)
    [row] = system.await_status("failed", deadly, within=240)

    assert (row.reason, row.attempt) == ("bug", 1)
    assert "workers died in a row" in row.detail
    assert [letter.reason for letter in system.letters(deadly)] == ["bug"]
    assert DEATHS <= dying.deaths - before <= DEATHS + _UNSUSPECTED[who]
    assert Counter(row.attempt for row in system.rows(others)) == {1: len(others)}
