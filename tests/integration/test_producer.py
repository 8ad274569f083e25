"""The producer as a process: HTTP in, messages out, and what an outage of its broker looks like from outside."""

import json
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local import Stack
from shared.broker.broker import Broker
from shared.broker.consumer import Subscription
from shared.broker.topology import ORDERS_QUEUE, topology
from shared.domain.messages import Delivery, Order
from shared.domain.outcome import Done
from shared.domain.task import task_id_for
from shared.terminal import Quiet
from tests.integration.producer_lab import START_SECONDS, Running, Start, an_order, producers
from tests.integration.rows_lab import Lab
from tests.servers import VhostPool, new_database
from tests.waiting import eventually


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with producers(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def url(stack: Stack) -> str:
    """Of the database of all tests that need no other producer than `producer`."""
    return new_database(stack)


@pytest.fixture(scope="module")
def amqp(stack: Stack, _vhosts: VhostPool) -> str:
    """Their virtual host."""
    return stack.broker.url_of(_vhosts.take())


@pytest.fixture(scope="module")
def producer(url: str, amqp: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Started once: that takes a second of CPU time."""
    with producers(tmp_path_factory.mktemp("producer")) as start:
        yield start(url, amqp)


def messages_in(amqp_url: str, *keys: str) -> dict[str, Delivery]:
    """Take messages out of the queue `orders` until there is one of each key."""
    taken: dict[str, Delivery] = {}

    def handle(deliveries: Any) -> list[Done]:
        taken.update({json.loads(delivery.body)["idempotency_key"]: delivery for delivery in deliveries})
        return [Done() for _ in deliveries]

    broker = Broker(
        [amqp_url],
        topology(["comfyui"]),
        name="test",
        metrics=Quiet(),
        subscriptions=[Subscription(queue=ORDERS_QUEUE, handler=handle, prefetch=100, batch=100)],
    )
    broker.start()
    try:
        eventually(lambda: taken.keys() >= set(keys), within=10, what=f"messages of {keys}")
    finally:
        broker.stop(1)
    return taken


def test_an_order_placed_over_http_is_in_the_queue_when_202_comes_back(producer: Running, amqp: str) -> None:
    answer = httpx.post(f"{producer.url}/v1/orders", json=an_order("k-0"))
    assert answer.status_code == 202, answer.text
    delivery = messages_in(amqp, "k-0")["k-0"]
    assert delivery.type == "order.placed.v1"
    assert Order.model_validate_json(delivery.body) == Order.model_validate(an_order("k-0"))
    assert httpx.get(producer.url + answer.headers["location"]).json()["code"] == "not_claimed_yet"


def test_wrong_orders_are_refused_with_the_shipped_workflows(producer: Running) -> None:
    answer = httpx.post(f"{producer.url}/v1/orders", json=an_order(inputs={"width": 1, "colour": "red"}))
    assert answer.status_code == 422
    assert {error["field"] for error in answer.json()["errors"]} == {"inputs.width", "inputs.colour"}


def test_the_status_of_an_order_is_that_of_its_row(producer: Running, url: str) -> None:
    lab = Lab(url)
    try:
        task = lab.completed(**an_order("k-1", order_id="o-1"))
        active = lab.pending(**an_order("k-2", order_id="o-2"))
        kept = lab.pending(**an_order("k-3", order_id="o-2"))
        assert kept.id == active.id
        body = httpx.get(f"{producer.url}/v1/orders/{task.id}").json()
        assert (body["status"], body["attempt"], body["order_id"]) == ("completed", 1, "o-1")
        assert [picture["index"] for picture in body["artifacts"]] == [0]
        assert httpx.get(f"{producer.url}/v1/orders/{task_id_for('k-3')}").json()["task_id"] == str(active.id)
        again = httpx.post(f"{producer.url}/v1/orders", json=an_order("k-3", order_id="o-2"))
        assert (again.status_code, again.json()["task_id"]) == (202, str(task_id_for("k-3")))
        for key, order_id in (("k-1", "o-1"), ("k-3", "o-2")):
            other = httpx.post(f"{producer.url}/v1/orders", json=an_order(key, order_id=order_id, priority="high"))
            assert (other.status_code, other.json()["code"]) == (409, "key_reused")
    finally:
        lab.close()


def test_an_order_sent_in_chunks_is_read_and_a_huge_one_is_cut_off(producer: Running) -> None:
    whole = json.dumps(an_order("k-chunks")).encode()
    answer = httpx.post(f"{producer.url}/v1/orders", content=(whole[i : i + 7] for i in range(0, len(whole), 7)))
    assert answer.status_code == 202
    with socket.create_connection(("127.0.0.1", producer.port("listening")), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/orders HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n" + b" " * 70_000
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_sigterm_ends_the_process_in_good_order(start: Start, database_url: str, amqp_url: str) -> None:
    producer = start(database_url, amqp_url)
    eventually(producer.is_ready, within=20, what="ready")
    assert "darkroom_orders_received_total" in httpx.get(f"{producer.health_url}/metrics").text
    assert producer.end() == 0
    assert len(producer.lines("listening")) == 1
    assert "Traceback" not in producer.log.read_text()


def test_a_taken_port_is_a_sentence_and_no_traceback(start: Start, database_url: str, amqp_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        producer = start(database_url, amqp_url, DARKROOM_HTTP_PORT=str(taken.getsockname()[1]))
        assert producer.process.wait(START_SECONDS) == 2
    assert "DARKROOM_HTTP_PORT" in producer.log.read_text()
    assert "Traceback" not in producer.log.read_text()


def test_a_misspelt_variable_stops_the_start_and_the_nearest_is_named(
    start: Start, database_url: str, amqp_url: str
) -> None:
    producer = start(database_url, amqp_url, DARKROOM_HTTP_PROT="1")
    assert producer.process.wait(START_SECONDS) == 2
    assert "DARKROOM_HTTP_PROT is not a setting; did you mean DARKROOM_HTTP_PORT?" in producer.log.read_text()


def test_a_dead_broker_is_503_with_retry_after_and_orders_flow_again_when_it_is_back(
    start: Start, private_stack: Stack
) -> None:
    url = new_database(private_stack)
    producer = start(url, private_stack.amqp_url, DARKROOM_CONFIRM_TIMEOUT_SECONDS="1")
    place = f"{producer.url}/v1/orders"
    assert httpx.post(place, json=an_order("before"), timeout=10).status_code == 202
    private_stack.broker.kill()
    answer = httpx.post(place, json=an_order("during"), timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (503, "broker_away")
    assert int(answer.headers["retry-after"]) > 0
    eventually(lambda: not producer.is_ready(), within=10, what="unready")
    private_stack.up()
    eventually(
        lambda: httpx.post(place, json=an_order("during"), timeout=10).status_code == 202, within=60, what="accepted"
    )
    messages_in(private_stack.amqp_url, "before", "during")


def test_without_its_database_orders_are_taken_and_the_status_is_503(start: Start, private_stack: Stack) -> None:
    producer = start(new_database(private_stack), private_stack.amqp_url)
    eventually(producer.is_ready, within=20, what="ready")
    private_stack.database.stop(immediate=True)
    assert httpx.post(f"{producer.url}/v1/orders", json=an_order("k-9"), timeout=10).status_code == 202
    answer = httpx.get(f"{producer.url}/v1/orders/{uuid.uuid4()}", timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (503, "database_away")
    assert producer.is_ready()
    private_stack.up()
    missing = f"{producer.url}/v1/orders/{uuid.uuid4()}"
    eventually(lambda: httpx.get(missing, timeout=10).status_code == 404, within=20, what="status")
