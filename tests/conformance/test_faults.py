"""Every fault strikes as the docstring of services.simulator says, is counted, and leaves when it is removed."""

from __future__ import annotations

import io
import re
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

import services.simulator.__main__ as simulator
from services.simulator import faults
from tests.conformance.simulated import Simulated, solid
from tests.waiting import eventually


def hits(server: Simulated, name: str) -> int:
    counted = requests.get(f"{server.url}/_sim/faults", timeout=5).json()["hits"]
    return int(counted.get(name, 0))


def accepted(server: Simulated) -> list[str]:
    return [run["prompt_id"] for run in server.stats()["executions"]]


def a_body() -> dict[str, Any]:
    return {"prompt": solid(), "prompt_id": str(uuid.uuid4())}


def test_refuse_closes_the_port_keeps_the_memory_and_opens_again(modern: Simulated) -> None:
    prompt_id = modern.submit(solid())
    modern.finished(prompt_id)
    modern.faults(refuse={"seconds": 0.3})
    with pytest.raises(requests.ConnectionError, match="Connection refused"):
        requests.get(f"{modern.url}/prompt", timeout=5)
    modern.wait_until_up()
    assert list(modern.get("/history").json()) == [prompt_id]
    assert modern.stats()["down_seconds"] >= 0.3


def test_restart_refuses_for_its_time_and_forgets(modern: Simulated) -> None:
    modern.run(solid())
    starts = modern.stats()["starts"]
    modern.faults(restart={"down_seconds": 0.3})
    asked = time.monotonic()
    with pytest.raises(requests.ConnectionError, match="Connection refused"):
        requests.get(f"{modern.url}/prompt", timeout=5)
    modern.wait_until_up()
    assert time.monotonic() - asked > 0.2
    assert modern.get("/history").json() == {}
    assert modern.stats()["starts"] == starts + 1


def test_a_restart_in_the_middle_of_a_prompt_lets_nothing_of_it_through(modern: Simulated) -> None:
    prompt_id = modern.busy()
    modern.faults(restart={}, seconds_per_image=0)
    modern.wait_until_up()
    other = modern.submit(solid(5, "orders/o-2/result"))
    modern.finished(other)
    assert modern.get(f"/history/{prompt_id}").json() == {}
    assert modern.output_files() == ["orders/o-2/result_00001_.png"]


def test_freeze_holds_the_next_prompt_until_a_restart(modern: Simulated) -> None:
    modern.faults(freeze=True)
    held = modern.submit(solid())
    eventually(lambda: not modern.stats()["worker_alive"], within=5, every=0.01)
    modern.faults(clear=True)
    modern.submit(solid(1))
    assert modern.is_running(held)
    assert modern.get("/prompt").json()["exec_info"] == {"queue_remaining": 2}
    modern.faults(restart={})
    modern.wait_until_up()
    modern.run(solid(2))


@pytest.mark.parametrize("queue", [True, False])
def test_answer_500_queues_or_not(modern: Simulated, queue: bool) -> None:
    before = hits(modern, "answer_500")
    modern.faults(answer_500={"times": 1, "queue": queue})
    body = a_body()
    assert modern.get("/prompt").status_code == 200  # the load signal is not meant by "/prompt"
    answer = modern.post("/prompt", json=body)
    assert (answer.status_code, answer.headers["Content-Type"]) == (500, "text/plain; charset=utf-8")
    assert (body["prompt_id"] in accepted(modern)) is queue
    assert hits(modern, "answer_500") == before + 1
    assert modern.post("/prompt", json=a_body()).status_code == 200


def test_drop_after_accept_queues_and_says_nothing(modern: Simulated) -> None:
    modern.faults(drop_after_accept={"times": 2})
    for _ in range(2):
        body = a_body()
        with pytest.raises(requests.ConnectionError):
            modern.post("/prompt", json=body)
        modern.finished(body["prompt_id"])
    assert modern.post("/prompt", json=a_body()).status_code == 200
    dropped = [entry for entry in modern.stats()["log"] if entry["status"] == 0]
    assert dropped[-1]["prompt_id"] == body["prompt_id"]


def test_drop_before_read_queues_nothing(modern: Simulated) -> None:
    modern.faults(drop_before_read={"times": 1, "paths": ["/prompt", "/history/*"]})
    body = a_body()
    with pytest.raises(requests.ConnectionError):
        modern.post("/prompt", json=body)
    assert body["prompt_id"] not in accepted(modern)
    assert modern.post("/prompt", json=body).status_code == 200


@pytest.mark.parametrize("before", [True, False])
def test_slow_holds_the_answer_back(modern: Simulated, before: bool) -> None:
    modern.faults(slow={"seconds": 0.4, "paths": ["/prompt"], "before": before, "times": 1})
    body = a_body()
    asked = time.monotonic()
    with pytest.raises(requests.ReadTimeout):
        requests.post(f"{modern.url}/prompt", json=body, timeout=0.1)
    assert (body["prompt_id"] in accepted(modern)) is not before
    modern.finished(body["prompt_id"])  # in the end it runs, whether the client waited or not
    assert (time.monotonic() - asked > 0.35) is before


def test_garbage_html_is_a_200_that_queues_nothing(modern: Simulated) -> None:
    modern.faults(garbage={"times": 1})
    body = a_body()
    answer = modern.post("/prompt", json=body)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert body["prompt_id"] not in accepted(modern)


def test_garbage_can_cut_the_json(modern: Simulated) -> None:
    modern.faults(garbage={"paths": ["/queue"], "kind": "cut_json"})
    answer = modern.get("/queue")
    assert answer.status_code == 200
    with pytest.raises(requests.JSONDecodeError):
        answer.json()
    modern.faults(garbage=None)
    assert modern.queue() == ([], [])


def test_garbage_can_cut_a_download(modern: Simulated) -> None:
    modern.run(solid())
    modern.faults(garbage={"paths": ["/view"], "kind": "cut_body", "times": 1})
    query = {"filename": "result_00001_.png", "subfolder": "orders/o-1"}
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        modern.get("/view", params=query)
    assert modern.get("/view", params=query).status_code == 200


def test_fail_execution_strikes_what_matches_as_often_as_said(modern: Simulated) -> None:
    modern.faults(
        fail_execution=[
            {
                "match": "order-7",
                "exception_type": "torch.OutOfMemoryError",
                "message": "Allocation failed",
                "times": 1,
            },
            {"match": "orders/o-8/", "message": "no"},
        ]
    )
    failed = modern.run(solid(), extra_data={"order": "order-7"})
    assert failed["status"]["status_str"] == "error"
    error = failed["status"]["messages"][-1][1]
    assert (error["exception_type"], error["node_type"]) == ("torch.OutOfMemoryError", "EmptyImage")
    assert error["exception_message"].startswith("Allocation failed\nThis error means you ran out of memory")
    assert modern.run(solid(), extra_data={"order": "order-7"})["status"]["status_str"] == "success"
    for _ in range(2):
        error = modern.run(solid(1, "orders/o-8/result"))["status"]["messages"][-1][1]
        assert (error["exception_type"], error["exception_message"]) == ("RuntimeError", "no\n")


def test_a_matching_prompt_fails_although_all_of_it_is_cached(modern: Simulated) -> None:
    modern.run(solid())
    modern.faults(fail_execution={"match": ""})
    assert modern.run(solid())["status"]["status_str"] == "error"


def test_corrupt_output_saves_half_a_picture_and_calls_it_success(modern: Simulated) -> None:
    modern.faults(corrupt_output={"times": 1})
    assert modern.run(solid())["status"]["status_str"] == "success"
    answer = modern.get("/view", params={"filename": "result_00001_.png", "subfolder": "orders/o-1"})
    with pytest.raises((OSError, SyntaxError)):
        Image.open(io.BytesIO(answer.content)).load()


def test_seconds_per_image_are_waited_for_each_picture(modern: Simulated) -> None:
    modern.faults(seconds_per_image=0.1)
    graph = solid()
    graph["1"]["inputs"]["batch_size"] = 3
    modern.run(graph)
    run = modern.stats()["executions"][-1]
    assert (run["outcome"], run["images"]) == ("success", 3)
    assert 0.3 <= run["ended_at"] - run["started_at"] < 2


def test_a_probability_of_nothing_never_strikes(modern: Simulated) -> None:
    modern.faults(drop_after_accept={"probability": 0})
    assert modern.post("/prompt", json=a_body()).status_code == 200


def test_the_reference_names_every_fault_field_and_statistic(modern: Simulated) -> None:
    reference = Path(simulator.__file__).read_text().partition('"""\n\nfrom')[0]
    named = set(re.findall(r"\w+", reference))
    shapes = {**faults.SHAPES, **faults.COMFYUI_SHAPES}
    assert {*shapes, "seconds_per_image", "history_lag_seconds"} <= named
    assert {field for shape in shapes.values() for field in shape} <= named
    modern.run(solid())
    stats = modern.stats()
    assert {*stats, *stats["executions"][0], *stats["log"][0]} <= named


@pytest.mark.parametrize(
    "wrong",
    [
        {"explode": {}},
        {"slow": {"speed": 1}},
        {"slow": {"seconds": -1}},
        {"slow": 5},
        {"answer_500": {"times": 0}},
        {"garbage": {"kind": "noise"}},
        {"garbage": {"paths": "/prompt"}},
        {"fail_execution": {"match": 5}},
        {"history_lag_seconds": "long"},
        [],
    ],
)
def test_a_wrong_fault_is_refused_with_a_sentence_and_changes_nothing(modern: Simulated, wrong: object) -> None:
    before = requests.get(f"{modern.url}/_sim/faults", timeout=5).json()
    answer = requests.post(f"{modern.url}/_sim/faults", json=wrong, timeout=5)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert requests.get(f"{modern.url}/_sim/faults", timeout=5).json() == before


def test_a_fault_is_shown_counts_down_and_can_be_removed(modern: Simulated) -> None:
    shown = modern.faults(answer_500={"times": 2})["faults"]["answer_500"]
    assert shown["times"] == 2
    modern.post("/prompt", json=a_body())
    assert modern.faults()["faults"]["answer_500"]["times"] == 1
    assert "answer_500" not in modern.faults(answer_500=None)["faults"]


def test_the_statistics_tell_every_call_and_run(modern: Simulated) -> None:
    before = modern.stats()
    body = a_body()
    modern.post("/prompt", json=body)
    modern.finished(body["prompt_id"])
    modern.post("/api/prompt", json={"prompt": {}})
    after = modern.stats()
    assert after["calls"]["POST /prompt"] - before["calls"].get("POST /prompt", 0) == 2
    assert after["prompts_accepted"] - before["prompts_accepted"] == 1
    assert after["prompts_rejected"] - before["prompts_rejected"] == 1
    assert after["images_saved"] - before["images_saved"] == 1
    posted = [entry for entry in after["log"] if entry["method"] == "POST"][-2:]
    assert [(entry["path"], entry["status"], entry["prompt_id"]) for entry in posted] == [
        ("/prompt", 200, body["prompt_id"]),
        ("/api/prompt", 400, None),
    ]
    run = after["executions"][-1]
    assert (run["prompt_id"], run["outcome"], run["images"]) == (body["prompt_id"], "success", 1)
    assert before["now"] < run["accepted_at"] <= run["started_at"] < run["ended_at"] < after["now"]
    assert after["max_queue_remaining"] >= 1
    short = requests.get(f"{modern.url}/_sim/stats?log=0&executions=0", timeout=5).json()
    assert "log" not in short
    assert "executions" not in short
