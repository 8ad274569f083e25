"""Messages that nobody should send, as a table: bodies, properties and headers that may lie in any of our queues.

KEY in a body stands for something that tells this message from all others.
"""

import gzip
import json
import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import pika

KEY: Final = b"<key>"


def _json(value: Any) -> bytes:
    return json.dumps(value).replace(json.dumps(KEY.decode()), f'"{KEY.decode()}"').encode()


def _order(**fields: Any) -> bytes:
    """An order whose key can be read, and which has something wrong with it."""
    good = {"idempotency_key": KEY.decode(), "pool": "comfyui", "workflow": "solid-invert"}
    return _json(good | fields)


#: Of no type that any of our queues holds.
BODIES: Final[Mapping[str, bytes]] = {
    "nothing": b"",
    "no JSON": b"no json " + KEY,
    "half of a JSON object": b'{"idempotency_key": "' + KEY + b'", "pool',
    "a number": b"7",
    "null": b"null",
    "a list": b'["' + KEY + b'"]',
    "a word": b'"' + KEY + b'"',
    "an empty object": b"{}",
    "NaN": b"NaN",
    "a number of ten thousand digits": b'{"pool": ' + b"9" * 10_000 + b', "k": "' + KEY + b'"}',
    "a number with a large exponent": b'{"pool": 1e999999, "k": "' + KEY + b'"}',
    "lists in lists": b"[" * 100_000,
    "objects in objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "an order within a deep list": b'{"idempotency_key": ' + b"[" * 900 + b"]" * 900 + b', "k": "' + KEY + b'"}',
    "one MiB": KEY + b"x" * 2**20,
    "one MiB in a string": b'{"k": "' + KEY + b'", "x": "' + b"y" * 2**20 + b'"}',
    "NUL bytes": KEY + b"\x00" * 100,
    "an escaped NUL": b'{"idempotency_key": "a\\u0000b", "pool": "a\\u0000b", "k": "' + KEY + b'"}',
    "half a character": b'{"idempotency_key": "\\ud800", "pool": "\\udfff", "k": "' + KEY + b'"}',
    "no UTF-8": b'{"idempotency_key": "\xff\xfe", "k": "' + KEY + b'"}',
    "UTF-16": '{"idempotency_key": 7, "pool": "é"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + b'{"k": "' + KEY + b'"}',
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) + KEY,
    "compressed": gzip.compress(b'{"pool": "comfyui"}', mtime=0),
    "terminal controls": b'{"pool": "\\u001b[2J\\u202e", "k": "' + KEY + b'\x1b[2J\r\n"}',
    "names that mean something in Python": b'{"__class__": "x", "model_config": {}, "self": 1, "k": "' + KEY + b'"}',
}

#: With a key that can be read: each gets a row, which fails and says why.
ORDERS: Final[Mapping[str, bytes]] = {
    "an unknown field": _order(colour=1),
    "a pool that is a list": _order(pool=["comfyui"]),
    "a pool nobody has": _order(pool="nobody"),
    "a workflow that is a path": _order(workflow="../../etc/passwd"),
    "inputs that are a word": _order(inputs="x"),
    "inputs in inputs": _order(inputs={"width": json.loads("[" * 100 + "]" * 100)}),
    "inputs with a NUL": _order(inputs={"a\x00": "b\x00"}),
    "inputs with half a character": _order(inputs={"a": "\ud800"}),
    "inputs that are no numbers": _order(inputs={"width": float("nan"), "height": float("inf")}),
    "a link in place of a number": _order(inputs={"width": ["3", 0]}),
    "a deadline of a hundred years": _order(deadline_seconds=3.2e9),
    "a deadline that is a word": _order(deadline_seconds="5"),
    "a priority nobody has": _order(priority="first of all"),
    "an order id with a line's end": _order(order_id="a\nb"),
    "metadata of one MiB": _order(metadata={"x": "y" * 2**20}),
    "two keys, of which the last counts": b'{"idempotency_key": "other", ' + _order(colour=1)[1:],
}

_NOBODY: Final = "00000000-0000-4000-8000-000000000000"


def _check(**fields: Any) -> bytes:
    return _json({"pool": "comfyui", "k": KEY.decode()} | fields)


#: Of the type of a check, and unreadable.
CHECKS: Final[Mapping[str, bytes]] = {
    "no pool": b'{"tasks": [], "k": "' + KEY + b'"}',
    "a task that is no id": _check(tasks=[{"task_id": "../x", "attempt": 1}]),
    "an attempt below zero": _check(tasks=[{"task_id": _NOBODY, "attempt": -1}]),
    "an attempt that is a word": _check(tasks=[{"task_id": _NOBODY, "attempt": "first"}]),
    "tasks that are an object": _check(tasks={"task_id": _NOBODY}),
    "a backend that is a number": _check(backend=7, via="push"),
    "told by nobody we know": _check(via="smell"),
    "the same task a thousand times": _check(tasks=[{"task_id": _NOBODY, "attempt": 1}] * 1000),
    "neither tasks nor a backend": _check(),
}

#: Of the type of a check, readable, and about nothing that there is: they are answered and leave nothing.
IDLE_CHECKS: Final[Mapping[str, bytes]] = {
    "a task nobody has": _check(tasks=[{"task_id": _NOBODY, "attempt": 1}]),
    "an attempt beyond every integer": _check(tasks=[{"task_id": _NOBODY, "attempt": 2**200}]),
    "a backend nobody has": _check(backend="gpu-nine", via="push"),
}

_DEEP: dict[str, Any] = {"end": True}
for _ in range(20):
    _DEEP = {"deeper": _DEEP, "list": [None, 1]}

#: Properties of a message; what its headers say decides nothing.
PROPERTIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "no properties": {"type": None, "message_id": None},
    "a type nobody knows": {"type": "no.such.v9"},
    "an empty type": {"type": ""},
    "a type of 255 bytes": {"type": "ж" * 127},
    "a type of another queue": {"type": "event.v1"},
    "compressed, it says": {"content_encoding": "gzip", "content_type": "image/png"},
    "an encoding nobody knows": {"content_encoding": "rot13"},
    "the highest priority": {"priority": 255},
    "sent at the end of time": {"timestamp": 2**33},
    "an answer asked for": {"reply_to": "amq.gen-none", "correlation_id": "x\x00y"},
    "a trace that is a moment": {"headers": {"traceparent": datetime(2030, 1, 1, tzinfo=UTC)}},
    "a trace that is a table": {"headers": {"traceparent": {"a": [1, {"b": None}]}}},
    "headers of every type": {
        "headers": {
            "reason": b"\xff\x00",
            "stage": Decimal("1.5"),
            "detail": 2**63 - 1,
            "task_id": None,
            "attempt": -(2**63),
            "x": True,
            "y": [1, "a", None, {"b": datetime(1970, 1, 1, tzinfo=UTC)}],
            "й\x00": "é\x00",
        }
    },
    "deep headers": {"headers": _DEEP},
    "a thousand headers": {"headers": {f"h{n}": n for n in range(1000)}},
    "a long header": {"headers": {"detail": "z" * 100_000, "reason": "bug"}},
    "a death that is a word": {"headers": {"x-death": "soon"}},
    "deaths without a queue": {"headers": {"x-death": [{"count": 1}, "x", {"reason": 7, "queue": []}]}},
    "a letter of a task nobody has": {"headers": {"reason": "bug", "stage": "check", "task_id": _NOBODY, "attempt": 1}},
    "a delivery count of its own": {"headers": {"x-delivery-count": "many"}},
}


def _short_string(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _list(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = struct.pack(">cI", b"A", len(value)) + value
    return value


#: Values of a header, encoded, that RabbitMQ takes and pika cannot decode.
UNREADABLE: Final[Mapping[str, bytes]] = {
    "milliseconds": struct.pack(">cQ", b"T", 1_700_000_000_000),
    "the last moment": struct.pack(">cQ", b"T", 2**64 - 1),
    "a list of lists": _list(2000),
}


class Unreadable(pika.BasicProperties):
    """A correlation id, message id and type, and a header x whose encoded value is given."""

    def __init__(self, value: bytes, names: tuple[str, str, str] = ("c", "m", "t")) -> None:
        super().__init__()
        self.value = value
        self.names = names

    def encode(self) -> list[bytes]:
        field = _short_string("x") + self.value
        flags = (
            self.FLAG_CONTENT_TYPE
            | self.FLAG_HEADERS
            | self.FLAG_CORRELATION_ID
            | self.FLAG_MESSAGE_ID
            | self.FLAG_TYPE
        )
        return [
            struct.pack(">H", flags),
            _short_string("application/json"),
            struct.pack(">I", len(field)) + field,
            *(_short_string(name) for name in self.names),
        ]
