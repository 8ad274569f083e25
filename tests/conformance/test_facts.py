"""What was measured on real servers beyond the recorded bodies: the facts that decide how a client must behave."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
import websocket
from PIL import Image

from services.simulator.prompts import Memory
from services.simulator.records import Records
from tests.conformance.simulated import Simulated, forty_resizes, simulated, solid, workflow
from tests.waiting import eventually


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
    assert either.stats()["duplicates"] == {prompt_id: 3}


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


# Queue and control


def test_delete_takes_one_pending_row_per_mention_and_never_the_running_one(either: Simulated) -> None:
    running = either.busy()
    for color in (1, 2, 3):
        either.submit(solid(color), running)
    either.post("/queue", json={"delete": [running]})
    assert len(either.queue()[1]) == 2
    either.post("/queue", json={"delete": [running, running, running, "unknown"]})
    assert [len(rows) for rows in either.queue()] == [1, 0]
    assert either.get("/history").json() == {}


def test_an_interrupt_of_a_pending_id_does_nothing(either: Simulated) -> None:
    running = either.busy()
    waiting = either.submit(solid(1))
    either.post("/interrupt", json={"prompt_id": waiting})
    assert either.is_running(running)
    assert len(either.queue()[1]) == 1


@pytest.mark.parametrize("body", [b"", b"{bad", b"{}"])
def test_an_interrupt_without_id_hits_whatever_runs(either: Simulated, body: bytes) -> None:
    running = either.busy()
    assert either.post("/interrupt", data=body).status_code == 200
    entry = either.finished(running)
    assert (last_message(entry), entry["status"]["completed"]) == ("execution_interrupted", False)


def test_an_interrupt_while_idle_does_not_leak_into_the_next_prompt(either: Simulated) -> None:
    either.post("/interrupt")
    assert last_message(either.run(solid())) == "execution_success"


def test_an_interrupt_during_the_last_node_comes_too_late(modern: Simulated) -> None:
    graph = solid()
    graph["2"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["1", 0], "amount": 300}}
    prompt_id = modern.submit(graph)
    eventually(modern.output_files, within=5, every=0.001)
    assert modern.post(f"/api/jobs/{prompt_id}/cancel").json() == {"cancelled": True}
    assert last_message(modern.finished(prompt_id)) == "execution_success"
    assert len(modern.output_files()) == 300


def test_cancelling_several_jobs_reaches_pending_and_running(modern: Simulated) -> None:
    running = modern.busy()
    waiting = modern.submit(solid(1))
    unknown = str(uuid.uuid4())
    assert modern.post("/api/jobs/cancel", json={"job_ids": [unknown]}).json() == {"cancelled": False}
    assert modern.post("/api/jobs/cancel", json={"job_ids": [unknown, waiting, running]}).json() == {"cancelled": True}
    assert last_message(modern.finished(running)) == "execution_interrupted"
    assert modern.get(f"/api/jobs/{waiting}").status_code == 404


def test_a_job_id_used_again_shows_its_old_end_while_it_runs(modern: Simulated) -> None:
    prompt_id = modern.submit(solid())
    modern.finished(prompt_id)
    modern.busy(solid(1), prompt_id)
    assert modern.get(f"/api/jobs/{prompt_id}").json()["status"] == "completed"


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "offset=x", "sort_by=name", "sort_order=up", "status=done"])
def test_bad_parameters_of_jobs_are_a_400(modern: Simulated, query: str) -> None:
    answer = modern.get(f"/api/jobs?{query}")
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


def test_jobs_are_paged_newest_first_and_filtered_by_workflow(modern: Simulated) -> None:
    ids = []
    for color in range(5):
        extra = {"extra_pnginfo": {"workflow": {"id": f"w{color % 2}"}}}
        ids.append(modern.submit(solid(color), extra_data=extra))
        modern.finished(ids[-1])
    page = modern.get("/api/jobs?limit=2&offset=1&sort_order=asc").json()
    assert [job["id"] for job in page["jobs"]] == ids[1:3]
    assert page["pagination"] == {"offset": 1, "limit": 2, "total": 5, "has_more": True}
    assert {job["id"] for job in modern.get("/api/jobs?workflow_id=w1").json()["jobs"]} == {ids[1], ids[3]}


@pytest.mark.parametrize("path", ["/queue", "/free", "/history"])
def test_bad_json_is_a_500(either: Simulated, path: str) -> None:
    assert either.post(path, data=b"{bad").status_code == 500


def test_a_wrong_method_is_405_or_404(either: Simulated) -> None:
    assert either.post("/view").status_code == 405
    assert either.get("/interrupt").status_code == 404


def test_every_path_exists_under_api_too(either: Simulated) -> None:
    assert either.get("/api/prompt").json() == either.get("/prompt").json()
    assert either.get("/jobs").status_code == 404


def test_history_pages_from_the_newest_or_from_an_offset(either: Simulated) -> None:
    ids = [either.submit(solid(color)) for color in range(4)]
    either.finished(ids[-1])
    assert list(either.get("/history?max_items=2").json()) == ids[2:]
    assert list(either.get("/history?max_items=2&offset=1").json()) == ids[1:3]
    assert either.get("/history?max_items=0").json() == {}
    either.post("/history", json={"delete": [ids[0], "unknown"]})
    assert list(either.get("/history").json()) == ids[1:]
    either.post("/history", json={"clear": True})
    assert either.get("/history").json() == {}


def test_history_keeps_one_more_than_ten_thousand_and_a_reused_id_keeps_its_old_place() -> None:
    memory = Memory(Records())

    def finish(prompt_id: str) -> None:
        memory.put(0, prompt_id, {}, {}, [])
        taken = memory.take()
        assert taken is not None
        memory.finish(taken[0], "success", {})

    for number in range(10_001):
        finish(str(number))
    finish("0")  # evicts itself, the oldest, and is then the newest
    assert list(memory.history)[:1] + list(memory.history)[-1:] == ["1", "0"]
    memory.forget(["1", "2", "3"])
    finish("4")
    assert next(iter(memory.history)) == "4"
    for number in range(4):
        finish(f"new {number}")
    assert len(memory.history) == 10_001
    assert "4" not in memory.history


# Files


def test_the_photo_workflow_really_scales_and_inverts(either: Simulated) -> None:
    target = io.BytesIO()
    Image.new("RGB", (300, 100), (10, 20, 30)).save(target, "PNG")
    put_photo(either, target.getvalue())
    either.run(photo_graph(), extra_data={"extra_pnginfo": {"order": {"name": "Ann"}}})
    got = picture(either, "result_00001_.png")
    assert (got.size, got.getpixel((5, 5))) == ((512, 512), (245, 235, 225))
    assert json.loads(got.info["prompt"]) == photo_graph()  # customer text travels inside the file
    assert json.loads(got.info["order"]) == {"name": "Ann"}


def test_a_batch_takes_the_size_of_its_first_picture(either: Simulated) -> None:
    graph = workflow("batch_of_images")
    graph["2"]["inputs"]["width"] = 40
    graph["4"]["inputs"]["filename_prefix"] = "orders/o-1/result"
    either.run(graph)
    found = [picture(either, f"result_{number:05}_.png") for number in (1, 2, 3)]
    assert {each.size for each in found} == {(128, 128)}
    assert [each.getpixel((0, 0)) for each in found] == [(255, 0, 0), (255, 0, 0), (0, 255, 0)]


def test_counters_go_on_from_the_highest_and_reuse_deleted_numbers(either: Simulated) -> None:
    folder = either.directory / "output/orders/o-1"
    folder.mkdir(parents=True)
    (folder / "a_7_00001_.png").touch()
    assert either.run(solid(1, "orders/o-1/a"))["outputs"]["3"]["images"][0]["filename"] == "a_00008_.png"
    (folder / "a_00008_.png").unlink()
    assert either.run(solid(2, "orders/o-1/a"))["outputs"]["3"]["images"][0]["filename"] == "a_00008_.png"


def test_width_and_height_in_a_prefix_are_expanded(either: Simulated) -> None:
    images = either.run(solid(1, "orders/%width%x%height%/r"))["outputs"]["3"]["images"]
    assert images[0]["subfolder"] == "orders/64x64"


def test_an_upload_is_read_when_the_prompt_runs(either: Simulated) -> None:
    put_photo(either, a_photo())
    blocked = either.busy()
    prompt_id = either.submit(photo_graph())
    (either.directory / "input/orders/p/input.png").unlink()
    either.post("/interrupt", json={"prompt_id": blocked})
    assert last_message(either.finished(prompt_id)) == "execution_error"


@pytest.mark.parametrize(
    ("name", "fields", "status"),
    [
        ("x.png", {"subfolder": ".."}, 400),
        ("x.png", {"subfolder": "/etc"}, 400),
        ("../x.png", {}, 400),
        ("no/such/x.png", {}, 500),
        ("x" * 300, {}, 500),
        ("x.png", {"type": "bogus"}, 500),
        ("x.svg", {}, 200),
    ],
)
def test_uploads_are_placed_or_refused(modern: Simulated, name: str, fields: dict[str, str], status: int) -> None:
    assert put_photo(modern, b"", name, **fields).status_code == status


def test_an_upload_without_a_file_is_a_400(either: Simulated) -> None:
    assert either.post("/upload/image", json={"image": "x"}).status_code == 400
    assert either.post("/upload/image", files={"other": ("x.png", b"x")}).status_code == 400


def test_an_identical_upload_is_not_rewritten(either: Simulated) -> None:
    put_photo(either, b"one")
    stats = either.stats()
    path = either.directory / "input/orders/p/input.png"
    before = path.stat().st_mtime_ns
    assert put_photo(either, b"one").json()["name"] == "input.png"
    assert path.stat().st_mtime_ns == before
    after = either.stats()
    assert (after["uploads"] - stats["uploads"], after["uploads_stored"] - stats["uploads_stored"]) == (1, 0)


def test_view_serves_parts_heads_and_unchanged_files(either: Simulated) -> None:
    either.run(solid())
    query = {"filename": "result_00001_.png", "subfolder": "orders/o-1"}
    whole = either.get("/view", params=query)
    part = either.get("/view", params=query, headers={"Range": "bytes=0-7"})
    assert (part.status_code, part.content) == (206, b"\x89PNG\r\n\x1a\n")
    assert part.headers["Content-Range"] == f"bytes 0-7/{len(whole.content)}"
    head = either.http.head(f"{either.url}/view", params=query, timeout=5)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(whole.content))
    unchanged = either.get("/view", params=query, headers={"If-None-Match": whole.headers["Etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    again = either.get("/view", params={**query, "preview": "webp;50"})
    assert Image.open(io.BytesIO(again.content)).format == "WEBP"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({}, 404),
        ({"filename": ""}, 400),
        ({"filename": "/x.png"}, 400),
        ({"filename": "x.png", "type": "bogus"}, 400),
        ({"filename": "orders/o-1/result_00001_.png"}, 404),
    ],
)
def test_view_refuses_what_it_must(modern: Simulated, query: dict[str, str], status: int) -> None:
    modern.run(solid())
    assert modern.get("/view", params=query).status_code == status


def test_modern_hands_out_active_files_as_downloads(modern: Simulated) -> None:
    put_photo(modern, b"<svg/>", "x.svg")
    answer = modern.get("/view", params={"filename": "x.svg", "subfolder": "orders/p", "type": "input"})
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"].startswith("attachment")


# The socket


def test_a_socket_without_client_id_is_given_one(either: Simulated) -> None:
    with closing(websocket.create_connection(f"{either.url.replace('http', 'ws')}/ws", timeout=5)) as opened:
        assert len(json.loads(opened.recv())["data"]["sid"]) == 32


def test_a_second_socket_of_the_same_client_falls_silent_when_the_first_closes(either: Simulated) -> None:
    address = f"{either.url.replace('http', 'ws')}/ws?clientId=me"
    first = websocket.create_connection(address, timeout=5)
    with closing(websocket.create_connection(address, timeout=0.3)) as second:
        one = either.submit(solid(1))
        either.finished(one)
        first.close()
        other = either.submit(solid(2))
        either.finished(other)
        heard = "".join(everything_sent_to(second))
    assert one in heard
    assert other not in heard


def everything_sent_to(opened: websocket.WebSocket) -> Iterator[str]:
    """Its messages until it has been silent for its timeout."""
    while True:
        try:
            yield str(opened.recv())
        except websocket.WebSocketTimeoutException:
            return


def test_a_late_socket_hears_which_node_is_executing(either: Simulated) -> None:
    either.busy(client_id="me")
    address = f"{either.url.replace('http', 'ws')}/ws?clientId=me"
    with closing(websocket.create_connection(address, timeout=5)) as opened:
        assert json.loads(opened.recv())["type"] == "status"
        assert json.loads(opened.recv()) == {"type": "executing", "data": {"node": "3"}}


# The process


def test_two_servers_may_share_a_folder(tmp_path: Path) -> None:
    with (
        simulated("--directory", str(tmp_path)) as one,
        simulated("--directory", str(tmp_path), "--generation", "legacy") as other,
    ):
        one.run(solid(1))
        assert other.run(solid(2))["outputs"]["3"]["images"][0]["filename"] == "result_00002_.png"
        assert one.output_files() == other.output_files()


def test_connections_are_refused_during_start_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    command = [sys.executable, "-m", "services.simulator", "--port", str(port), "--startup-seconds", "0.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            eventually(lambda: is_bound(port), within=5, every=0.01)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            assert process.stdout.readline() == f"listening on http://127.0.0.1:{port}\n"
            assert requests.get(f"http://127.0.0.1:{port}/prompt", timeout=5).status_code == 200
        finally:
            process.terminate()
            assert process.wait(timeout=5) == 0


def test_it_can_be_ended_during_start_up() -> None:
    command = [sys.executable, "-m", "services.simulator", "--port", "0", "--startup-seconds", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        eventually(lambda: handles_sigterm(process.pid), within=5, every=0.01)
        process.terminate()
        assert process.wait(timeout=5) == 0
        assert process.stdout.read() == ""


def handles_sigterm(pid: int) -> bool:
    (caught,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def is_bound(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def test_its_own_folder_is_removed_at_the_end() -> None:
    with simulated() as server:
        directory = server.directory
        server.run(solid())
        server.submit(forty_resizes(1024))
        assert directory.exists()
    assert not os.path.exists(directory)


def test_the_simulator_imports_nothing_of_shared() -> None:
    code = "import sys, services.simulator.server; print([m for m in sys.modules if m.split('.')[0] == 'shared'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
