"""Who dies where: every crash point, in every kind of process that comes by it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shared.observe.crash import CrashPoint


class Victim(StrEnum):
    """The processes that die. Two are armed at once, but of the command one. PLANS: while ops carries out a plan."""

    SUBMITTER = "submitter"
    POLLER = "poller"
    OPS = "ops"
    COMMAND = "dead replay"
    PLANS = "ops, plans"

    @property
    def service(self) -> str:
        """What the process is started as."""
        return "ops" if self is Victim.PLANS else str(self)

    @property
    def replays(self) -> bool:
        """Whether it dies when all orders have ended, while their letters go round."""
        return self in (Victim.COMMAND, Victim.PLANS)


@dataclass(frozen=True, slots=True)
class Drill:
    """One death. nth -- at which time the process comes by; after -- another submitter has to die there first"""

    point: CrashPoint
    victim: Victim
    nth: int = 1
    after: CrashPoint | None = None

    @property
    def name(self) -> str:
        return f"{self.point} in {self.victim}"


_S, _P, _O, _C, _R = Victim
_ = CrashPoint

#: What every workload brings several times dies at the second time, with the first one under way.
MATRIX: Final = (
    Drill(_.INTAKE_DELIVERED, _S, 2),
    Drill(_.CLAIM_COMMITTED, _S, 2),
    Drill(_.UNSTARTED_FAILED, _S),
    Drill(_.INTAKE_DECIDED, _S, 2),
    Drill(_.INTAKE_ACKING, _S, 2),
    Drill(_.INTAKE_ACKED, _S, 2),
    Drill(_.PERMIT_SENT, _S, 2),
    Drill(_.PERMIT_CONFIRMED, _S, 2),
    Drill(_.SUBMIT_DELIVERED, _S),
    Drill(_.ROW_TAKEN, _S),
    Drill(_.INPUT_UPLOADED, _S),
    Drill(_.POST_ALLOWED, _S),
    Drill(_.POSTING, _S),
    Drill(_.POSTED, _S),
    Drill(_.JOB_LOOKED_UP, _S, after=_.POSTED),
    Drill(_.RECORD_COMMITTED, _S),
    Drill(_.ROW_GIVEN_BACK, _S),
    Drill(_.SUBMISSION_FAILED, _S),
    Drill(_.SUBMIT_DECIDED, _S, 2),
    Drill(_.SUBMIT_ACKING, _S, 2),
    Drill(_.SUBMIT_ACKED, _S, 2),
    Drill(_.EVENT_SENT, _S, 2),
    Drill(_.EVENT_CONFIRMED, _S, 2),
    Drill(_.LETTER_SENT, _S),
    Drill(_.LETTER_CONFIRMED, _S),
    Drill(_.FOLLOW_UP_CLEARING, _S),
    Drill(_.FOLLOW_UP_CLEARED, _S),
    Drill(_.DUE_TAKEN, _P),
    Drill(_.CHECK_SENT, _P, 2),
    Drill(_.CHECK_CONFIRMED, _P, 2),
    Drill(_.PERMIT_SENT, _P),
    Drill(_.PERMIT_CONFIRMED, _P),
    Drill(_.UNSTARTED_FAILED, _P),
    Drill(_.CHECK_DELIVERED, _P, 2),
    Drill(_.STATES_READ, _P),
    Drill(_.ENDED_READ, _P),
    Drill(_.PICTURE_FETCHED, _P, 2),
    Drill(_.PICTURE_WRITTEN, _P, 2),
    Drill(_.PICTURE_STORED, _P, 2),
    Drill(_.COMPLETED_COMMITTED, _P, 2),
    Drill(_.RETRY_COMMITTED, _P),
    Drill(_.JOB_FAILED, _P),
    Drill(_.JOB_CANCELLED, _P),
    Drill(_.CHECK_DECIDED, _P, 2),
    Drill(_.CHECK_ACKING, _P, 2),
    Drill(_.CHECK_ACKED, _P, 2),
    Drill(_.EVENT_SENT, _P, 2),
    Drill(_.EVENT_CONFIRMED, _P, 2),
    Drill(_.LETTER_SENT, _P),
    Drill(_.LETTER_CONFIRMED, _P),
    Drill(_.FOLLOW_UP_CLEARING, _P, 2),
    Drill(_.FOLLOW_UP_CLEARED, _P, 2),
    Drill(_.COLLECT_DELIVERED, _O),
    Drill(_.LETTER_RECORDED, _O),
    Drill(_.COLLECT_DECIDED, _O),
    Drill(_.COLLECT_ACKING, _O),
    Drill(_.COLLECT_ACKED, _O),
    Drill(_.REPLAY_COMMITTED, _C),
    Drill(_.PERMIT_SENT, _C),
    Drill(_.PERMIT_CONFIRMED, _C),
    Drill(_.ORDER_SENT, _C),
    Drill(_.ORDER_CONFIRMED, _C),
    Drill(_.REPLAY_NOTED, _C),
    Drill(_.PLAN_STEPPING, _R),
    Drill(_.PLAN_STEPPED, _R),
    Drill(_.PERMIT_SENT, _R),
    Drill(_.PERMIT_CONFIRMED, _R),
    Drill(_.ORDER_SENT, _R),
    Drill(_.ORDER_CONFIRMED, _R),
    Drill(_.REPLAY_NOTED, _R),
)
