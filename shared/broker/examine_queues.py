"""Looks at the queues: which are there, who takes from them, and in what each differs from the topology."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pika.adapters.blocking_connection import BlockingConnection
from pika.exceptions import ChannelClosedByBroker

from shared.broker.topology import Queue, Topology
from shared.domain.finding import Finding, Verdict

_NOT_FOUND: Final = 404
_DIFFERS: Final = 406
#: RabbitMQ names one difference per refusal: "inequivalent arg 'x-delivery-limit' for queue 'orders' in vhost '/':
#: received the value '20' of type 'signedint' but current is the value '3' of type 'signedint'", or "... is none".
_DIFFERENCE: Final = re.compile(
    r"inequivalent arg '(?P<name>[^']+)' for queue .*?: received (?P<ours>.+?) but current is (?P<theirs>.+)", re.DOTALL
)
_VALUE: Final = re.compile(r"(?:the value )?'(?P<text>[^']*)'(?: of type '(?P<type>[^']+)')?")


def count_consumers(connection: BlockingConnection, topology: Topology) -> dict[str, int]:
    """How many take from each queue of the topology that is there."""
    found = {}
    for queue in topology.queues:
        try:
            with connection.channel() as channel:
                found[queue.name] = channel.queue_declare(queue.name, passive=True).method.consumer_count
        except ChannelClosedByBroker as error:
            if error.reply_code != _NOT_FOUND:
                raise
    return found


def examine_arguments(
    connection: BlockingConnection, topology: Topology, *, there: Mapping[str, int]
) -> Iterator[Finding]:
    """Which queues are missing, and each difference of those that are `there`."""
    for queue in topology.queues:
        if queue.name not in there:
            continue
        differences = list(_differences(connection, queue))
        if differences:
            found = f"it was declared otherwise: {'; '.join(differences)}"
            advice = "no service works with it: stop them, empty and delete it, and the next start declares it"
            yield Finding(f"queue {queue.name}", Verdict.FAIL, found, advice)
        else:
            yield Finding(f"queue {queue.name}", Verdict.OK, "its arguments are ours")
    absent = [queue.name for queue in topology.queues if queue.name not in there]
    if absent:
        found = f"not there yet: {', '.join(absent)}"
        yield Finding("queues", Verdict.WARN, found, "any service declares them when it starts")
    left = [name for name, consumers in there.items() if not consumers and not name.endswith(".dead")]
    if left:
        advice = "start submitter and poller; of a pool whose servers are all down or paused, permits are left alone"
        yield Finding("workers", Verdict.WARN, f"nobody takes from {', '.join(left)}", advice)


def _differences(connection: BlockingConnection, queue: Queue) -> Iterator[str]:
    """Declare it as it is meant, and as long as the broker names a difference, with that one as it is.

    The first declaration that the broker agrees to changes nothing, as the queue is there.
    """
    arguments: dict[str, Any] = dict(queue.arguments)
    named: set[str] = set()
    while True:
        try:
            with connection.channel() as channel:
                channel.queue_declare(queue.name, passive=True)
                channel.queue_declare(queue.name, durable=True, arguments=arguments)
        except ChannelClosedByBroker as error:
            if error.reply_code == _NOT_FOUND:  # deleted just now
                return
            if error.reply_code != _DIFFERS:
                raise
            difference = _DIFFERENCE.search(error.reply_text)
            if difference is None or difference["name"] in named:
                yield error.reply_text
                return
            name = difference["name"]
            named.add(name)
            yield f"{name} is {_shown(difference['theirs'])}, not {_shown(difference['ours'])}"
            if not name.startswith("x-"):  # durable, auto_delete: the refusal does not say more
                return
            _adopt(arguments, name, difference["theirs"])
        else:
            return


def _shown(value: str) -> str:
    read = _VALUE.match(value)
    return read["text"] if read else "none"


def _adopt(arguments: dict[str, Any], name: str, theirs: str) -> None:
    read = _VALUE.match(theirs)
    if read is None:
        arguments.pop(name, None)
    else:
        text = read["text"]
        arguments[name] = int(text) if text.lstrip("-").isdecimal() else {"true": True, "false": False}.get(text, text)
