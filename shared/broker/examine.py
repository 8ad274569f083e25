"""Looks at the broker as a newcomer would: is it there, new enough and not in need, are the queues as we mean them."""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pika
from pika.adapters.blocking_connection import BlockingConnection
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError, ConnectionBlockedTimeout

from shared.broker.connection import parameters_of
from shared.broker.examine_dead_letters import examine_dead_letters
from shared.broker.examine_queues import count_consumers, examine_arguments
from shared.broker.topology import Topology
from shared.domain.canary import OWN_QUEUES
from shared.domain.finding import Finding, Verdict

#: Quorum queues with at-least-once dead-lettering.
_MIN_VERSION: Final = (3, 10)
#: For the way to one address, greeting included.
_CONNECT_SECONDS: Final = 3.0
_ANSWERS_WITHIN_SECONDS: Final = 3.0
#: A broker in need reads nothing more from who has published: such a connection cannot even say goodbye.
_BLOCKED_SECONDS: Final = 1.0

#: A greeting that takes too long is no AMQPError to pika.
_LOST: Final = (AMQPError, AMQPConnectorException, OSError)

_RELIEF: Final = {
    "memory": "give it more memory, or raise vm_memory_high_watermark; full queues need workers",
    "disk": "free disk space there, or lower disk_free_limit",
}


class BrokerLook:
    """One look; it makes nothing that outlives it. Takes three seconds per address that does not answer.

    before_start -- what new workers relieve or mend is a warning then: a broker in need, a collector that hangs
    consumers    -- how many take from each queue, by name; filled while `findings` runs, empty if nobody can say
    answered     -- whether the broker was reached and stayed until the end of `findings`
    """

    def __init__(self, urls: Sequence[str], topology: Topology, *, before_start: bool = False) -> None:
        self._urls = urls
        self._topology = topology
        self._mended_by_workers = Verdict.WARN if before_start else Verdict.FAIL
        self.consumers: dict[str, int] = {}
        self.answered = False

    def findings(self) -> Iterator[Finding]:
        """Everything there is to say."""
        reached, away = self._addresses()
        for parameters, error in away:
            yield Finding(
                "broker",
                Verdict.WARN if reached else Verdict.FAIL,
                f"no connection to RabbitMQ at {_address(parameters)}: {_text(error)}",
                "start it, or correct DARKROOM_AMQP_URL",
            )
        for parameters, version in reached:
            yield _version_finding(version, _address(parameters))
        if reached:
            first = reached[0][0]
            try:
                yield from self._look_into(first)
                self.answered = True
            except _LOST as error:
                found = f"the connection to {_address(first)} broke meanwhile: {_text(error)}"
                yield Finding("broker", Verdict.FAIL, found, "look at the broker's log")

    def _addresses(self) -> tuple[list[tuple[pika.URLParameters, str]], list[tuple[pika.URLParameters, Exception]]]:
        """Those that answer, with their versions, and those that do not, with what went wrong."""
        reached: list[tuple[pika.URLParameters, str]] = []
        away: list[tuple[pika.URLParameters, Exception]] = []
        for parameters in parameters_of(self._urls):
            parameters.socket_timeout = parameters.stack_timeout = _CONNECT_SECONDS
            parameters.blocked_connection_timeout = _BLOCKED_SECONDS
            try:
                with BlockingConnection(parameters) as connection:
                    reached.append((parameters, _version_of(connection)))
            except _LOST as error:
                away.append((parameters, error))
        return reached, away

    def _look_into(self, parameters: pika.URLParameters) -> Iterator[Finding]:
        with BlockingConnection(parameters) as connection:
            self.consumers |= count_consumers(connection, self._topology)
            yield from examine_arguments(connection, self._topology, there=self.consumers)
        need = _need(parameters)
        if need is not None:
            advice = "; ".join(text for word, text in _RELIEF.items() if word in need) or "look at the broker's log"
            yield Finding("broker", self._mended_by_workers, f"it takes no messages: {need}", advice)
            return  # what is published now stays behind until the alarm is over
        with BlockingConnection(parameters) as connection:
            yield from examine_dead_letters(connection, self._topology, silent_collector=self._mended_by_workers)


def _version_of(connection: BlockingConnection) -> str:
    properties: dict[str, Any] = connection._impl.server_properties or {}
    return str(properties.get("version", "?"))


def _version_finding(version: str, address: str) -> Finding:
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if parts < _MIN_VERSION:
        return Finding("broker", Verdict.FAIL, f"RabbitMQ {version} at {address} is too old", "3.10 or newer is needed")
    return Finding("broker", Verdict.OK, f"RabbitMQ {version} at {address}")


def _need(parameters: pika.URLParameters) -> str | None:
    """Why the broker takes no messages, in its own words; None when it does.

    It says so to who publishes and to nobody else. A message without a queue comes straight back and leaves nothing;
    the second one only does so where the first did not stop the broker from reading.
    """
    reasons: list[str] = []
    came_back: list[bytes] = []
    connection = BlockingConnection(parameters)
    connection.add_on_connection_blocked_callback(lambda _, blocked: reasons.append(_reason(blocked)))
    channel = connection.channel()
    channel.add_on_return_callback(lambda *returned: came_back.append(returned[-1]))
    try:
        for number in (1, 2):
            channel.basic_publish("", f"{OWN_QUEUES}{uuid.uuid4().hex}", b"?", mandatory=True)
            ends = time.monotonic() + _ANSWERS_WITHIN_SECONDS
            while not reasons and len(came_back) < number:
                if time.monotonic() > ends:
                    raise TimeoutError(f"a message without a queue did not come back in {_ANSWERS_WITHIN_SECONDS:g} s")
                connection.process_data_events(time_limit=0.1)
        while reasons:  # until pika gives the connection up
            connection.process_data_events(time_limit=0.1)
    except ConnectionBlockedTimeout:
        return reasons[0]
    connection.close()
    return None


def _reason(blocked: Any) -> str:
    reason = blocked.method.reason
    return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)


def _address(parameters: pika.URLParameters) -> str:
    return f"{parameters.host}:{parameters.port}"


def _text(error: BaseException) -> str:
    if isinstance(error, AMQPConnectorException):
        return f"no AMQP greeting within {_CONNECT_SECONDS:g} s"
    cause = error.args[0] if error.args else None
    exception = getattr(cause, "exception", None) or error
    return str(exception) or type(exception).__name__
