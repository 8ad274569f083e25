"""Messages nobody should send, in every queue of a running system: none stops a consumer, and none vanishes."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pika
import pytest

from shared.domain.messages import DEAD_LETTER, ORDER_PLACED, TASK_CHECK, TASK_SUBMIT
from tests import hostile
from tests.e2e.conftest import Build
from tests.e2e.system import System, some_orders
from tests.waiting import eventually

TYPES: Final = {
    "orders": ORDER_PLACED,
    "submit.comfyui": TASK_SUBMIT,
    "check.comfyui": TASK_CHECK,
    "orders.dead": DEAD_LETTER,
    "submit.dead": DEAD_LETTER,
    "check.dead": DEAD_LETTER,
}
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Sent:
    """key -- in its body or as its id. leaves -- whether a row or a letter must tell of it"""

    name: str
    key: str
    body: bytes
    properties: pika.BasicProperties
    leaves: bool = True


def sent(name: str, body: bytes, leaves: bool = True, **properties: Any) -> Sent:
    key = f"hostile-{next(_numbers):04}"
    given = {"message_id": key, "delivery_mode": 2, **properties}
    return Sent(name, key, body.replace(hostile.KEY, key.encode()), pika.BasicProperties(**given), leaves)


def table(bodies: Mapping[str, bytes], leaves: bool = True, **properties: Any) -> list[Sent]:
    return [sent(name, body, leaves, **properties) for name, body in bodies.items()]


def corpus(queue: str) -> Iterator[Sent]:
    type_ = TYPES[queue]
    # A permit is one whatever its body says: it starts a row, or finds none.
    yield from table(hostile.BODIES, leaves=type_ != TASK_SUBMIT, type=type_)
    if queue == "orders":
        yield from table(hostile.ORDERS, type=type_)
        yield from table({"a type nobody knows": hostile.ORDERS["an unknown field"]}, type="no.such.v9")
    if type_ == TASK_CHECK:
        yield from table(hostile.CHECKS, type=type_)
        yield from table(hostile.IDLE_CHECKS, leaves=False, type=type_)
    for name, properties in hostile.PROPERTIES.items():
        yield sent(name, b"[7] " + hostile.KEY, **{"type": "no.such.v9", **properties})
    for name, value in hostile.UNREADABLE.items():
        key = f"hostile-{next(_numbers):04}"
        yield Sent(name, key, key.encode(), hostile.Unreadable(value, ("c", key, "no.such.v9")))


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    system = build()
    system.expected_exceptions = {"headers of a message cannot be decoded and are left out"}
    system.start()
    return system


def untold(system: System, messages: list[Sent]) -> list[str]:
    """Which of them neither a row nor a letter tells of."""
    letters = system.sql("select message_id, body from dead_letters")
    keys = {row.idempotency_key for row in system.sql("select idempotency_key from tasks")}
    ids = {letter.message_id for letter in letters}
    text = "\n".join(letter.body or "" for letter in letters)
    rest = [m for m in messages if m.leaves and m.key not in keys and m.key not in ids]
    return [m.name for m in rest if m.key not in text]


@pytest.mark.parametrize("queue", TYPES)
def test_whatever_lies_in_a_queue_is_told_of_and_good_orders_beside_it_are_made(system: System, queue: str) -> None:
    messages = list(corpus(queue))
    good = some_orders(6)
    workers = [worker.process.pid for worker in system.living("")]

    system.place(*good[:3])
    with system.mail.channel() as channel:
        for message in messages:
            channel.basic_publish("", queue, message.body, message.properties, mandatory=True)
    system.place(*good[3:])

    system.await_status("completed", *good)
    try:
        eventually(lambda: not untold(system, messages), within=60)
    except AssertionError:
        raise AssertionError(f"nobody tells of {untold(system, messages)}") from None
    eventually(lambda: not any(system.mail.depths().values()), within=30, what="the queues are empty")
    system.wait_ready(system.living(""))
    assert [worker.process.pid for worker in system.living("")] == workers
