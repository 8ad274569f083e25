"""Orders become rows or letters, each with what must be said about it, however often they are delivered."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from services.producer.orders import BadOrder, read_order
from services.submitter.intake import Intake
from shared.domain.messages import MAX_ORDER_BYTES, ORDER_PLACED, Choice, Delivery, order_placed
from shared.domain.outcome import DeadLetter, Done, FollowUp, Outcome
from shared.domain.task import Reason, Stage, Status, task_id_for
from tests.factories import MEASURED, Rows, an_order, delivered


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    rows = Rows(database_url)
    yield rows
    rows.close()


@pytest.fixture
def intake(rows: Rows) -> Intake:
    def problems(said: Choice) -> Sequence[str]:
        return [] if said.workflow == "demo" else [f"no workflow {said.workflow}"]

    return Intake(
        rows.tasks,
        pools=["comfyui"],
        pools_now=rows.slots.pools,
        problems=problems,
        default_deadline_seconds=3600,
        metrics=MEASURED,
    )


def raw(body: Any, **fields: Any) -> Delivery:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return delivered(order_placed(an_order()), **{"body": text} | fields)


def one(intake: Intake, delivery: Delivery) -> Outcome:
    (outcome,) = intake.handle([delivery])
    return outcome


def permits(outcome: Outcome) -> list[str]:
    assert isinstance(outcome, Done)
    return [message.routing_key for message in outcome.then]


def row_of(rows: Rows, key: str) -> Any:
    return rows.tasks.find(task_id_for(key))


def test_a_new_order_is_a_pending_row_and_a_permit(intake: Intake, rows: Rows) -> None:
    order = an_order(deadline_seconds=60.0)

    assert permits(one(intake, delivered(order_placed(order)))) == ["submit.comfyui"]

    row = row_of(rows, order.idempotency_key)
    assert (row.status, row.fingerprint) == (Status.PENDING, order.fingerprint)
    assert (row.deadline_at - row.created_at).total_seconds() == 60


def test_an_order_follows_the_trace_it_came_with(intake: Intake, rows: Rows) -> None:
    order = an_order()
    trace_id = "0af7651916cd43dd8448eb211c80319c"

    one(intake, delivered(order_placed(order, traceparent=f"00-{trace_id}-b7ad6b7169203331-01")))

    assert row_of(rows, order.idempotency_key).trace_id == trace_id


@pytest.mark.parametrize(
    "delivery",
    [
        raw(b"not json"),
        raw(b"\xff\xfe\x00"),
        raw(b"[" * 100_000),
        raw(b'{"idempotency_key": 1' + b"0" * 5000 + b"}"),
        raw([1, 2]),
        raw(None),
        raw({}),
        raw({"idempotency_key": 5}),
        raw({"idempotency_key": ""}),
        raw({"idempotency_key": "k" * 201}),
        raw({"idempotency_key": "a\nb"}),
        raw({"idempotency_key": "a\x00b"}),
        raw(b'{"idempotency_key": "\\ud800"}'),
        raw({"pool": "comfyui"}, type="order.placed.v9"),
    ],
    ids=range(14),
)
def test_a_message_without_a_readable_key_is_a_letter_without_a_row(
    intake: Intake, rows: Rows, delivery: Delivery
) -> None:
    outcome = one(intake, delivery)

    assert isinstance(outcome, DeadLetter)
    assert (outcome.reason, outcome.stage, outcome.task_id) == (Reason.INVALID_MESSAGE, Stage.ORDERS, None)
    assert rows.sql("select count(*) from tasks")[0][0] == 0


GOOD = {"idempotency_key": "k", "pool": "comfyui", "workflow": "demo"}
BAD: list[tuple[dict[str, Any], Reason, str]] = [
    ({"pool": "nobody"}, Reason.INVALID_MESSAGE, "no pool 'nobody'; there are comfyui"),
    ({"pool": "Not A Name"}, Reason.INVALID_MESSAGE, "pool"),
    ({"pool": None}, Reason.INVALID_MESSAGE, "pool"),
    ({"workflow": "unheard-of"}, Reason.INVALID_WORKFLOW, "no workflow unheard-of"),
    ({"workflow": None}, Reason.INVALID_WORKFLOW, "no workflow None"),
    ({"colour": "red"}, Reason.INVALID_MESSAGE, "colour"),
    ({"priority": "urgent"}, Reason.INVALID_MESSAGE, "priority"),
    ({"deadline_seconds": 0}, Reason.INVALID_MESSAGE, "deadline_seconds"),
    ({"deadline_seconds": float("nan")}, Reason.INVALID_MESSAGE, "deadline_seconds"),
    ({"deadline_seconds": 1e12}, Reason.INVALID_MESSAGE, "deadline_seconds"),
    ({"inputs": {"x": float("inf")}}, Reason.INVALID_MESSAGE, "finite"),
    ({"inputs": {"x": "\x00"}}, Reason.INVALID_MESSAGE, "NUL"),
    ({"metadata": {"\ud800": 1}}, Reason.INVALID_MESSAGE, "half a character"),
    ({"metadata": {"x": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}}, Reason.INVALID_MESSAGE, "nested"),
    ({"order_id": "a\x00b"}, Reason.INVALID_MESSAGE, "order_id"),
    ({"metadata": {"x": "y" * MAX_ORDER_BYTES}}, Reason.INVALID_MESSAGE, "bytes"),
    ({"\x00": 1}, Reason.INVALID_MESSAGE, "is unknown"),
]


def test_a_bad_order_with_a_readable_key_is_a_failed_row_a_letter_and_an_event(intake: Intake, rows: Rows) -> None:
    for number, (fields, reason, why) in enumerate(BAD):
        key = f"bad-{number}"
        outcome = one(intake, raw(GOOD | {"idempotency_key": key} | fields))

        row = row_of(rows, key)
        assert (row.status, row.reason, row.stage) == (Status.FAILED, reason, "orders"), fields
        assert why in row.detail, (fields, row.detail)
        assert isinstance(outcome, DeadLetter)
        assert (outcome.reason, outcome.task_id, outcome.attempt) == (reason, row.id, 0)
        assert [message.routing_key for message in outcome.then] == ["order.failed"]
        assert outcome.follow_up_of == [FollowUp(row.id, row.version)]
        assert row.due_at is not None, "until the letter and the event are confirmed"


def test_a_bad_order_is_told_what_is_wrong_in_the_words_that_http_has_for_it(intake: Intake, rows: Rows) -> None:
    order = GOOD | {"metadata": {"a": "\x00"}, "priority": "urgent", "shape": "of tomorrow"}
    with pytest.raises(BadOrder) as refused:
        read_order(json.dumps(order).encode())

    one(intake, raw(order))

    assert set(row_of(rows, "k").detail.split("; ")) == set(str(refused.value).split("; "))
    assert "shape: is unknown" in row_of(rows, "k").detail


@pytest.mark.parametrize("type_", ["order.placed.v9", "\ud800", None])
def test_an_order_of_an_unknown_type_with_a_readable_key_is_a_failed_row_too(
    intake: Intake, rows: Rows, type_: str | None
) -> None:
    """So whoever asks for its task hears what became of it."""
    outcome = one(intake, raw(GOOD | {"shape": "of tomorrow"}, type=type_))

    row = row_of(rows, "k")
    assert (row.status, row.reason, row.pool) == (Status.FAILED, Reason.INVALID_MESSAGE, "comfyui")
    assert f"message type {type_!r} is not order.placed.v1" in row.detail
    assert isinstance(outcome, DeadLetter)
    assert (outcome.reason, outcome.task_id) == (Reason.INVALID_MESSAGE, row.id)


def test_a_bad_order_blocks_no_other_order_of_its_order_id(intake: Intake) -> None:
    one(intake, raw(GOOD | {"idempotency_key": "bad", "order_id": "o", "colour": "red"}))

    assert permits(one(intake, delivered(order_placed(an_order(order_id="o"))))) == ["submit.comfyui"]


def test_a_copy_of_an_order_does_nothing(intake: Intake, rows: Rows) -> None:
    delivery = delivered(order_placed(an_order()))
    one(intake, delivery)

    assert permits(one(intake, delivery)) == []
    assert rows.sql("select count(*) from task_moves")[0][0] == 1


def test_an_order_whose_first_worker_died_before_its_permit_left_gets_one(intake: Intake) -> None:
    message = order_placed(an_order())
    one(intake, delivered(message))

    assert permits(one(intake, delivered(message, redelivered=True))) == ["submit.comfyui"]


def test_a_redelivered_order_that_is_already_under_way_gets_no_permit(intake: Intake, rows: Rows) -> None:
    order = an_order()
    rows.backends(gpu_1=1)
    one(intake, delivered(order_placed(order)))
    assert len(rows.take()) == 1

    assert permits(one(intake, delivered(order_placed(order), redelivered=True))) == []


def test_a_bad_order_whose_first_worker_died_after_the_claim_still_fails_with_a_letter(
    intake: Intake, rows: Rows
) -> None:
    order = an_order(workflow="unheard-of")
    rows.pending(**order.model_dump())

    outcome = one(intake, delivered(order_placed(order), redelivered=True))

    assert isinstance(outcome, DeadLetter)
    assert outcome.reason is Reason.INVALID_WORKFLOW
    assert row_of(rows, order.idempotency_key).status is Status.FAILED


def test_a_bad_order_whose_first_worker_died_after_the_move_gets_its_letter_again(intake: Intake, rows: Rows) -> None:
    message = order_placed(an_order(workflow="unheard-of"))
    first = one(intake, delivered(message))
    assert isinstance(first, DeadLetter)

    again = one(intake, delivered(message, redelivered=True))
    assert isinstance(again, DeadLetter)  # the same letter, event and follow-up: the collector records them once
    assert (again.reason, again.task_id, again.follow_up_of) == (first.reason, first.task_id, first.follow_up_of)
    assert [message.message_id for message in again.then] == [message.message_id for message in first.then]
    assert rows.sql("select due_at from tasks")[0].due_at is not None


def test_another_order_under_a_known_key_is_a_letter_and_the_first_is_untouched(intake: Intake, rows: Rows) -> None:
    one(intake, delivered(order_placed(an_order(idempotency_key="k"))))
    before = row_of(rows, "k")

    outcome = one(intake, delivered(order_placed(an_order(idempotency_key="k", inputs={"a": 1}))))

    assert isinstance(outcome, DeadLetter)
    assert (outcome.reason, outcome.task_id, outcome.then) == (Reason.CONFLICT, None, ())
    assert row_of(rows, "k").version == before.version


def test_an_order_for_an_active_order_id_is_said_to_be_a_duplicate_under_its_own_key(intake: Intake) -> None:
    first, second = an_order(order_id="o"), an_order(order_id="o")
    one(intake, delivered(order_placed(first)))

    outcomes = [one(intake, delivered(order_placed(second), redelivered=again)) for again in (False, True)]

    events = [message for outcome in outcomes if isinstance(outcome, Done) for message in outcome.then]
    assert [message.routing_key for message in events] == ["order.duplicate"] * 2
    body = json.loads(events[0].body)
    assert (body["idempotency_key"], body["task_id"]) == (second.idempotency_key, str(first.task_id))
    assert events[0].message_id == events[1].message_id


def test_every_delivery_of_a_mixed_batch_gets_its_own_answer(intake: Intake, rows: Rows) -> None:
    good, bad = order_placed(an_order(order_id="o")), order_placed(an_order(workflow="unheard-of"))
    batch = [
        raw(b"not json"),
        delivered(good),
        delivered(bad),
        delivered(good),
        delivered(order_placed(an_order(order_id="o"))),
        delivered(bad),
        raw({"idempotency_key": "k"}),
        delivered(order_placed(an_order())),
    ]

    outcomes = intake.handle(batch)

    assert [(type(o).__name__, len(o.then)) for o in outcomes if not isinstance(o, type(None))] == [  # type: ignore[union-attr]
        ("DeadLetter", 0),
        ("Done", 1),
        ("DeadLetter", 1),
        ("Done", 0),
        ("Done", 1),
        ("Done", 0),
        ("DeadLetter", 1),
        ("Done", 1),
    ]
    assert rows.sql("select count(*) from tasks")[0][0] == 4


def test_an_order_nobody_serves_gets_no_permit_even_when_it_was_cancelled_in_between(
    intake: Intake, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A permit for a pool without a queue could never be delivered, and its order never acked."""
    move = rows.tasks.move

    def cancelled_first(changes: Any) -> Any:
        rows.tasks.cancel(changes[0].task.id)
        return move(changes)

    monkeypatch.setattr(rows.tasks, "move", cancelled_first)

    assert permits(one(intake, raw(GOOD | {"pool": "nobody"}))) == []


def test_an_order_for_a_pool_that_only_a_newer_process_knows_waits_for_it(intake: Intake, rows: Rows) -> None:
    rows.slots.sync([("fal-1", "fal", "fal", "http://127.0.0.1:1", 2, 60.0)])
    order = an_order(pool="fal", workflow=None)

    first, again = (one(intake, delivered(order_placed(order), redelivered=r)) for r in (False, True))

    assert (permits(first), permits(again)) == ([], []), "whoever serves the pool makes its permits"
    assert row_of(rows, order.idempotency_key).status is Status.PENDING
    assert rows.tasks.free_rows({"fal": 10}) == {"fal": 1}


def test_an_order_for_a_pool_that_is_gone_from_the_backends_file_fails_at_once(intake: Intake, rows: Rows) -> None:
    rows.slots.sync([("fal-1", "fal", "fal", "http://127.0.0.1:1", 2, 60.0)])
    rows.backends(gpu_1=1)

    outcome = one(intake, raw(GOOD | {"pool": "fal"}))

    assert isinstance(outcome, DeadLetter)
    assert outcome.detail == "no pool 'fal'; there are comfyui"


def test_the_table_of_pools_is_read_once_per_batch_and_only_for_a_pool_not_known_here(
    intake: Intake, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    monkeypatch.setattr(intake, "_pools_now", lambda: reads.append(1) or rows.slots.pools())

    intake.handle([delivered(order_placed(an_order())) for _ in range(3)])
    assert reads == []
    intake.handle([raw(GOOD | {"idempotency_key": f"k{number}", "pool": "fal"}) for number in range(3)])
    assert reads == [1]


def test_the_counters_tell_accepted_from_invalid_duplicate_and_conflicting(intake: Intake) -> None:
    def counts() -> dict[str, float]:
        results = ("accepted", "duplicate", "invalid", "conflict")
        return {r: MEASURED.value("orders_received_total", source="amqp", result=r) for r in results}

    before = counts()
    good = order_placed(an_order(idempotency_key="counted"))
    conflicting = order_placed(an_order(idempotency_key="counted", inputs={"a": 1}))

    intake.handle([delivered(good), delivered(good), delivered(conflicting), raw(b"?"), raw(GOOD | {"pool": "nobody"})])

    after = counts()
    assert {r: after[r] - before[r] for r in after} == {"accepted": 1, "duplicate": 1, "invalid": 2, "conflict": 1}
    assert good.type == ORDER_PLACED


def test_an_order_that_came_over_http_is_claimed_and_not_counted_again_as_amqp(intake: Intake) -> None:
    def counted() -> tuple[float, float]:
        received = MEASURED.value("orders_received_total", source="amqp", result="accepted")
        return received, MEASURED.value("claims_total", pool="comfyui", result="won")

    before = counted()
    one(intake, delivered(order_placed(an_order(), received="http")))
    assert counted() == (before[0], before[1] + 1)
