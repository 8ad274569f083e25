"""Which crash point a delivery or a message is at, by its step or its kind."""

from typing import Final

from shared.broker.topology import EVENTS_EXCHANGE, ORDERS_EXCHANGE, buries_to, stage_of
from shared.domain.messages import Message
from shared.domain.task import Stage
from shared.observe.crash import CrashPoint

_DELIVERED: Final = {
    Stage.ORDERS: CrashPoint.INTAKE_DELIVERED,
    Stage.SUBMIT: CrashPoint.SUBMIT_DELIVERED,
    Stage.CHECK: CrashPoint.CHECK_DELIVERED,
    None: CrashPoint.COLLECT_DELIVERED,
}
_DECIDED: Final = {
    Stage.ORDERS: CrashPoint.INTAKE_DECIDED,
    Stage.SUBMIT: CrashPoint.SUBMIT_DECIDED,
    Stage.CHECK: CrashPoint.CHECK_DECIDED,
    None: CrashPoint.COLLECT_DECIDED,
}
_ACKING: Final = {
    Stage.ORDERS: CrashPoint.INTAKE_ACKING,
    Stage.SUBMIT: CrashPoint.SUBMIT_ACKING,
    Stage.CHECK: CrashPoint.CHECK_ACKING,
    None: CrashPoint.COLLECT_ACKING,
}
_ACKED: Final = {
    Stage.ORDERS: CrashPoint.INTAKE_ACKED,
    Stage.SUBMIT: CrashPoint.SUBMIT_ACKED,
    Stage.CHECK: CrashPoint.CHECK_ACKED,
    None: CrashPoint.COLLECT_ACKED,
}
_SENT: Final = {
    "order": CrashPoint.ORDER_SENT,
    "permit": CrashPoint.PERMIT_SENT,
    "check": CrashPoint.CHECK_SENT,
    "event": CrashPoint.EVENT_SENT,
    "letter": CrashPoint.LETTER_SENT,
}
_CONFIRMED: Final = {
    "order": CrashPoint.ORDER_CONFIRMED,
    "permit": CrashPoint.PERMIT_CONFIRMED,
    "check": CrashPoint.CHECK_CONFIRMED,
    "event": CrashPoint.EVENT_CONFIRMED,
    "letter": CrashPoint.LETTER_CONFIRMED,
}


def delivered(queue: str) -> CrashPoint:
    return _DELIVERED[_step(queue)]


def decided(queue: str) -> CrashPoint:
    return _DECIDED[_step(queue)]


def acking(queue: str) -> CrashPoint:
    return _ACKING[_step(queue)]


def acked(queue: str) -> CrashPoint:
    return _ACKED[_step(queue)]


def sent(message: Message) -> CrashPoint:
    return _SENT[_kind(message)]


def confirmed(message: Message) -> CrashPoint:
    return _CONFIRMED[_kind(message)]


def _step(queue: str) -> Stage | None:
    """The step whose work queue it is; None: a dead queue, so the collector's."""
    return None if buries_to(queue) is None else stage_of(queue)


def _kind(message: Message) -> str:
    if message.exchange:
        return {ORDERS_EXCHANGE: "order", EVENTS_EXCHANGE: "event"}[message.exchange]
    if buries_to(message.routing_key) is None:
        return "letter"
    return {Stage.ORDERS: "order", Stage.SUBMIT: "permit", Stage.CHECK: "check"}[stage_of(message.routing_key)]
