"""The collector against a real database, and once against a real broker that buried the message itself."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pika
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.ops.closing import close
from services.ops.collector import ALTERED, CUT, Collector, letter_of
from shared.broker.broker import Broker
from shared.broker.consumer import Subscription
from shared.broker.letters import letter
from shared.broker.topology import DELIVERY_LIMIT, dead_queue, topology
from shared.database.dead_letters import DeadLetters
from shared.database.letter_states import Deed
from shared.database.letters import LetterFilter
from shared.database.replays import Replays
from shared.domain.letters import failure_fingerprint, masked
from shared.domain.messages import Message, dead_letter_headers, permit
from shared.domain.outcome import DeadLetter, Done
from shared.domain.task import Reason, Stage, Status
from shared.observe.metrics import our_version
from shared.observe.trace import new_trace_id, read_trace_id, traceparent_of
from tests.integration.rows_lab import Lab, a_delivery, letter_about
from tests.waiting import eventually

ANY = LetterFilter(state=None)


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


@pytest.fixture
def letters(lab: Lab) -> DeadLetters:
    return DeadLetters(lab.engine, "ops@test")


@pytest.fixture
def collector(lab: Lab, letters: DeadLetters) -> Collector:
    return Collector(letters, lab.metrics)


def counted(lab: Lab, stage: Stage, reason: Reason) -> float:
    return lab.metrics.value("dead_letters_total", stage=stage, reason=reason)


def test_a_letter_about_a_row_is_recorded_under_its_attempt_and_stage(lab, letters, collector):
    task = lab.failed(detail="node 7 broke")
    assert collector.handle([letter_about(task)]) == [Done()]
    (letter,) = letters.page(ANY)
    assert letter.identity == f"{task.id}:1:check"
    assert (letter.task_id, letter.attempt, letter.stage, letter.reason) == (task.id, 1, "check", "execution_failed")
    assert (letter.detail, letter.pool, letter.state) == ("node 7 broke", "comfyui", "open")
    assert counted(lab, Stage.CHECK, Reason.EXECUTION_FAILED) == 1


def test_a_letter_about_a_row_says_where_its_attempt_ran_and_what_it_asked_for(lab, letters, collector):
    task = lab.failed(detail="Traceback (most recent call last):\n  File \"a.py\", line 1\nKeyError: 'images'")
    collector.handle([replace(letter_about(task), app_id="darkroom/1.2.3")])
    (letter,) = letters.page(ANY)
    assert (letter.backend, letter.workflow, letter.provider_job_id) == ("gpu-1", "demo", str(task.job_key))
    assert (letter.exception, letter.version, letter.trace_id) == ("KeyError", "1.2.3", task.trace_id)
    assert (letter.first_at, letter.repeats) == (letter.at, 0)


def test_a_letter_keeps_all_of_a_traceback_that_its_message_had_to_cut(lab, letters, collector):
    task = lab.failed(detail="Traceback:\n" + "  a frame\n" * 500 + "KeyError: 'images'")
    delivery = letter_about(task)
    assert "KeyError" not in delivery.headers["detail"]
    collector.handle([delivery])
    assert letters.page(ANY)[0].detail.endswith("KeyError: 'images'")


def test_a_buried_delivery_says_by_what_way_it_had_come_and_how_often(letters, collector):
    came = a_delivery(
        queue="orders",
        body=b'{"pool": "comfyui", "workflow": "demo"}',
        exchange="orders",
        routing_key="order.placed",
        headers={"x-delivery-count": 2, "huge": "x" * 9000},
        redelivered=True,
    )
    message = letter(came, DeadLetter(reason=Reason.INVALID_MESSAGE, detail="no key", stage=Stage.ORDERS))
    collector.handle([a_delivery(headers=message.headers, body=message.body, app_id="shop/7")])
    (found,) = letters.page(ANY)
    assert (found.queue, found.exchange, found.routing_key, found.deliveries) == ("orders", "orders", "order.placed", 3)
    assert (found.pool, found.workflow, found.broker_reason, found.version) == ("comfyui", "demo", None, None)


@pytest.mark.parametrize("reason", ["rejected", "expired", "maxlen", "delivery_limit"])
def test_what_a_queue_with_arguments_of_old_buries_is_a_letter_with_the_word_of_the_broker(letters, collector, reason):
    death = {
        "queue": "submit.comfyui",
        "reason": reason,
        "count": 1,
        "exchange": "",
        "routing-keys": ["submit.comfyui"],
    }
    headers = {"x-death": [death], "reason": "bug", "task_id": str(uuid.uuid4()), "attempt": 1}
    delivery = a_delivery(queue="submit.dead", headers=headers, body=b'{"pool":"comfyui"}', message_id="m-1")
    collector.handle([delivery, delivery])
    collector.handle([delivery])
    (found,) = letters.page(ANY)
    assert (found.reason, found.broker_reason, found.task_id) == ("delivery_limit", reason, None)
    assert (found.queue, found.exchange, found.routing_key) == ("submit.comfyui", "", "submit.comfyui")


SIGNED = b'{"inputs": {"photo": "https://ann:pass-word@h/a.png?sig=s3cret", "width": 8}, "pool": "comfyui"}'


def test_the_body_of_a_letter_that_has_a_row_is_kept_without_what_opens_doors(lab, letters, collector):
    task = lab.failed()
    collector.handle([replace(letter_about(task), body=SIGNED)])
    (kept,) = lab.sql("select body from dead_letters")
    assert json.loads(kept.body)["inputs"] == {"photo": "https://***@h/a.png?***", "width": 8}


def test_the_body_of_a_letter_without_a_row_is_replayed_as_it_came_and_shown_without_secrets(lab, letters, collector):
    collector.handle([a_delivery(body=SIGNED, message_id="m-1", headers={"reason": "bug", "stage": "orders"})])
    (letter_id,) = letters.ids(ANY)
    (kept,) = lab.sql("select body from dead_letters")
    shown = letters.get([letter_id])[letter_id].body
    replays = Replays(lab.engine, 3600)
    replay = replays.replay([letter_id], "ann")[letter_id]
    sent = replays.messages([replay.id])[0][1].body
    assert kept.body.encode() == sent.encode() == SIGNED
    assert json.loads(shown)["inputs"] == {"photo": "https://***@h/a.png?***", "width": 8}


def test_what_happened_is_kept_without_secrets(lab, letters, collector):
    collector.handle([letter_about(lab.failed(detail="GET https://h/a.png?sig=s3cret answered 403"))])
    (letter,) = letters.page(ANY)
    assert letter.detail == "GET https://h/a.png?*** answered 403"


def test_copies_of_a_letter_are_one_row_and_one_count(lab, letters, collector):
    task = lab.failed()
    collector.handle([letter_about(task), letter_about(task)])
    collector.handle([letter_about(task)])
    collector.handle([a_delivery(body=b"junk"), a_delivery(body=b"junk")])
    assert len(letters.page(ANY)) == 2
    assert counted(lab, Stage.CHECK, Reason.EXECUTION_FAILED) == 1


def test_a_letter_about_a_row_nobody_has_is_recorded_without_it(letters, collector):
    headers = dead_letter_headers(reason=Reason.BUG, stage=Stage.SUBMIT, detail="boom", task_id=uuid.uuid4(), attempt=1)
    collector.handle([a_delivery(queue="submit.dead", headers=headers, message_id="m-1")])
    (letter,) = letters.page(ANY)
    assert letter.task_id is None
    assert letter.reason == "bug"
    assert len(letter.identity) == 64


def test_a_conflict_names_no_row_even_when_its_headers_do(lab, letters, collector):
    task = lab.completed()
    headers = dead_letter_headers(
        reason=Reason.CONFLICT, stage=Stage.ORDERS, detail="other order", task_id=task.id, attempt=1
    )
    collector.handle([a_delivery(headers=headers, body=b'{"pool": "comfyui"}')])
    (letter,) = letters.page(ANY)
    assert letter.task_id is None
    assert letter.pool == "comfyui"


def test_foreign_garbage_beside_a_letter_stops_neither(lab, letters, collector):
    task = lab.failed()
    garbage = [
        a_delivery(body=b"\xff\xfe\x00", headers={"reason": 7, "stage": [1], "task_id": b"\xff", "attempt": True}),
        a_delivery(body=b"x" * 100_000, headers={"reason": "no such reason", "detail": "a\x00b"}),
        a_delivery(headers={"reason": "bug", "stage": "nowhere", "task_id": str(task.id), "attempt": 2**40}),
        a_delivery(headers={"x-death": [3, {"queue": None, "count": "many"}]}, message_id="a\x00b", type="\ud800"),
        a_delivery(body=b'{"pool": "\\u0000"}', headers={"x-death": "soon"}),
    ]
    assert collector.handle([*garbage, letter_about(task)]) == [Done()] * 6
    assert len(letters.page(ANY)) == 6


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["reason", "stage", "task_id", "attempt", "detail", "traceparent", "x-death"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=200) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")),
    headers=st.dictionaries(names, values | st.sampled_from([*Reason, *Stage]), max_size=7),
    message_id=st.none() | st.text(max_size=300),
)
def test_whatever_stands_in_a_dead_queue_can_be_recorded(collector, body, headers, message_id):
    delivery = a_delivery(body=body, headers=headers, message_id=message_id, type=message_id)
    assert collector.handle([delivery]) == [Done()]


@pytest.mark.parametrize("name", ["\x00" * 255, "鍵" * 85, "\ud800" * 255])
def test_the_type_of_a_letter_can_be_sent_again(name):
    """A replay does: what stands for a NUL or half a character is longer than it, and 255 bytes are all there is."""
    letter = letter_of(a_delivery(type=name, message_id=name))
    assert 85 <= len(letter.message_type.encode()) <= 255
    assert letter.message_id == letter.message_type


def test_only_a_trace_is_kept_of_what_stands_in_traceparent():
    trace_id = new_trace_id()
    kept = letter_of(a_delivery(headers={"traceparent": traceparent_of(trace_id)})).headers
    assert read_trace_id(kept["traceparent"]) == trace_id
    for foreign in ("x" * 130_000, "00-" + "0" * 32, 7, None):
        assert "traceparent" not in letter_of(a_delivery(headers={"traceparent": foreign})).headers


@pytest.mark.parametrize(
    ("body", "mark", "kept"),
    [
        (b"plain", None, "plain"),
        ("é".encode(), None, "é"),
        (b"a\x00b", ALTERED, "a�b"),
        (b"a\xffb", ALTERED, "a\\xffb"),
        (b"x" * 70_000, CUT, "x" * 65_536),
        ("x" + "é" * 40_000).encode() and (("x" + "é" * 40_000).encode(), CUT, "x" + "é" * 32_767),
    ],
    ids=["ascii", "utf-8", "nul", "not text", "long", "long, cut inside a sign"],
)
def test_a_body_is_kept_as_text_of_at_most_64_kib(body, mark, kept):
    letter = letter_of(a_delivery(body=body))
    assert letter.body == kept
    assert letter.headers.get("body") == mark


def test_a_row_that_was_replayed_and_failed_again_at_the_same_attempt_has_an_open_letter_again(lab, letters, collector):
    first = lab.failed_at_once(lab.pending())
    collector.handle([letter_about(first)])
    (letter,) = letters.page(ANY)
    assert Replays(lab.engine, 3600).replay([letter.id], "ann")
    second = lab.failed_at_once(lab.row(first))
    assert second.attempt == first.attempt == 0
    collector.handle([letter_about(second)])
    (again,) = letters.page(ANY)
    assert (again.id, again.state, again.closed_by) == (letter.id, "open", None)
    (replay,) = letters.replays(letter.id)
    assert (replay.state, replay.result) == ("closed", "failed")
    (noted,) = lab.sql("select * from operator_actions where action = 'dead letter reopened'")
    assert (noted.by_whom, noted.subject, noted.detail["was"]) == ("ops@test", str(letter.id), "replayed")
    assert counted(lab, Stage.ORDERS, Reason.INVALID_WORKFLOW) == 2


@pytest.mark.parametrize("now", [Status.PENDING, Status.COMPLETED, Status.FAILED])
def test_a_late_copy_of_an_old_letter_opens_nothing(lab, letters, collector, now):
    task = lab.failed()
    collector.handle([letter_about(task)])
    (letter,) = letters.page(ANY)
    if now is Status.FAILED:
        close(letters, Deed.DISCARD, [letter.id], "ann", "customer gave up")
    else:
        Replays(lab.engine, 3600).replay([letter.id], "ann")
    if now is Status.COMPLETED:
        (taken,) = lab.take()
        lab.end(taken, Status.COMPLETED, attempt_outcome="completed")
    collector.handle([letter_about(task)])
    (same,) = letters.page(ANY)
    assert same == replace(
        letter,
        state="discarded" if now is Status.FAILED else "replayed",
        closed_at=same.closed_at,
        closed_by="ann",
    )


def test_failures_that_differ_in_ids_and_numbers_are_of_one_kind():
    one = f"job {uuid.uuid4()} at http://10.0.0.1:8188/prompt?x=1 gave 500 after 3.5 s (hash deadbeef01)"
    two = f"job {uuid.uuid4()} at http://10.0.0.2:8188/prompt?x=2 gave 500 after 12 s (hash 0123456789)"
    assert masked(one) == masked(two)
    assert failure_fingerprint("bug", "a", one) == failure_fingerprint("bug", "a", two)
    assert failure_fingerprint("bug", "a", one) != failure_fingerprint("bug", "b", one)
    assert failure_fingerprint("bug", "a", one) != failure_fingerprint("lost", "a", one)
    assert masked("node KSampler broke") != masked("node VAEDecode broke")


def test_the_broker_s_own_burials_and_ours_end_in_the_table_and_the_queues_are_empty(lab, letters, collector, amqp_url):
    topo = topology(["comfyui"])
    task = lab.failed()
    verdict = DeadLetter(reason=Reason.REJECTED, detail="no", stage=Stage.SUBMIT)
    broker = Broker(
        [amqp_url],
        topo,
        name="test",
        metrics=lab_metrics(topo),
        subscriptions=[
            Subscription(queue="submit.comfyui", handler=lambda _: [verdict], prefetch=1),
            *(
                Subscription(queue=dead_queue(stage), handler=collector.handle, prefetch=200, batch=100)
                for stage in Stage
            ),
        ],
    )
    broker.start()
    try:
        letter = letter_about(task)
        ours = Message(routing_key="check.dead", type="t", body=letter.body, message_id="m-1", headers=letter.headers)
        order = Message(
            exchange="orders", routing_key="order.placed", type="t", body=b'{"pool":"comfyui"}', message_id="m-2"
        )
        broker.publish([ours, ours, order, permit("comfyui")]).result(20)
        reject_for_ever(amqp_url, "orders")
        eventually(lambda: len(letters.page(ANY)) == 3, within=20)
        eventually(lambda: ready(amqp_url, "orders.dead") == ready(amqp_url, "check.dead") == 0, within=10)
    finally:
        assert broker.stop(5)
    by_reason = {letter.reason: letter for letter in letters.page(ANY)}
    assert by_reason["execution_failed"].task_id == task.id
    buried = by_reason["delivery_limit"]
    assert (buried.stage, buried.pool, buried.task_id) == ("orders", "comfyui", None)
    assert (buried.queue, buried.exchange, buried.routing_key) == ("orders", "orders", "order.placed")
    assert (buried.broker_reason, buried.version) == ("delivery_limit", None)
    refused = by_reason["rejected"]
    assert (refused.queue, refused.exchange, refused.routing_key) == ("submit.comfyui", "", "submit.comfyui")
    assert (refused.deliveries, refused.broker_reason, refused.version) == (1, None, our_version())
    assert by_reason["execution_failed"].version == our_version()
    assert lab.row(task).status is Status.FAILED


def lab_metrics(topo):
    from shared.observe import metrics

    return metrics.build("ops", pools=["comfyui"], queues=[queue.name for queue in topo.queues], strict=True)


def reject_for_ever(url: str, queue: str) -> None:
    """Give the one message of the queue back until the broker has had enough."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    seen = 0
    for method, _, _ in channel.consume(queue, inactivity_timeout=2):
        if method is None:
            break
        seen += 1
        channel.basic_nack(method.delivery_tag, requeue=True)
    connection.close()
    assert seen == DELIVERY_LIMIT + 1


def ready(url: str, queue: str) -> int:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    count = connection.channel().queue_declare(queue, passive=True).method.message_count
    connection.close()
    return count
