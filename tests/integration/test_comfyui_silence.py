"""A POST /prompt that nobody answers: what may still arrive of it, and what cannot."""

import socket
import time

import pytest

from shared.domain.errors import OutcomeUnknown
from shared.providers.comfyui import ComfyUI
from shared.providers.comfyui_http import Server as Calls
from shared.providers.comfyui_http import Silence
from shared.providers.inputs import Pictures
from tests.integration.comfyui_lab import PHOTOS, QUICK, WORKFLOWS, a_job
from tests.integration.scripted_server import Server, answer


@pytest.mark.parametrize("status", [504, 524])
def test_a_proxy_that_waited_too_long_proves_nothing_and_the_post_is_not_repeated(server: Server, status: int) -> None:
    adapter = ComfyUI("gpu-1", server.url, WORKFLOWS, Pictures(folders=[PHOTOS]), timings=QUICK)
    job = a_job()
    server.on("POST /prompt", answer(status, b"<html>gateway time-out</html>"))
    server.on("GET /api/jobs", answer(200, {"jobs": []}))
    server.on(f"GET /api/jobs/{job.job_key}", answer(404, {"error": "Job not found"}))

    with pytest.raises(OutcomeUnknown) as caught:
        adapter.submit(adapter.prepare(job))

    assert (caught.value.may_arrive, caught.value.was_answered) == (True, False)
    assert server.calls.count("POST /prompt") == 1


def test_what_was_not_sent_when_a_post_was_given_up_is_never_sent() -> None:
    """A peer whose buffers are full stands for a network that is away: the rest waits in our own kernel."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        calls = Calls(f"http://127.0.0.1:{listener.getsockname()[1]}", QUICK, lambda *_: None, on_lost=lambda: None)
        with pytest.raises(Silence):
            calls.post_once("/prompt", "submit", b"x" * UNSENT_BYTES)
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(5)
            arrived = read_to_its_end(peer)
    assert 0 < arrived < UNSENT_BYTES


#: More than the peer takes and less than our own kernel holds, so that all of it has left the process.
UNSENT_BYTES = 200_000


def read_to_its_end(peer: socket.socket) -> int:
    """How many bytes come before the connection ends, in whatever way."""
    count, ends = 0, time.monotonic() + 5
    try:
        while data := peer.recv(65536):
            count += len(data)
            assert time.monotonic() < ends
    except ConnectionResetError:
        pass
    return count
