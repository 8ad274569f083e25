"""A broker for a command that may have something to publish."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from services.ops.replay import Publish, confirmed
from shared.broker.broker import Broker
from shared.broker.topology import topology
from shared.config import Settings
from shared.domain.messages import Message
from shared.terminal import Quiet


@contextmanager
def publishing(chosen: Settings, pools: Sequence[str]) -> Iterator[Publish]:
    """Connects when something is to be published; each call gives up after `confirm_timeout_seconds`."""
    brokers: list[Broker] = []

    def publish(messages: Sequence[Message]) -> None:
        if not brokers:
            brokers.append(Broker(chosen.amqp_urls, topology(pools), name="darkroom dead", metrics=Quiet()))
            brokers[0].start()
        confirmed(brokers[0].publish, chosen.confirm_timeout_seconds)(messages)

    try:
        yield publish
    finally:
        for broker in brokers:
            broker.stop()
