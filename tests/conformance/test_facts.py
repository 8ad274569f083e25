"""What was measured on real servers beyond the recorded bodies: the facts that decide how a client must behave."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
import requests
import websocket

from tests.conformance.photos import a_photo, last_message, photo_graph, picture, put_photo
from tests.conformance.simulated import Simulated, solid, workflow
from tests.waiting import eventually

# Fact 1: no deduplication


def test_the_same_id_posted_twice_runs_twice(either: Simulated) -> None:
    prompt_id = either.busy()
    either.submit(solid(1, "orders/o-1/twin"), prompt_id)
    either.submit(solid(2, "orders/o-1/twin"), prompt_id)
    either.faults(seconds_per_image=0)
    either.post("/interrupt", json={"prompt_id": prompt_id})
    eventually(lambda: either.queue() == ([], []), within=5)
    assert either.output_files() == ["orders/o-1/twin_00001_.png", "orders/o-1/twin_00002_.png"]
    entry = either.get(f"/history/{prompt_id}").json()[prompt_id]
    assert entry["prompt"][2]["1"]["inputs"]["color"] == 2
    assert either.stats()["duplicates"][prompt_id] == 3  # what other tests posted twice is counted for the whole run


# Fact 3: a lost answer means accepted, a cut body means not


def test_a_request_whose_sender_left_is_carried_out(either: Simulated) -> None:
    prompt_id = str(uuid.uuid4())
    either.faults(slow={"seconds": 30, "paths": ["/prompt"]})
    with pytest.raises(requests.ReadTimeout):
        requests.post(f"{either.url}/prompt", json={"prompt": solid(), "prompt_id": prompt_id}, timeout=0.2)
    assert last_message(either.finished(prompt_id)) == "execution_success"


def test_a_body_cut_off_on_its_way_queues_nothing(either: Simulated) -> None:
    taken_before = either.stats()["prompts_accepted"]
    body = json.dumps({"prompt": solid()}).encode()
    head = f"POST /prompt HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    host, port = either.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head + body[:-1])
    with socket.create_connection((host, int(port))) as connection:  # the same bytes, complete, are taken
        connection.sendall(head + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
    assert either.stats()["prompts_accepted"] - taken_before == 1


# Fact 6: what a restart forgets


def test_a_restart_forgets_queue_history_and_number_and_keeps_files(either: Simulated) -> None:
    put_photo(either, a_photo())
    done = either.submit(workflow("batch_of_images"))
    either.finished(done)
    running = either.busy()
    waiting = either.submit(solid(9))
    files = either.output_files()
    assert list((either.directory / "temp").iterdir())
    either.faults(restart={"down_seconds": 0}, seconds_per_image=0)
    either.wait_until_up()
    assert either.queue() == ([], [])
    assert either.get("/history").json() == {}
    assert either.output_files() == files
    assert (either.directory / "input/orders/p/input.png").exists()
    assert not list((either.directory / "temp").iterdir())
    answer = either.post("/prompt", json={"prompt": solid()})
    assert answer.json()["number"] == 0
    outcomes = {run["prompt_id"]: run["outcome"] for run in either.stats()["executions"]}
    assert (outcomes[running], outcomes[waiting]) == ("lost", "lost")


# Fact 7: the cache


def test_only_the_preceding_prompt_is_answered_from_cache(either: Simulated) -> None:
    graph = solid(1)
    either.run(graph)
    again = either.run(graph)
    assert again["status"]["messages"][1][1]["nodes"] == ["1", "2", "3"]
    assert again["outputs"]["3"]["images"][0]["filename"] == "result_00001_.png"
    either.run(solid(2, "orders/o-2/other"))
    third = either.run(graph)
    assert third["status"]["messages"][1][1]["nodes"] == []
    assert third["outputs"]["3"]["images"][0]["filename"] == "result_00002_.png"


def test_free_memory_empties_the_cache(modern: Simulated) -> None:
    modern.run(solid())
    assert modern.post("/free", json={"free_memory": True}).status_code == 200
    assert modern.run(solid())["outputs"]["3"]["images"][0]["filename"] == "result_00002_.png"


# Fact 8: the worker can die


def test_an_unreachable_node_without_inputs_kills_the_worker_until_a_restart(either: Simulated) -> None:
    frozen = either.submit({**solid(), "9": {"class_type": "EmptyImage"}})
    eventually(lambda: not either.stats()["worker_alive"], within=5, every=0.01)
    waiting = either.submit(solid())
    either.post("/interrupt", json={"prompt_id": frozen})
    either.post("/queue", json={"clear": True})
    assert either.is_running(frozen)
    assert either.get("/prompt").json() == {"exec_info": {"queue_remaining": 1}}
    assert either.get(f"/history/{waiting}").json() == {}
    either.faults(restart={})
    either.wait_until_up()
    assert last_message(either.run(solid())) == "execution_success"


# Fact 9: a client_id that is not a string


def test_a_client_id_that_is_no_string_ends_the_process() -> None:
    command = [sys.executable, "-m", "services.simulator", "--port", "0", "--seconds-per-image", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        requests.post(f"{url}/prompt", json={"prompt": solid(), "client_id": ["x"]}, timeout=5)
        assert process.wait(timeout=10) == 1


# Fact 10: success is not proof


def test_a_photo_cut_in_the_middle_loads_and_ends_in_success(either: Simulated) -> None:
    data = a_photo(200, 200)
    assert put_photo(either, data[: len(data) // 2]).status_code == 200
    graph = photo_graph()
    graph["20"]["inputs"] |= {"width": 200, "height": 200}
    assert last_message(either.run(graph)) == "execution_success"
    assert picture(either, "result_00001_.png").getpixel((100, 199)) == (255, 255, 255)  # black, inverted


def test_what_is_no_picture_uploads_well_and_fails_at_execution(either: Simulated) -> None:
    assert put_photo(either, b"<html>").status_code == 200
    entry = either.run(photo_graph())
    assert entry["status"]["messages"][-1][1]["exception_type"] == "PIL.UnidentifiedImageError"


def test_cached_outputs_can_name_a_file_somebody_deleted(modern: Simulated) -> None:
    modern.run(solid())
    (modern.directory / "output/orders/o-1/result_00001_.png").unlink()
    image = modern.run(solid())["outputs"]["3"]["images"][0]
    assert modern.get("/view", params=image).status_code == 404


# Fact 11: /ws is ahead of /history


def test_the_socket_says_success_before_history_does(either: Simulated) -> None:
    either.faults(history_lag_seconds=0.5)
    address = f"{either.url.replace('http', 'ws')}/ws?clientId=me"
    with closing(websocket.create_connection(address, timeout=5)) as opened:
        prompt_id = either.submit(solid(), client_id="me")
        while json.loads(opened.recv())["type"] != "execution_success":
            pass
        assert either.get(f"/history/{prompt_id}").json() == {}
        assert either.is_running(prompt_id)
    assert last_message(either.finished(prompt_id)) == "execution_success"


# POST /prompt


def test_the_number_advances_with_refused_prompts_too(either: Simulated) -> None:
    numbers = []
    for graph in (solid(), {}, solid()):
        answer = either.post("/prompt", json={"prompt": graph})
        numbers.append(answer.json().get("number"))
    assert numbers == [0, None, 2]


@pytest.mark.parametrize("body", ["", "null", '{"prompt": null}', '{"prompt": "x"}', '{"prompt": {"1": null}}', "\xff"])
def test_malformed_bodies_are_a_plain_500(either: Simulated, body: str) -> None:
    answer = either.post("/prompt", data=body.encode("latin-1"))
    assert (answer.status_code, answer.text[:25]) == (500, "500 Internal Server Error")


@pytest.mark.parametrize("body", ["{}", "[]"])
def test_a_body_without_prompt_is_a_400(either: Simulated, body: str) -> None:
    answer = either.post("/prompt", data=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "no_prompt")


def test_extra_data_must_be_an_object(either: Simulated) -> None:
    assert either.post("/prompt", json={"prompt": solid(), "extra_data": ["x"]}).status_code == 500


def test_numbers_sent_as_strings_are_stored_converted(either: Simulated) -> None:
    graph = solid()
    graph["1"]["inputs"]["width"] = "32"
    assert either.run(graph)["prompt"][2]["1"]["inputs"]["width"] == 32


@pytest.mark.parametrize(
    ("node", "inputs", "kind"),
    [
        ("1", {"width": 99999}, "value_bigger_than_max"),
        ("1", {"color": "red"}, "invalid_input_type"),
        ("2", {"image": ["1"]}, "bad_linked_input"),
        ("2", {"image": ["1", 5]}, "exception_during_inner_validation"),
    ],
)
def test_bad_inputs_are_named(either: Simulated, node: str, inputs: dict[str, Any], kind: str) -> None:
    graph = solid()
    graph[node]["inputs"] |= inputs
    answer = either.post("/prompt", json={"prompt": graph})
    assert answer.status_code == 400
    errors = answer.json()["node_errors"][node]
    assert [error["type"] for error in errors["errors"]] == [kind]
    assert errors["dependent_outputs"] == ["3"]


def test_an_output_without_inputs_is_an_exception_during_validation(either: Simulated) -> None:
    graph = solid()
    del graph["3"]["inputs"]
    errors = either.post("/prompt", json={"prompt": graph}).json()["node_errors"]["3"]["errors"]
    assert [error["type"] for error in errors] == ["exception_during_validation"]


def test_partial_execution_targets_choose_outputs(either: Simulated) -> None:
    graph = workflow("two_outputs")
    assert list(either.run(graph, partial_execution_targets=["4"])["outputs"]) == ["4"]
    for nothing in ([], ["77"]):
        answer = either.post("/prompt", json={"prompt": graph, "partial_execution_targets": nothing})
        assert answer.json()["error"]["type"] == "prompt_no_outputs"


def test_a_uuid5_is_a_good_prompt_id(either: Simulated) -> None:
    prompt_id = str(uuid.uuid5(uuid.NAMESPACE_URL, "order-1/1"))
    assert either.submit(solid(), prompt_id) == prompt_id


@pytest.mark.parametrize("bad", ["x", "906D269B-DB8F-464E-9888-E9EA5136E449", "906d269bdb8f464e9888e9ea5136e449", 5])
def test_modern_refuses_ids_that_are_not_canonical(modern: Simulated, bad: object) -> None:
    answer = modern.post("/prompt", json={"prompt": solid(), "prompt_id": bad})
    assert answer.json()["error"]["type"] == "invalid_prompt_id"


def test_many_connections_at_once_lose_nothing(modern: Simulated) -> None:
    with ThreadPoolExecutor(16) as pool:
        bodies = [{"prompt": solid(color), "prompt_id": str(uuid.uuid4())} for color in range(200)]
        answers = list(pool.map(lambda body: requests.post(f"{modern.url}/prompt", json=body, timeout=10), bodies))
    assert sorted(answer.json()["number"] for answer in answers) == list(range(200))
    eventually(lambda: modern.queue() == ([], []), within=15)
    assert len(modern.output_files()) == 200
