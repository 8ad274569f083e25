"""Dead letters sent round again by people, after a look ahead; the same for CLI and console."""

import logging
import uuid
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shared.database.letters import StoredLetter
from shared.database.replays import EventOwed, Prediction, Replay, Replays, Way
from shared.database.tasks import Counter
from shared.domain.errors import BrokerAway
from shared.domain.messages import DEAD_LETTER, ORDER_PLACED, Message, event, permit
from shared.domain.task import Status
from shared.observe.trace import HEADER, read_trace_id, traceparent_of

log = logging.getLogger(__name__)

#: Letters after which the permits of the rows so far leave, so a long replay starts to work at once.
_CHUNK: Final = 100
#: A replay without a row whose message is still not out after so long is published by whoever notices.
_ABANDONED_AFTER_SECONDS: Final = 30.0
_NAMESPACE: Final = uuid.UUID("b6a2b1a4-51f5-5d8e-8f0a-3a1c7d0e5a52")

Publish = Callable[[Sequence[Message]], None]


def confirmed(publish: "Callable[[Sequence[Message]], Future[None]]", within_seconds: float) -> Publish:
    """`publish` of a Broker, made to wait for its confirms."""

    def publish_and_wait(messages: Sequence[Message]) -> None:
        sent = publish(messages)
        try:
            sent.result(within_seconds)
        except FutureTimeoutError:
            sent.cancel()
            raise BrokerAway(f"{len(messages)} messages not confirmed in {within_seconds:g} s") from None

    return publish_and_wait


class Result(StrEnum):
    REPLAYED = "replayed"
    PUBLISHED = "published"
    ACCEPTED = "accepted"  # noted, but the broker has not confirmed: the ops process publishes it
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What became of one letter."""

    letter_id: int
    result: Result
    why: str
    task_id: uuid.UUID | None = None


class Replayer:
    """Safe to call from several places at once: each letter goes round once.

    publish -- returns when all messages are confirmed; raises BrokerAway
    pools   -- pools whose submit queues exist; rows of others wait for the scheduler
    """

    def __init__(self, replays: Replays, *, publish: Publish, pools: Collection[str], metrics: Counter) -> None:
        self._replays = replays
        self._publish = publish
        self._pools = frozenset(pools)
        self._metrics = metrics

    def plan(self, ids: Sequence[int]) -> list[Prediction]:
        """What `replay` would do with each letter now. Changes nothing, publishes nothing."""
        return self._replays.preview(ids)

    def replay(self, ids: Sequence[int], by_whom: str, why: str | None = None) -> list[Item]:
        """Each letter in a transaction of its own; the answer says what became of each, in the order of `ids`.

        Killed anywhere: what was committed goes on by itself, the rest is still open. Raises DatabaseAway.
        """
        items: list[Item] = []
        for start in range(0, len(ids), _CHUNK):
            part = ids[start : start + _CHUNK]
            done = [(letter_id, self._replay(letter_id, by_whom, why)) for letter_id in part]
            self._make_permits([replay for _, replay in done if isinstance(replay, Replay)])
            items += [self._item(letter_id, replay) for letter_id, replay in done]
        return items

    def finish(self) -> int:
        """Publish what replayers that died, or had no broker, left behind; how many. Raises Outage.

        Published twice is harmless: the message keeps its id, and the order its key.
        """
        left = self._replays.unpublished(_ABANDONED_AFTER_SECONDS)
        if left:
            self._publish([_message(replay_id, letter) for replay_id, letter in left])
            self._replays.published([replay_id for replay_id, _ in left])
            log.info("replays finished", extra={"count": len(left)})
        return len(left)

    def _replay(self, letter_id: int, by_whom: str, why: str | None) -> Replay | BrokerAway | None:
        answer = self._replays.replay(letter_id, by_whom, why=why)
        if isinstance(answer, EventOwed):
            # Its upstream system hears of every failure, also of one that is being repaired. Twice does no harm.
            try:
                self._publish([event(answer.task, "failed")])
            except BrokerAway as error:
                return error
            answer = self._replays.replay(letter_id, by_whom, paid=answer.task.version, why=why)
        if isinstance(answer, EventOwed):
            return BrokerAway("the task failed once more at this moment")
        if answer is not None and answer.id is not None and answer.prediction.way is Way.ROW:
            self._metrics.count(
                "transitions_total", from_status=Status.FAILED, to_status=Status.PENDING, result="applied"
            )
        return answer

    def _make_permits(self, replays: Sequence[Replay]) -> None:
        """Only to be quick: the scheduler makes missing permits within seconds."""
        tasks = [r.prediction.task for r in replays if r.id is not None and r.prediction.way is Way.ROW]
        permits = [permit(task.pool) for task in tasks if task is not None and task.pool in self._pools]
        if permits:
            try:
                self._publish(permits)
            except BrokerAway as error:
                log.warning("permits left to the scheduler", extra={"why": str(error)})

    def _item(self, letter_id: int, replay: Replay | BrokerAway | None) -> Item:
        if replay is None:
            return Item(letter_id=letter_id, result=Result.REFUSED, why="no such letter")
        if isinstance(replay, BrokerAway):
            return Item(letter_id=letter_id, result=Result.REFUSED, why=f"the broker is away: {replay}")
        prediction = replay.prediction
        task_id = prediction.letter.task_id
        if replay.id is None:
            return Item(letter_id=letter_id, result=Result.REFUSED, why=prediction.why, task_id=task_id)
        if prediction.way is Way.ROW:
            return Item(letter_id=letter_id, result=Result.REPLAYED, why=prediction.why, task_id=task_id)
        try:
            self._publish([_message(replay.id, prediction.letter)])
        except BrokerAway:
            why = "noted; the broker has not confirmed, so the ops service publishes it as soon as it can"
            return Item(letter_id=letter_id, result=Result.ACCEPTED, why=why)
        self._replays.published([replay.id])
        return Item(letter_id=letter_id, result=Result.PUBLISHED, why=prediction.why)


def _message(replay_id: int, letter: StoredLetter) -> Message:
    """The letter's body on its way to `orders`. A replay that is repeated repeats the same message."""
    has_type = letter.message_type not in (None, DEAD_LETTER)
    trace_id = read_trace_id(letter.headers.get(HEADER))
    return Message(
        exchange="orders",
        routing_key="order.placed",
        type=str(letter.message_type) if has_type else ORDER_PLACED,
        body=(letter.body or "").encode(),
        message_id=str(uuid.uuid5(_NAMESPACE, str(replay_id))),
        headers={HEADER: traceparent_of(trace_id)} if trace_id else {},
    )
