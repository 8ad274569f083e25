"""Servers that are old, behind a proxy, or broken in ways the simulator is not."""

import json
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

import pytest

from shared.domain.errors import OutcomeUnknown, ProviderAway, ProviderBusy, ProviderRejected
from shared.providers.base import Accepted, Job, Prepared, Running
from shared.providers.comfyui import ComfyUI
from shared.providers.comfyui_http import BrokenConnection, Timings
from shared.providers.inputs import Pictures
from tests.factories import MEASURED
from tests.integration.comfyui_lab import PHOTOS, WORKFLOWS, a_job
from tests.integration.scripted_server import Request, Server, answer, scripted_server

QUICK = Timings(connect=0.5, submit_read=0.4, read=0.4, view_read=0.4, settle=0.02, cancel_wait=0.2, cancel_poll=0.02)
NOT_FOUND = answer(404, {"error": "Job not found"})
NO_JOBS = answer(200, {"jobs": []})


@pytest.fixture
def server() -> Iterator[Server]:
    with scripted_server() as server:
        server.on("GET /api/jobs", NO_JOBS)
        server.on("HEAD /view", answer(404, b""))
        yield server


@pytest.fixture
def adapter(server: Server) -> ComfyUI:
    return ComfyUI("gpu-1", server.url, WORKFLOWS, Pictures(folders=[PHOTOS]), timings=QUICK)


@pytest.fixture
def prepared(adapter: ComfyUI) -> Prepared:
    return adapter.prepare(a_job())


def accepted(job: Job, **changes: object) -> bytes:
    return answer(200, {"prompt_id": str(job.job_key), "number": 1, "node_errors": {}, **changes})


def posts(server: Server) -> int:
    return server.calls.count("POST /prompt")


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (429, {"Retry-After": "7"}, 7.0),
        (429, {}, None),
        (503, {"Retry-After": "30"}, 30.0),
        (
            503,
            {"Retry-After": "Thu, 01 Jan 2026 12:00:20 GMT", "Date": "Thu, 01 Jan 2026 12:00:00 GMT"},
            20.0,
        ),
    ],
)
def test_a_proxy_that_asks_to_wait_created_nothing(
    server: Server, adapter: ComfyUI, status: int, headers: dict[str, str], expected: float | None
) -> None:
    prepared = adapter.prepare(a_job())
    server.on("POST /prompt", answer(status, b"", headers=headers))
    with pytest.raises(ProviderBusy) as caught:
        adapter.submit(prepared)
    assert (caught.value.retry_after_seconds, caught.value.is_down) == (expected, False)
    assert posts(server) == 1


@pytest.mark.parametrize("status", [301, 302, 401, 403, 404, 405])
def test_an_address_that_is_no_comfyui_blames_the_server_and_not_the_order(
    server: Server, adapter: ComfyUI, prepared: Prepared, status: int
) -> None:
    server.on("POST /prompt", answer(status, b"", headers={"Location": f"{server.url}/elsewhere"}))
    with pytest.raises(ProviderBusy) as caught:
        adapter.submit(prepared)
    assert caught.value.is_down
    assert server.calls == ["POST /prompt"]


@pytest.mark.parametrize("status", [500, 502, 503, 504, 520])
def test_a_5xx_is_a_doubt_and_not_a_refusal(server: Server, adapter: ComfyUI, prepared: Prepared, status: int) -> None:
    detail = f"GET /api/jobs/{prepared.job.job_key}"
    server.on("POST /prompt", answer(status, b"bad gateway"))
    server.on(detail, NOT_FOUND, answer(200, {"id": "x", "status": "pending"}))
    assert adapter.submit(prepared) == Accepted(str(prepared.job.job_key))
    assert server.calls.count(detail) == 2
    assert posts(server) == 1


def test_both_looks_come_before_the_second_post(server: Server, adapter: ComfyUI, prepared: Prepared) -> None:
    detail = f"GET /api/jobs/{prepared.job.job_key}"
    server.on(detail, NOT_FOUND)
    server.on("POST /prompt", b"", accepted(prepared.job))
    adapter.submit(prepared)
    ours = [call.split("?")[0] for call in server.calls if call.split("?")[0] != "GET /api/jobs"]
    assert ours == ["POST /prompt", detail, detail, "HEAD /view", "POST /prompt"]
    bodies = [request.body for request in server.requests if request.method == "POST"]
    assert bodies[0] == bodies[1]


def test_a_look_that_fails_forbids_a_second_post(server: Server, adapter: ComfyUI, prepared: Prepared) -> None:
    server.on("POST /prompt", b"HTTP/1.1 gar bage\r\n\r\n")
    server.on(f"GET /api/jobs/{prepared.job.job_key}", NOT_FOUND, answer(502, b"bad gateway"))
    with pytest.raises(OutcomeUnknown):
        adapter.submit(prepared)
    assert posts(server) == 1


def test_a_probe_that_fails_forbids_a_second_post(server: Server, adapter: ComfyUI, prepared: Prepared) -> None:
    server.on("POST /prompt", b"")
    server.on(f"GET /api/jobs/{prepared.job.job_key}", NOT_FOUND)
    server.on("HEAD /view", answer(503, b""))
    with pytest.raises(OutcomeUnknown):
        adapter.submit(prepared)
    assert posts(server) == 1


def test_a_server_that_mints_ids_is_refused_and_its_job_cancelled(
    server: Server, adapter: ComfyUI, prepared: Prepared
) -> None:
    server.on("GET /api/jobs", answer(404, b""))
    server.on("POST /prompt", accepted(prepared.job, prompt_id="minted"))
    waiting = answer(200, {"queue_running": [], "queue_pending": [[1, "minted", {}, {}, []]]})
    server.on("GET /queue", waiting, answer(200, {"queue_running": [], "queue_pending": []}))
    server.on("POST /queue", answer(200, b""))
    with pytest.raises(ProviderRejected, match=r"older than 0\.3\.45"):
        adapter.submit(prepared)
    assert [json.loads(r.body) for r in server.requests if f"{r.method} {r.path}" == "POST /queue"] == [
        {"delete": ["minted"]}
    ]


def test_the_request_carries_no_origin_and_our_id(server: Server, adapter: ComfyUI, prepared: Prepared) -> None:
    server.on("POST /prompt", accepted(prepared.job))
    adapter.submit(prepared)
    request = server.requests[0]
    assert "Origin" not in request.headers
    body = json.loads(request.body)
    assert body["prompt_id"] == str(prepared.job.job_key)
    assert body["extra_data"] == {}
    assert body["client_id"] == "darkroom"
    assert body.keys() == {"prompt", "prompt_id", "client_id", "extra_data"}


def test_a_proxy_of_the_environment_is_not_used(
    server: Server, adapter: ComfyUI, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.on("POST /prompt", accepted(prepared.job))
    adapter.submit(prepared)
    assert posts(server) == 1


def test_an_answer_that_trickles_does_not_outlast_the_limit(
    server: Server, adapter: ComfyUI, prepared: Prepared
) -> None:
    def trickle(request: Request) -> bytes:
        request.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        try:
            while True:
                request.connection.sendall(b" ")
                time.sleep(0.05)
        except OSError:
            return b""

    server.on("POST /prompt", trickle)
    server.on(f"GET /api/jobs/{prepared.job.job_key}", trickle)
    began = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        adapter.submit(prepared)
    assert time.monotonic() - began < 4


def test_a_dead_kept_alive_connection_costs_a_question_nothing(server: Server, adapter: ComfyUI) -> None:
    def reset(request: Request) -> bytes:
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        return b""

    server.on("GET /prompt", reset, answer(200, {"exec_info": {"queue_remaining": 3}}))
    assert adapter.queue_remaining() == 3
    server.on("GET /prompt", reset)
    with pytest.raises(ProviderAway):
        adapter.queue_remaining()
    assert not adapter.is_alive()


def test_an_old_server_that_ignores_the_id_is_never_told_to_interrupt(server: Server, adapter: ComfyUI) -> None:
    job = a_job()
    server.on("GET /api/jobs", answer(404, b""))
    server.on("GET /queue", answer(200, {"queue_running": [[1, str(job.job_key), {}, {}, []]], "queue_pending": []}))
    server.on("GET /system_stats", answer(200, {"system": {"comfyui_version": "0.3.55"}}))
    assert adapter.cancel(job) is False
    assert not [call for call in server.calls if call.startswith("POST")]


def test_a_server_that_lists_jobs_but_cannot_cancel_them_is_asked_the_old_way(server: Server, adapter: ComfyUI) -> None:
    job = a_job()
    row = {"id": str(job.job_key), "status": "in_progress"}
    server.on("GET /api/jobs", NO_JOBS, answer(200, {"jobs": [row]}), NO_JOBS)
    server.on("GET /system_stats", answer(200, {"system": {"comfyui_version": "0.24.1"}}))
    server.on("POST /interrupt", answer(200, b""))
    assert adapter.cancel(job) is True
    assert server.requests[-2].path == "/interrupt"
    assert json.loads(server.requests[-2].body) == {"prompt_id": str(job.job_key)}


def test_a_server_that_was_replaced_by_an_older_one_is_recognised(server: Server, adapter: ComfyUI) -> None:
    job = a_job()
    row = {"id": str(job.job_key), "status": "in_progress"}
    server.on("GET /api/jobs", answer(200, {"jobs": [row]}))
    assert adapter.check([job, a_job()])[job.job_key] == Running()
    server.on("GET /api/jobs", answer(404, b""))
    server.on("GET /queue", answer(200, {"queue_running": [[1, str(job.job_key), {}, {}, []]], "queue_pending": []}))
    assert adapter.find(job) == Running()


def test_a_state_nobody_knows_is_running_and_counted(server: Server) -> None:
    count = partial(MEASURED.count, "unknown_states_total", backend="gpu-1")  # as Service.providers has it
    before = MEASURED.value("unknown_states_total", backend="gpu-1")
    adapter = ComfyUI("gpu-1", server.url, WORKFLOWS, Pictures(), timings=QUICK, unknown_state=count)
    job = a_job()
    server.on(f"GET /api/jobs/{job.job_key}", answer(200, {"id": str(job.job_key), "status": "paused"}))

    assert adapter.find(job) == Running(unknown=True)
    assert MEASURED.value("unknown_states_total", backend="gpu-1") == before + 1


def test_a_picture_above_the_cap_is_refused_and_not_kept(server: Server) -> None:
    small = ComfyUI("gpu-1", server.url, WORKFLOWS, Pictures(), timings=QUICK, max_picture_bytes=1000)
    server.on("GET /view", answer(200, b"x" * 1001))
    with pytest.raises(ProviderRejected, match="larger than 1000 bytes"):
        list(small.fetch(a_job(), [{"filename": "a.png", "subfolder": "", "type": "output"}]))


def test_names_of_the_server_are_sent_back_as_they_are(server: Server, adapter: ComfyUI) -> None:
    server.on("GET /view", answer(200, b"picture"))
    (file,) = adapter.fetch(a_job(), [{"filename": "../../a&b=c.png", "subfolder": "x/../y", "type": "output"}])
    with file:
        assert file.read() == b"picture"
    assert server.calls[-1] == "GET /view?filename=..%2F..%2Fa%26b%3Dc.png&subfolder=x%2F..%2Fy&type=output"


@pytest.mark.parametrize("status", [500, 502])
def test_an_upload_that_fails_created_nothing(server: Server, adapter: ComfyUI, status: int) -> None:
    server.on("POST /upload/image", answer(status, b""))
    with pytest.raises(ProviderBusy):
        adapter.prepare(a_job("photo-invert", photo="cat.jpg"))


def test_pictures_fetched_together_end_as_they_would_alone(server: Server) -> None:
    small = ComfyUI("gpu-1", server.url, WORKFLOWS, Pictures(), timings=QUICK, max_picture_bytes=1000)

    def view(request: Request) -> bytes:
        if "gone" in request.path:
            return answer(404, b"")
        if "cut" in request.path:
            return answer(200, b"x" * 100)[:-1]
        return answer(200, b"x" * (1001 if "large" in request.path else 1000))

    server.on("GET /view", view)
    jobs = [["a", "b"], ["a", "gone"], ["large"], [], ["cut"], ["a"]]
    outputs = [[{"filename": name, "subfolder": "", "type": "output"} for name in names] for names in jobs]

    found = dict(one for ended in small.fetch_together(outputs) for one in ended)

    seen = [found[place] for place in range(len(jobs))]
    assert [type(one) if isinstance(one, Exception) else [content(file) for file in one] for one in seen] == [
        [b"x" * 1000] * 2,
        FileNotFoundError,
        ProviderRejected,
        [],
        BrokenConnection,
        [b"x" * 1000],
    ]


def content(file: BinaryIO) -> bytes:
    with file:
        return file.read()
