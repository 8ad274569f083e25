"""Looks at the messages that wait in a queue, and leaves them there."""

from collections.abc import Iterable, Sequence
from typing import Final

from pika.adapters.blocking_connection import BlockingConnection
from pika.exceptions import AMQPError, ChannelClosedByBroker

from shared.broker.connection import parameters_of
from shared.domain.errors import BrokerAway

_MOST: Final = 10_000


def waiting(urls: Sequence[str], queues: Iterable[str]) -> dict[str, list[bytes]]:
    """The bodies of the messages that are ready in each queue, at most 10,000 of each.

    What a consumer holds is not among them. To be looked at counts as one delivery towards the delivery limit, since
    the broker knows no other way; ask only when the answer is needed.

    Raises BrokerAway.
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
    found: list[bytes] = []
    channel = connection.channel()
    try:
        while len(found) < _MOST:
            method, _, body = channel.basic_get(queue)
            if method is None:
                break
            found.append(body or b"")
    except ChannelClosedByBroker as error:
        if error.reply_code != 404:
            raise
    return found
