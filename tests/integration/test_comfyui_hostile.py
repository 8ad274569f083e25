"""A server that answers to hurt: each call ends in time, in words we know and in little memory, and calls nobody."""

import time
import tracemalloc
from collections.abc import Callable

import pytest

from shared.domain.errors import OutcomeUnknown, ProviderAway, ProviderBusy, ProviderRejected
from shared.pictures import BrokenPicture, verified
from shared.providers.base import Prepared
from shared.providers.comfyui import ComfyUI
from shared.providers.comfyui_http import Timings
from shared.providers.inputs import Pictures
from tests.integration.comfyui_lab import WORKFLOWS, a_job
from tests.integration.hostile_answers import Everywhere, Large, Script, hostile_answers
from tests.integration.scripted_server import Server, answer, scripted_server

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
ANSWERS = hostile_answers(str(JOB.job_key))
PICTURE = {"filename": "../../../../etc/passwd", "subfolder": "..\\..\\%2e%2e/", "type": "output"}
#: What a call may end in, beside an answer.
KNOWN = (ProviderAway, ProviderBusy, ProviderRejected, OutcomeUnknown, FileNotFoundError, BrokenPicture)


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
    server: Server, adapter: ComfyUI, script: Script
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
