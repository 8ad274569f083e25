"""One task per key, one active task per order_id, whoever comes at the same time."""

import random
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest

from shared.database.claims import ClaimResult
from shared.domain.task import Priority, Status
from tests.factories import Rows, a_claim, an_order, at_once

WON, DUPLICATE, CONFLICT, ACTIVE = (
    ClaimResult.WON,
    ClaimResult.DUPLICATE,
    ClaimResult.CONFLICT,
    ClaimResult.ACTIVE_ORDER,
)


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    rows = Rows(database_url, threads=50)
    yield rows
    rows.close()


def results(rows: Rows, *claims: object) -> list[ClaimResult]:
    return [claimed.result for claimed in rows.tasks.claim(claims)]  # type: ignore[arg-type]


def test_a_claimed_order_is_a_pending_row_that_holds_the_whole_order(rows: Rows) -> None:
    order = an_order(order_id="o-1", priority=Priority.HIGH, inputs={"n": 1.5, "s": "ü\u2028"}, metadata={"a": [None]})
    claim = a_claim(order)

    task = rows.tasks.claim([claim])[0].task

    assert (task.id, task.status, task.version, task.attempt) == (order.task_id, Status.PENDING, 1, 0)
    assert (task.order_id, task.priority, task.fingerprint) == ("o-1", Priority.HIGH, order.fingerprint)
    assert task.body == order.model_dump(mode="json")
    assert task.trace_id == claim.trace_id
    assert task.due_at == task.deadline_at
    assert (task.deadline_at - task.created_at).total_seconds() == 3600
    assert rows.history(task) == [(None, "pending")]


def test_ten_workers_with_one_order_make_one_task(rows: Rows) -> None:
    claim = a_claim()

    answers = at_once([partial(rows.tasks.claim, [claim])] * 10)

    assert Counter(found.result for (found,) in answers) == {WON: 1, DUPLICATE: 9}
    assert len({found.task.id for (found,) in answers}) == 1


def test_fifty_workers_with_overlapping_batches_in_different_orders_make_one_task_per_key(rows: Rows) -> None:
    claims = [a_claim(order_id=f"o-{number}" if number % 2 else None) for number in range(60)]

    def some() -> list[ClaimResult]:
        return results(rows, *random.sample(claims, 20))

    counted = Counter(result for batch in at_once([some] * 50) for result in batch)

    (stored,) = rows.sql("select count(*) as tasks, count(distinct idempotency_key) as keys from tasks")
    assert counted[WON] == stored.tasks == stored.keys
    assert counted.total() == counted[WON] + counted[DUPLICATE] == 50 * 20


def test_batches_that_share_keys_in_opposite_orders_do_not_wait_for_each_other_in_a_circle(rows: Rows) -> None:
    claims = [a_claim() for _ in range(200)]

    at_once([partial(rows.tasks.claim, claims), partial(rows.tasks.claim, claims[::-1])] * 4)

    (row,) = rows.sql("select deadlocks from pg_stat_database where datname = current_database()")
    assert row.deadlocks == 0


def test_another_order_under_the_same_key_leaves_the_first_untouched(rows: Rows) -> None:
    first = rows.pending(idempotency_key="k", inputs={"a": 1})

    (found,) = rows.tasks.claim([a_claim(idempotency_key="k", inputs={"a": 2})])

    assert (found.result, found.task.id) == (CONFLICT, first.id)
    assert rows.now(first).fingerprint == first.fingerprint
    assert rows.now(first).version == first.version


def test_copies_in_one_batch_are_told_apart_from_another_order_with_the_same_key(rows: Rows) -> None:
    mine, other = a_claim(idempotency_key="k"), a_claim(idempotency_key="k", inputs={"a": 2})

    assert results(rows, mine, mine, other, mine) == [WON, DUPLICATE, CONFLICT, DUPLICATE]


def test_a_copy_behind_a_conflicting_order_in_one_batch_is_still_a_duplicate(rows: Rows) -> None:
    mine, other = a_claim(idempotency_key="k"), a_claim(idempotency_key="k", inputs={"a": 2})
    assert results(rows, mine) == [WON]

    assert results(rows, other, mine, other) == [CONFLICT, DUPLICATE, CONFLICT]


def test_of_two_orders_with_one_order_id_in_a_batch_the_first_becomes_the_task(rows: Rows) -> None:
    first, second = a_claim(idempotency_key="z", order_id="o"), a_claim(idempotency_key="a", order_id="o")

    won, kept = rows.tasks.claim([first, second])

    assert (won.result, kept.result, kept.is_new) == (WON, ACTIVE, True)
    assert kept.task.id == won.task.id == an_order(idempotency_key="z").task_id


def test_ten_orders_with_one_order_id_at_once_make_one_task_and_keep_nine_keys(rows: Rows) -> None:
    answers = at_once([partial(rows.tasks.claim, [a_claim(order_id="o")]) for _ in range(10)])

    assert Counter(found.result for (found,) in answers) == {WON: 1, ACTIVE: 9}
    assert len({found.task.id for (found,) in answers}) == 1
    assert rows.sql("select count(*) from duplicate_keys")[0][0] == 9


def test_a_kept_key_stays_with_its_task_when_that_has_ended(rows: Rows) -> None:
    second = a_claim(order_id="o")
    first = rows.pending(order_id="o")
    assert results(rows, second) == [ACTIVE]
    rows.failed(first)

    (again,) = rows.tasks.claim([second])

    assert (again.result, again.task.id, again.is_new) == (ACTIVE, first.id, False)
    assert again.task.status is Status.FAILED
    assert rows.sql("select count(*) from tasks")[0][0] == 1


def test_a_kept_key_with_another_content_is_a_conflict_in_the_same_batch_and_later(rows: Rows) -> None:
    rows.pending(order_id="o")
    kept = a_claim(idempotency_key="k", order_id="o")
    other = a_claim(idempotency_key="k", order_id="o", inputs={"a": 2})

    assert results(rows, kept, other, kept) == [ACTIVE, CONFLICT, ACTIVE]
    assert results(rows, other, kept) == [CONFLICT, ACTIVE]


def test_a_new_order_for_an_order_id_whose_task_has_ended_is_a_task_of_its_own(rows: Rows) -> None:
    rows.failed(order_id="o")

    assert results(rows, a_claim(order_id="o")) == [WON]


def test_orders_that_come_while_the_active_task_ends_are_each_a_task_or_kept(rows: Rows) -> None:
    for round_ in range(10):
        order_id = f"o-{round_}"
        active = rows.pending(order_id=order_id)
        claims = [a_claim(order_id=order_id) for _ in range(6)]

        answers = at_once(
            [*(partial(results, rows, claim) for claim in claims), lambda active=active: [rows.failed(active).status]]
        )

        counted = Counter(answer for (answer,) in answers[:-1])
        assert counted[WON] <= 1
        assert counted[WON] + counted[ACTIVE] == 6
        (row,) = rows.sql(
            "select count(*) filter (where status = 'pending') as active, count(*) as tasks from tasks"
            " where order_id = :id",
            id=order_id,
        )
        assert (row.active, row.tasks) == (counted[WON], 1 + counted[WON])


def test_orders_without_an_order_id_never_hinder_each_other(rows: Rows) -> None:
    assert results(rows, *(a_claim() for _ in range(5))) == [WON] * 5


def test_an_order_without_a_readable_body_still_gets_a_row(rows: Rows) -> None:
    claim = a_claim()

    (found,) = rows.tasks.claim([type(claim)(**{f: getattr(claim, f) for f in claim.__slots__} | {"body": None})])

    assert (found.result, found.task.body, found.task.inputs, found.task.workflow) == (WON, None, {}, None)
