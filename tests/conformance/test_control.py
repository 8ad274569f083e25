"""Deleting, interrupting, cancelling and listing, as real servers do them."""

from __future__ import annotations

import uuid

import pytest

from services.simulator.prompts import Memory
from services.simulator.records import Records
from tests.conformance.photos import last_message
from tests.conformance.simulated import Simulated, solid
from tests.waiting import eventually


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
