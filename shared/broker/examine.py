"""Looks at the broker as a newcomer would: is it there, are the queues as we mean them, do dead letters arrive."""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pika
from pika.adapters.blocking_connection import BlockingConnection
from pika.exceptions import AMQPError, ChannelClosedByBroker

from shared.broker.connection import parameters_of
from shared.broker.topology import Topology
from shared.domain.finding import Finding, Verdict

#: Quorum queues with at-least-once dead-lettering.
_MIN_VERSION: Final = (3, 10)
#: What RabbitMQ waits for an ack unless it is told otherwise.
_ACK_TIMEOUT_SECONDS: Final = 1800.0
_ARRIVES_WITHIN_SECONDS: Final = 5.0


def examine_broker(urls: Sequence[str], topology: Topology, *, hold_seconds: float) -> Iterator[Finding]:
    """Everything there is to say; nothing of it stays behind. Takes some seconds per address that does not answer."""
    connection = None
    for number, parameters in enumerate(parameters_of(urls), start=1):
        parameters.blocked_connection_timeout = _ARRIVES_WITHIN_SECONDS
        address = f"{parameters.host}:{parameters.port}"
        try:
            opened = BlockingConnection(parameters)
        except (AMQPError, OSError) as error:
            yield Finding(
                "broker",
                Verdict.FAIL if number == len(urls) and connection is None else Verdict.WARN,
                f"RabbitMQ does not answer at {address}: {_text(error)}",
                "start it, or correct DARKROOM_AMQP_URL",
            )
            continue
        if connection is not None:
            opened.close()
            yield Finding("broker", Verdict.OK, f"RabbitMQ answers at {address} too")
            continue
        connection = opened
        yield _version(connection, address)
    if connection is not None:
        try:
            yield from _queues(connection, topology)
            yield _canary(connection)
        except (AMQPError, OSError) as error:
            yield Finding("broker", Verdict.FAIL, f"the connection broke meanwhile: {_text(error)}", "look at its log")
        finally:
            if connection.is_open:
                connection.close()
    yield _ack_timeout(hold_seconds)


def _version(connection: BlockingConnection, address: str) -> Finding:
    properties: dict[str, Any] = connection._impl.server_properties or {}
    version = str(properties.get("version", "?"))
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if parts < _MIN_VERSION:
        return Finding("broker", Verdict.FAIL, f"RabbitMQ {version} at {address} is too old", "3.10 or newer is needed")
    return Finding("broker", Verdict.OK, f"RabbitMQ {version} at {address}")


def _queues(connection: BlockingConnection, topology: Topology) -> Iterator[Finding]:
    absent = []
    for queue in topology.queues:
        try:
            with connection.channel() as channel:
                channel.queue_declare(queue.name, passive=True)
        except ChannelClosedByBroker as error:
            if error.reply_code != 404:
                raise
            absent.append(queue.name)
            continue
        try:
            with connection.channel() as channel:
                channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
        except ChannelClosedByBroker as error:
            yield Finding(
                f"queue {queue.name}",
                Verdict.FAIL,
                f"it was declared otherwise: {error.reply_text}",
                "take the services down, empty and delete it; the next start declares it",
            )
        else:
            yield Finding(f"queue {queue.name}", Verdict.OK, "its arguments are ours")
    if absent:
        found = f"not there yet: {', '.join(absent)}"
        yield Finding("queues", Verdict.WARN, found, "any service declares them when it starts")


def _canary(connection: BlockingConnection) -> Finding:
    """A message through a queue and a dead queue of its own, made like ours: the real ones belong to real orders."""
    name = f"darkroom.doctor.{uuid.uuid4().hex}"
    dead = f"{name}.dead"
    arguments = {
        "x-queue-type": "quorum",
        "x-overflow": "reject-publish",
        "x-dead-letter-strategy": "at-least-once",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead,
    }
    properties = pika.BasicProperties(delivery_mode=2)  # type: ignore[no-untyped-call]  # pika's annotations are partial
    with connection.channel() as channel:
        channel.confirm_delivery()
        try:
            channel.queue_declare(dead, durable=True, arguments={"x-queue-type": "quorum"})
            channel.queue_declare(name, durable=True, arguments=arguments)
            channel.basic_publish("", name, b"canary", properties, mandatory=True)
            ends = time.monotonic() + _ARRIVES_WITHIN_SECONDS
            is_rejected = is_dead = False
            while not is_dead and time.monotonic() < ends:
                method, _, _ = channel.basic_get(dead if is_rejected else name)
                if method is None:
                    connection.sleep(0.05)
                elif is_rejected:
                    channel.basic_ack(method.delivery_tag)
                    is_dead = True
                else:
                    channel.basic_reject(method.delivery_tag, requeue=False)
                    is_rejected = True
        finally:
            if channel.is_open:
                channel.queue_delete(name)
                channel.queue_delete(dead)
    if is_dead:
        return Finding("dead letters", Verdict.OK, "a rejected message reached its dead queue")
    return Finding(
        "dead letters",
        Verdict.FAIL,
        f"a rejected message did not reach its dead queue within {_ARRIVES_WITHIN_SECONDS:.0f} s",
        "is a disk or memory alarm on? look at the broker's log",
    )


def _ack_timeout(hold_seconds: float) -> Finding:
    if hold_seconds >= _ACK_TIMEOUT_SECONDS:
        return Finding(
            "ack timeout",
            Verdict.FAIL,
            f"a permit is held for up to {hold_seconds:.0f} s, longer than RabbitMQ's {_ACK_TIMEOUT_SECONDS:.0f} s",
            "lower DARKROOM_HOLD_SECONDS",
        )
    return Finding(
        "ack timeout",
        Verdict.SKIPPED,
        f"no client can read it; a permit is held for up to {hold_seconds:.0f} s",
        f"consumer_timeout in rabbitmq.conf must be well above that; unset it is {_ACK_TIMEOUT_SECONDS:.0f} s",
    )


def _text(error: BaseException) -> str:
    cause = error.args[0] if error.args else None
    exception = getattr(cause, "exception", None) or error
    return str(exception) or type(exception).__name__
