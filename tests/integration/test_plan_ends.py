"""Letters without a row end in their plan with what their message became, and the plan judges itself by that."""

import json
from collections.abc import Iterator

import pytest

from shared.broker.letters import letter
from shared.database.adopt import Refused
from shared.database.plans import Pace, PlanItem, PlanState, Progress
from shared.domain.messages import Delivery, Message, dead_letter_headers
from shared.domain.outcome import DeadLetter
from shared.domain.task import Reason, Stage, Status
from tests.integration.plans_lab import AT_ONCE, PlansLab
from tests.integration.rows_lab import a_delivery


@pytest.fixture
def lab(database_url: str) -> Iterator[PlansLab]:
    lab = PlansLab(database_url)
    yield lab
    lab.close()


def _loose(number: int, body: bytes = b"no order") -> Delivery:
    headers = dead_letter_headers(reason=Reason.INVALID_MESSAGE, stage=Stage.ORDERS, detail="d")
    return a_delivery(body=body, headers=headers, message_id=f"m-{number}")


def _keyed(lab: PlansLab, key: str = "k") -> list[int]:
    return lab.bury(_loose(1, json.dumps({"idempotency_key": key}).encode()))


def _dies(lab: PlansLab, message: Message, reason: Reason = Reason.INVALID_MESSAGE) -> list[int]:
    """Its consumer gives the verdict about the message, and the collector records the letter; the ids of new ones."""
    came = a_delivery(queue="orders", body=message.body, message_id=message.message_id, type=message.type)
    dead = letter(came, DeadLetter(reason=reason, detail="again", stage=Stage.ORDERS))
    return lab.bury(a_delivery(body=dead.body, message_id=dead.message_id, type=dead.type, headers=dict(dead.headers)))


def _item(lab: PlansLab, plan_id: int) -> PlanItem:
    (item,) = lab.plans.items(plan_id, limit=10)
    return item


def test_unreadable_letters_that_die_again_stop_their_plan_at_the_first_one(lab):
    plan_id = lab.applied(lab.bury(*[_loose(number) for number in range(10)]), Pace(rate=1000, ramp=(1, 5)))
    assert lab.turn(plan_id).progress == Progress(waiting=9, sent=1)
    assert lab.turn(plan_id).progress == Progress(waiting=9, sent=1)
    (again,) = _dies(lab, lab.outbox.messages[0])
    plan = lab.turn(plan_id)
    assert (plan.state, plan.progress) == (PlanState.STOPPED, Progress(waiting=9, failed=1))
    assert lab.plans.items(plan_id, limit=1)[0].why == f"it died again: letter {again}, invalid_message"
    assert len(lab.outbox.messages) == 1


@pytest.mark.parametrize("end", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
def test_a_letter_without_a_row_ends_as_the_task_that_its_message_becomes(lab, end):
    plan_id = lab.applied(_keyed(lab))
    lab.turn(plan_id)
    task = lab.pending(idempotency_key="k")
    assert lab.turn(plan_id).progress == Progress(sent=1)
    lab.work(end)
    plan = lab.turn(plan_id)
    assert (plan.state, plan.progress) == (PlanState.DONE, Progress(**{str(end): 1}))
    assert _item(lab, plan_id).why == f"it became task {task.id}"


def test_one_that_conflicts_with_the_task_of_its_key_has_failed(lab):
    plan_id = lab.applied(_keyed(lab))
    lab.completed(idempotency_key="k", inputs={"another": "order"})
    lab.sql("update tasks set created_at = created_at - interval '1 hour'")
    assert lab.turn(plan_id).progress == Progress(sent=1)
    _dies(lab, lab.outbox.to("order.placed")[0], Reason.CONFLICT)
    assert lab.turn(plan_id).progress == Progress(failed=1)


def test_a_duplicate_of_an_older_task_is_published_and_says_which(lab):
    task = lab.completed(idempotency_key="k")
    plan_id = lab.applied(_keyed(lab))
    lab.turn(plan_id)
    assert lab.turn(plan_id).progress == Progress(sent=1)  # it may conflict yet
    lab.let_messages_age()
    assert lab.turn(plan_id).progress == Progress(published=1)
    assert _item(lab, plan_id).why == f"its key had a task before, which answers for it: {task.id}"


def test_a_message_of_which_nothing_is_ever_seen_does_not_hold_up_its_plan_for_ever(lab):
    plan_id = lab.applied(lab.bury(_loose(1)))
    lab.turn(plan_id)
    lab.let_messages_age()
    plan = lab.turn(plan_id)
    assert (plan.state, plan.progress) == (PlanState.DONE, Progress(published=1))
    assert _item(lab, plan_id).why == "nothing was seen of it within 60 s, neither a task nor a letter"


def test_an_aborted_plan_still_learns_what_became_of_a_message(lab):
    plan_id = lab.applied(lab.bury(_loose(1)))
    lab.turn(plan_id)
    lab.plans.abort(plan_id, "ann")
    _dies(lab, lab.outbox.messages[0])
    plan = lab.turn(plan_id)
    assert (plan.state, plan.progress) == (PlanState.ABORTED, Progress(failed=1))


# --- elsewhere --------------------------------------------------------------------------------------------------------


def test_orders_that_the_other_pool_does_not_take_are_refused_before_anything_is_planned(lab):
    good, bad, worse = [lab.dead(1, inputs={"width": width})[0] for width in (64, 65, 65)]
    lab.slots.sync([("o", "other", "api", "u", 1, 60.0)])
    asked = []

    def check(pool, workflow, inputs):
        asked.append((pool, workflow, inputs["width"]))
        return ["width is odd"] if inputs["width"] % 2 else []

    why = lab.plans.make([good, bad, worse], "ann", pool="other", check=check)
    assert why == Refused(f"pool other does not take 2 of 3 orders: width is odd (letter {bad} and 1 more)")
    assert asked == [("other", "demo", 64), ("other", "demo", 65)]  # what says the same is asked once
    assert lab.sql("select 1 from plans") == []
    plan_id = lab.planned([good], AT_ONCE, pool="other", check=check)
    assert [row.id for row in lab.sql("select id from plans")] == [plan_id]
