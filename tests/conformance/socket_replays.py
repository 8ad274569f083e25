"""The recorded sockets: every message of a prompt, heard again."""

from __future__ import annotations

import json
import struct
from contextlib import closing
from typing import Any

import websocket

from tests.conformance.replays import replays
from tests.conformance.simulated import (
    Simulated,
    forty_resizes,
    normal,
    recorded_events,
    solid,
    workflow,
)


def without_the_node(body: Any) -> Any:
    """Which of the forty resizes was struck is chance; that it was a resize is not."""
    if isinstance(body, dict):
        struck = "executed" in body and body.get("node_type") == "ImageScale"
        return {
            name: "<chance>" if struck and name in ("executed", "node_id") else without_the_node(value)
            for name, value in body.items()
        }
    return [without_the_node(each) for each in body] if isinstance(body, list) else body


def heard(
    server: Simulated, graph: dict[str, Any], prompt_id: str, socket_id: str, announce: bool = False, **more: Any
) -> list[dict[str, Any]]:
    """Every message a socket gets from its opening until the server is idle again after this prompt."""
    address = f"{server.url.replace('http', 'ws')}/ws?clientId={socket_id}"
    messages: list[dict[str, Any]] = []
    with closing(websocket.create_connection(address, timeout=10)) as opened:
        if announce:
            opened.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        server.submit(graph, prompt_id, **more)
        if "99" in graph:  # the forty resizes, struck after some of them
            messages += [_as_recorded(opened.recv()) for _ in range(20)]
            server.post("/interrupt", json={"prompt_id": prompt_id})
        while not _is_over(messages, hears_all=more.get("client_id") == socket_id):
            messages.append(_as_recorded(opened.recv()))
    return messages


def _is_over(messages: list[dict[str, Any]], hears_all: bool) -> bool:
    if not messages:
        return False
    last = messages[-1]
    if hears_all:
        return last.get("type") == "executing" and last["data"]["node"] is None
    return len(messages) > 2 and last.get("data", {}).get("status", {}).get("exec_info") == {"queue_remaining": 0}


def _as_recorded(message: str | bytes) -> dict[str, Any]:
    """A message in the form of the recordings, which describe binary frames."""
    if isinstance(message, str):
        return dict(json.loads(message))
    event, length = struct.unpack(">II", message[:8])
    if event == 1:
        return {"binary": True, "event": event, "image_type": length, "head": message[8:12].hex()}
    metadata, rest = json.loads(message[8 : 8 + length]), message[8 + length :]
    return {"binary": True, "event": event, "metadata": metadata, "head": rest[:4].hex()}


def assert_heard(server: Simulated, name: str, got: list[dict[str, Any]]) -> None:
    recorded = [{key: value for key, value in event.items() if key != "bytes"} for event in recorded_events(name)]
    assert normal(got, server) == normal(recorded, server)


def id_in(name: str) -> str:
    return str(
        next(event["data"]["prompt_id"] for event in recorded_events(name) if "prompt_id" in event.get("data", {}))
    )


@replays("ws_success.jsonl", "ws_cached.jsonl")
def _(server: Simulated) -> None:
    graph = solid(prefix="orders/rec-ws/result")
    for name in ("ws_success.jsonl", "ws_cached.jsonl"):
        assert_heard(server, name, heard(server, graph, id_in(name), "darkroom-ws", client_id="darkroom-ws"))


@replays("ws_error.jsonl")
def _(server: Simulated) -> None:
    graph = workflow("fails_at_execution")
    got = heard(server, graph, id_in("ws_error.jsonl"), "darkroom-ws", client_id="darkroom-ws")
    assert_heard(server, "ws_error.jsonl", got)


@replays("ws_bystander.jsonl")
def _(server: Simulated) -> None:
    got = heard(server, solid(), "7f1c0000-0000-4000-8000-000000000000", "bystander", client_id="somebody-else")
    assert_heard(server, "ws_bystander.jsonl", got)


@replays("ws_no_client_id.jsonl")
def _(server: Simulated) -> None:
    got = heard(server, solid(), id_in("ws_no_client_id.jsonl"), "bystander")
    assert_heard(server, "ws_no_client_id.jsonl", got)


@replays("ws_interrupted.jsonl")
def _(server: Simulated) -> None:
    name = "ws_interrupted.jsonl"
    got = heard(server, forty_resizes(), id_in(name), "darkroom-ws", client_id="darkroom-ws")
    recorded = recorded_events(name)
    # How many nodes ran is chance. The beginning, the pattern per node and the end are not.
    assert normal(got[:6], server) == normal(recorded[:6], server)
    assert set(_patterns(got)) == set(_patterns(recorded))
    assert normal(without_the_node(got[-3:]), server) == normal(without_the_node(recorded[-3:]), server)
    interrupted = got[-3]["data"]
    assert sorted(map(int, interrupted["executed"])) == list(range(int(interrupted["node_id"])))


def _patterns(events: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The types of three neighbours, without beginning and end."""
    types = [str(event["type"]) for event in events[5:-3]]
    return list(zip(types, types[1:], types[2:], strict=False))


def preview_graph(step: int) -> dict[str, Any]:
    """The recorded graph is not shipped; its nodes are named by the events. `step` keeps node 2 out of the cache."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 512, "height": 512, "batch_size": 1, "color": 5}},
        "2": {"class_type": "LabPreview", "inputs": {"image": ["1", 0], "seed": step}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }


@replays("ws_preview_plain.jsonl", "ws_preview_metadata.jsonl")
def _(server: Simulated) -> None:
    plain, metadata = "ws_preview_plain.jsonl", "ws_preview_metadata.jsonl"
    got = heard(server, preview_graph(1), id_in(plain), "darkroom-ws", client_id="darkroom-ws")
    assert_heard(server, plain, got)
    got = heard(server, preview_graph(2), id_in(metadata), "darkroom-ws", announce=True, client_id="darkroom-ws")
    assert_heard(server, metadata, got)
