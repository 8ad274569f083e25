"""Handler of the dead queues: every letter becomes one row of `dead_letters`, whatever it looks like."""

import hashlib
import json
import logging
import re
import uuid
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, TypeVar

from shared.broker.topology import stage_of
from shared.database.dead_letters import MAX_BODY_BYTES, DeadLetters, NewLetter, storable
from shared.domain.canary import answers_to, is_canary
from shared.domain.messages import MAX_DETAIL_CHARS, Delivery, version_in
from shared.domain.outcome import Done, Outcome
from shared.domain.task import Reason, Stage
from shared.observe.metrics import Metrics
from shared.observe.trace import HEADER, read_trace_id, traceparent_of

log = logging.getLogger(__name__)

E = TypeVar("E", bound=StrEnum)

#: What `headers["body"]` says when the row does not hold the very bytes that came.
CUT: Final = "cut"
ALTERED: Final = "altered"

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_KEPT_DEATHS: Final = 5
_MAX_HEADER_CHARS: Final = 200
_MAX_SHORT_BYTES: Final = 255


class Collector:
    """One for all dead queues. A letter that comes twice is recorded once."""

    def __init__(self, letters: DeadLetters, metrics: Metrics) -> None:
        self._letters = letters
        self._metrics = metrics

    def handle(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """Record the whole batch, then have it acked. Raises DatabaseAway: the same batch comes again.

        The canaries among them are answered and leave no row.
        """
        canaries = [is_canary(delivery) for delivery in deliveries]
        letters = [letter_of(delivery) for delivery, is_one in zip(deliveries, canaries, strict=True) if not is_one]
        for letter in self._letters.record(letters):
            self._metrics.count("dead_letters_total", stage=letter.stage, reason=letter.reason)
            about = {"task_id": str(letter.task_id)} if letter.task_id else {}
            if letter.trace_id:
                about["trace_id"] = letter.trace_id
            log.info("dead letter recorded", extra={"stage": letter.stage, "reason": letter.reason, **about})
        return [
            Done(then=answers_to(delivery)) if is_one else Done()
            for delivery, is_one in zip(deliveries, canaries, strict=True)
        ]


def letter_of(delivery: Delivery) -> NewLetter:
    """The letter in a delivery from a dead queue. Pure, and never raises: anybody may publish there.

    A delivery with x-death was buried by the broker, and its other headers are the sender's own: they decide nothing.
    """
    headers = delivery.headers if isinstance(delivery.headers, Mapping) else {}
    queue_stage = stage_of(delivery.queue)
    deaths = _deaths(headers.get("x-death"))
    read = read_body(delivery.body)
    body, mark = _text(delivery.body)
    kept: dict[str, Any] = {"queue": delivery.queue} | ({"body": mark} if mark else {})
    trace_id = read_trace_id(headers.get(HEADER))
    if trace_id:
        kept[HEADER] = traceparent_of(trace_id)
    task_id, attempt, stage = None, None, queue_stage
    origin: Mapping[str, Any] = deaths[0] if deaths else headers
    if deaths:
        kept["x-death"] = deaths
        reason, detail = Reason.DELIVERY_LIMIT, _sentence(deaths[0])
    else:
        found = _member(Reason, headers.get("reason"))
        stage = _member(Stage, headers.get("stage")) or queue_stage
        detail = storable(_plain(headers.get("detail")), MAX_DETAIL_CHARS)
        if found is None:
            given = _plain(headers.get("reason"))
            detail = f"published straight into {delivery.queue} without a known reason: {given!r:.100} {detail}".strip()
        reason = found or Reason.INVALID_MESSAGE
        if reason is not Reason.CONFLICT:  # such a letter is about an order that got no row
            task_id, attempt = _task(headers.get("task_id"), headers.get("attempt"))
    message_id = _short(delivery.message_id)
    return NewLetter(
        identity=identity_of(message_id, delivery.body),
        task_id=task_id,
        attempt=attempt,
        stage=stage,
        reason=reason,
        detail=storable(detail),
        pool=_name(read.get("pool")),
        workflow=_name(read.get("workflow")),
        exchange=_short(origin.get("exchange")),
        routing_key=_short(origin.get("routing_key")),
        queue=_short(origin.get("queue")),
        deliveries=_count(origin.get("deliveries")),
        broker_reason=deaths[0]["reason"] if deaths else None,
        trace_id=trace_id,
        version=None if deaths else _short(version_in(delivery.app_id)),
        message_id=message_id,
        message_type=_short(delivery.type),
        body=body,
        headers=kept,
    )


def _member(kind: type[E], value: object) -> E | None:
    return kind(value) if isinstance(value, str) and value in kind.__members__.values() else None


def _plain(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def _short(text: object) -> str | None:
    """What still is a short string of AMQP once it can be stored: a replay sends the type again."""
    return storable(text).encode()[:_MAX_SHORT_BYTES].decode(errors="ignore") if isinstance(text, str) else None


def _task(task_id: object, attempt: object) -> tuple[uuid.UUID | None, int | None]:
    """Both or neither: a letter that names no attempt is about no row."""
    if not isinstance(task_id, str) or not isinstance(attempt, int) or not 0 <= attempt < 2**31:
        return None, None
    try:
        return uuid.UUID(task_id), int(attempt)
    except ValueError:
        return None, None


def _text(body: bytes) -> tuple[str, str | None]:
    """The body as text of at most 64 KiB, and what had to be done to it."""
    try:
        text, mark = body[:MAX_BODY_BYTES].decode(), None
    except UnicodeDecodeError as error:
        is_last_sign = len(body) > MAX_BODY_BYTES and error.start > MAX_BODY_BYTES - 4
        end = error.start if is_last_sign else MAX_BODY_BYTES // 4  # an escaped byte takes four
        text, mark = body[:end].decode("utf-8", "backslashreplace"), None if is_last_sign else ALTERED
    if "\x00" in text:
        text, mark = text.replace("\x00", "�"), ALTERED
    if len(body) > MAX_BODY_BYTES:
        mark = CUT
    return text.encode()[:MAX_BODY_BYTES].decode(errors="ignore"), mark


def identity_of(message_id: str | None, body: bytes) -> str:
    """What names a letter that is about no row. Pure."""
    return hashlib.sha256((message_id or "").encode() + b"\x00" + body).hexdigest()


def read_body(body: bytes) -> Mapping[str, Any]:
    """An order, permit or check, when the body can be read at all."""
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _name(value: object) -> str | None:
    return value if isinstance(value, str) and _NAME.fullmatch(value) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 2**31 else None


def _deaths(x_death: object) -> list[dict[str, Any]]:
    """The broker's own account, newest first: where it was, by what way it had come there, why it was buried."""
    if not isinstance(x_death, list):
        return []
    return [
        {
            "queue": storable(_plain(death.get("queue")), _MAX_HEADER_CHARS),
            "reason": storable(_plain(death.get("reason")), _MAX_HEADER_CHARS),
            "count": death["count"] if isinstance(death.get("count"), int) else None,
            "exchange": storable(_plain(death.get("exchange")), _MAX_HEADER_CHARS),
            "routing_key": storable(_plain(_first(death.get("routing-keys"))), _MAX_HEADER_CHARS),
        }
        for death in x_death[:_KEPT_DEATHS]
        if isinstance(death, Mapping)
    ]


def _first(value: object) -> object:
    return value[0] if isinstance(value, list) and value else None


def _sentence(death: Mapping[str, Any]) -> str:
    if death["reason"] == "delivery_limit":
        return f"handed out of {death['queue']} too often without an answer: its workers died or lost their connection"
    return f"the broker moved it out of {death['queue']}: {death['reason']}"
