"""A delivery on its way to the dead queue: its own body, and of its headers only what is known to be small."""

import traceback
import uuid
from typing import Any, Final

from shared.broker.topology import dead_queue, stage_of
from shared.domain.messages import DEAD_LETTER, Delivery, Message, dead_letter_headers
from shared.domain.outcome import DeadLetter
from shared.domain.task import Reason, Stage
from shared.observe.trace import HEADER, read_trace_id

_MAX_TRACE_CHARS: Final = 1500


def trace_of(error: BaseException) -> str:
    """The traceback, its end if it is long."""
    return "".join(traceback.format_exception(error))[-_MAX_TRACE_CHARS:]


def buried(delivery: Delivery, trace: str) -> DeadLetter:
    """The verdict about a delivery whose handler has a bug."""
    return DeadLetter(reason=Reason.BUG, detail=trace, stage=stage_of(delivery.queue))


def letter(delivery: Delivery, verdict: DeadLetter) -> Message:
    """What the verdict asks for. Of the incoming headers only the trace goes along: a header can fill a whole frame.

    Where the delivery came from goes with it, since the broker says so only of what it buries itself.
    """
    return Message(
        routing_key=dead_queue(Stage(verdict.stage)),
        type=delivery.type or DEAD_LETTER,
        body=delivery.body,
        message_id=delivery.message_id or str(uuid.uuid4()),
        correlation_id=delivery.correlation_id,
        headers=dead_letter_headers(
            reason=verdict.reason,
            stage=verdict.stage,
            detail=verdict.detail,
            task_id=verdict.task_id,
            attempt=verdict.attempt,
            trace_id=read_trace_id(delivery.headers.get(HEADER)),
        )
        | _origin(delivery),
    )


def bare_letter(delivery: Delivery, error: BaseException) -> Message:
    """For a delivery whose letter could not be published: the body, and nothing else that came from outside."""
    stage = stage_of(delivery.queue)
    return Message(
        routing_key=dead_queue(stage),
        type=DEAD_LETTER,
        body=delivery.body,
        message_id=str(uuid.uuid4()),
        headers=dead_letter_headers(reason=Reason.BUG, stage=stage, detail=trace_of(error)),
    )


def _origin(delivery: Delivery) -> dict[str, Any]:
    """Short strings of AMQP and a number. A queue counts the deliveries that came to nothing, not the first one."""
    before = delivery.headers.get("x-delivery-count")
    origin = {
        "queue": delivery.queue,
        "exchange": delivery.exchange,
        "routing_key": delivery.routing_key,
        "deliveries": before + 1 if isinstance(before, int) else 1 if not delivery.redelivered else None,
    }
    return {name: value for name, value in origin.items() if value is not None}
