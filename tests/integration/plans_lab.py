"""Letters, plans and who carries them out, with a broker in a list and a backend in a few statements."""

from collections.abc import Sequence

from services.ops.collector import Collector
from services.ops.plans import PlanRunner
from services.ops.replay import Replayer
from shared.database.adopt import Refused
from shared.database.dead_letters import DeadLetters
from shared.database.letters import LetterFilter
from shared.database.plan_steps import PlanSteps
from shared.database.plans import Pace, Plan, Plans, PlanState
from shared.database.replays import Replays
from shared.domain.errors import BrokerAway
from shared.domain.messages import Delivery, Message, dead_letter_headers
from shared.domain.task import Reason, Stage, Status, Task
from tests.integration.rows_lab import POOL, Lab, a_delivery, letter_about

HOUR = 3600.0
#: As fast as a step allows, all at once, whatever fails.
AT_ONCE = Pace(rate=1000, ramp=(), stop_at=None)


class Outbox:
    """A broker in a list; `away` makes it one that confirms nothing."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.away = False

    def publish(self, messages: Sequence[Message]) -> None:
        if self.away:
            raise BrokerAway("not confirmed")
        self.messages += messages

    def to(self, routing_key: str) -> list[Message]:
        return [message for message in self.messages if message.routing_key == routing_key]


class PlansLab(Lab):
    """A Lab with letters about failed rows, and plans for them."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.letters = DeadLetters(self.engine, "ops@test")
        self.plans = Plans(self.engine)
        self.outbox = Outbox()
        self.runner = self.another_runner("ops@test")

    def another_runner(self, actor: str) -> PlanRunner:
        """Who carries plans out in another process."""
        replayer = Replayer(Replays(self.engine, HOUR), publish=self.outbox.publish, pools=[POOL], metrics=self.metrics)
        return PlanRunner(PlanSteps(self.engine, actor, HOUR), replayer)

    def bury(self, *deliveries: Delivery) -> list[int]:
        """Have the collector record these; the ids of the new letters."""
        before = {row.id for row in self.sql("select id from dead_letters")}
        Collector(self.letters, self.metrics).handle(list(deliveries))
        return [row.id for row in self.sql("select id from dead_letters order by id") if row.id not in before]

    def dead(self, count: int, **fields: object) -> list[int]:
        """Letters about so many failed rows."""
        return self.bury(*[letter_about(self.failed(**fields)) for _ in range(count)])

    def planned(self, ids: Sequence[int] | LetterFilter, pace: Pace = AT_ONCE, **more: object) -> int:
        made = self.plans.make(ids, "ann", pace=pace, **more)
        assert not isinstance(made, Refused), made
        return made[0].id

    def applied(self, ids: Sequence[int], pace: Pace = AT_ONCE, **more: object) -> int:
        plan_id = self.planned(ids, pace, **more)
        plan = self.plans.apply(plan_id, "ann", may_force=True)
        assert isinstance(plan, Plan)
        return plan_id

    def plan(self, plan_id: int) -> Plan:
        plan = self.plans.get(plan_id)
        assert plan is not None
        return plan

    def let_time_pass(self, plan_id: int, seconds: float = 10.0) -> None:
        """The pace was used up so many seconds ago; below 0: it will be."""
        self.sql(
            "update plans set paced_until = now() - :s * interval '1 second' where id = :id", s=seconds, id=plan_id
        )

    def let_messages_age(self) -> None:
        """Messages of letters without a row were confirmed so long ago that something must have been seen of them."""
        self.sql("update replays set closed_at = closed_at - interval '2 minutes' where result = 'published'")

    def turn(self, plan_id: int, runner: PlanRunner | None = None) -> Plan:
        """One turn, when the pace allows as much as it can."""
        self.let_time_pass(plan_id)
        (runner or self.runner).turn()
        return self.plan(plan_id)

    def work(self, to: Status = Status.COMPLETED, at_most: int = 1000) -> list[Task]:
        """The backend does what is pending, with this end."""
        taken = list(self.slots.take(POOL, at_most=at_most, lease_seconds=60, known=["gpu-1"]).tasks)
        return [
            self.end(task, to, reason=Reason.EXECUTION_FAILED, detail="d", stage=Stage.CHECK, attempt_outcome=to)
            for task in taken
        ]

    def until_over(self, plan_id: int, to: Status = Status.COMPLETED) -> Plan:
        """Turns and work until the plan runs no more."""
        for _ in range(100):
            if self.turn(plan_id).state is not PlanState.RUNNING:
                return self.plan(plan_id)
            self.work(to)
        raise AssertionError(f"still running: {self.plan(plan_id)}")

    def replayed(self) -> list[int]:
        """Letters that went round, each as often as it did."""
        return [row.dead_letter_id for row in self.sql("select dead_letter_id from replays order by dead_letter_id")]


def a_loose_order(reason: Reason = Reason.INVALID_MESSAGE, message_id: str = "m-1") -> Delivery:
    """A letter without a row."""
    headers = dead_letter_headers(reason=reason, stage=Stage.ORDERS, detail="d")
    return a_delivery(body=b'{"idempotency_key": "k"}', headers=headers, message_id=message_id)
