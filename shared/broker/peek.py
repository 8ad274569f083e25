"""Looks at the messages that wait in a queue, and leaves them there."""

from collections.abc import Iterable, Sequence
from typing import Final

from pika.adapters.blocking_connection import BlockingConnection
from pika.exceptions import AMQPError, ChannelClosedByBroker

from shared.broker.connection import parameters_of
from shared.broker.topology import DEAD_DELIVERY_LIMIT, DELIVERY_LIMIT, buries_to
from shared.domain.errors import BrokerAway, DarkroomError

_MOST: Final = 10_000


class NotLookedAt(DarkroomError):
    """The messages of a queue are too many to be told, or were handed out so often that a look may bury them."""


def waiting(urls: Sequence[str], queues: Iterable[str]) -> dict[str, list[bytes]]:
    """The bodies of the messages that are ready in each queue.

    What a consumer holds is not among them. To be looked at counts as one delivery towards the delivery limit, since
    the broker knows no other way; ask only when the answer is needed. Half of the limit may be used up by looks.

    Raises BrokerAway, NotLookedAt.
    """
    try:
        connection = BlockingConnection(parameters_of(urls))
        try:
            return {queue: _bodies(connection, queue) for queue in queues}
        finally:
            connection.close()  # gives back what was looked at
    except (AMQPError, OSError) as error:
        raise BrokerAway(f"the queues could not be looked at: {error!r:.200}") from error


def _bodies(connection: BlockingConnection, queue: str) -> list[bytes]:
    limit = DEAD_DELIVERY_LIMIT if buries_to(queue) is None else DELIVERY_LIMIT
    found: list[bytes] = []
    channel = connection.channel()
    try:
        if channel.queue_declare(queue, passive=True).method.message_count > _MOST:
            raise NotLookedAt(f"more than {_MOST} messages wait in {queue}: ask again when some of them were taken")
        while True:
            method, properties, body = channel.basic_get(queue)
            if method is None:
                return found
            times = ((properties and properties.headers) or {}).get("x-delivery-count", 0)
            if times >= limit // 2:
                why = f"a message in {queue} was handed out {times} times, looks included, and is buried after {limit}"
                raise NotLookedAt(f"{why}: ask again when it was taken")
            found.append(body or b"")
    except ChannelClosedByBroker as error:
        if error.reply_code != 404:
            raise
    return found
