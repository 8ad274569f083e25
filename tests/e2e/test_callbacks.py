"""A provider calls back in real processes: the picture is there long before the next look would have come."""

import json

import pytest
import requests

from tests.e2e.conftest import Build
from tests.e2e.system import System, an_order
from tests.integration.api_lab import a_picture
from tests.integration.scripted_server import answer, scripted_server
from tests.integration.test_callbacks import SECRET, replicate_signed
from tests.servers import free_port
from tests.waiting import eventually

#: Seconds until a job is looked at again.
NEXT_LOOK = 60


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    return build(pools=("comfyui", "replicate"), settings={"CHECK_INTERVAL_SECONDS": NEXT_LOOK})


def test_a_callback_brings_the_picture_before_the_next_look(system: System) -> None:
    port = free_port()
    system.settings |= {
        "REPLICATE_API_TOKEN": "sk-one",
        "REPLICATE_WEBHOOK_SECRET": SECRET,
        "DARKROOM_CALLBACK_URL": f"http://127.0.0.1:{port}",
    }
    with scripted_server() as server:
        server.on("POST /models/a/b/predictions", answer(201, {"id": "p1", "status": "starting"}))
        done = {"id": "p1", "status": "succeeded", "output": [f"{server.url}/1.png"]}
        server.on("GET /predictions/p1", answer(200, done))
        server.on("GET /1.png", answer(200, a_picture()))
        with (system.folder / "backends.toml").open("a") as file:
            file.write(
                f'[[backend]]\nname = "replicate"\nadapter = "http"\nprovider = "replicate"\nurl = "{server.url}"\n'
                "callbacks = true\n"
            )
        system.add("producer", wait=False, HTTP_PORT=port)
        system.start()
        order = an_order(pool="replicate", workflow=None, inputs={"model": "a/b", "input": {"prompt": "a lighthouse"}})
        system.place(order)
        system.await_status("processing", order)
        asked = [call for call in server.calls if call.startswith("GET ")]
        assert asked == [], "nobody looks yet"

        told = json.loads(server.requests[0].body)["webhook"]
        body = json.dumps(done).encode()
        signed = replicate_signed(body)
        called = eventually(lambda: called_back(told, body, signed), within=30, what="the producer listens")

        assert called.status_code == 204
        system.await_status("completed", order, within=NEXT_LOOK / 3)
        assert sum(call.startswith("POST ") for call in server.calls) == 1


def called_back(url: str, body: bytes, headers: dict[str, str]) -> requests.Response | None:
    try:
        return requests.post(url, data=body, headers=headers, timeout=5)
    except requests.ConnectionError:
        return None
