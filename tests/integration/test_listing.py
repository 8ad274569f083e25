"""Lists of orders, places in the queue, news: what upstream systems ask for, from rows that change meanwhile."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from shared.database.listing import COUNTED_AHEAD, Filter, Listing, Place
from shared.domain.canary_order import CANARY_POOL
from shared.domain.task import Priority, Status, Task, task_id_for
from tests.factories import Rows, a_claim

MANY = 20_000


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    rows = Rows(database_url)
    rows.backends(gpu_1=100)
    yield rows
    rows.close()


@pytest.fixture
def listing(rows: Rows) -> Listing:
    return Listing(rows.engine)


def pages(listing: Listing, wanted: Filter, limit: int) -> Iterator[list[Task]]:
    behind = None
    while found := listing.page(wanted, behind=behind, limit=limit):
        yield found
        behind = Place(found[-1].created_at, found[-1].id)


def keys(tasks: list[Task]) -> list[str]:
    return [task.idempotency_key for task in tasks]


def test_a_list_of_all_begins_with_the_newest_and_ends_with_the_oldest(rows: Rows, listing: Listing) -> None:
    rows.processing(idempotency_key="a")
    rows.failed(idempotency_key="b")
    rows.pending(idempotency_key="c")
    assert [keys(page) for page in pages(listing, Filter(), 2)] == [["c", "b"], ["a"]]


def test_canary_orders_are_in_no_list_but_that_of_their_pool(rows: Rows, listing: Listing) -> None:
    rows.tasks.claim([a_claim(idempotency_key="theirs"), a_claim(idempotency_key="ours", pool=CANARY_POOL)])
    assert keys(listing.page(Filter(), behind=None, limit=10)) == ["theirs"]
    assert keys(listing.page(Filter(pool=CANARY_POOL), behind=None, limit=10)) == ["ours"]


def test_rows_of_one_moment_are_told_apart(rows: Rows, listing: Listing) -> None:
    """A batch is claimed in one transaction, so its rows share created_at."""
    claimed = rows.tasks.claim([a_claim() for _ in range(7)])
    assert len({c.task.created_at for c in claimed}) == 1
    found = [task.id for page in pages(listing, Filter(), 2) for task in page]
    assert sorted(found) == sorted(c.task.id for c in claimed)
    assert len(found) == 7


def test_no_row_comes_twice_while_others_arrive_and_move(rows: Rows, listing: Listing) -> None:
    old = [rows.pending() for _ in range(6)]
    found: list[uuid.UUID] = []
    for page in pages(listing, Filter(), 2):
        found += [task.id for task in page]
        if len(found) <= 6:
            rows.pending()
            rows.failed(rows.now(page[0]))
    assert found == [task.id for task in reversed(old)]


@pytest.mark.parametrize("by_order", [False, True])
def test_a_list_may_be_of_some_statuses_only(rows: Rows, listing: Listing, by_order: bool) -> None:
    order_id = "o-1" if by_order else None
    for key in ("a", "b"):
        rows.failed(idempotency_key=key, order_id="o-1")
    rows.pending(idempotency_key="c", order_id="o-1")
    wanted = Filter(statuses=[Status.FAILED], order_id=order_id)
    assert keys(listing.page(wanted, behind=None, limit=9)) == ["b", "a"]
    wanted = Filter(statuses=[Status.FAILED, Status.PENDING], order_id=order_id)
    assert keys(listing.page(wanted, behind=None, limit=9)) == ["c", "b", "a"]
    assert listing.page(Filter(statuses=[Status.COMPLETED], order_id=order_id), behind=None, limit=9) == []


def test_a_list_by_order_id_has_every_task_of_it_and_no_other(rows: Rows, listing: Listing) -> None:
    rows.failed(idempotency_key="a", order_id="o-1")
    rows.pending(idempotency_key="b", order_id="o-1")
    rows.pending(idempotency_key="c", order_id="o-2")
    assert keys(listing.page(Filter(order_id="o-1"), behind=None, limit=9)) == ["b", "a"]


def test_a_key_that_was_kept_with_another_task_leads_to_that_one(rows: Rows, listing: Listing) -> None:
    active = rows.pending(idempotency_key="a", order_id="o-1")
    assert rows.pending(idempotency_key="b", order_id="o-1").id == active.id
    for key in ("a", "b"):
        assert keys(listing.page(Filter(idempotency_key=key), behind=None, limit=9)) == ["a"]
    assert listing.page(Filter(idempotency_key="c"), behind=None, limit=9) == []
    assert listing.page(Filter(idempotency_key="b", order_id="o-2"), behind=None, limit=9) == []
    assert listing.page(Filter(idempotency_key="b", statuses=[Status.FAILED]), behind=None, limit=9) == []


def test_the_place_in_the_queue_is_the_order_in_which_rows_are_taken(rows: Rows, listing: Listing) -> None:
    waiting = [rows.pending(priority=priority) for priority in (Priority.NORMAL, Priority.HIGH) for _ in range(2)]
    places = {task.id: listing.ahead_of(rows.now(task)) for task in waiting}
    assert sorted(places.values(), key=str) == [0, 1, 2, 3]
    taken: list[uuid.UUID] = []
    for _ in waiting:
        taken += [task.id for task in rows.take(1)]
    assert [places[id_] for id_ in taken] == [0, 1, 2, 3]


def test_rows_that_are_not_in_line_have_no_place_and_are_not_counted(rows: Rows, listing: Listing) -> None:
    backs_off = rows.age(rows.pending(), free_at=-60)
    late = rows.age(rows.pending(), deadline_at=1)
    other_pool = rows.pending(pool="other-pool")
    last = rows.pending()
    assert listing.ahead_of(last) == 0
    assert listing.ahead_of(other_pool) == 0
    assert listing.ahead_of(backs_off) is None
    assert listing.ahead_of(late) is None
    assert listing.ahead_of(rows.failed(last)) is None


def test_a_long_queue_is_counted_to_its_bound_only(rows: Rows, listing: Listing) -> None:
    rows.tasks.claim([a_claim() for _ in range(COUNTED_AHEAD + 5)])
    last = rows.pending()
    assert listing.ahead_of(last) == COUNTED_AHEAD


def test_news_are_the_rows_with_a_higher_version_by_the_id_they_were_asked_for(rows: Rows, listing: Listing) -> None:
    task = rows.pending(idempotency_key="a", order_id="o-1")
    rows.pending(idempotency_key="b", order_id="o-1")
    other = rows.pending()
    kept = task_id_for("b")
    unknown = task_id_for("nobody")
    found = listing.changed({task.id: 0, kept: 0, unknown: 0, other.id: other.version})
    assert {id_: row.id for id_, row in found.items()} == {task.id: task.id, kept: task.id}
    rows.failed(task)
    found = listing.changed({task.id: task.version, other.id: other.version})
    assert [(row.id, row.status) for row in found.values()] == [(task.id, Status.FAILED)]


def test_every_question_reads_an_index_and_never_the_whole_table(rows: Rows, listing: Listing) -> None:
    rows.sql(
        """
        insert into tasks (id, idempotency_key, order_id, fingerprint, pool, deadline_at, due_at, actor, trace_id,
                           created_at)
        select gen_random_uuid(), 'many-' || n, 'o-' || n, 'f', 'comfyui', now() + interval '1 day', now(), 'test', 't',
               now() - n * interval '1 second'
        from generate_series(1, :many) n
        """,
        many=MANY,
    )
    rows.sql(
        "update tasks set status = 'cancelled', version = 2, finished_at = now(), due_at = null"
        " where idempotency_key not like '%0'"
    )
    task = rows.pending(idempotency_key="last", order_id="last")
    rows.sql("analyze tasks")
    plans = Plans(rows.engine)
    behind = Place(task.created_at, task.id)
    listing.page(Filter(), behind=behind, limit=51)
    assert plans.of_last().keys() == {"tasks_newest"}
    listing.page(Filter(statuses=[Status.FAILED]), behind=None, limit=51)
    assert plans.of_last().keys() == {"tasks_newest"}
    listing.page(Filter(order_id="o-77"), behind=behind, limit=51)
    assert plans.of_last().keys() <= {"tasks_order_id", "tasks_one_active_order"}
    listing.page(Filter(idempotency_key="many-77"), behind=None, limit=51)
    assert "tasks_pkey" in plans.of_last()
    listing.changed({task.id: 0, uuid.uuid4(): 0})
    assert "tasks_pkey" in plans.of_last()
    assert listing.ahead_of(task) == COUNTED_AHEAD
    assert sum(plans.of_last().values()) <= COUNTED_AHEAD + 1


class Plans:
    """How the server answers what was asked last, explained with the very statement and values."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._last: tuple[str, Any] = ("", None)
        sa.event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, _: Any, __: Any, statement: str, values: Any, ___: Any, ____: Any) -> None:
        if not statement.startswith("explain"):
            self._last = (statement, values)

    def of_last(self) -> dict[str, int]:
        """Index -> rows read from it. Raises AssertionError when the table was read as a whole."""
        statement, values = self._last
        with self._engine.begin() as connection:
            found = connection.exec_driver_sql(f"explain (analyze, format json) {statement}", values).scalar_one()
        plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
        read: dict[str, int] = {}
        for node in _nodes(plan):
            assert (node["Node Type"], node.get("Relation Name")) != ("Seq Scan", "tasks"), json.dumps(plan, indent=1)
            if node.get("Index Name", "").startswith("tasks_"):
                read[node["Index Name"]] = read.get(node["Index Name"], 0) + node["Actual Rows"] * node["Actual Loops"]
        return read


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)
