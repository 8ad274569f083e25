"""Connections are cut at each hop: reset, refused, stalled, or half open, so that one side never hears of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import requests

from deploy.local import Stack
from shared.domain.messages import Order
from tests.e2e.gpu import Gpu
from tests.e2e.outage import (
    SETTINGS,
    assert_all_made_once,
    await_unready,
    heal,
    nobody_dies,
    port_of,
    post,
)
from tests.e2e.system import System, an_order, some_orders
from tests.proxy import FaultProxy
from tests.servers import VhostPool, new_database
from tests.waiting import eventually

#: Three missed heartbeats of 10 s; a statement's 30 s and a little.
NOTICED_SECONDS = 60.0
WEBSOCKET = b"GET /ws"


@dataclass
class Hops:
    """The proxies between the workers and everything they talk to."""

    broker: FaultProxy
    database: FaultProxy
    servers: list[FaultProxy] = field(default_factory=list)

    @property
    def all(self) -> list[FaultProxy]:
        return [self.broker, self.database, *self.servers]

    def to(self, gpu: Gpu) -> str:
        self.servers.append(FaultProxy(gpu.port))
        return self.servers[-1].url(gpu.url)


@pytest.fixture(scope="module")
def hops(stack: Stack) -> Iterator[Hops]:
    broker, database = (int(url.rpartition(":")[2].partition("/")[0]) for url in (stack.amqp_url, stack.database_url))
    hops = Hops(FaultProxy(broker), FaultProxy(database))
    yield hops
    for proxy in hops.all:
        proxy.close()


@pytest.fixture(scope="module")
def system(stack: Stack, _vhosts: VhostPool, hops: Hops, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Two workers of each kind and a producer, all of whose connections lead through a proxy; the test's own do not."""
    database, broker = new_database(stack), stack.broker.url_of(_vhosts.take())
    system = System(
        tmp_path_factory.mktemp("system"),
        database,
        broker,
        gpus=2,
        settings={**SETTINGS, "DATABASE_URL": hops.database.url(database), "AMQP_URL": hops.broker.url(broker)},
        reach=hops.to,
    )
    try:
        system.start(submitters=2, pollers=2)
        system.add("producer")
        yield system
    finally:
        system.stop()


@pytest.fixture(autouse=True)
def _healed(hops: Hops, _audited: None) -> Iterator[None]:
    yield
    for proxy in hops.all:
        proxy.heal()


def reset_again_and_again(*hops: FaultProxy, times: int = 4) -> None:
    """Each time after connections were made again."""
    for _ in range(times):
        eventually(lambda: all(hop.reset() for hop in hops), within=30, what="connections to cut")


# --- service -> broker


def test_connections_to_the_broker_reset_in_mid_run_are_made_again(
    system: System, hops: Hops, orders: list[Order]
) -> None:
    with nobody_dies(system):
        reset_again_and_again(hops.broker)
        assert_all_made_once(system, orders)


@pytest.mark.parametrize("fault", ["refuse", "stall"])
def test_a_broker_that_cannot_be_reached_makes_every_service_unready_until_it_can(
    system: System, hops: Hops, orders: list[Order], fault: str
) -> None:
    refused = an_order()
    with nobody_dies(system):
        getattr(hops.broker, fault)()
        assert post(system, refused) == 503
        await_unready(system.living(""), "broker", within=NOTICED_SECONDS)
        assert post(system, refused) == 503
        assert system.statuses(orders).get("completed", 0) < len(orders)
        hops.broker.heal()
        heal(system)
        assert post(system, refused) == 202
        assert_all_made_once(system, [*orders, refused])


def test_half_open_connections_to_the_broker_are_noticed_by_their_heartbeat(
    system: System, hops: Hops, orders: list[Order]
) -> None:
    with nobody_dies(system):
        assert hops.broker.half_open() >= 2 * len(system.workers) - 1  # a producer does not consume
        assert_all_made_once(system, orders)


# --- service -> database


def test_connections_to_the_database_reset_in_mid_run_are_made_again(
    system: System, hops: Hops, orders: list[Order]
) -> None:
    with nobody_dies(system):
        reset_again_and_again(hops.database, times=10)
        assert_all_made_once(system, orders)


@pytest.mark.parametrize("fault", ["refuse", "stall"])
def test_a_database_that_cannot_be_reached_makes_workers_unready_and_orders_are_taken_all_the_same(
    system: System, hops: Hops, orders: list[Order], fault: str
) -> None:
    taken = an_order()
    [producer] = system.living("producer")
    with nobody_dies(system):
        getattr(hops.database, fault)()
        assert post(system, taken) == 202  # the broker keeps it
        await_unready([worker for worker in system.workers if worker is not producer], "database", within=45)
        assert post(system, taken) == 202
        assert producer.is_ready()
        hops.database.heal()
        assert system.statuses(orders).get("completed", 0) < len(orders)
        assert_all_made_once(system, [*orders, taken])


def test_half_open_connections_to_the_database_are_given_up(system: System, hops: Hops, orders: list[Order]) -> None:
    with nobody_dies(system):
        assert hops.database.half_open() >= len(system.workers)
        assert_all_made_once(system, orders)


# --- submitter and poller -> ComfyUI


def health(system: System) -> list[str]:
    return [row.health for row in system.sql("select health from backends order by name")]


def test_connections_to_comfyui_reset_in_mid_run_cost_no_second_job(
    system: System, hops: Hops, orders: list[Order]
) -> None:
    with nobody_dies(system):
        reset_again_and_again(*hops.servers, times=10)
        assert_all_made_once(system, orders)


@pytest.mark.parametrize("fault", ["refuse", "stall"])
def test_servers_that_cannot_be_reached_are_called_down_and_their_jobs_stay_theirs(
    system: System, hops: Hops, orders: list[Order], fault: str
) -> None:
    with nobody_dies(system):
        for hop in hops.servers:
            getattr(hop, fault)()
        eventually(lambda: health(system) == ["down", "down"], within=30, what="both are called down")
        assert all(worker.is_ready() for worker in system.workers)
        for hop in hops.servers:
            hop.heal()
        eventually(lambda: health(system) == ["up", "up"], within=30, what="both are up again")
        held = sum(gpu.capacity for gpu in system.gpus) if fault == "stall" else 0
        assert_all_made_once(system, orders, swallowed=held)


def test_half_open_connections_to_comfyui_are_given_up(system: System, hops: Hops, orders: list[Order]) -> None:
    with nobody_dies(system):
        cut = [hop.half_open() for hop in hops.servers]
        assert all(count >= 1 for count in cut)
        assert_all_made_once(system, orders, swallowed=sum(cut))


@pytest.mark.parametrize("cut", [FaultProxy.reset, FaultProxy.half_open], ids=["reset", "half open"])
def test_a_websocket_that_was_cut_is_opened_again_and_what_it_says_is_heard(
    system: System, hops: Hops, cut: Callable[[FaultProxy, bytes], int]
) -> None:
    """Without what the servers say, pictures would be found too, but at the next look."""
    pollers = system.living("poller")

    def gone() -> int:
        return sum(len(poller.said("websocket gone")) for poller in pollers)

    before = gone()
    for hop in hops.servers:
        # Of two pollers one listens; after the cut of the test before it may be connecting just now.
        eventually(lambda hop=hop: cut(hop, WEBSOCKET) == 1, within=20, what="a poller listens")  # type: ignore[misc]
    eventually(lambda: gone() >= before + len(hops.servers), within=30, what="the pollers notice")
    orders = some_orders(10)
    system.place(*orders)
    assert_all_made_once(system, orders)


# --- upstream system -> producer


def send_until_accepted(order: Order, port: int) -> None:
    """The same order again until it is accepted, as upstream systems should."""
    body, failures = order.model_dump_json(), 0
    while True:
        try:
            answer = requests.post(f"http://127.0.0.1:{port}/v1/orders", data=body, timeout=1.5)
        except requests.RequestException:
            failures += 1
            assert failures < 50
            continue
        assert answer.status_code == 202, answer.text
        return


def test_a_client_that_never_saw_the_answer_sends_its_order_again_and_gets_one_picture(system: System) -> None:
    way_in = FaultProxy(port_of(system.living("producer")[0]))
    lost, stalled, cut = (some_orders(4) for _ in range(3))
    try:
        for order in lost:
            way_in.lose_answers(b"POST /v1/orders", every=2)
            with pytest.raises(requests.RequestException):
                [post(system, order, port) for port in (way_in.port, way_in.port)]
            way_in.heal()
            send_until_accepted(order, way_in.port)
        for order in stalled:
            way_in.stall()
            with pytest.raises(requests.RequestException):
                post(system, order, way_in.port, timeout=1)
            way_in.heal()  # the request of the client that has left arrives now
            send_until_accepted(order, way_in.port)
        way_in.refuse()
        with pytest.raises(requests.RequestException):
            post(system, cut[0], way_in.port)
        way_in.heal()
        with requests.Session() as kept:
            for order in cut:
                url, body = f"http://127.0.0.1:{way_in.port}/v1/orders", order.model_dump_json()
                assert kept.post(url, data=body, timeout=5).status_code == 202
                assert way_in.half_open() == 1
                with pytest.raises(requests.RequestException):
                    kept.post(url, data=body, timeout=0.5)
                kept.close()
    finally:
        way_in.close()
    assert_all_made_once(system, [*lost, *stalled, *cut])
