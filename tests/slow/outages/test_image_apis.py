"""Connections to image APIs are cut: reset, refused, stalled, half open. No order has two jobs, and a doubt is told."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from deploy.local import Stack
from shared.domain.messages import Order
from tests.conformance.simulated_apis import SimulatedApis, simulated_apis
from tests.conformance.table_lab import PLACES
from tests.e2e.image_apis import addresses, an_api_order, api_doubles, write_tables
from tests.e2e.outage import SETTINGS, nobody_dies
from tests.e2e.system import System
from tests.integration.api_lab import KEYS
from tests.proxy import FaultProxy
from tests.servers import VhostPool, free_port, new_database
from tests.waiting import eventually

#: Orders of each provider.
EACH = 12
#: Its list proves what it has and what not; at the others what cannot be found is left to a person.
CERTAIN = "replicate"


@dataclass
class Hop:
    """The simulated APIs, and the proxy that all calls to them go through: theirs is the address they tell, too."""

    proxy: FaultProxy
    apis: SimulatedApis

    def jobs(self) -> Counter[str]:
        return Counter({name: self.apis.stats(place.split("/")[1])["jobs"] for name, place in PLACES.items()})


@pytest.fixture(scope="module")
def hop() -> Iterator[Hop]:
    port = free_port()
    proxy = FaultProxy(port)
    options = ("--port", str(port), "--origin", f"http://127.0.0.1:{proxy.port}", "--seconds-per-image", "0.5")
    with simulated_apis(*options) as apis:
        yield Hop(proxy, apis)
    proxy.close()


@pytest.fixture(scope="module")
def system(stack: Stack, _vhosts: VhostPool, hop: Hop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("system")
    system = System(
        folder,
        new_database(stack),
        stack.broker.url_of(_vhosts.take()),
        gpus=0,
        apis={name: hop.proxy.url(url) for name, url in addresses(hop.apis).items()},
        settings={**SETTINGS, "PROVIDERS_DIR": write_tables(folder / "tables")},
    )
    system.settings |= KEYS
    try:
        system.start(submitters=2, pollers=2)
        yield system
    finally:
        system.stop()


@pytest.fixture
def orders(system: System, hop: Hop) -> Iterator[list[Order]]:
    """Some done, some under way, some waiting."""
    orders = [an_api_order(name) for _ in range(EACH) for name in PLACES]
    before = hop.jobs()
    system.place(*orders)
    eventually(lambda: system.statuses(orders).get("completed", 0) >= 4, within=60, what="it runs", every=0.01)
    yield orders
    hop.proxy.heal()
    made = hop.jobs() - before
    assert {name: count for name, count in made.items() if count > EACH} == {}, "more jobs than orders"
    assert {name: times for name, times in api_doubles(hop.apis).items() if times} == {}, "jobs made twice"


def ended(system: System, orders: list[Order]) -> Counter[str]:
    """How many of each provider's orders are of unknown outcome, once all have ended; every other one is made."""

    def is_over() -> bool:
        rows = system.rows(orders)
        return len(rows) == len(orders) and all(row.finished_at and row.due_at is None for row in rows)

    eventually(is_over, within=120, what="every order ends")
    rows = system.rows(orders)
    wrong = [row for row in rows if row.status != "completed" and row.reason != "outcome_unknown"]
    assert not wrong, f"{wrong[0].pool}: {wrong[0].status} {wrong[0].reason} {wrong[0].detail}"
    return Counter(row.pool for row in rows if row.status != "completed")


def noticed(system: System) -> int:
    """Submissions that found nobody, and those that may have. Of the latter a few in a row close an API."""
    events = ("provider busy", "provider gave no answer")
    return sum(len(worker.said(event)) for worker in system.living("submitter") for event in events)


def test_connections_to_image_apis_reset_in_mid_run_leave_doubts_only_where_nothing_proves_an_absence(
    system: System, hop: Hop, orders: list[Order]
) -> None:
    with nobody_dies(system):
        cut = 0
        for _ in range(5):
            cut += eventually(hop.proxy.reset, within=30, what="connections to cut")
        unknown = ended(system, orders)
    assert CERTAIN not in unknown
    assert unknown.total() <= cut


@pytest.mark.parametrize("fault", ["refuse", "stall"])
def test_image_apis_that_cannot_be_reached_get_their_orders_when_they_can(
    system: System, hop: Hop, orders: list[Order], fault: str
) -> None:
    with nobody_dies(system):
        getattr(hop.proxy, fault)()
        before = noticed(system)
        eventually(lambda: noticed(system) > before, within=30, what="a submitter notices")
        assert all(worker.is_ready() for worker in system.workers)
        assert system.statuses(orders).get("completed", 0) < len(orders)
        hop.proxy.heal()
        unknown = ended(system, orders)
    assert CERTAIN not in unknown


def test_half_open_connections_to_image_apis_are_given_up(system: System, hop: Hop, orders: list[Order]) -> None:
    with nobody_dies(system):
        cut = eventually(hop.proxy.half_open, within=30, what="connections to cut")
        unknown = ended(system, orders)
    assert CERTAIN not in unknown
    assert unknown.total() <= cut
