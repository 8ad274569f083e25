"""Orders for image APIs in real processes, beside one for a ComfyUI: pictures, one POST each, and an honest doubt."""

from collections.abc import Iterator

import pytest

from shared.domain.messages import Order
from tests.e2e.conftest import Build
from tests.e2e.system import System, an_order
from tests.integration.api_lab import a_picture, body_of, in_base64
from tests.integration.scripted_server import Request, Server, answer, scripted_server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with scripted_server() as server:
        yield server


@pytest.fixture(scope="module")
def system(build: Build, server: Server) -> System:
    apis = {"openai_images": server.url, "replicate": server.url}
    system = build(apis=apis, settings={"FALLBACK_AFTER_SECONDS": 1})
    system.settings |= {"OPENAI_API_KEY": "sk-one", "REPLICATE_API_TOKEN": "sk-two"}
    system.start()
    return system


def for_openai(prompt: str) -> Order:
    return an_order(pool="openai_images", workflow=None, inputs={"model": "gpt-image-1", "prompt": prompt})


def openai(request: Request) -> bytes:
    """Makes a picture, or hangs up after it has read the order."""
    if body_of(request)["prompt"] == "hang up":
        return b""
    return answer(200, {"data": [{"b64_json": in_base64(a_picture())}]})


def test_apis_of_both_shapes_and_a_comfyui_make_their_pictures_side_by_side(system: System, server: Server) -> None:
    server.on("POST /images/generations", openai)
    server.on("POST /models/a/b/predictions", answer(201, {"id": "p1", "status": "starting"}))
    running = answer(200, {"id": "p1", "status": "processing"})
    done = answer(200, {"id": "p1", "status": "succeeded", "output": [f"{server.url}/1.webp"], "metrics": {}})
    server.on("GET /predictions/p1", running, done)
    server.on("GET /1.webp", answer(200, a_picture("WEBP")))
    orders = [
        an_order(),
        for_openai("a lighthouse"),
        an_order(pool="replicate", workflow=None, inputs={"model": "a/b", "input": {"prompt": "a lighthouse"}}),
    ]

    system.place(*orders, *orders)
    system.await_status("completed", *orders)

    assert sum(call.startswith("POST ") for call in server.calls) == 2
    assert [system.events(order) for order in orders] == [["completed"]] * 3
    assert {len(system.tasks.artifacts([order.task_id])[order.task_id]) for order in orders} == {1}


def test_a_lost_answer_is_told_as_one_and_a_person_ends_the_doubt_once(system: System, server: Server) -> None:
    server.on("POST /images/generations", openai)
    before = len(server.calls)
    lost = for_openai("hang up")

    system.place(lost)
    (row,) = system.await_status("failed", lost)

    assert row.reason == "outcome_unknown"
    assert len(server.calls) == before + 1
    assert system.darkroom("order", "give-up", lost.idempotency_key, "--why", "cheap", "--by", "ana")[0] == 0
    status, text = system.darkroom("order", "submit-again", lost.idempotency_key, "--why", "no", "--by", "ben")
    assert (status, "already discarded by ana" in text) == (1, True)
    assert len(server.calls) == before + 1


def test_while_no_comfyui_is_there_an_order_that_names_an_api_too_is_made_by_it(system: System, server: Server) -> None:
    server.on("POST /images/generations", openai)
    before = len(server.calls)
    (gpu,) = system.gpus
    gpu.kill()
    said = {"pool": "openai_images", "inputs": {"model": "gpt-image-1", "prompt": "a lighthouse"}}
    chosen, plain = an_order(pools=["comfyui", said]), an_order()

    system.place(chosen, plain)
    (row,) = system.await_status("completed", chosen)

    assert (row.pool, len(server.calls) - before) == ("openai_images", 1)
    assert system.row(plain).status in ("pending", "submitting")
    gpu.start()
    system.await_status("completed", plain)
    assert system.row(plain).pool == "comfyui"
