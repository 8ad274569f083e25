"""Servers that are stopped, killed and short of memory: nothing is lost, and nothing of a driver leaks out."""

import threading
from collections.abc import Callable, Iterator

import pytest

from deploy.local import Stack
from shared.database.leader import Leader
from shared.domain.errors import BrokerAway, DatabaseAway
from shared.domain.outcome import Done
from shared.domain.task import Status
from tests.factories import MEASURED, Rows, a_claim
from tests.integration.broker_lab import BrokerLab, a_message, body_of
from tests.servers import free_port, memory_alarm, new_database, new_vhost
from tests.waiting import eventually


@pytest.fixture
def lab(private_stack: Stack) -> Iterator[BrokerLab]:
    lab = BrokerLab(private_stack.broker.url_of(new_vhost(private_stack)))
    yield lab
    lab.close()


def test_a_memory_alarm_blocks_publishing_and_not_consuming(private_stack: Stack, lab: BrokerLab) -> None:
    seen: list[object] = []

    def handle(deliveries: object) -> list[Done]:
        seen.extend(body_of(delivery) for delivery in deliveries)  # type: ignore[attr-defined]
        return [Done() for _ in deliveries]  # type: ignore[attr-defined]

    broker = lab.broker(handle)
    assert broker.consumer is not None
    broker.consumer.pause("orders")
    eventually(lambda: broker.consumer._active["orders"].consumer_tag is None, within=10)  # type: ignore[union-attr]
    broker.publish([a_message(1)]).result(10)

    with memory_alarm(private_stack):
        waits = broker.publish([a_message(2)])
        eventually(lambda: broker.problems == ["blocked"], within=20)
        assert MEASURED.value("amqp_blocked") == 1
        broker.consumer.resume("orders")
        eventually(lambda: seen == [1], within=20, what="consumed during the alarm")
        assert not waits.done()
        with pytest.raises(BrokerAway, match="blocked"):
            broker.publisher.depth("orders").result(5)

    waits.result(20)
    assert MEASURED.value("amqp_blocked") == 0
    eventually(lambda: seen == [1, 2] and broker.problems == [], within=20)


def test_a_broker_killed_while_we_publish_loses_nothing(private_stack: Stack, lab: BrokerLab) -> None:
    broker = lab.broker()
    stop = threading.Event()
    sent: list[int] = []
    confirmed = []

    def publish() -> None:
        number = 0
        while not stop.is_set():
            sent.append(number)
            confirmed.append(broker.publish([a_message(number)]))
            number += 1
            stop.wait(0.002)

    # A quorum queue declared less than a second before a crash never comes back (3.10 and 4.0).
    threading.Event().wait(5)
    publisher = threading.Thread(target=publish)
    publisher.start()
    eventually(lambda: len(sent) > 200, within=20)
    private_stack.broker.kill()
    threading.Event().wait(0.5)
    stop.set()
    publisher.join()
    forgotten = broker.publish([a_message(-1)])
    assert forgotten.cancel()
    assert "cannot publish" in broker.problems

    private_stack.broker.start()

    for future in confirmed:
        future.result(90)
    found = {body for _, body in lab.taken()}
    assert found == set(sent)


def away(call: Callable[[], object]) -> bool:
    with pytest.raises(DatabaseAway):
        call()
    return True


def test_a_stopped_database_is_an_outage_and_works_again_when_it_is_back(private_stack: Stack) -> None:
    rows = Rows(new_database(private_stack))
    rows.backends(gpu_1=2)
    leader = Leader(rows.engine)
    task = rows.submitting()
    assert leader.leads("gpu-1")

    private_stack.database.stop()

    assert away(lambda: rows.tasks.claim([a_claim()]))
    assert away(lambda: rows.record(task, "job", 1))
    assert away(rows.slots.backends)
    assert away(lambda: rows.tasks.get([task.id]))
    eventually(lambda: led(leader) is None, within=10, what="the lead is lost with the connection")

    private_stack.database.start()

    assert rows.record(task, "job", 60) is not None
    assert rows.now(task).status is Status.PROCESSING
    assert leader.leads("gpu-1")
    leader.close()
    rows.close()


def led(leader: Leader) -> bool | None:
    try:
        return leader.leads("gpu-1")
    except DatabaseAway:
        return None


def test_an_address_where_nobody_listens_is_an_outage() -> None:
    rows = Rows(f"postgresql://darkroom:none@127.0.0.1:{free_port()}/none")

    assert away(lambda: rows.tasks.claim([a_claim()]))
    rows.close()


def test_a_connection_ended_by_the_server_is_an_outage_and_the_next_call_works(private_stack: Stack) -> None:
    rows = Rows(new_database(private_stack), threads=1)
    other = Rows(rows.url)
    rows.pending()
    other.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
        " and datname = current_database()"
    )

    assert away(rows.pending)
    rows.pending()
    rows.close()
    other.close()


def test_a_read_only_database_after_a_failover_is_an_outage_and_no_bug(private_stack: Stack) -> None:
    rows = Rows(new_database(private_stack))
    rows.sql(
        "do $$ begin execute 'alter database ' || current_database()"
        " || ' set default_transaction_read_only = on'; end $$"
    )
    rows.close()

    assert away(rows.pending)
    rows.close()


def test_of_two_leaders_one_leads_until_it_goes(private_stack: Stack) -> None:
    rows = Rows(new_database(private_stack))
    first, second = Leader(rows.engine), Leader(rows.engine)

    assert first.leads("gpu-1")
    assert first.leads("gpu-1")
    assert not second.leads("gpu-1")
    assert second.leads("gpu-2")
    first.close()

    eventually(lambda: second.leads("gpu-1"), within=5)
    second.close()
    rows.close()
