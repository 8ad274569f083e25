"""Plans that are carried out: each letter goes round once, at the plan's pace, and it stops when it must."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from shared.database.adopt import Refused
from shared.database.letters import LetterFilter
from shared.database.plans import Pace, Plan, PlanState, Progress
from shared.database.predictions import Outcome
from shared.database.replays import Replays
from shared.domain.task import Reason, Stage, Status
from tests.factories import at_once
from tests.integration.plans_lab import AT_ONCE, PlansLab, a_loose_order
from tests.integration.rows_lab import letter_about


@pytest.fixture
def lab(database_url: str) -> Iterator[PlansLab]:
    lab = PlansLab(database_url)
    yield lab
    lab.close()


def test_nothing_is_sent_before_somebody_applies_the_plan(lab):
    plan_id = lab.planned(lab.dead(2))
    assert lab.turn(plan_id).state is PlanState.PLANNED
    assert lab.replayed() == []


def test_every_letter_goes_round_once_and_its_item_says_what_became_of_it(lab):
    ids = lab.dead(3)
    plan_id = lab.applied(ids, note="the disk was full")
    assert lab.turn(plan_id).progress == Progress(sent=3)
    assert len(lab.outbox.to("submit.comfyui")) == 3
    first, second, third = lab.take()
    lab.end(first, Status.COMPLETED, attempt_outcome="completed")
    lab.end(second, Status.FAILED, reason=Reason.REJECTED, stage=Stage.SUBMIT)
    lab.end(third, Status.CANCELLED, reason="on request")
    plan = lab.turn(plan_id)
    assert (plan.state, plan.progress) == (PlanState.DONE, Progress(completed=1, failed=1, cancelled=1))
    results = {item.task_id: item.result for item in lab.plans.items(plan_id, limit=10)}
    assert results == {first.id: "completed", second.id: "failed", third.id: "cancelled"}
    assert lab.replayed() == ids
    deeds = lab.sql("select action, by_whom, subject, detail from operator_actions order by id")
    assert [deed.action for deed in deeds] == ["plan make", "plan apply", *["dead letter replay"] * 3, "plan done"]
    assert {deed.by_whom for deed in deeds[:-1]} == {"ann"}
    assert deeds[2].detail["plan"] == plan_id
    assert deeds[2].detail["why"] == "the disk was full"


def test_a_letter_without_a_row_goes_round_as_its_body(lab):
    plan_id = lab.applied(lab.bury(a_loose_order()))
    assert lab.turn(plan_id).progress == Progress(sent=1)
    assert json.loads(lab.outbox.messages[0].body) == {"idempotency_key": "k"}


def test_what_is_refused_says_why_and_does_not_hold_up_the_others(lab):
    refused = lab.dead(30, reason=Reason.OUTCOME_UNKNOWN)
    good = lab.dead(1)
    plan_id = lab.applied([*refused, *good], Pace(rate=2, ramp=(1,)))
    assert lab.turn(plan_id).progress == Progress(sent=1, refused=30)
    item = lab.plans.items(plan_id, limit=1, result="refused")[0]
    assert item.predicted is Outcome.OUTCOME_UNKNOWN
    for command in ("order adopt", "submit-again", "give-up"):
        assert command in item.why


def test_the_pace_allows_no_more_than_its_rate(lab):
    plan_id = lab.applied(lab.dead(12), replace(AT_ONCE, rate=5))
    assert lab.turn(plan_id).progress.sent == 5  # what a second may save up
    lab.let_time_pass(plan_id, -10)
    lab.runner.turn()
    assert lab.plan(plan_id).progress.sent == 5
    lab.let_time_pass(plan_id, 0.4)
    lab.runner.turn()
    assert 7 <= lab.plan(plan_id).progress.sent < 10  # and not a second's worth again


def test_each_step_of_the_ramp_waits_for_the_results_of_the_one_before(lab):
    plan_id = lab.applied(lab.dead(12), replace(AT_ONCE, ramp=(1, 5)))
    seen = []
    for _ in range(3):
        lab.turn(plan_id)
        seen.append(lab.turn(plan_id).progress.sent)
        lab.work()
    assert seen == [1, 5, 6]
    assert lab.turn(plan_id).progress == Progress(completed=12)


def test_the_first_letter_that_fails_stops_the_plan_before_the_second(lab):
    ids = lab.dead(5)
    plan = lab.until_over(lab.applied(ids, Pace(rate=1000)), Status.FAILED)
    assert (plan.state, plan.progress) == (PlanState.STOPPED, Progress(waiting=4, failed=1))
    assert plan.state_why == "1 of the last 1 failed, and it stops at 20%"
    assert lab.replayed() == ids[:1]
    (deed,) = lab.sql("select * from operator_actions where action = 'plan stopped'")
    assert (deed.by_whom, deed.subject) == ("ops@test", f"plan {plan.id}")


def test_a_plan_stops_at_its_ratio_of_the_last_results_while_others_are_under_way(lab):
    plan_id = lab.applied(lab.dead(40), Pace(rate=10, ramp=(), stop_at=0.5, stop_window=4))
    lab.turn(plan_id)
    lab.work(Status.COMPLETED, at_most=6)
    assert lab.turn(plan_id).state is PlanState.RUNNING
    lab.work(Status.FAILED, at_most=2)
    plan = lab.turn(plan_id)
    assert plan.state is PlanState.STOPPED
    assert plan.state_why == "2 of the last 4 failed, and it stops at 50%"
    assert plan.progress.sent == 12


def test_a_plan_below_its_ratio_goes_on_to_its_end(lab):
    plan_id = lab.applied(lab.dead(10), Pace(rate=10, ramp=(), stop_at=0.5, stop_window=4))
    lab.turn(plan_id)
    lab.work(Status.FAILED, at_most=1)
    lab.work()
    assert lab.until_over(plan_id).progress == Progress(completed=9, failed=1)


def test_after_a_stop_somebody_may_resume_it_and_old_failures_no_longer_count(lab):
    plan = lab.until_over(lab.applied(lab.dead(3), Pace(rate=1000, ramp=(1, 5))), Status.FAILED)
    assert plan.state is PlanState.STOPPED
    assert isinstance(lab.plans.resume(plan.id, "bob"), Plan)
    plan = lab.until_over(plan.id)
    assert (plan.state, plan.progress) == (PlanState.DONE, Progress(completed=2, failed=1))
    assert {row.by_whom for row in lab.sql("select by_whom from replays order by id offset 1")} == {"bob"}


def test_a_paused_plan_sends_nothing_and_goes_on_where_it_was(lab):
    ids = lab.dead(4)
    plan_id = lab.applied(ids, replace(AT_ONCE, ramp=(2,)))
    lab.turn(plan_id)
    lab.plans.pause(plan_id, "bob")
    lab.work()
    assert lab.turn(plan_id).progress == Progress(waiting=2, completed=2)
    lab.plans.resume(plan_id, "bob")
    assert lab.until_over(plan_id).progress == Progress(completed=4)
    assert lab.replayed() == ids
    deeds = [
        row.action for row in lab.sql("select action from operator_actions where action like 'plan %' order by id")
    ]
    assert deeds == ["plan make", "plan apply", "plan pause", "plan resume", "plan done"]


def test_an_aborted_plan_never_sends_again_and_still_learns_what_became_of_what_it_sent(lab):
    plan_id = lab.applied(lab.dead(4), replace(AT_ONCE, ramp=(2,)))
    lab.turn(plan_id)
    lab.plans.abort(plan_id, "bob")
    lab.work()
    assert lab.turn(plan_id).progress == Progress(waiting=2, completed=2)
    for deed in (lab.plans.resume, lab.plans.apply, lab.plans.pause, lab.plans.abort):
        assert deed(plan_id, "bob") == Refused(f"plan {plan_id} is aborted")


def test_two_people_who_apply_a_plan_at_once_apply_it_once(lab):
    plan_id = lab.planned(lab.dead(1))
    answers = at_once([lambda: lab.plans.apply(plan_id, "ann"), lambda: lab.plans.apply(plan_id, "bob")])
    assert sorted(isinstance(answer, Refused) for answer in answers) == [False, True]
    assert len(lab.sql("select * from operator_actions where action = 'plan apply'")) == 1


def test_the_pace_may_be_changed_when_the_plan_is_applied(lab):
    plan_id = lab.planned(lab.dead(3), Pace(rate=1, ramp=(1,)))
    lab.plans.apply(plan_id, "ann", AT_ONCE)
    assert lab.turn(plan_id).progress.sent == 3


# --- at the same time -------------------------------------------------------------------------------------------------


def test_two_processes_that_carry_out_the_same_plans_send_each_letter_once(lab):
    ids = lab.dead(60)
    plans = [lab.applied(ids[:40]), lab.applied(ids[20:])]
    runners = [lab.another_runner(f"ops@{n}") for n in range(4)]

    def run(runner):
        for _ in range(10):
            runner.turn()

    at_once([lambda runner=runner: run(runner) for runner in runners])
    for plan_id in plans:
        lab.until_over(plan_id)
    assert lab.replayed() == ids
    progress = [lab.plan(plan_id).progress for plan_id in plans]
    assert sum(one.completed for one in progress) == 60
    assert sum(one.refused for one in progress) == 20
    assert len(lab.sql("select * from task_moves where from_status = 'failed' and to_status = 'pending'")) == 60


def test_plans_are_carried_out_while_letters_about_the_same_rows_come_again(lab):
    """The collector locks letters and then refers to rows, a step locks both: neither waits for the other for ever."""
    tasks = [lab.failed() for _ in range(30)]
    ids = lab.bury(*map(letter_about, tasks))
    plan_id = lab.applied(ids, replace(AT_ONCE, rate=5))

    def collect():
        for _ in range(10):
            lab.bury(*map(letter_about, tasks))

    def carry_out():
        for _ in range(10):
            lab.turn(plan_id)

    at_once([collect, carry_out])
    assert lab.until_over(plan_id).progress == Progress(completed=30)


def test_a_letter_that_somebody_replays_by_hand_meanwhile_is_refused_by_the_plan(lab):
    ids = lab.dead(2)
    plan_id = lab.applied(ids)
    Replays(lab.engine, 60.0).replay(ids[:1], "bob")
    assert lab.until_over(plan_id).progress == Progress(completed=1, refused=1)


def test_the_failed_event_is_out_before_its_row_goes_round(lab):
    task = lab.end(lab.processing(), Status.FAILED, reason=Reason.BUG, stage=Stage.CHECK)
    plan_id = lab.applied(lab.bury(letter_about(task)))
    lab.outbox.away = True
    assert lab.turn(plan_id).progress == Progress(waiting=1)
    lab.outbox.away = False
    assert lab.turn(plan_id).progress == Progress(sent=1)
    assert [message.routing_key for message in lab.outbox.messages] == ["order.failed", "submit.comfyui"]


def test_without_a_broker_letters_wait_for_their_message_and_rows_for_their_permit(lab):
    plan_id = lab.applied([*lab.dead(1), *lab.bury(a_loose_order())])
    lab.outbox.away = True
    assert lab.turn(plan_id).progress == Progress(sent=2)
    lab.outbox.away = False
    assert lab.tasks.free_rows({"comfyui": 10}) == {"comfyui": 1}
    lab.sql("update replays set at = at - interval '1 minute'")
    lab.runner._replayer.finish()
    lab.work()
    lab.let_messages_age()
    assert lab.turn(plan_id).progress == Progress(completed=1, published=1)
    assert len(lab.outbox.to("order.placed")) == 1


# --- two orders of one name -------------------------------------------------------------------------------------------


def test_an_order_that_is_completed_under_another_key_runs_only_by_force_and_the_audit_says_so(lab):
    (letter,) = lab.dead(1, order_id="order-7")
    other = lab.completed(order_id="order-7")
    plan = lab.until_over(lab.applied([letter]))
    assert plan.progress == Progress(refused=1)
    assert str(other.id) in lab.plans.items(plan.id, limit=1)[0].why
    forced = lab.planned([letter], force=True)
    assert lab.plans.look(forced).preview.forced == 1
    lab.plans.apply(forced, "eve", may_force=True)
    assert lab.until_over(forced).progress == Progress(completed=1)
    (made,) = lab.sql(
        "select detail from operator_actions where action = 'plan make' and subject = :s", s=f"plan {forced}"
    )
    assert made.detail["forced"] is True
    (deed,) = lab.sql("select detail from operator_actions where action = 'dead letter replay'")
    assert deed.detail["forced_although_completed"] == str(other.id)


def test_what_an_editor_forced_nobody_else_sends(lab):
    (letter,) = lab.dead(1, order_id="order-7")
    plan_id = lab.planned([letter], force=True)
    why = Refused(f"plan {plan_id} pays once more for orders that are completed: an editor sends it")
    assert lab.plans.apply(plan_id, "ann") == why
    assert lab.plan(plan_id).state is PlanState.PLANNED
    lab.plans.apply(plan_id, "eve", may_force=True)
    assert lab.plans.pause(plan_id, "ann").state is PlanState.PAUSED  # whoever may act may stop it
    assert lab.plans.resume(plan_id, "ann") == why
    assert lab.plans.resume(plan_id, "eve", may_force=True).state is PlanState.RUNNING


def test_no_force_helps_against_an_active_task_of_the_same_order(lab):
    (letter,) = lab.dead(1, order_id="order-7")
    lab.pending(order_id="order-7")
    plan_id = lab.applied([letter], force=True)
    assert lab.turn(plan_id).progress == Progress(refused=1)


def test_by_force_too_a_plan_makes_an_order_once_that_died_under_two_keys(lab):
    ids = lab.dead(1, order_id="order-7") + lab.dead(1, order_id="order-7")
    plan, preview = lab.plans.make(ids, "ann", pace=Pace(rate=1000, ramp=(1, 5)), force=True)
    assert preview.outcomes == {Outcome.WILL_RUN: 1, Outcome.SUPERSEDED: 1}
    lab.plans.apply(plan.id, "ann", may_force=True)
    lab.until_over(plan.id)
    assert lab.replayed() == ids[:1]


def test_of_two_letters_about_one_order_the_first_goes_and_the_second_is_refused(lab):
    lab.dead(2, order_id="order-7")
    plan, preview = lab.plans.make(LetterFilter(), "ann", pace=AT_ONCE)
    assert preview.outcomes == {Outcome.WILL_RUN: 1, Outcome.SUPERSEDED: 1}
    lab.plans.apply(plan.id, "ann")
    assert lab.until_over(plan.id).progress == Progress(completed=1, refused=1)


# --- elsewhere --------------------------------------------------------------------------------------------------------


def test_a_plan_may_send_its_orders_to_another_pool_with_all_their_tries(lab):
    lab.slots.sync(
        [("gpu-1", "comfyui", "comfyui", "http://127.0.0.1:1", 100, 60.0), ("o", "other", "api", "u", 1, 60.0)]
    )
    (letter,) = lab.dead(1)
    plan_id = lab.applied([letter], pool="other")
    lab.turn(plan_id)
    (row,) = lab.sql("select pool, charged, status, fingerprint, body from tasks")
    assert (row.pool, row.charged, row.status) == ("other", 0, "pending")
    assert row.body["pool"] == "comfyui"  # what was ordered stays what was ordered
    (deed,) = lab.sql("select detail from operator_actions where action = 'dead letter replay'")
    assert (deed.detail["from_pool"], deed.detail["to_pool"]) == ("comfyui", "other")


def test_a_pool_that_nobody_serves_is_refused(lab):
    assert lab.plans.make(lab.dead(1), "ann", pool="moon") == Refused(
        "no backend serves pool 'moon'; there are: comfyui"
    )
