"""Ack last: a delivery is finished when what follows from it is confirmed and cleared, and not a moment before."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker

from deploy.local import Stack
from shared.domain.errors import DatabaseAway
from shared.domain.messages import Delivery
from shared.domain.outcome import DeadLetter, Done, FollowUp, Hold, Outcome, Verdict
from shared.domain.task import Reason, Stage, task_id_for
from tests.integration.broker_lab import BrokerLab, a_message, body_of
from tests.waiting import eventually

PAID = FollowUp(task_id_for("k"), 1)


@pytest.fixture
def lab(amqp_url: str) -> Iterator[BrokerLab]:
    lab = BrokerLab(amqp_url)
    yield lab
    lab.close()


class Handler:
    """Remembers what it was given. answer -- body -> outcome; an exception is raised."""

    def __init__(self, answer: Any = lambda _: Done()) -> None:
        self.answer = answer
        self.seen: list[Any] = []
        self.redelivered: list[Any] = []
        self.batches: list[int] = []

    def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        self.batches.append(len(deliveries))
        self.seen += [body_of(delivery) for delivery in deliveries]
        self.redelivered += [body_of(delivery) for delivery in deliveries if delivery.redelivered]
        time.sleep(0.02)
        return [self.answer(body_of(delivery)) for delivery in deliveries]


def idle(broker: Any) -> bool:
    return bool(broker.consumer.in_hand == 0)


def stop(broker: Any, lab: BrokerLab, *, within: float = 5.0) -> bool:
    finished = bool(broker.stop(within))
    lab._started.remove(broker)
    return finished


def test_what_is_there_is_handled_in_batches_and_acked(lab: BrokerLab) -> None:
    handler = Handler()
    broker = lab.broker(handler, prefetch=50, batch=20)

    lab.put(*range(60))

    eventually(lambda: len(handler.seen) == 60 and idle(broker), within=10)
    assert handler.seen == list(range(60))
    assert max(handler.batches) <= 20
    assert stop(broker, lab)
    assert lab.depth() == 0


def test_a_batch_takes_few_acks_and_they_spare_what_is_still_in_hand(
    lab: BrokerLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    acks: list[tuple[int, bool]] = []
    ack = Channel.basic_ack

    def acked(self: Channel, delivery_tag: int = 0, multiple: bool = False) -> None:
        acks.append((delivery_tag, multiple))
        ack(self, delivery_tag, multiple)

    monkeypatch.setattr(Channel, "basic_ack", acked)
    late: Future[Verdict] = Future()
    go = threading.Event()
    answers = {"gate": lambda: Done() if go.wait(20) else Hold(), "late": lambda: late}
    handler = Handler(lambda body: answers.get(body, Done)())
    broker = lab.broker(handler, prefetch=40, batch=40)
    consumer = broker.consumer
    assert consumer is not None
    broker.publish([a_message("first")]).result(10)
    eventually(lambda: len(acks) == 1, within=10, what="from here on the whole prefetch")
    broker.publish([a_message("gate")]).result(10)
    eventually(lambda: handler.seen == ["first", "gate"], within=10, what="the handler busy")

    broker.publish([a_message(body) for body in [*range(10), "late", *range(10)]]).result(10)
    eventually(lambda: consumer._active["orders"].inbox.qsize() == 21, within=10, what="one batch")
    go.set()
    eventually(lambda: len(acks) == 13 and consumer.in_hand == 1, within=10, what="all but one acked")
    stop(broker, lab, within=0.1)

    assert acks == [(1, False), (2, False), (12, True), *[(tag, False) for tag in range(14, 24)]]
    assert [body for _, body in lab.taken()] == ["late"]


def test_a_follow_up_is_in_its_queue_before_the_delivery_is_acked(lab: BrokerLab) -> None:
    broker = lab.broker(Handler(lambda n: Done(then=[a_message(n, to="submit.comfyui")])))

    lab.put(1, 2)

    eventually(lambda: lab.depth("submit.comfyui") == 2 and idle(broker), within=10)
    assert lab.depth() == 0


def test_a_delivery_whose_follow_up_is_not_confirmed_goes_back_at_the_end(lab: BrokerLab) -> None:
    broker = lab.broker(Handler(lambda n: Done(then=[a_message(n, to="nobody.has.it")])))
    lab.put(1)
    eventually(lambda: broker.consumer.in_hand == 1, within=10)  # type: ignore[union-attr]

    assert not stop(broker, lab, within=1)

    assert eventually(lambda: lab.depth() == 1, within=10)


def test_a_paid_row_is_cleared_before_the_delivery_is_acked(lab: BrokerLab) -> None:
    cleared: list[FollowUp] = []
    broken = threading.Event()
    broken.set()

    def clear(paid: Sequence[FollowUp]) -> None:
        if broken.is_set():
            raise DatabaseAway("gone")
        cleared.extend(paid)

    broker = lab.broker(Handler(lambda _: Done(follow_up_of=[PAID])), clear=clear)
    lab.put(1, 2)
    eventually(lambda: broker.consumer.in_hand == 2, within=10)  # type: ignore[union-attr]
    assert cleared == []

    broken.clear()

    eventually(lambda: idle(broker), within=10)
    assert cleared == [PAID, PAID]


def test_a_bug_while_clearing_stops_nothing(lab: BrokerLab) -> None:
    calls = []

    def clear(paid: Sequence[FollowUp]) -> None:
        calls.append(paid)
        if len(calls) == 1:
            raise ValueError("a bug")

    broker = lab.broker(Handler(lambda _: Done(follow_up_of=[PAID])), clear=clear)
    lab.put(1)
    eventually(lambda: len(calls) == 1 and idle(broker), within=10)

    lab.put(2)

    eventually(lambda: len(calls) == 2 and idle(broker), within=10)


def test_while_the_database_is_away_at_the_end_nothing_is_acked(lab: BrokerLab) -> None:
    def clear(_: Sequence[FollowUp]) -> None:
        raise DatabaseAway("gone")

    broker = lab.broker(Handler(lambda _: Done(follow_up_of=[PAID])), clear=clear)
    lab.put(1)
    eventually(lambda: broker.consumer.in_hand == 1, within=10)  # type: ignore[union-attr]

    begun = time.monotonic()
    stop(broker, lab, within=20)

    assert time.monotonic() - begun < 10
    assert eventually(lambda: lab.depth() == 1, within=10)


def test_a_poisonous_delivery_is_buried_after_three_tries_and_its_neighbours_are_done(lab: BrokerLab) -> None:
    def answer(body: Any) -> Outcome:
        if body == "poison":
            raise ValueError("this one is poison")
        return Done(then=[a_message(body, to="submit.comfyui")])

    handler = Handler(answer)
    lab.broker()  # declares the queues
    lab.put(1, 2, "poison", 3, 4)
    broker = lab.broker(handler)

    eventually(lambda: lab.depth("orders.dead") == 1 and idle(broker), within=20)

    ((properties, body),) = lab.taken("orders.dead")
    assert body == "poison"
    assert properties.headers["reason"] == "bug"
    assert "this one is poison" in properties.headers["detail"]
    assert handler.seen.count("poison") <= 4
    assert {body for _, body in lab.taken("submit.comfyui")} == {1, 2, 3, 4}
    assert lab.depth() == 0


def test_a_handler_that_forgets_a_delivery_is_a_bug(lab: BrokerLab) -> None:
    broker = lab.broker(lambda _: [])

    lab.put(1)

    eventually(lambda: lab.depth("orders.dead") == 1 and idle(broker), within=20)


def test_a_fluke_is_tried_again_and_no_letter(lab: BrokerLab) -> None:
    tries: Counter[Any] = Counter()

    def answer(body: Any) -> Outcome:
        tries[body] += 1
        if tries[body] < 3:
            raise ValueError("a fluke")
        return Done()

    broker = lab.broker(Handler(answer))
    lab.put(1)

    eventually(lambda: tries[1] == 3 and idle(broker), within=20)
    assert lab.depth("orders.dead") == 0


def test_a_buried_delivery_keeps_its_own_body_and_the_reason_goes_into_small_headers(lab: BrokerLab) -> None:
    letter = DeadLetter(
        reason=Reason.CONFLICT,
        detail="\ud800" + "x" * 5000,
        stage=Stage.ORDERS,
        task_id=task_id_for("k"),
        attempt=2,
        then=[a_message("event", exchange="events", to="order.failed", mandatory=False)],
    )
    broker = lab.broker(Handler(lambda _: letter))

    lab.put({"an": "order"})

    eventually(lambda: lab.depth("orders.dead") == 1 and idle(broker), within=20)
    ((properties, body),) = lab.taken("orders.dead")
    assert body == {"an": "order"}
    headers = properties.headers
    assert (headers["reason"], headers["stage"], headers["attempt"]) == ("conflict", "orders", 2)
    assert headers["task_id"] == str(task_id_for("k"))
    assert len(headers["detail"]) == 2000


def test_a_follow_up_that_cannot_be_published_buries_its_delivery(lab: BrokerLab) -> None:
    broker = lab.broker(Handler(lambda _: Done(then=[a_message(message_id="x" * 300)])))

    lab.put(1)

    eventually(lambda: lab.depth("orders.dead") == 1 and idle(broker), within=20)


def test_an_outage_holds_the_deliveries_and_loses_none(lab: BrokerLab) -> None:
    away = threading.Event()
    away.set()

    def answer(_: Any) -> Outcome:
        if away.is_set():
            raise DatabaseAway("gone")
        return Done()

    handler = Handler(answer)
    broker = lab.broker(handler)
    lab.put(*range(10))
    eventually(lambda: len(handler.batches) >= 3, within=20, what="tried again and again")
    assert broker.consumer is not None
    assert broker.consumer.in_hand > 0

    away.clear()

    eventually(lambda: idle(broker) and set(handler.seen) == set(range(10)), within=20)
    assert handler.redelivered == []
    assert (lab.depth(), lab.depth("orders.dead")) == (0, 0)


def test_a_held_delivery_is_offered_again_until_it_is_done(lab: BrokerLab) -> None:
    tries: Counter[Any] = Counter()

    def answer(body: Any) -> Outcome:
        tries[body] += 1
        return Done() if body != "wait" or tries[body] > 3 else Hold()

    broker = lab.broker(Handler(answer))
    lab.put("wait", 1, 2)

    eventually(lambda: tries["wait"] == 4 and idle(broker), within=20)
    assert (tries[1], tries[2]) == (1, 1)


def test_a_delivery_held_for_too_long_is_acked(lab: BrokerLab) -> None:
    handler = Handler(lambda _: Hold())
    broker = lab.broker(handler, hold_seconds=0.5)
    lab.put(1)

    eventually(lambda: len(handler.seen) > 1 and idle(broker), within=20)
    stop(broker, lab)
    assert lab.depth() == 0


def test_a_full_hand_of_held_deliveries_does_not_hide_their_turn(lab: BrokerLab) -> None:
    free: list[int] = []
    broker = lab.broker(Handler(lambda body: Done() if body in free else Hold()), prefetch=3, batch=3)
    lab.put(1, 2, 3, 4)
    eventually(lambda: broker.consumer.in_hand == 3, within=10)  # type: ignore[union-attr]

    free.append(2)

    eventually(lambda: lab.depth() == 0, within=10, what="the fourth is taken into hand")
    free += [1, 3, 4]
    eventually(lambda: idle(broker), within=10)


def test_an_answer_may_come_later_and_is_acked_then(lab: BrokerLab) -> None:
    release = threading.Event()
    with ThreadPoolExecutor(5) as threads:

        def later(_: Any) -> Future[Outcome]:
            return threads.submit(lambda: release.wait(20) and Done())  # type: ignore[arg-type, return-value]

        broker = lab.broker(Handler(later))
        lab.put(1, 2)
        eventually(lambda: broker.consumer.in_hand == 2, within=10)  # type: ignore[union-attr]
        release.set()
        eventually(lambda: idle(broker), within=10)
        assert lab.depth() == 0


def test_an_answer_that_never_comes_because_of_a_bug_buries_the_delivery(lab: BrokerLab) -> None:
    with ThreadPoolExecutor(1) as threads:
        broker = lab.broker(Handler(lambda _: threads.submit(lambda: 1 // 0)))
        lab.put(1)
        eventually(lambda: lab.depth("orders.dead") == 1 and idle(broker), within=10)


def test_a_paused_queue_is_left_alone_and_taken_up_again(lab: BrokerLab) -> None:
    handler = Handler()
    broker = lab.broker(handler)
    assert broker.consumer is not None
    broker.consumer.pause("orders")
    broker.consumer.pause("orders")
    eventually(lambda: broker.consumer._active["orders"].consumer_tag is None, within=5)  # type: ignore[union-attr]

    lab.put(1, 2)
    eventually(lambda: lab.depth() == 2, within=10)
    assert (handler.seen, broker.problems) == ([], [])
    broker.consumer.resume("orders")

    eventually(lambda: sorted(handler.seen) == [1, 2], within=10)


def test_draining_finishes_what_is_in_hand_and_returns_the_rest(lab: BrokerLab) -> None:
    begun, release = threading.Event(), threading.Event()

    def answer(_: Any) -> Outcome:
        begun.set()
        release.wait(20)
        return Done(then=[a_message(to="submit.comfyui")])

    handler = Handler(answer)
    lab.broker()
    lab.put(*range(6))
    broker = lab.broker(handler, batch=1, prefetch=6)
    begun.wait(10)
    threading.Timer(0.5, release.set).start()

    assert stop(broker, lab, within=20)

    assert handler.seen == [0]
    assert lab.depth("submit.comfyui") == 1
    assert eventually(lambda: lab.depth() == 5, within=10)


def test_draining_during_an_outage_acks_nothing(lab: BrokerLab) -> None:
    def answer(_: Any) -> Outcome:
        raise DatabaseAway("gone")

    handler = Handler(answer)
    broker = lab.broker(handler)
    lab.put(1, 2)
    eventually(lambda: len(handler.seen) > 2, within=10)

    stop(broker, lab, within=5)

    assert eventually(lambda: lab.depth() == 2, within=10)
    assert lab.depth("orders.dead") == 0


def test_draining_returns_held_deliveries_at_once(lab: BrokerLab) -> None:
    handler = Handler(lambda _: Hold())
    broker = lab.broker(handler)
    lab.put(1, 2)
    eventually(lambda: len(handler.seen) > 2, within=10)

    begun = time.monotonic()
    stop(broker, lab, within=20)

    assert time.monotonic() - begun < 5
    assert eventually(lambda: lab.depth() == 2, within=10)


def test_a_queue_deleted_under_the_consumer_is_declared_and_consumed_again(lab: BrokerLab) -> None:
    handler = Handler()
    broker = lab.broker(handler)

    lab.delete("orders")

    eventually(lambda: broker.problems == [] and exists(lab), within=20)
    lab.put(1)
    eventually(lambda: handler.seen == [1] and idle(broker), within=10)


def exists(lab: BrokerLab) -> bool:
    try:
        lab.depth()
    except ChannelClosedByBroker:
        return False
    return True


def test_what_a_lost_connection_had_delivered_is_not_begun_again_here(lab: BrokerLab, stack: Stack, vhost: str) -> None:
    begun, release = threading.Event(), threading.Event()
    counted: Counter[Any] = Counter()

    def answer(body: Any) -> Outcome:
        counted[body] += 1
        if body == 0 and counted[0] == 1:
            begun.set()
            release.wait(30)
        return Done()

    lab.broker()
    lab.put(*range(5))
    broker = lab.broker(Handler(answer), batch=1, prefetch=5)
    begun.wait(10)

    stack.broker.ctl("close_all_connections", "--vhost", vhost, "a test")
    eventually(lambda: broker.problems == [], within=20, what="connected again")
    release.set()

    eventually(lambda: idle(broker) and len(counted) == 5 and counted[0] == 2, within=20)
    assert [counted[number] for number in range(1, 5)] == [1, 1, 1, 1]
    assert (lab.depth(), lab.depth("orders.dead")) == (0, 0)


def test_held_deliveries_of_a_lost_connection_are_forgotten(lab: BrokerLab, stack: Stack, vhost: str) -> None:
    free = threading.Event()
    handler = Handler(lambda _: Done() if free.is_set() else Hold())
    broker = lab.broker(handler)
    lab.put(1, 2, 3)
    eventually(lambda: broker.consumer.in_hand == 3, within=10)  # type: ignore[union-attr]

    stack.broker.ctl("close_all_connections", "--vhost", vhost, "a test")

    eventually(lambda: broker.problems == [] and set(handler.redelivered) == {1, 2, 3}, within=20)
    eventually(lambda: broker.consumer.in_hand == 3, within=10)  # type: ignore[union-attr]
    free.set()
    eventually(lambda: idle(broker), within=10)
    assert lab.depth() == 0


def test_after_many_bugs_in_a_row_the_queue_is_left_to_others(lab: BrokerLab) -> None:
    def answer(_: Any) -> Outcome:
        raise ValueError("a bug in every one")

    lab.broker()
    lab.put(*range(12))
    broker = lab.broker(Handler(answer), ready=False, brake_after=3, batch=1, prefetch=10)

    eventually(lambda: broker.problems == ["orders: stopped after 3 bugs in a row"], within=30)

    eventually(lambda: lab.depth("orders.dead") + lab.depth() == 12 and idle(broker), within=20)
    assert 3 <= lab.depth("orders.dead") <= 4
