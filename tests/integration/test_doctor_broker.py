"""The doctor and RabbitMQ: queues that differ, the way of a dead letter, and a broker in need."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from services.ops.collector import Collector
from services.ops.doctor import examine_start
from shared.broker.broker import Broker
from shared.broker.consumer import Subscription
from shared.broker.examine import _version_finding
from shared.broker.topology import DELIVERY_LIMIT, dead_queue, topology
from shared.config import load_settings
from shared.database.dead_letters import DeadLetters
from shared.database.letters import LetterFilter
from shared.domain.canary import ANSWER_TO, CANARY, OWN_QUEUES
from shared.domain.task import Stage
from shared.terminal import Quiet
from tests.integration.doctor_lab import Installation
from tests.integration.rows_lab import Lab, a_delivery
from tests.servers import new_database
from tests.waiting import eventually

ANY = LetterFilter(state=None)
DEAD = [dead_queue(stage) for stage in Stage]


@pytest.fixture
def installation(tmp_path: Path, database_url: str, amqp_url: str) -> Installation:
    installation = Installation(tmp_path, database_url, amqp_url)
    installation.declare()
    return installation


@pytest.fixture
def lab(installation: Installation) -> Iterator[Lab]:
    lab = Lab(installation.settings["DARKROOM_DATABASE_URL"])
    yield lab
    lab.close()


@pytest.fixture
def letters(lab: Lab) -> DeadLetters:
    return DeadLetters(lab.engine, "ops@test")


@pytest.fixture
def collecting(installation: Installation, lab: Lab, letters: DeadLetters) -> Iterator[Broker]:
    """The collector, not yet started."""
    collector = Collector(letters, lab.metrics)
    broker = Broker(
        [installation.settings["DARKROOM_AMQP_URL"]],
        topology(["comfyui"]),
        name="ops",
        metrics=Quiet(),
        subscriptions=[Subscription(queue=queue, handler=collector.handle, prefetch=10, batch=10) for queue in DEAD],
    )
    yield broker
    broker.stop(2.0)


def test_a_broker_before_3_10_is_too_old() -> None:
    found = [_version_finding(version, "here:5672").verdict for version in ("3.9.29", "3.10.0", "4.0.5")]
    assert found == ["fail", "ok", "ok"]


def test_each_difference_of_a_queue_is_named(installation: Installation) -> None:
    wanted = {queue.name: dict(queue.arguments) for queue in topology([]).queues}
    wanted["orders.dead"] |= {"x-delivery-limit": 3, "x-max-length": 5}
    wanted["orders"]["x-overflow"] = "drop-head"
    del wanted["orders"]["x-dead-letter-strategy"], wanted["orders"]["x-delivery-limit"]
    with installation.channel() as channel:
        for name in ("orders.dead", "orders"):
            channel.queue_delete(name)
            channel.queue_declare(name, durable=True, arguments=wanted[name])
        channel.queue_delete("check.comfyui")
        channel.queue_declare("check.comfyui", durable=True)

    found = installation.look()

    assert found["queue submit.comfyui"] == [("ok", "its arguments are ours")]
    [(verdict, text)] = found["queue orders.dead"]
    assert verdict == "fail"
    assert set(text.removeprefix("it was declared otherwise: ").split("; ")) == {
        "x-delivery-limit is 3, not 1000",
        "x-max-length is 5, not none",
    }
    [(_, text)] = found["queue orders"]
    assert set(text.removeprefix("it was declared otherwise: ").split("; ")) == {
        f"x-delivery-limit is none, not {DELIVERY_LIMIT}",
        "x-dead-letter-strategy is none, not at-least-once",
        "x-overflow is drop-head, not reject-publish",
    }
    assert found["queue check.comfyui"][0][0] == "fail"


def test_the_collector_answers_the_canaries_and_makes_no_letter_of_them(
    installation: Installation, collecting: Broker, letters: DeadLetters, stack: Stack, vhost: str
) -> None:
    collecting.start()
    eventually(lambda: not collecting.problems, within=20)

    found = installation.look()["dead letters"]

    assert sorted(found) == [
        ("ok", f"a rejected message came through {queue} to the collector") for queue in sorted(DEAD)
    ]
    assert letters.page(ANY) == []
    left = {queue["name"]: queue["messages"] for queue in stack.broker.queues(vhost=vhost)}
    assert left == {queue.name: 0 for queue in topology(["comfyui"]).queues}


def test_while_nobody_collects_the_canaries_are_taken_out_again(installation: Installation) -> None:
    found = installation.look()["dead letters"]

    assert sorted(found) == [("warn", f"a rejected message came to {q}, where nobody collects") for q in sorted(DEAD)]
    assert [installation.depth(queue) for queue in DEAD] == [0, 0, 0]


def test_letters_that_wait_are_counted_and_not_touched(installation: Installation) -> None:
    with installation.channel() as channel:
        channel.confirm_delivery()
        for number in range(3):
            channel.basic_publish("", "submit.dead", b"%d" % number)

    found = installation.look()["dead letters"]

    assert ("warn", "3 wait in submit.dead and nobody collects them") in found
    assert len(found) == 3
    with installation.channel() as channel:
        method, _, body = channel.basic_get("submit.dead")
        assert (method.redelivered, body) == (False, b"0")


def test_canaries_that_a_hanging_collector_holds_are_a_failure_and_the_next_one_sweeps_them(
    installation: Installation, collecting: Broker, letters: DeadLetters
) -> None:
    with installation.channel() as hanging:
        for queue in DEAD:
            hanging.basic_consume(queue, lambda *_: None)
        found = installation.look()["dead letters"]
        hanging.connection.process_data_events(0)

    assert sorted(found) == [
        ("fail", f"a rejected message did not come through {queue} within 5 s") for queue in sorted(DEAD)
    ]
    collecting.start()
    eventually(lambda: [installation.depth(queue) for queue in DEAD] == [0, 0, 0], within=20)
    eventually(lambda: not collecting.problems and not collecting.consumer.in_hand, within=20)
    assert letters.page(ANY) == []


def test_a_dead_queue_that_is_missing_is_named_and_the_others_are_tried(installation: Installation) -> None:
    with installation.channel() as channel:
        channel.queue_delete("check.dead")

    found = installation.look()

    assert ("warn", "not there yet: check.dead") in found["queues"]
    assert len(found["dead letters"]) == 2


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {ANSWER_TO: f"{OWN_QUEUES}x"},
        {"x-death": [{"queue": "orders", "reason": "delivery_limit", "count": 1}]},
        {"x-death": "?"},
    ],
)
def test_an_order_that_calls_itself_a_canary_still_becomes_a_letter(
    lab: Lab, letters: DeadLetters, headers: dict[str, object]
) -> None:
    collector = Collector(letters, lab.metrics)
    (outcome,) = collector.handle([a_delivery(type=CANARY, headers=headers, body=b"{}")])

    assert outcome.then == ()
    assert [letter.message_type for letter in letters.page(ANY)] == [CANARY]


def test_a_canary_is_answered_on_queues_of_the_doctor_alone(lab: Lab, letters: DeadLetters) -> None:
    death = {"x-death": [{"queue": f"{OWN_QUEUES}x.submit", "reason": "rejected", "count": 1}]}
    mine = a_delivery(type=CANARY, headers={**death, ANSWER_TO: f"{OWN_QUEUES}x"})
    foreign = a_delivery(type=CANARY, headers={**death, ANSWER_TO: "orders"})

    answered, not_answered = Collector(letters, lab.metrics).handle([mine, foreign])

    assert [message.routing_key for message in answered.then] == [f"{OWN_QUEUES}x"]
    assert not_answered.then == []
    assert letters.page(ANY) == []


@pytest.mark.parametrize(
    ("need", "cause", "relief"),
    [
        ("memory", ["set_vm_memory_high_watermark", "absolute", "1"], ["set_vm_memory_high_watermark", "0.6"]),
        ("disk", ["set_disk_free_limit", "900000GB"], ["set_disk_free_limit", "50MB"]),
    ],
)
def test_a_broker_in_need_says_of_what_and_nothing_stays_behind(
    tmp_path: Path, private_stack: Stack, need: str, cause: list[str], relief: list[str]
) -> None:
    installation = Installation(tmp_path, new_database(private_stack), private_stack.broker.url)
    installation.declare()
    private_stack.broker.ctl(*cause)
    try:
        eventually(lambda: need in private_stack.broker.ctl("eval", "rabbit_alarm:get_alarms()."), within=60)
        found = installation.look()["broker"]
        before_start = examine_start(load_settings(installation.settings, dotenv=None))
    finally:
        private_stack.broker.ctl(*relief)

    assert found[1:] == [("fail", f"it takes no messages: low on {need}")]
    (in_need,) = [finding for finding in before_start if finding.found == found[1][1]]
    assert in_need.verdict == "warn"  # new workers relieve it
    left = {queue["name"]: queue["messages"] for queue in private_stack.broker.queues()}
    assert left == {queue.name: 0 for queue in topology(["comfyui"]).queues}


def test_a_standby_is_called_one(tmp_path: Path, private_stack: Stack) -> None:
    installation = Installation(tmp_path, new_database(private_stack), private_stack.broker.url)
    signal = private_stack.database._data / "standby.signal"
    private_stack.database.stop()
    signal.touch()
    private_stack.database.start()
    try:
        found = installation.look()["database"]
    finally:
        private_stack.database.stop()
        signal.unlink()

    assert found[1] == ("fail", "it is a standby and takes no writes")
