"""Plans before they are applied: what is chosen stays chosen, and what would become of it is said beforehand."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from shared.database.adopt import Refused
from shared.database.letters import LetterFilter
from shared.database.moves import Change
from shared.database.plans import Pace, Progress
from shared.database.predictions import Outcome
from shared.database.replays import Replays
from shared.domain.task import Reason, Status
from tests.integration.plans_lab import AT_ONCE, PlansLab, a_loose_order
from tests.integration.rows_lab import WAITING, a_delivery, letter_about
from tests.waiting import eventually


@pytest.fixture
def lab(database_url: str) -> Iterator[PlansLab]:
    lab = PlansLab(database_url)
    yield lab
    lab.close()


def test_a_plan_has_the_letters_of_its_moment_and_no_later_ones(lab):
    first = lab.dead(2)
    plan, preview = lab.plans.make(LetterFilter(stage="check"), "ann", pace=AT_ONCE, note="the disk was full")
    lab.dead(1)
    lab.plans.apply(plan.id, "ann")
    lab.until_over(plan.id)
    assert (preview.letters, preview.outcomes) == (2, {Outcome.WILL_RUN: 2})
    assert lab.replayed() == first
    assert plan.chosen["stage"] == "check"
    assert plan.chosen["state"] == "open"
    assert plan.chosen["oldest"] <= plan.chosen["newest"] <= plan.chosen["until"]


def test_a_relative_window_is_kept_as_two_moments(lab):
    old, new = lab.dead(2)
    lab.sql("update dead_letters set at = at - interval '3 hours' where id = :id", id=old)
    wanted = lab.letters.frozen(LetterFilter(), since_seconds=7200)
    plan, _ = lab.plans.make(wanted, "ann")
    assert [item.letter_id for item in lab.plans.items(plan.id, limit=10)] == [new]
    assert plan.chosen["since"] == wanted.since.isoformat()
    assert plan.chosen["until"] == wanted.until.isoformat()


def test_a_plan_of_nothing_or_of_letters_that_do_not_exist_is_refused(lab):
    (letter,) = lab.dead(1)
    assert lab.plans.make(LetterFilter(reason="bug"), "ann") == Refused("no letter matches")
    assert lab.plans.make([letter, 999], "ann") == Refused("no such letter: 999")
    assert lab.sql("select * from plans") == []


@pytest.mark.parametrize("by", ["filter", "id"])
def test_a_letter_that_is_purged_while_a_plan_is_made_is_left_out_or_named(lab: PlansLab, by: str) -> None:
    letters = [letter, gone] = lab.dead(2)
    with ThreadPoolExecutor(1) as threads, lab.engine.connect() as purge:
        purge.execute(sa.text("delete from dead_letters where id = :id"), {"id": gone})
        making = threads.submit(lab.plans.make, LetterFilter() if by == "filter" else letters, "ann")
        eventually(lambda: lab.sql(WAITING), within=10, what="the plan waits for the purge")
        purge.commit()
        made = making.result(10)
    if by == "filter":
        assert not isinstance(made, Refused)
        assert [item.letter_id for item in lab.plans.items(made[0].id, limit=10)] == [letter]
    else:
        assert made == Refused(f"no such letter: {gone}")


@pytest.mark.parametrize(
    "pace",
    [
        Pace(rate=0),
        Pace(rate=float("nan")),
        Pace(rate=1e308),
        Pace(ramp=(0,)),
        Pace(ramp=(2**40,)),
        Pace(stop_at=1.5),
        Pace(stop_window=0),
    ],
)
def test_a_pace_that_cannot_be_is_refused(lab, pace):
    ids = lab.dead(1)
    assert isinstance(lab.plans.make(ids, "ann", pace=pace), Refused)
    plan_id = lab.planned(ids)
    assert isinstance(lab.plans.apply(plan_id, "ann", pace), Refused)


def test_the_preview_counts_each_letter_under_the_one_thing_that_becomes_of_it(lab):
    will_run, archived = lab.dead(2)
    task = lab.failed()
    in_flight = lab.bury(letter_about(task))
    lab.tasks.move([Change(task=task, to=Status.PENDING, deadline_in=60.0)])
    done = lab.dead(1)
    lab.until_over(lab.applied(done))
    expired = lab.dead(1, deadline_seconds=60.0)
    lab.sql(
        "update tasks set created_at = created_at - interval '2 minutes'"
        " where id = (select task_id from dead_letters where id = :id)",
        id=expired[0],
    )
    superseded = lab.dead(1, order_id="order-7")
    lab.completed(order_id="order-7")
    unknown = lab.dead(1, reason=Reason.OUTCOME_UNKNOWN)
    conflict = lab.bury(a_loose_order(Reason.CONFLICT))
    note = lab.bury(a_delivery(queue="submit.dead"))
    lab.sql("update dead_letters set state = 'archived', closed_by = 'bob' where id = :id", id=archived)
    ids = [will_run, archived, *in_flight, *done, *expired, *superseded, *unknown, *conflict, *note]
    _, preview = lab.plans.make(ids, "ann")
    assert preview.outcomes == {
        Outcome.WILL_RUN: 1,
        Outcome.IN_FLIGHT: 1,
        Outcome.NOT_OPEN: 2,
        Outcome.EXPIRED: 1,
        Outcome.SUPERSEDED: 1,
        Outcome.OUTCOME_UNKNOWN: 1,
        Outcome.CONFLICT: 1,
        Outcome.IMPOSSIBLE: 1,
    }
    assert (preview.letters, preview.going, preview.estimate.calls) == (9, 2, 2)


def test_a_whole_set_is_judged_as_its_letters_are_one_by_one(lab):
    first, _ = lab.dead(2, order_id="order-7")
    lab.sql(
        "insert into dead_letters (identity, task_id, attempt, stage, reason, detail, fingerprint)"
        " select 'again', task_id, attempt, 'submit', reason, detail, fingerprint from dead_letters where id = :id",
        id=first,
    )
    *_, decided = lab.dead(2, order_id="order-8") + lab.dead(2)
    lab.completed(order_id="order-8")
    lab.dead(1, reason=Reason.OUTCOME_UNKNOWN)
    lab.bury(a_loose_order(), a_delivery(queue="submit.dead"))
    lab.sql("update dead_letters set state = 'discarded', closed_by = 'bob' where id = :id", id=decided)
    ids = lab.letters.ids(LetterFilter(state=None))

    plan, preview = lab.plans.make(ids, "ann")

    alone = Replays(lab.engine, 60.0).preview(ids)
    assert preview.outcomes == Counter(one.outcome for one in alone)
    assert [one.outcome for one in alone[:3]] == [Outcome.WILL_RUN, Outcome.SUPERSEDED, Outcome.IN_FLIGHT]
    assert [(i.letter_id, i.predicted) for i in lab.plans.items(plan.id, limit=20)] == [
        (one.letter_id, one.outcome) for one in alone
    ]
    assert lab.plans.look(plan.id).preview.outcomes == preview.outcomes


def test_what_a_plan_would_do_is_kept_until_somebody_looks_again(lab):
    one, _ = lab.dead(2)
    plan_id = lab.planned(LetterFilter())
    lab.sql("update dead_letters set state = 'discarded', closed_by = 'bob' where id = :id", id=one)
    before = lab.plan(plan_id).preview
    assert before.outcomes == {Outcome.WILL_RUN: 2}

    looked = lab.plans.look(plan_id).preview

    assert looked == lab.plan(plan_id).preview
    assert looked.at > before.at
    assert list(looked.outcomes.items()) == [(Outcome.WILL_RUN, 1), (Outcome.NOT_OPEN, 1)]
    lab.plans.apply(plan_id, "ann")
    assert lab.plans.look(plan_id) == Refused(f"plan {plan_id} is running")
    assert lab.plans.look(99) == Refused("there is no plan 99")
    assert lab.until_over(plan_id).progress == Progress(completed=1, refused=1)


def test_letters_are_counted_once_when_nothing_changes_any_more(lab):
    done = lab.applied(lab.dead(2))
    lab.until_over(done, Status.FAILED)
    aborted = lab.applied(lab.dead(2), Pace(rate=1))
    lab.runner.turn()
    lab.plans.abort(aborted, "ann")
    lab.runner.turn()

    def counted() -> dict[int, object]:
        return {row.id: row.counted for row in lab.sql("select id, counted from plans")}

    assert counted() == {done: {"failed": 2}, aborted: None}
    assert lab.plan(aborted).progress == Progress(waiting=1, sent=1)
    lab.work()
    lab.runner.turn()
    assert counted() == {done: {"failed": 2}, aborted: {"waiting": 1, "completed": 1}}
    assert (lab.plan(done).progress, lab.plan(aborted).progress) == (
        Progress(failed=2),
        Progress(waiting=1, completed=1),
    )


def test_a_row_that_was_completed_after_all_is_counted_as_completed(lab):
    (letter,) = lab.dead(1)
    plan_id = lab.planned([letter])
    lab.until_over(lab.applied([letter]))
    lab.sql("update dead_letters set state = 'open'")
    preview = lab.plans.look(plan_id).preview
    assert preview.outcomes == {Outcome.COMPLETED: 1}
    assert preview.estimate.calls == 0


@pytest.mark.parametrize(
    "shut", ["paused_until = 'infinity'", "health = 'down'", "enabled = false", "pool = 'another'"]
)
def test_letters_whose_pool_takes_no_work_are_counted_as_blocked(lab, shut):
    ids = lab.dead(1)
    lab.sql(f"update backends set {shut}")  # noqa: S608 - from above
    _, preview = lab.plans.make(ids, "ann")
    assert preview.outcomes == {Outcome.BLOCKED: 1}


def test_calls_cost_and_time_are_guessed_from_the_last_orders_of_the_workflow(lab):
    lab.completed()
    lab.sql(
        "update attempts set started_at = ended_at - interval '4 seconds', cost_actual = 0.5,"
        " cost_unit = 'usd', posts = 1"
    )
    ids = lab.dead(10)
    lab.sql("update backends set capacity = 2")
    _, preview = lab.plans.make(ids, "ann", pace=Pace(rate=100, ramp=(1, 5)))
    estimate = preview.estimate
    assert (estimate.calls, estimate.costs, estimate.without_cost) == (10, {"usd": 5.0}, 0)
    assert estimate.work_seconds == pytest.approx(20)  # 10 orders of 4 s, two at a time
    assert preview.seconds == pytest.approx(28)  # and a wait behind each step


def test_where_nothing_was_made_lately_nobody_claims_to_know(lab):
    ids = lab.dead(2)
    _, preview = lab.plans.make(ids, "ann")
    assert (preview.estimate.without_cost, preview.seconds) == (2, None)
