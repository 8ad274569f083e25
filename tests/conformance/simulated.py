"""A simulator process of a test, and the recorded samples it is compared with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from tests.waiting import eventually

HERE = Path(__file__).parent
Graph = dict[str, Any]

#: Moments: both sides must hold a positive whole number.
_MOMENTS = {"timestamp", "create_time", "execution_start_time", "execution_end_time"}
#: Facts of the machine: both sides must hold the same type.
_MACHINE = {
    "ram_total",
    "ram_free",
    "vram_total",
    "vram_free",
    "torch_vram_total",
    "torch_vram_free",
    "python_version",
}
#: The order of these lists is that of a set on the real server.
_UNORDERED = {"errors", "executed"}


class Simulated:
    """One running simulator."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = requests.Session()
        self.directory = Path(self.stats()["directory"])

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.http.get(self.url + path, timeout=10, **options)

    def post(self, path: str, **options: Any) -> requests.Response:
        return self.http.post(self.url + path, timeout=10, **options)

    def faults(self, **faults: Any) -> dict[str, Any]:
        answer = requests.post(self.url + "/_sim/faults", json=faults, timeout=10)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def stats(self) -> dict[str, Any]:
        return dict(requests.get(self.url + "/_sim/stats", timeout=10).json())

    def start_over(self) -> None:
        """As good as new: nothing remembered, no faults, empty folders, no time lost per picture."""
        self.faults(clear=True, restart={}, seconds_per_image=0)
        self.wait_until_up()
        for path in sorted(self.directory.glob("*/**/*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    def wait_until_up(self) -> None:
        eventually(self.is_up, within=5, what="accepting connections again", every=0.01)

    def is_up(self) -> bool:
        try:
            return requests.get(self.url + "/prompt", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    def submit(self, graph: Graph, prompt_id: str | None = None, **more: Any) -> str:
        """Post a graph that is accepted; returns its id."""
        prompt_id = prompt_id or str(uuid.uuid4())
        answer = self.post("/prompt", json={"prompt": graph, "prompt_id": prompt_id, **more})
        assert answer.status_code == 200, answer.text
        assert answer.json()["prompt_id"] == prompt_id
        return prompt_id

    def run(self, graph: Graph, prompt_id: str | None = None, **more: Any) -> dict[str, Any]:
        """Post a graph and wait for its history entry."""
        return self.finished(self.submit(graph, prompt_id, **more))

    def finished(self, prompt_id: str) -> dict[str, Any]:
        """The history entry of a prompt, as soon as there is one."""
        return dict(
            eventually(lambda: self.get(f"/history/{prompt_id}").json(), within=15, what="history", every=0.01)[
                prompt_id
            ]
        )

    def queue(self) -> tuple[list[Any], list[Any]]:
        queue = self.get("/queue").json()
        return queue["queue_running"], queue["queue_pending"]

    def is_running(self, prompt_id: str) -> bool:
        return any(row[1] == prompt_id for row in self.queue()[0])

    def wait_running(self, prompt_id: str) -> None:
        eventually(lambda: self.is_running(prompt_id), within=5, what="running", every=0.01)

    def busy(self, graph: Graph | None = None, prompt_id: str | None = None, **more: Any) -> str:
        """A prompt that is running now and will not end by itself."""
        self.faults(seconds_per_image=600)
        prompt_id = self.submit(graph or solid(), prompt_id, **more)
        self.wait_running(prompt_id)
        return prompt_id

    def output_files(self) -> list[str]:
        folder = self.directory / "output"
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@contextmanager
def simulated(*options: str) -> Iterator[Simulated]:
    """Start a simulator on a free loopback port, and end it by its process."""
    command = [sys.executable, "-m", "services.simulator", "--port", "0", "--seconds-per-image", "0", *options]
    # A terminal's Ctrl-C is for whoever runs this; the process is ended below.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert line.startswith("listening on http://127.0.0.1:"), line
            server = Simulated(line.split()[-1])
            yield server
            server.http.close()
        finally:
            process.terminate()
            assert process.wait(timeout=10) == 0


def workflow(name: str) -> Graph:
    return dict(json.loads((HERE / "workflows" / f"{name}.json").read_text()))


def solid(color: int = 3368601, prefix: str = "orders/o-1/result") -> Graph:
    """A small one-picture graph; another colour or prefix makes it another graph."""
    graph = workflow("solid_invert_save")
    graph["1"]["inputs"] |= {"color": color, "width": 64, "height": 64}
    graph["3"]["inputs"]["filename_prefix"] = prefix
    return graph


def forty_resizes(side: int = 2048) -> Graph:
    """The graph of 42 nodes of the recordings: long enough to be stopped between two nodes."""
    graph: Graph = {
        "0": {"class_type": "EmptyImage", "inputs": {"width": side, "height": side, "batch_size": 1, "color": 7}}
    }
    for number in range(1, 41):
        inputs = {
            "image": [str(number - 1), 0],
            "upscale_method": "lanczos",
            "width": side - number % 2,
            "height": side,
        }
        graph[str(number)] = {"class_type": "ImageScale", "inputs": {**inputs, "crop": "disabled"}}
    save = {"images": ["40", 0], "filename_prefix": "orders/long/result"}
    graph["99"] = {"class_type": "SaveImage", "inputs": save}
    return graph


def sample(name: str) -> dict[str, Any]:
    """A recorded exchange: `request` and `response`."""
    return dict(json.loads((HERE / "samples" / name).read_text()))


def recorded_events(name: str) -> list[dict[str, Any]]:
    """The messages of a recorded socket, without their times."""
    lines = (HERE / "samples" / name).read_text().splitlines()
    return [json.loads(line)["message"] for line in lines if line]


def replay(server: Simulated, name: str, **headers: str) -> requests.Response:
    """Send what was sent when the sample was recorded."""
    request = sample(name)["request"]
    options: dict[str, Any] = {"headers": headers}
    body = request["body"]
    if isinstance(body, dict) and "_raw" in body:
        options["data"] = body["_raw"]
    elif isinstance(body, dict) and "_multipart" in body:
        fields = dict(body["_multipart"])
        file_name, content_type, size = fields.pop("image").split(", ")
        options |= {"data": fields, "files": {"image": (file_name, bytes(int(size.split()[0])), content_type)}}
    elif body is not None:
        options["json"] = body
    return server.http.request(request["method"], server.url + request["path"], timeout=10, **options)


def assert_same(
    name: str, answer: requests.Response, server: Simulated, adjust: Callable[[Any], Any] = lambda body: body
) -> None:
    """Status, content type and body are those of the sample, once what differs by nature is made equal."""
    recorded = sample(name)["response"]
    assert answer.status_code == recorded["status"], answer.text
    assert answer.headers.get("Content-Type") == recorded["content_type"]
    got: Any = answer.json() if "json" in (recorded["content_type"] or "") else answer.text
    assert normal(adjust(got), server) == normal(adjust(recorded["body"]), server)


def normal(value: Any, server: Simulated, key: str = "") -> Any:
    """The value with everything that differs from run to run replaced by a word for its kind.

    Ids, types, statuses, node ids, names and messages stay: they decide, and the replays send the recorded ids.
    """
    if key in _MOMENTS:
        return "<moment>" if isinstance(value, int) and value > 0 else f"<no moment: {value!r}>"
    if key in _MACHINE:
        return f"<{type(value).__name__}>"
    if key in ("number", "priority"):
        return _number(value)
    if key == "traceback":
        return "<traceback>" if value and all(isinstance(line, str) for line in value) else value
    if isinstance(value, dict):
        if "..." in value or len(value) == 42:
            return "<graph of 42 nodes>"
        return {name: normal(each, server, name) for name, each in value.items()}
    if isinstance(value, list):
        items = [normal(each, server, key) for each in value]
        if len(items) == 5 and isinstance(items[4], list) and isinstance(items[3], dict):  # a queue row
            items[0] = _number(value[0])
        return sorted(items, key=json.dumps) if key in _UNORDERED else items
    if isinstance(value, str):
        return _normal_text(value, server)
    return value


def _number(value: float) -> str:
    """Position in the queue: int or float and the sign decide, the counter depends on what came before."""
    return f"<{type(value).__name__} {'below' if value < 0 else 'from'} 0>"


def _normal_text(text: str, server: Simulated) -> str:
    text = text.replace(str(server.directory), "<base>")
    text = re.sub(r"ComfyUI_temp_[a-z]{5}_", "ComfyUI_temp_xxxxx_", text)
    return "<tensor>" if text.startswith("tensor") else text
