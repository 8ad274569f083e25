"""A server that answers to hurt: each call ends in time, in words we know and in little memory, and calls nobody."""

import gzip
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from shared.domain.errors import OutcomeUnknown, ProviderAway, ProviderBusy, ProviderRejected
from shared.pictures import BrokenPicture, verified
from shared.providers.base import Prepared
from shared.providers.comfyui import ComfyUI
from shared.providers.comfyui_http import Timings
from shared.providers.inputs import Pictures
from tests.integration.comfyui_lab import WORKFLOWS, a_job
from tests.integration.scripted_server import Request, Server, answer, scripted_server

TIMINGS = Timings(
    connect=0.3,
    submit_read=0.3,
    upload_read=0.3,
    read=0.3,
    view_read=0.3,
    view_limit=0.6,
    settle=0.05,
    cancel_wait=0.1,
    cancel_poll=0.02,
)
JOB = a_job()
PICTURE = {"filename": "../../../../etc/passwd", "subfolder": "..\\..\\%2e%2e/", "type": "output"}
#: What a call may end in, beside an answer.
KNOWN = (ProviderAway, ProviderBusy, ProviderRejected, OutcomeUnknown, FileNotFoundError, BrokenPicture)


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


ANSWERS: dict[str, bytes | Large | Callable[[Request], bytes]] = {
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
            str(JOB.job_key): {"status": 9, "outputs": 3},
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
    "a dripping head": drip_head,
    "an id that is a path": answer(200, {"prompt_id": "../../interrupt?x=\r\nHost: there\r\n\r\n", "node_errors": {}}),
}


class Everywhere(dict[str, Any]):
    """The same answer on every route."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.script = script if callable(script) else lambda _: script

    def get(self, *_: Any) -> Any:
        return self.script


@pytest.fixture
def server() -> Iterator[Server]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def adapter(server: Server) -> ComfyUI:
    return ComfyUI("gpu-1", server.url, WORKFLOWS, Pictures(), timings=TIMINGS)


def fetched(adapter: ComfyUI) -> None:
    for picture in adapter.fetch(JOB, [PICTURE]):
        with picture:
            verified(picture.read())


def calls(adapter: ComfyUI, prepared: Prepared) -> dict[str, Callable[[], object]]:
    return {
        "submit": lambda: adapter.submit(prepared),
        "find": lambda: adapter.find(JOB),
        "check": lambda: adapter.check([JOB, a_job()]),
        "ended": lambda: adapter.ended(lambda ids: [JOB] if str(JOB.job_key) in ids else []),
        "fetch": lambda: fetched(adapter),
        "cancel": lambda: adapter.cancel(JOB),
        "queue": adapter.queue_remaining,
        "alive": adapter.is_alive,
    }


@pytest.mark.parametrize("script", ANSWERS.values(), ids=ANSWERS.keys())
def test_every_call_ends_in_time_in_little_memory_and_in_words_we_know(
    server: Server, adapter: ComfyUI, script: bytes | Large | Callable[[Request], bytes]
) -> None:
    prepared = adapter.prepare(JOB)
    server.routes = Everywhere(script.make() if isinstance(script, Large) else script)
    for name, call in calls(adapter, prepared).items():
        began = time.monotonic()
        tracemalloc.start()
        try:
            call()
        except KNOWN:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert time.monotonic() - began < adapter.submit_limit_seconds + 30, name
        assert peak < 300_000_000, name
    assert {request.path.split("?")[0] for request in server.requests if "interrupt" in request.path} == set()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_call_follows_a_redirect(server: Server, adapter: ComfyUI, status: int) -> None:
    """Not even one to this machine: the server would decide whom we call."""
    prepared = adapter.prepare(JOB)
    with scripted_server() as private:
        server.routes = Everywhere(answer(status, b"", headers={"Location": f"{private.url}/secrets"}))
        for call in calls(adapter, prepared).values():
            try:
                call()
            except KNOWN:
                continue
        assert private.calls == []
    assert server.calls


def test_names_of_a_server_reach_no_file_and_no_other_path_of_ours(server: Server, adapter: ComfyUI) -> None:
    with pytest.raises(FileNotFoundError):
        fetched(adapter)
    [request] = server.requests
    path, _, query = request.path.partition("?")
    assert path == "/view"
    assert ".." not in query.replace("%2F", "/").split("/")[0].removeprefix("filename=..")
    assert "/" not in query
    assert "\\" not in query
