"""Replay and discard against real servers: each letter once, whoever and however many come."""

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pika
import pytest

from services.ops.closing import Closed, Closing, close, would_close
from services.ops.collector import Collector
from services.ops.replay import Item, Replayer, Result, confirmed
from shared.broker.broker import Broker
from shared.broker.topology import topology
from shared.database.dead_letters import DeadLetters
from shared.database.letter_states import Deed
from shared.database.letters import LetterFilter, StoredLetter
from shared.database.moves import Change
from shared.database.replays import Outcome, Replays, Way
from shared.domain.messages import Delivery, dead_letter_headers
from shared.domain.task import Reason, Stage, Status, Task
from tests.integration.plans_lab import HOUR, Outbox
from tests.integration.rows_lab import POOL, Lab, a_delivery, letter_about

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
def outbox() -> Outbox:
    return Outbox()


@pytest.fixture
def replayer(lab: Lab, letters: DeadLetters, outbox: Outbox) -> Replayer:
    return Replayer(Replays(lab.engine, HOUR), publish=outbox.publish, pools=[POOL], metrics=lab.metrics)


@pytest.fixture
def bury(lab: Lab, letters: DeadLetters) -> Callable[[Delivery], StoredLetter]:
    """Have the collector record this delivery; the letter's row."""

    def bury(delivery: Delivery) -> StoredLetter:
        before = set(letters.ids(ANY))
        Collector(letters, lab.metrics).handle([delivery])
        (new,) = set(letters.ids(ANY)) - before
        return letters.get([new])[new]

    return bury


@pytest.fixture
def buried(lab: Lab, bury) -> tuple[Task, StoredLetter]:
    """A failed task and its letter."""
    task = lab.failed()
    return task, bury(letter_about(task))


def results(items: Sequence[Item] | Sequence[Closed]) -> list[Result | Closing]:
    return [item.result for item in items]


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """The answers of callers that start at the same moment."""
    start = threading.Barrier(len(works))

    def call(work: Callable[[], Any]) -> Any:
        start.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as callers:
        return list(callers.map(call, works))


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_replayed_row_is_pending_with_all_tries_a_new_deadline_and_the_same_attempt(lab, replayer, outbox, buried):
    task, letter = buried
    (item,) = replayer.replay([letter.id], "ann")
    assert (item.result, item.task_id) == (Result.REPLAYED, task.id)
    row = lab.row(task)
    assert (row.status, row.version, row.attempt, row.charged) == (Status.PENDING, task.version + 1, 1, 0)
    assert (row.backend, row.job_key, row.provider_job_id) == (None, None, None)
    assert row.due_at == row.deadline_at
    assert 3590 < (row.deadline_at - row.now).total_seconds() <= 3600
    assert [message.routing_key for message in outbox.messages] == ["submit.comfyui"]


def test_the_deadline_of_the_order_wins_over_the_default(lab, replayer, bury):
    task = lab.failed(deadline_seconds=60.0)
    replayer.replay([bury(letter_about(task)).id], "ann")
    row = lab.row(task)
    assert 50 < (row.deadline_at - row.now).total_seconds() <= 60


def test_a_replay_is_written_down_with_the_person_s_name(lab, letters, replayer, buried):
    task, letter = buried
    replayer.replay([letter.id], "ann")
    (replay,) = letters.replays(letter.id)
    assert (replay.by_whom, replay.state, replay.result) == ("ann", "open", None)
    closed = letters.get([letter.id])[letter.id]
    assert (closed.state, closed.closed_by) == ("replayed", "ann")
    (noted,) = lab.sql("select * from operator_actions")
    assert (noted.by_whom, noted.action, noted.subject) == ("ann", "dead letter replay", str(letter.id))
    assert noted.detail["task"] == str(task.id)
    (move,) = lab.sql("select * from task_moves where task_id = :id and from_status = 'failed'", id=task.id)
    assert (move.to_status, move.actor, move.reason) == ("pending", "ann", "replay")


@pytest.mark.parametrize("end", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
def test_a_replay_ends_with_what_became_of_its_task(lab, letters, replayer, buried, end):
    _, letter = buried
    replayer.replay([letter.id], "ann")
    (taken,) = lab.take()
    assert taken.attempt == 2
    lab.end(taken, end, reason=Reason.REJECTED, stage=Stage.SUBMIT)
    (replay,) = letters.replays(letter.id)
    assert (replay.state, replay.result) == ("closed", end)


def test_ten_people_who_replay_a_letter_at_once_replay_it_once(lab, letters, replayer, outbox, buried):
    task, letter = buried
    answers = at_once(*[lambda: replayer.replay([letter.id], "ann")[0]] * 10)
    assert sorted(answer.result for answer in answers) == ["refused"] * 9 + ["replayed"]
    assert {answer.why for answer in answers if answer.result is Result.REFUSED} == {"already replayed by ann"}
    assert lab.row(task).version == task.version + 1
    assert len(letters.replays(letter.id)) == 1
    assert len(lab.sql("select * from operator_actions")) == 1
    assert len(outbox.to("submit.comfyui")) == 1


def test_ten_people_who_replay_the_same_fifty_letters_at_once_replay_each_once(lab, letters, replayer, outbox, bury):
    ids = [bury(letter_about(lab.failed())).id for _ in range(50)]
    answers = at_once(*[lambda: replayer.replay(ids, "ann")] * 10)
    replayed = [item.letter_id for items in answers for item in items if item.result is Result.REPLAYED]
    assert sorted(replayed) == ids
    assert len(lab.sql("select * from task_moves where from_status = 'failed'")) == 50
    assert len(outbox.to("submit.comfyui")) == 50


def test_two_letters_of_one_order_id_make_one_active_task(lab, replayer, bury):
    ids = [bury(letter_about(lab.failed(order_id="order-7"))).id for _ in range(2)]
    items = at_once(*[lambda id_=id_: replayer.replay([id_], "ann")[0] for id_ in ids])
    assert sorted(results(items)) == ["refused", "replayed"]
    (refused,) = [item for item in items if item.result is Result.REFUSED]
    assert "another task for" in refused.why


def test_the_index_has_the_last_word_when_another_task_becomes_active_meanwhile(lab, letters, replayer, bury):
    """The order comes in between the look for an active task and the move: only the index can know."""
    letter = bury(letter_about(lab.failed(order_id="order-7")))
    lab.sql("""
        create function meanwhile() returns trigger language plpgsql as $$ begin
            insert into tasks (id, idempotency_key, order_id, fingerprint, pool, due_at, deadline_at, actor, trace_id)
            values (gen_random_uuid(), 'other', 'order-7', 'f', 'comfyui', now(), now(), 'lab', 't');
            return new;
        end $$""")
    lab.sql("create trigger meanwhile before insert on replays for each row execute function meanwhile()")
    (item,) = replayer.replay([letter.id], "ann")
    assert (item.result, item.why) == (Result.REFUSED, "another task for the same order has just become active")
    assert letters.get([letter.id])[letter.id].state == "open"
    assert letters.replays(letter.id) == []


def test_a_row_that_is_not_failed_any_more_is_refused(lab, replayer, buried):
    task, letter = buried
    lab.tasks.move([Change(task=task, to=Status.PENDING, deadline_in=60.0)])
    (item,) = replayer.replay([letter.id], "ann")
    assert (item.result, item.why) == (Result.REFUSED, "its task is pending, only failed ones are replayed")


def test_a_letter_of_an_earlier_attempt_is_refused(lab, replayer, bury):
    task = lab.failed()
    first = bury(letter_about(task))
    replayer.replay([first.id], "ann")
    lab.sql("update dead_letters set state = 'open', closed_by = null")
    (taken,) = lab.take()
    lab.paid(lab.end(taken, Status.FAILED, reason=Reason.REJECTED, stage=Stage.SUBMIT))
    (item,) = replayer.replay([first.id], "ann")
    assert item.why == "the letter is about attempt 1, the task failed at attempt 2"


def test_a_row_whose_job_is_still_being_cancelled_waits(lab, replayer, bury):
    task = lab.end(lab.processing(), Status.FAILED, reason=Reason.BUG, stage=Stage.CHECK, cancel_owed=True)
    letter = bury(letter_about(task))
    (item,) = replayer.replay([letter.id], "ann")
    assert item.result is Result.REFUSED
    assert "still being cancelled" in item.why
    assert lab.row(task).cancel_owed


def test_an_order_of_which_only_the_key_was_readable_is_refused(lab, replayer, bury):
    task = lab.failed()
    lab.sql("update tasks set body = null where id = :id", id=task.id)
    (item,) = replayer.replay([bury(letter_about(task)).id], "ann")
    assert item.result is Result.REFUSED


def test_the_failed_event_is_out_before_its_row_is_pending_again(lab, replayer, outbox, bury):
    task = lab.end(lab.processing(), Status.FAILED, reason=Reason.BUG, stage=Stage.CHECK)
    assert task.due_at is not None  # whoever failed it died before its event was confirmed
    letter = bury(letter_about(task))
    outbox.away = True
    assert results(replayer.replay([letter.id], "ann")) == [Result.REFUSED]
    assert lab.row(task).status is Status.FAILED
    outbox.away = False
    assert results(replayer.replay([letter.id], "ann")) == [Result.REPLAYED]
    assert [message.routing_key for message in outbox.messages] == ["order.failed", "submit.comfyui"]


def test_without_a_broker_the_row_is_pending_and_the_scheduler_makes_the_permit(lab, replayer, outbox, buried):
    task, letter = buried
    outbox.away = True
    assert results(replayer.replay([letter.id], "ann")) == [Result.REPLAYED]
    assert lab.row(task).status is Status.PENDING
    assert lab.tasks.free_rows({POOL: 10}) == {POOL: 1}


def test_a_row_of_a_pool_without_a_queue_is_replayed_without_a_permit(lab, replayer, outbox, bury):
    task = lab.failed_at_once(lab.pending(pool="no-such-pool"))
    assert results(replayer.replay([bury(letter_about(task)).id], "ann")) == [Result.REPLAYED]
    assert outbox.messages == []


# --- letters without a row --------------------------------------------------------------------------------------------


def an_order(reason: Reason = Reason.INVALID_MESSAGE, **fields: object) -> Delivery:
    return a_delivery(
        **{
            "body": json.dumps({"idempotency_key": "k", "pool": POOL}).encode(),
            "headers": dead_letter_headers(reason=reason, stage=Stage.ORDERS, detail="d"),
            "message_id": str(uuid.uuid4()),
        }
        | fields
    )


def test_a_letter_without_a_row_goes_to_orders_again(letters, replayer, outbox, bury):
    letter = bury(an_order(type="order.placed.v1"))
    assert results(replayer.replay([letter.id], "ann")) == [Result.PUBLISHED]
    (message,) = outbox.messages
    assert (message.exchange, message.routing_key, message.type) == ("orders", "order.placed", "order.placed.v1")
    assert json.loads(message.body) == {"idempotency_key": "k", "pool": POOL}
    (replay,) = letters.replays(letter.id)
    assert (replay.state, replay.result) == ("closed", "published")


def test_ten_people_who_replay_a_letter_without_a_row_publish_it_once(replayer, outbox, bury):
    letter = bury(an_order())
    answers = at_once(*[lambda: replayer.replay([letter.id], "ann")[0].result] * 10)
    assert sorted(answers) == ["published"] + ["refused"] * 9
    assert len(outbox.messages) == 1


def test_a_replay_that_died_before_its_publish_is_finished_with_the_same_message(lab, letters, replayer, outbox, bury):
    letter = bury(an_order())
    outbox.away = True
    assert results(replayer.replay([letter.id], "ann")) == [Result.ACCEPTED]
    outbox.away = False
    assert replayer.finish() == 0  # somebody may be at it still
    lab.sql("update replays set at = at - interval '1 minute'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replays, "published", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            replayer.finish()  # died after the publish
    assert replayer.finish() == 1
    assert replayer.finish() == 0
    first, second = outbox.messages
    assert first == second
    (replay,) = letters.replays(letter.id)
    assert replay.result == "published"


def test_a_conflict_is_refused_since_it_would_conflict_again(replayer, outbox, bury):
    letter = bury(an_order(Reason.CONFLICT))
    (prediction,) = replayer.preview([letter.id])
    assert (prediction.way, prediction.outcome) == (Way.REFUSED, Outcome.CONFLICT)
    assert results(replayer.replay([letter.id], "ann")) == [Result.REFUSED]
    assert outbox.messages == []


@pytest.mark.parametrize(
    ("delivery", "why"),
    [
        (a_delivery(queue="submit.dead", body=b'{"pool":"comfyui"}', headers={"reason": "bug"}), "scheduler"),
        (a_delivery(queue="check.dead", headers={"x-death": [{"queue": "check.comfyui"}]}), "scheduler"),
        (a_delivery(body=b"x" * 70_000), "its body is cut"),
        (a_delivery(body=b"\xff"), "its body is altered"),
    ],
    ids=["a permit", "a check", "too long", "not text"],
)
def test_what_cannot_go_to_orders_as_it_came_is_refused(replayer, outbox, bury, delivery, why):
    (item,) = replayer.replay([bury(delivery).id], "ann")
    assert item.result is Result.REFUSED
    assert why in item.why
    assert outbox.messages == []


# --- looking ahead and discarding -------------------------------------------------------------------------------------


def everything(lab: Lab) -> list[object]:
    tables = ("tasks", "task_moves", "dead_letters", "replays", "operator_actions")
    return [lab.sql(f"select * from {table} order by 1, 2") for table in tables]  # noqa: S608 - names from above


def test_a_preview_says_what_the_replay_then_does_and_changes_nothing(lab, letters, replayer, outbox, bury):
    good = bury(letter_about(lab.failed()))
    done = bury(letter_about(lab.failed()))
    replayer.replay([done.id], "ann")
    loose = bury(an_order())
    permit = bury(a_delivery(queue="submit.dead"))
    outbox.messages.clear()
    before = everything(lab)
    ids = [good.id, done.id, loose.id, permit.id]
    plan = replayer.preview(ids)
    would_close(letters, Deed.DISCARD, ids, "why")
    assert everything(lab) == before
    assert outbox.messages == []
    assert [p.way for p in plan] == [Way.ROW, Way.REFUSED, Way.MESSAGE, Way.REFUSED]
    items = replayer.replay(ids, "ann")
    assert results(items) == [Result.REPLAYED, Result.REFUSED, Result.PUBLISHED, Result.REFUSED]
    assert [item.why for item in items] == [p.why for p in plan]


def test_a_discarded_letter_stays_discarded_and_its_row_failed(lab, letters, replayer, buried):
    task, letter = buried
    assert results(close(letters, Deed.DISCARD, [letter.id], "ann", "customer gave up")) == [Closing.DISCARDED]
    (item,) = replayer.replay([letter.id], "bob")
    assert (item.result, item.why) == (Result.REFUSED, "already discarded by ann")
    assert lab.row(task).status is Status.FAILED
    (noted,) = lab.sql("select * from operator_actions")
    assert (noted.by_whom, noted.action, noted.detail) == ("ann", "dead letter discard", {"why": "customer gave up"})


def test_discards_and_replays_of_one_letter_at_once_leave_one_of_them(lab, letters, replayer, buried):
    task, letter = buried
    acts = (lambda: replayer.replay([letter.id], "ann"), lambda: close(letters, Deed.DISCARD, [letter.id], "bob", "no"))
    answers = [answer for (answer,) in at_once(*acts * 5)]
    assert sorted(answer.result in {Result.REFUSED, Closing.REFUSED} for answer in answers) == [False] + [True] * 9
    assert len(lab.sql("select * from operator_actions")) == 1
    state = letters.get([letter.id])[letter.id].state
    assert (state, lab.row(task).status) in {("replayed", Status.PENDING), ("discarded", Status.FAILED)}


def test_unknown_ids_are_refused_one_by_one(letters, replayer, buried):
    _, letter = buried
    assert results(replayer.replay([letter.id, 999], "ann")) == [Result.REPLAYED, Result.REFUSED]
    assert [item.why for item in close(letters, Deed.DISCARD, [999], "ann", "no")] == ["no such letter"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (LetterFilter(), {"check", "orders"}),
        (LetterFilter(state="replayed"), {"submit"}),
        (LetterFilter(state=None), {"check", "orders", "submit"}),
        (LetterFilter(reason="execution_failed"), {"check"}),
        (LetterFilter(stage="orders"), {"orders"}),
        (LetterFilter(pool="comfyui", state=None), {"check", "submit"}),
    ],
)
def test_a_filter_finds_what_it_names(lab, replayer, bury, wanted, found):
    letters = DeadLetters(lab.engine, "test")
    bury(letter_about(lab.failed()))
    bury(a_delivery(body=b'{"pool":"fal"}'))
    submit = lab.submitting()
    submit = lab.paid(lab.end(submit, Status.FAILED, reason=Reason.REJECTED, stage=Stage.SUBMIT))
    replayer.replay([bury(letter_about(submit)).id], "ann")
    lab.sql("update dead_letters set at = at - interval '1 hour' where stage <> 'check'")
    assert {letter.stage for letter in letters.page(wanted)} == found
    assert letters.ids(wanted) == [letter.id for letter in letters.page(wanted)]


def test_a_replay_over_a_real_broker_leaves_a_permit_and_an_order(lab, letters, bury, amqp_url):
    row, loose = bury(letter_about(lab.failed())), bury(an_order())
    broker = Broker([amqp_url], topology([POOL]), name="test", metrics=lab.metrics)
    broker.start()
    try:
        replayer = Replayer(
            Replays(lab.engine, HOUR),
            publish=confirmed(broker.publish, 20),
            pools=[POOL],
            metrics=lab.metrics,
        )
        assert results(replayer.replay([row.id, loose.id], "ann")) == [Result.REPLAYED, Result.PUBLISHED]
    finally:
        broker.stop()
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    channel = connection.channel()
    assert channel.basic_get("submit.comfyui")[2] == b'{"pool":"comfyui"}'
    assert channel.basic_get("orders")[1].type == "order.placed.v1"
    connection.close()
