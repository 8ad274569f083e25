"""Carries out running plans, step by step. Several ops processes may: each step is taken by one of them."""

import logging
from typing import Final

from services.ops.replay import Replayer
from shared.database.plan_steps import PlanSteps, Step
from shared.database.plans import PlanState
from shared.domain.errors import BrokerAway

log = logging.getLogger(__name__)

#: Time between two steps of a plan: at 100 letters per second a step sends 25.
_STEP_SECONDS: Final = 0.25
#: Time between two looks for plans that somebody has applied.
_LOOK_SECONDS: Final = 1.0


class PlanRunner:
    """Keeps nothing that is not in the table, but whose turn it is."""

    def __init__(self, steps: PlanSteps, replayer: Replayer) -> None:
        self._steps = steps
        self._replayer = replayer
        self._last = 0

    def turn(self) -> float:
        """Take one step in every running plan; the seconds until the next turn. Raises Outage.

        Begins behind the plan of the last step, so that one that cannot be carried out does not hold up the others.
        """
        self._steps.settle()
        running = self._steps.running()
        for plan_id in sorted(running, key=lambda id_: (id_ <= self._last, id_)):
            self._last = plan_id
            self._step(plan_id)
        return _STEP_SECONDS if running else _LOOK_SECONDS

    def _step(self, plan_id: int) -> None:
        step = self._steps.step(plan_id)
        if step is None:
            return
        self._carry_out(plan_id, step)
        if step.owed:
            try:
                paid = self._replayer.pay(step.owed)
            except BrokerAway as error:
                log.warning("plan waits for the broker", extra={"plan": plan_id, "why": str(error)})
                return
            if (again := self._steps.step(plan_id, paid)) is not None:
                self._carry_out(plan_id, again)

    def _carry_out(self, plan_id: int, step: Step) -> None:
        self._replayer.carry_out(step.replays)
        if step.state is not PlanState.RUNNING:
            log.info("plan ended", extra={"plan": plan_id, "state": step.state})
