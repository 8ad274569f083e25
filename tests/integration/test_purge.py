"""Orders that ended long ago: gone with all that belongs to them, and yet never made a second time."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from services.cli import app
from services.ops.collector import Collector
from services.ops.purge import Purged, run_purge
from services.submitter.intake import Intake
from shared.database import audit, claims
from shared.database.dead_letters import DeadLetters
from shared.database.history import History
from shared.database.letter_states import Deed, do
from shared.database.letters import LetterFilter
from shared.database.purge import Purge
from shared.domain.errors import StorageAway
from shared.domain.messages import Order, order_placed
from shared.domain.outcome import DeadLetter, Done
from shared.domain.task import Reason, Status, Task
from shared.observe import metrics
from tests.factories import a_claim, an_order, at_once, delivered
from tests.integration.rows_lab import POOL, Lab, a_delivery, letter_about

DAY = 86_400.0
TABLES = ("tasks", "task_moves", "attempts", "artifacts", "duplicate_keys", "dead_letters", "replays")


class Past:
    """Rows that ended a hundred days ago."""

    def __init__(self, url: str) -> None:
        self.lab = Lab(url)
        self.letters = DeadLetters(self.lab.engine, "ops@test")
        self.collector = Collector(self.letters, self.lab.metrics)

    def aged(self, *tasks: Task, days: int = 100) -> None:
        ids = {"ids": [str(task.id) for task in tasks]}
        ago = f"interval '{days} days'"
        self.lab.sql(
            f"update tasks set created_at = created_at - {ago}, finished_at = finished_at - {ago}"  # noqa: S608 - ours
            " where id = any(cast(:ids as uuid[]))",
            **ids,
        )
        self.lab.sql(
            f"update dead_letters set closed_at = closed_at - {ago} where task_id = any(cast(:ids as uuid[]))",  # noqa: S608
            **ids,
        )

    def purge(self, older_than_days: float = 90) -> Purged:
        return run_purge(Purge(self.lab.engine, older_than_days * DAY), self.lab.artifacts, "ann")

    def discarded(self, task: Task) -> Task:
        self.collector.handle([letter_about(task)])
        do(self.lab.engine, Deed.DISCARD, self.letters.ids(LetterFilter(task_id=task.id)), "ann", "no")
        return task

    def counts(self) -> dict[str, int]:
        return {table: self.lab.sql(f"select count(*) as n from {table}")[0].n for table in TABLES}  # noqa: S608 - ours

    def findings(self) -> list[audit.Finding]:
        return audit.run_audit(self.lab.engine, self.lab.artifacts)


@pytest.fixture
def past(database_url: str) -> Iterator[Past]:
    past = Past(database_url)
    yield past
    past.lab.close()


def claimed(past: Past, order: Order) -> claims.Claimed | claims.Purged:
    return past.lab.tasks.claim([a_claim(order)])[0]


def test_what_ended_long_ago_goes_with_all_that_belongs_to_it_and_the_rest_stays(past: Past) -> None:
    done, dead = past.lab.completed(order_id="o-1"), past.discarded(past.lab.failed())
    (picture,) = past.lab.sql("select key from artifacts")
    young, undecided, unfinished = past.lab.completed(), past.lab.failed(), past.lab.pending()
    past.collector.handle([letter_about(undecided)])
    past.aged(done, dead, unfinished, undecided)
    counts = Purge(past.lab.engine, 90 * DAY).count()
    assert (counts.tasks, counts.letters, counts.pictures) == (2, 1, 1)
    assert past.purge() == Purged(tasks=2, pictures=2)
    assert {row.id for row in past.lab.sql("select id from tasks")} == {young.id, unfinished.id, undecided.id}
    assert past.counts() | {"task_moves": 0} == {
        "tasks": 3,
        "task_moves": 0,
        "attempts": 2,
        "artifacts": 1,
        "duplicate_keys": 0,
        "dead_letters": 1,
        "replays": 0,
    }
    assert not past.lab.artifacts.exists(picture.key)
    assert past.findings() == []
    noted = past.lab.sql("select by_whom, detail from operator_actions where action = 'purge' order by id")
    assert [(deed.by_whom, deed.detail["count"]) for deed in noted] == [("ann", 1), ("ann", 1)]
    assert past.purge() == Purged()


def test_a_late_copy_of_a_purged_order_makes_no_second_one(past: Past) -> None:
    order, twin = an_order(order_id="o-1"), an_order(order_id="o-1")
    first = claimed(past, order)
    assert isinstance(first, claims.Claimed)
    assert claimed(past, twin).result is claims.ClaimResult.ACTIVE_ORDER
    (taken,) = past.lab.take()
    done = past.lab.paid(past.lab.end(taken, Status.CANCELLED, reason="no"))
    past.aged(done)
    assert past.purge().tasks == 1
    for copy in (order, twin):
        assert claimed(past, copy) == claims.Purged(copy.task_id, Status.CANCELLED, is_same=True)
        other = copy.model_copy(update={"workflow": "other"})
        assert claimed(past, other) == claims.Purged(copy.task_id, Status.CANCELLED, is_same=False)
    assert past.lab.tasks.purged(order.task_id) is Status.CANCELLED
    standings = History(past.lab.engine).standings([order.task_id, twin.task_id])
    assert {one.status for one in standings.values()} == {Status.CANCELLED}
    assert len(standings) == 2
    assert past.counts()["tasks"] == 0
    assert audit.unaccounted(past.lab.engine, [order.idempotency_key, twin.idempotency_key, "never seen"]) == [
        "never seen"
    ]


def test_intake_acks_a_late_copy_and_buries_another_order_with_its_key(past: Past) -> None:
    order = an_order()
    past.lab.pending(idempotency_key=order.idempotency_key)
    (taken,) = past.lab.take()
    past.aged(past.lab.paid(past.lab.end(taken, Status.CANCELLED, reason="no")))
    past.purge()
    intake = Intake(
        past.lab.tasks,
        pools=[POOL],
        pools_now=lambda: [POOL],
        problems=lambda _: [],
        default_deadline_seconds=60,
        metrics=metrics.build(metrics.EVERYTHING, pools=[POOL], strict=True),
    )
    other = order.model_copy(update={"workflow": "other"})
    messages = [order_placed(one, traceparent=None) for one in (order, other)]
    same, conflict = intake.handle([delivered(message) for message in messages])
    assert same == Done()
    assert isinstance(conflict, DeadLetter)
    assert conflict.reason is Reason.CONFLICT


def test_of_copies_that_come_while_the_order_is_purged_none_makes_a_second_one(past: Past) -> None:
    orders = [an_order() for _ in range(20)]
    for order in orders:
        claimed(past, order)
    rows = past.lab.take()
    past.aged(*[past.lab.paid(past.lab.end(row, Status.CANCELLED, reason="no")) for row in rows])
    copies = [lambda order=order: claimed(past, order) for order in orders]
    at_once([past.purge, *copies[:8]])
    for order in orders:
        assert isinstance(claimed(past, order), claims.Purged)
    assert past.counts()["tasks"] == 0


class Away:
    def remove(self, task_ids: object) -> None:
        raise StorageAway("the bucket is gone")


def test_a_purge_that_dies_before_the_pictures_are_deleted_leaves_nothing_amiss_and_the_next_one_ends_it(
    past: Past,
) -> None:
    past.aged(past.lab.completed())
    (picture,) = past.lab.sql("select key from artifacts")
    with pytest.raises(StorageAway):
        run_purge(Purge(past.lab.engine, 90 * DAY), Away(), "ann")
    assert past.lab.artifacts.exists(picture.key)
    assert past.findings() == []
    past.lab.sql("update purged_keys set purged_at = now() - interval '91 days'")
    assert Purge(past.lab.engine, 90 * DAY).keys("ann") == 0  # a new order of that key would write to the same folder
    assert past.purge() == Purged(pictures=1, keys=1)
    assert not past.lab.artifacts.exists(picture.key)


def test_the_key_of_a_purged_order_is_free_again_after_ninety_days(past: Past) -> None:
    order = an_order()
    claimed(past, order)
    (taken,) = past.lab.take()
    past.aged(past.lab.paid(past.lab.end(taken, Status.CANCELLED, reason="no")))
    past.purge()
    past.lab.sql("update purged_keys set purged_at = now() - interval '89 days'")
    assert past.purge().keys == 0
    past.lab.sql("update purged_keys set purged_at = now() - interval '91 days'")
    assert past.purge().keys == 1
    (noted,) = past.lab.sql("select * from operator_actions where subject = 'keys'")
    assert (noted.by_whom, noted.action, noted.detail) == ("ann", "purge", {"count": 1, "kept_days": 90})
    assert claimed(past, order).result is claims.ClaimResult.WON


def test_closed_letters_without_a_task_go_and_their_groups_unless_somebody_said_something(past: Past) -> None:
    past.collector.handle([a_delivery(body=b"no order"), a_delivery(body=b"other", headers={"reason": "bug"})])
    one, two = past.letters.ids(LetterFilter())
    do(past.lab.engine, Deed.ARCHIVE, [one, two], "ann", "old")
    past.lab.sql("update dead_letters set closed_at = now() - interval '100 days'")
    past.lab.sql("update letter_groups set last_at = now() - interval '100 days'")
    past.lab.sql("update letter_groups set note = 'known' where reason = 'bug'")
    assert past.purge() == Purged(letters=2)
    assert [row.reason for row in past.lab.sql("select reason from letter_groups")] == ["bug"]


def test_what_a_plan_has_not_done_with_stays(past: Past) -> None:
    dead = past.discarded(past.lab.failed())
    past.aged(dead)
    past.lab.sql(
        "insert into plans (by_whom, changed_by, chosen, rate, ramp, stop_window) values ('a', 'a', '{}', 1, '{1}', 1)"
    )
    past.lab.sql(
        "insert into plan_items (plan_id, place, dead_letter_id, predicted) select 1, 1, id, '' from dead_letters"
    )
    assert past.purge() == Purged()
    past.lab.sql("update plans set state = 'aborted'")
    assert past.purge() == Purged(tasks=1, pictures=1)


def test_a_failed_order_whose_letter_is_not_recorded_yet_stays(past: Past) -> None:
    task = past.lab.failed()
    past.aged(task)
    assert past.purge() == Purged()
    past.discarded(task)
    past.aged(task)
    assert past.purge() == Purged(tasks=1, pictures=1)


def test_a_key_is_not_forgotten_while_a_letter_may_bring_its_order_again(past: Past) -> None:
    order = an_order()
    past.aged(past.lab.completed(**order.model_dump(exclude_defaults=True)))
    copy = order_placed(order)
    buried = {"x-death": [{"queue": "orders", "reason": "delivery_limit"}]}
    past.collector.handle([a_delivery(body=copy.body, type=copy.type, message_id="m-1", headers=buried)])
    assert past.purge() == Purged(tasks=1, pictures=1)
    past.lab.sql("update purged_keys set purged_at = purged_at - interval '91 days'")
    assert (past.purge(), Purge(past.lab.engine, 90 * DAY).count().keys) == (Purged(), 0)
    do(past.lab.engine, Deed.DISCARD, past.letters.ids(LetterFilter()), "ann", "told the shop")
    assert past.purge() == Purged(keys=1)


@pytest.mark.parametrize("deed", ["delete from operator_actions", "update task_moves set actor = 'x'"])
def test_a_purge_itself_may_change_no_history_and_no_deed(past: Past, deed: str) -> None:
    past.discarded(past.lab.failed())
    with pytest.raises(sa.exc.IntegrityError, match="append-only"):
        past.lab.sql(f"set local darkroom.purging = 'on'; {deed}")


def test_nobody_else_deletes_from_the_history(past: Past) -> None:
    past.lab.pending()
    with pytest.raises(sa.exc.IntegrityError, match="append-only"):
        past.lab.sql("delete from task_moves")


def test_the_command_counts_first_purges_then_and_says_so_of_an_order(
    past: Past, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task = past.discarded(past.lab.failed())
    past.aged(task)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DARKROOM_DATABASE_URL", past.lab.url)
    monkeypatch.setenv("DARKROOM_ARTIFACTS_URL", str(tmp_path / "pictures"))

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == (1 if words[0] == "order" else 0), result.output
        return result.output

    assert ": 1 tasks, 1 dead letters, 0 pictures" in run("purge", "--older-than", "90d", "--dry-run")
    assert past.counts()["tasks"] == 1
    assert "is gone: 1 tasks" in run("purge", "--older-than", "90d")
    assert past.counts()["tasks"] == 0
    assert "that order is failed, and it is purged" in run("order", "trace", task.idempotency_key)
    assert "that order is failed, and it is purged" in run("order", "trace", str(task.id))
