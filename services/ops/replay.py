"""Dead letters sent round again by people, after a look ahead; the same for CLI and console."""

import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from services.ops.collector import identity_of, read_body
from shared.database.letters import StoredLetter
from shared.database.replays import EventOwed, Outcome, Prediction, Published, Replay, Replays, Way
from shared.database.tasks import Counter
from shared.domain.errors import BrokerAway
from shared.domain.messages import DEAD_LETTER, ORDER_PLACED, Message, event, permit
from shared.domain.task import Status, Task, task_id_for
from shared.observe.trace import HEADER, read_trace_id, traceparent_of

log = logging.getLogger(__name__)

#: Letters in one transaction, after which the permits of their rows leave, so a long replay starts to work at once.
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

    def preview(self, ids: Sequence[int]) -> list[Prediction]:
        """What `replay` would do with each letter now. Changes nothing, publishes nothing."""
        return self._replays.preview(ids)

    def replay(
        self, ids: Sequence[int], by_whom: str, why: str | None = None, despite: Collection[Outcome] = ()
    ) -> list[Item]:
        """A hundred letters in a transaction; the answer says what became of each, in the order of `ids`.

        despite -- outcomes that are not to be refused, because the person knows of them

        Killed anywhere: what was committed goes on by itself, the rest is still open. Raises DatabaseAway.
        """
        items: dict[int, Item] = {}
        for start in range(0, len(ids), _CHUNK):
            part = ids[start : start + _CHUNK]
            found, owed = self._send(part, by_whom, why, despite)
            published = self.carry_out(found.values())
            items |= {letter_id: _item(letter_id, found.get(letter_id), owed, published) for letter_id in part}
        return [items[letter_id] for letter_id in ids]

    def carry_out(self, replays: Iterable[Replay]) -> bool:
        """Everything that leaves for the broker after replays were committed; False: some of it has not left yet.

        What is left behind is not lost: the scheduler makes permits within seconds, and `finish` publishes letters.
        """
        done = [replay for replay in replays if replay.id is not None]
        for _ in (replay for replay in done if replay.task is not None):
            self._metrics.count(
                "transitions_total", from_status=Status.FAILED, to_status=Status.PENDING, result="applied"
            )
        self._make_permits([replay.task for replay in done if replay.task is not None])
        return self._publish_letters([replay.id for replay in done if replay.id and replay.task is None])

    def pay(self, owed: Iterable[Task]) -> dict[uuid.UUID, int]:
        """Publish the `failed` event of rows that are about to forget it; which versions of them are told then.

        Its upstream system hears of every failure, also of one that is being repaired. Twice does no harm. Raises
        BrokerAway.
        """
        rows = list(owed)
        self._publish([event(task, "failed") for task in rows])
        return {task.id: task.version for task in rows}

    def finish(self) -> int:
        """Publish what replayers that died, or had no broker, left behind; how many. Raises Outage.

        Published twice is harmless: the message keeps its id, and the order its key.
        """
        left = self._replays.unpublished(_ABANDONED_AFTER_SECONDS)
        if left:
            self._publish_noted(left)
            log.info("replays finished", extra={"count": len(left)})
        return len(left)

    def _send(
        self, ids: Sequence[int], by_whom: str, why: str | None, despite: Collection[Outcome]
    ) -> tuple[dict[int, Replay], dict[int, str]]:
        """What was done with each letter, and why nothing could be done with those whose event is owed."""
        answers = self._replays.replay(ids, by_whom, why=why, despite=despite)
        owed = {letter_id: answer.task for letter_id, answer in answers.items() if isinstance(answer, EventOwed)}
        said: dict[int, str] = {}
        if owed:
            try:
                paid = self.pay(owed.values())
                answers |= self._replays.replay(list(owed), by_whom, paid, why=why, despite=despite)
                said = dict.fromkeys(owed, "the task failed once more at this moment")
            except BrokerAway as error:
                said = dict.fromkeys(owed, f"the broker is away: {error}")
        return {letter_id: answer for letter_id, answer in answers.items() if isinstance(answer, Replay)}, said

    def _make_permits(self, tasks: Sequence[Task]) -> None:
        """Only to be quick: the scheduler makes missing permits within seconds."""
        permits = [permit(task.pool) for task in tasks if task.pool in self._pools]
        if permits:
            try:
                self._publish(permits)
            except BrokerAway as error:
                log.warning("permits left to the scheduler", extra={"why": str(error)})

    def _publish_letters(self, replay_ids: Sequence[int]) -> bool:
        if not replay_ids:
            return True
        try:
            self._publish_noted(self._replays.messages(replay_ids))
        except BrokerAway as error:
            log.warning("letters left to be published", extra={"why": str(error)})
            return False
        return True

    def _publish_noted(self, letters: Sequence[tuple[int, StoredLetter]]) -> None:
        messages = [(replay_id, _message(replay_id, letter)) for replay_id, letter in letters]
        self._publish([message for _, message in messages])
        self._replays.published(
            [
                Published(
                    replay_id=replay_id,
                    dies_as=identity_of(message.message_id, message.body),
                    becomes=_task_of(message.body),
                )
                for replay_id, message in messages
            ]
        )


def _item(letter_id: int, replay: Replay | None, owed: Mapping[int, str], published: bool) -> Item:
    if replay is None:
        return Item(letter_id=letter_id, result=Result.REFUSED, why=owed.get(letter_id, "no such letter"))
    prediction = replay.prediction
    if replay.id is None:
        result = Result.REFUSED
    elif prediction.way is Way.ROW:
        result = Result.REPLAYED
    elif published:
        result = Result.PUBLISHED
    else:
        why = "noted; the broker has not confirmed, so the ops service publishes it as soon as it can"
        return Item(letter_id=letter_id, result=Result.ACCEPTED, why=why)
    return Item(letter_id=letter_id, result=result, why=prediction.why, task_id=prediction.task_id)


def _task_of(body: bytes) -> uuid.UUID | None:
    """The task that an order becomes; None: its key cannot be read, so it becomes none."""
    key = read_body(body).get("idempotency_key")
    try:
        return task_id_for(key) if isinstance(key, str) else None
    except UnicodeEncodeError:
        return None


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
