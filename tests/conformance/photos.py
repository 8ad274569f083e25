"""Photos that travel through a simulator, and what is read off its answers."""

from __future__ import annotations

import io
from typing import Any

import requests
from PIL import Image

from tests.conformance.simulated import Simulated, workflow


def last_message(entry: dict[str, Any]) -> str:
    return str(entry["status"]["messages"][-1][0])


def picture(server: Simulated, name: str, subfolder: str = "orders/o-1") -> Image.Image:
    answer = server.get("/view", params={"filename": name, "subfolder": subfolder, "type": "output"})
    assert answer.status_code == 200
    return Image.open(io.BytesIO(answer.content))


def a_photo(width: int = 90, height: int = 60) -> bytes:
    target = io.BytesIO()
    Image.effect_noise((width, height), 80).convert("RGB").save(target, "PNG")
    return target.getvalue()


def put_photo(server: Simulated, data: bytes, name: str = "input.png", **fields: str) -> requests.Response:
    return server.post("/upload/image", files={"image": (name, data)}, data={"subfolder": "orders/p", **fields})


def photo_graph(reference: str = "orders/p/input.png") -> dict[str, Any]:
    graph = workflow("photo_scale_invert_save")
    graph["10"]["inputs"]["image"] = reference
    graph["40"]["inputs"]["filename_prefix"] = "orders/o-1/result"
    return graph
