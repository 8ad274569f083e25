"""The watcher of a ComfyUI: its events bring a look forward, and it says whether the server is there."""

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from services.poller.watch import Watch, _queue_remaining
from shared.database.leader import Leader
from shared.providers.comfyui import ComfyUI
from shared.providers.inputs import Pictures
from tests.factories import MEASURED, POOL, Rows
from tests.integration.comfyui_lab import QUICK, WORKFLOWS, Lab, a_job, running_lab
from tests.proxy import FaultProxy
from tests.servers import free_port
from tests.waiting import eventually


@pytest.fixture(scope="module")
def simulator() -> Iterator[Lab]:
    with running_lab("modern") as lab:
        yield lab


@pytest.fixture
def rows(database_url: str, simulator: Lab) -> Iterator[Rows]:
    simulator.begin()
    rows = Rows(database_url, threads=10)
    yield rows
    rows.close()


class Watching:
    """One watcher of one server in a thread of its own."""

    def __init__(self, rows: Rows, provider: ComfyUI, url: str) -> None:
        rows.slots.sync([("gpu-1", POOL, "comfyui", url, 2, 60.0)])
        self.hints: list[str] = []
        self.leader = Leader(rows.engine)
        self.stopping = threading.Event()
        watch = Watch(
            rows.slots.backends()[0],
            provider,
            rows.slots,
            self.leader,
            hint=lambda: self.hints.append("gpu-1"),
            stopping=self.stopping,
            beat=lambda: None,
            metrics=MEASURED,
        )
        self.thread = threading.Thread(target=watch.run)

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(10)
        self.leader.close()


@contextlib.contextmanager
def watching(rows: Rows, simulator: Lab, url: str | None = None) -> Iterator[Watching]:
    provider = simulator.adapter if url is None else ComfyUI("gpu-1", url, WORKFLOWS, Pictures(), timings=QUICK)
    watcher = Watching(rows, provider, url or simulator.url)
    watcher.thread.start()
    try:
        yield watcher
    finally:
        watcher.stop()


def health(rows: Rows) -> str:
    return rows.slots.backends()[0].health


def submitted(simulator: Lab) -> None:
    simulator.adapter.submit(simulator.adapter.prepare(a_job()))


def becomes(rows: Rows, wanted: str) -> Callable[[], bool]:
    return lambda: health(rows) == wanted


def test_a_job_that_ended_brings_its_look_forward(rows: Rows, simulator: Lab) -> None:
    with watching(rows, simulator) as watcher:
        eventually(lambda: watcher.hints == ["gpu-1"], within=10, what="a new connection is a hint")

        submitted(simulator)

        eventually(lambda: len(watcher.hints) >= 2, within=10, what="the queue got shorter")


def test_a_server_that_restarts_is_followed_again(rows: Rows, simulator: Lab) -> None:
    with watching(rows, simulator) as watcher:
        eventually(lambda: watcher.hints, within=10)
        before = len(watcher.hints)

        simulator.restart()

        eventually(lambda: len(watcher.hints) > before and health(rows) == "up", within=15)


def test_a_server_that_is_not_there_is_down(rows: Rows, simulator: Lab) -> None:
    with watching(rows, simulator, f"http://127.0.0.1:{free_port()}") as watcher:
        eventually(becomes(rows, "down"), within=10)
        assert watcher.hints == []


def test_a_server_that_went_away_is_down_and_up_again_when_it_is_back(rows: Rows, simulator: Lab) -> None:
    with watching(rows, simulator) as watcher:
        eventually(lambda: watcher.hints, within=10)
        starts = simulator.stats()["starts"]

        simulator.faults(restart={"down_seconds": 2})

        eventually(becomes(rows, "down"), within=10)
        eventually(becomes(rows, "up"), within=15)
        assert simulator.stats()["starts"] > starts


def test_a_server_called_down_by_a_submitter_is_up_again_although_the_socket_never_broke(
    rows: Rows, simulator: Lab
) -> None:
    with watching(rows, simulator) as watcher:
        eventually(lambda: watcher.hints, within=10)

        rows.slots.set_health("gpu-1", "down", "one connection timed out", only_from="up")

        eventually(becomes(rows, "up"), within=20)


def test_a_frozen_server_is_not_called_up_or_down_by_its_websocket(rows: Rows, simulator: Lab) -> None:
    with watching(rows, simulator) as watcher:
        eventually(lambda: watcher.hints, within=10)
        rows.slots.freeze("gpu-1", uuid.uuid4())
        before = len(watcher.hints)

        simulator.faults(restart={"down_seconds": 1})

        eventually(lambda: len(watcher.hints) > before, within=20, what="the socket came back")
        assert health(rows) == "frozen"


def test_the_watcher_outlives_a_bug(rows: Rows, simulator: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    set_health, bugs = rows.slots.set_health, [KeyError("a bug")]

    def buggy(*given: Any, **named: Any) -> bool:
        if bugs:
            raise bugs.pop()
        return set_health(*given, **named)

    monkeypatch.setattr(rows.slots, "set_health", buggy)

    with watching(rows, simulator) as watcher:
        eventually(lambda: watcher.hints, within=10, what="it connected again")


def test_a_socket_whose_other_end_is_gone_without_a_word_is_opened_again(rows: Rows, simulator: Lab) -> None:
    """Every other connection works, so the server counts as up."""
    way = FaultProxy(int(simulator.url.rpartition(":")[2]))
    try:
        with watching(rows, simulator, way.url(simulator.url)) as watcher:
            eventually(lambda: len(watcher.hints) == 1, within=10)
            assert way.half_open(only=b"GET /ws") == 1
            eventually(lambda: len(watcher.hints) == 2, within=30, what="it connected again")
            assert health(rows) == "up"
    finally:
        way.close()


def test_of_two_pollers_one_listens_until_it_goes(rows: Rows, simulator: Lab) -> None:
    with watching(rows, simulator) as first:
        eventually(lambda: first.hints, within=10)
        with watching(rows, simulator) as second:
            submitted(simulator)
            eventually(lambda: len(first.hints) >= 2, within=10)
            assert second.hints == []

            first.stop()

            eventually(lambda: second.hints, within=10, what="the other one took over")


@pytest.mark.parametrize(
    ("text", "remaining"),
    [
        ('{"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 3}}}}', 3),
        ('{"type": "status", "data": {"sid": "x"}}', None),
        ('{"type": "executing", "data": null}', None),
        ('{"type": "status", "data": null}', None),
        ("[]", None),
        ("not json", None),
    ],
)
def test_only_a_status_message_tells_the_length_of_the_queue(text: str, remaining: int | None) -> None:
    assert _queue_remaining(text.encode()) == remaining
