"""What a handler answers. It decides; the consumer alone publishes, confirms and acknowledges."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.domain.messages import Message
from shared.domain.task import Reason, Stage


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A final row whose debts the outcome's messages pay; its `due_at` is cleared once they are confirmed.

    still_owed -- a job at the provider is not cancelled yet: the row stays due for that alone, and says no more
    """

    task_id: uuid.UUID
    version: int
    still_owed: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """The delivery is finished once `then` is confirmed."""

    then: Sequence[Message] = ()
    follow_up_of: Sequence[FollowUp] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """The delivery itself is buried: its body goes to the step's dead queue with these headers, then it is acked."""

    reason: Reason
    detail: str
    stage: Stage
    task_id: uuid.UUID | None = None
    attempt: int | None = None
    then: Sequence[Message] = field(default=())
    follow_up_of: Sequence[FollowUp] = field(default=())


@dataclass(frozen=True, slots=True)
class Hold:
    """No verdict yet: the delivery stays in hand and is offered again with the next batch."""


Verdict = Done | DeadLetter
Outcome = Verdict | Hold
