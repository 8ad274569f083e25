"""Who carries a plan out dies in every window of a step, and the next one goes on: each letter once, none forgotten."""

from collections.abc import Callable, Iterator

import pytest

from services.ops.replay import Replayer
from shared.database import plan_steps
from shared.database.plans import PlanState, Progress
from shared.database.replays import Replays
from shared.domain.messages import dead_letter_headers
from shared.domain.task import Reason, Stage
from shared.observe.crash import CrashPoint
from tests.integration.plans_lab import PlansLab
from tests.integration.rows_lab import a_delivery

Arm = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture
def lab(database_url: str) -> Iterator[PlansLab]:
    lab = PlansLab(database_url)
    yield lab
    lab.close()


def _dies(*_: object) -> None:
    raise SystemExit


def _at(point: CrashPoint) -> Arm:
    def die(at: CrashPoint) -> None:
        if at is point:
            raise SystemExit

    return lambda patch: patch.setattr(plan_steps, "crash_point", die)


def _in(owner: type, method: str) -> Arm:
    return lambda patch: patch.setattr(owner, method, _dies)


@pytest.mark.parametrize(
    ("arm", "sent"),
    [
        pytest.param(_at(CrashPoint.PLAN_STEPPING), 0, id="before the commit of a step"),
        pytest.param(_at(CrashPoint.PLAN_STEPPED), 4, id="after the commit"),
        pytest.param(_in(Replayer, "_make_permits"), 4, id="before the permits"),
        pytest.param(_in(Replayer, "_publish_letters"), 4, id="after the permits"),
        pytest.param(_in(Replays, "published"), 4, id="after the letter without a row was published"),
    ],
)
def test_the_next_one_goes_on_where_a_dead_one_was(lab: PlansLab, arm: Arm, sent: int) -> None:
    headers = dead_letter_headers(reason=Reason.INVALID_MESSAGE, stage=Stage.ORDERS, detail="d")
    ids = [*lab.dead(3), *lab.bury(a_delivery(body=b'{"idempotency_key": "k"}', headers=headers, message_id="m"))]
    plan_id = lab.applied(ids)
    with pytest.MonkeyPatch.context() as patch:
        arm(patch)
        with pytest.raises(SystemExit):
            lab.runner.turn()
    assert lab.plan(plan_id).progress.sent == sent
    assert len(lab.replayed()) == sent

    lab.runner = lab.another_runner("ops@next")
    lab.turn(plan_id)
    lab.sql("update replays set at = at - interval '1 minute'")
    lab.runner._replayer.finish()
    lab.work()
    lab.let_messages_age()
    plan = lab.turn(plan_id)

    assert (plan.state, plan.progress) == (PlanState.DONE, Progress(completed=3, published=1))
    assert lab.replayed() == ids
    assert len(lab.sql("select 1 from task_moves where from_status = 'failed' and to_status = 'pending'")) == 3
    assert len({message.message_id for message in lab.outbox.to("order.placed")}) == 1
