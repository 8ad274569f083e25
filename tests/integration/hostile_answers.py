"""Answers that are sent to hurt: broken, endless, huge, packed, of wrong types. Any route may give them."""

import gzip
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.integration.scripted_server import Request, answer


@dataclass(frozen=True)
class Large:
    """An answer that takes a while to make: once a test wants it, and before its memory is watched."""

    make: Callable[[], bytes]


@cache
def bomb() -> bytes:
    return gzip.compress(b" " * 300_000_000, 1)


def drip(request: Request) -> bytes:
    """A byte now and then, for as long as anybody listens."""
    request.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        request.connection.sendall(b" ")
        time.sleep(0.05)


def drip_head(request: Request) -> bytes:
    request.connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        request.connection.sendall(b"y")
        time.sleep(0.05)


def packed(body: bytes, coding: str) -> bytes:
    return answer(200, body, headers={"Content-Encoding": coding})


def drip_redirect(request: Request) -> bytes:
    """Whoever wants to know where it leads before all of it is there waits for ever."""
    request.connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 100000\r\n\r\n")
    while True:
        request.connection.sendall(b" ")
        time.sleep(0.05)


Script = bytes | Large | Callable[[Request], bytes]


def hostile_answers(job_key: str) -> Mapping[str, Script]:
    """By what is wrong with them. job_key -- a job that the one of wrong types speaks of"""
    return {
        "nothing": b"",
        "half a line": b"HTTP/1.1 2",
        "no HTTP": b"\x00\xff\r\n\r\n",
        "no number": b"HTTP/1.1 OK yes\r\n\r\n{}",
        "a status beyond": b"HTTP/1.1 999 X\r\nContent-Length: 2\r\n\r\n{}",
        "cut off": b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"prompt_id',
        "a length below zero": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
        "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 9\r\n\r\n{}",
        "bad chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
        "a thousand headers": b"HTTP/1.1 200 OK\r\n" + b"".join(b"x%d: y\r\n" % n for n in range(1000)) + b"\r\n{}",
        "a huge header": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000 + b"\r\n\r\n{}",
        "null": answer(200, None),
        "a list": answer(200, [[[]]]),
        "a number": answer(200, 7),
        "a text": answer(200, "ok"),
        "wrong types": answer(
            200,
            {
                "prompt_id": 7,
                "jobs": {},
                "queue_running": [7, None],
                "queue_pending": "x",
                "exec_info": [],
                "status": [],
                job_key: {"status": 9, "outputs": 3},
            },
        ),
        "rows of nothing": answer(200, {"jobs": [None, {}], "queue_running": [[]], "queue_pending": [[None, None]]}),
        "too deep": answer(200, b"[" * 200_000),
        "a number too long": answer(200, b'{"exec_info": {"queue_remaining": ' + b"9" * 10_000 + b"}}"),
        "half a character": answer(200, b'{"prompt_id": "\\ud800", "jobs": [{"id": "\\ud800", "status": "\\ud800"}]}'),
        "another encoding": answer(200, '{"prompt_id": "ü"}'.encode("utf-16")),
        "seventy megabytes": Large(lambda: answer(200, b" " * 70_000_000)),
        "a bomb": Large(lambda: packed(bomb(), "gzip")),
        "a bomb in a bomb": Large(lambda: packed(gzip.compress(bomb(), 1), "gzip, gzip")),
        "no gzip": packed(b"plain", "gzip"),
        "a strange coding": packed(b"plain", "snappy"),
        "a drip": drip,
        "a redirect that drips": drip_redirect,
        "a bomb that redirects": Large(
            lambda: answer(302, bomb(), headers={"Location": "/there", "Content-Encoding": "gzip"})
        ),
        "a redirect to nothing": answer(302, b"", headers={"Location": "http://[/"}),
        "a redirect to bytes": b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\nContent-Length: 0\r\n\r\n",
        "a dripping head": drip_head,
        "an id that is a path": answer(
            200, {"prompt_id": "../../interrupt?x=\r\nHost: there\r\n\r\n", "node_errors": {}}
        ),
    }


class Everywhere(dict[str, Any]):
    """The same answer on every route."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.script = script if callable(script) else lambda _: script

    def get(self, *_: Any) -> Any:
        return self.script
