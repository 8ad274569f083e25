"""What became of a job: queue, history, restart, poison, and answers that are none."""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from shared.domain.errors import DatabaseAway, ProviderAway
from shared.domain.task import Reason
from shared.providers import comfyui_looks
from shared.providers.base import Failed, Gone, Job, Running, Succeeded
from tests.integration.comfyui_lab import Lab, a_job, running_lab
from tests.waiting import eventually


@pytest.fixture(scope="module", params=["modern", "legacy"])
def server(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with running_lab(request.param) as lab:
        yield lab


@pytest.fixture
def lab(server: Lab) -> Lab:
    server.begin()
    return server


def submitted(lab: Lab, *jobs: Job) -> None:
    for job in jobs:
        lab.adapter.submit(lab.adapter.prepare(job))


def test_one_bulk_call_answers_for_all_that_are_queued(lab: Lab) -> None:
    lab.faults(seconds_per_image=5)
    jobs = [a_job() for _ in range(4)]
    submitted(lab, *jobs)
    eventually(lambda: lab.outcomes(jobs[0]) == ["running"], within=3)
    lab.adapter.check(jobs)  # asks once which generation it is
    lab.observed.clear()
    states = lab.adapter.check(jobs)
    assert [states[job.job_key] for job in jobs] == [Running(), *[Running(waiting=True)] * 3]
    assert lab.observed == [("poll", "ok")]


def test_one_bulk_call_answers_for_all_that_have_ended(lab: Lab) -> None:
    jobs = [a_job() for _ in range(20)]
    submitted(lab, *jobs)
    lab.ended(*jobs)
    lab.observed.clear()

    states = lab.adapter.check(jobs)

    assert all(isinstance(states[job.job_key], Succeeded) for job in jobs)
    assert lab.observed == [("poll", "ok")] * 2  # the queue, then the end of the history


def test_all_that_ended_since_the_last_look_is_found_whoever_else_works_there(lab: Lab) -> None:
    mine = {str(job.job_key): job for job in [a_job() for _ in range(20)]}
    assert lab.adapter.ended(partial(_those_of, mine)) == {}  # nothing has
    others = [a_job() for _ in range(12)]
    submitted(lab, *list(mine.values())[:10], *others[:6], *list(mine.values())[10:], *others[6:])
    lab.ended(*mine.values(), *others)
    lab.observed.clear()

    states = lab.adapter.ended(partial(_those_of, mine))

    assert states.keys() == {job.job_key for job in mine.values()}
    assert all(isinstance(state, Succeeded) for state in states.values())
    assert lab.observed == [("poll", "ok")] * 2  # eight entries, then more
    lab.observed.clear()
    assert lab.adapter.ended(lambda _: []) == {}
    assert lab.observed == [("poll", "ok")]


def test_what_nobody_knew_when_it_ended_is_found_at_a_later_look(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfyui_looks, "_ASK_AGAIN_SECONDS", 60.0)  # the others take their time here
    early, later = a_job(), [a_job() for _ in range(20)]
    submitted(lab, early)
    lab.ended(early)
    assert lab.adapter.ended(lambda _: []) == {}
    submitted(lab, *later)
    lab.ended(*later)
    for _ in range(2):  # the second reads only what is left to be read
        assert lab.adapter.ended(lambda _: []) == {}
    lab.observed.clear()

    states = lab.adapter.ended(partial(_those_of, {str(early.job_key): early}))

    assert states.keys() == {early.job_key}
    assert isinstance(states[early.job_key], Succeeded)
    assert lab.observed == [("poll", "ok")] * 2  # it stands behind eight entries, and is read alone


def test_what_ended_is_asked_about_once_more_however_late_the_next_look(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comfyui_looks, "_ASK_AGAIN_SECONDS", 1e-6)
    job = a_job()
    submitted(lab, job)
    lab.ended(job)
    asked: list[Sequence[str]] = []

    for _ in range(3):
        lab.adapter.ended(lambda ids: asked.append(ids) or [])

    assert [str(job.job_key) in ids for ids in asked] == [True, True]


def test_a_look_that_fails_leaves_what_ended_to_the_next_one(lab: Lab) -> None:
    job = a_job()
    submitted(lab, job)
    lab.ended(job)

    def away(_: Sequence[str]) -> list[Job]:
        raise DatabaseAway("gone")

    with pytest.raises(DatabaseAway):
        lab.adapter.ended(away)

    assert lab.adapter.ended(partial(_those_of, {str(job.job_key): job})).keys() == {job.job_key}


def test_a_server_that_forgot_its_history_is_read_from_the_start(lab: Lab) -> None:
    before, after = a_job(), a_job()
    submitted(lab, before)
    lab.ended(before)
    lab.adapter.ended(lambda _: [])
    lab.restart()
    submitted(lab, after)
    lab.ended(after)

    states = lab.adapter.ended(partial(_those_of, {str(job.job_key): job for job in (before, after)}))

    assert states.keys() == {after.job_key}


def _those_of(jobs: Mapping[str, Job], prompt_ids: Sequence[str]) -> list[Job]:
    return [jobs[prompt_id] for prompt_id in prompt_ids if prompt_id in jobs]


def test_a_batch_gives_its_pictures_in_order_and_no_previews(lab: Lab) -> None:
    job = a_job("photo-batch", photo="cat.jpg", width=64, height=64, copies=3)
    submitted(lab, job)
    state = lab.ended(job)[job.job_key]
    assert isinstance(state, Succeeded)
    assert [output["filename"] for output in state.outputs] == [f"result_0000{n}_.png" for n in (1, 2, 3)]
    for file in lab.adapter.fetch(job, state.outputs):
        with file:
            assert file.read(4) == b"\x89PNG"


def test_fewer_pictures_than_expected_are_no_success(lab: Lab) -> None:
    job = a_job("photo-batch", photo="cat.jpg", width=64, height=64, copies=2)
    submitted(lab, job)
    lab.ended(job)
    asked_for_three = Job(**{**_fields(job), "inputs": {**job.inputs, "copies": 3}})
    state = lab.adapter.find(asked_for_three)
    assert isinstance(state, Failed)
    assert (state.reason, state.retryable) == (Reason.NO_OUTPUTS, True)
    assert state.why == "node 40 gave 2 pictures instead of 3"


def test_a_job_of_a_template_that_is_gone_still_gives_its_pictures(lab: Lab) -> None:
    job = a_job()
    submitted(lab, job)
    lab.ended(job)
    assert isinstance(lab.adapter.find(Job(**{**_fields(job), "workflow": "retired"})), Succeeded)


def test_an_adopted_job_is_asked_for_under_its_own_id(lab: Lab) -> None:
    job, other = a_job(), a_job()
    submitted(lab, job)
    lab.ended(job)
    adopting = Job(**{**_fields(other), "provider_job_id": str(job.job_key)})
    assert isinstance(lab.adapter.check([adopting])[other.job_key], Succeeded)
    lab.restart()
    assert isinstance(lab.adapter.check([adopting])[other.job_key], Succeeded), "its files lie under that id too"


def test_an_execution_error_may_be_tried_once_more_elsewhere(lab: Lab) -> None:
    job = a_job()
    lab.faults(fail_execution={"match": str(job.job_key), "message": "the node  said\nno", "times": 1})
    submitted(lab, job)
    state = lab.ended(job)[job.job_key]
    assert isinstance(state, Failed)
    assert (state.reason, state.retryable, state.once, state.elsewhere) == (Reason.EXECUTION_FAILED, True, True, True)
    assert "RuntimeError: the node said no" in state.why
    assert "node " in state.why
    assert "File" not in state.why


def test_out_of_memory_may_be_tried_again_elsewhere(lab: Lab) -> None:
    job = a_job()
    lab.faults(fail_execution={"match": str(job.job_key), "exception_type": "torch.OutOfMemoryError", "times": 1})
    submitted(lab, job)
    state = lab.ended(job)[job.job_key]
    assert isinstance(state, Failed)
    assert (state.reason, state.retryable, state.once, state.elsewhere) == (Reason.EXECUTION_FAILED, True, False, True)


def test_a_job_somebody_interrupted_is_lost(lab: Lab) -> None:
    job = a_job()
    lab.faults(seconds_per_image=5)
    submitted(lab, job)
    eventually(lambda: lab.outcomes(job) == ["running"], within=3)
    _post(lab, "/interrupt", {})
    state = lab.ended(job)[job.job_key]
    assert isinstance(state, Failed)
    assert (state.reason, state.retryable) == (Reason.LOST, True)


def test_a_job_that_a_restart_forgot_is_gone(lab: Lab) -> None:
    jobs = [a_job() for _ in range(10)]
    lab.faults(seconds_per_image=5)
    submitted(lab, *jobs)
    lab.restart()
    began = time.monotonic()
    assert list(lab.adapter.check(jobs).values()) == [Gone()] * 10
    assert time.monotonic() - began < 1.5, "all absent jobs share one wait"


def test_a_job_that_finished_before_the_restart_is_found_by_its_files(lab: Lab) -> None:
    job = a_job("photo-batch", photo="cat.jpg", width=64, height=64, copies=2)
    submitted(lab, job)
    before = lab.ended(job)[job.job_key]
    lab.restart()
    after = lab.adapter.find(job)
    assert isinstance(before, Succeeded)
    assert isinstance(after, Succeeded)
    assert after.outputs == before.outputs


def test_one_of_two_files_is_no_proof(lab: Lab) -> None:
    job = a_job("photo-batch", photo="cat.jpg", width=64, height=64, copies=2)
    submitted(lab, job)
    lab.ended(job)
    lab.restart()
    (_output(lab, job) / "result_00002_.png").unlink()
    assert lab.adapter.find(job) == Gone()


def test_half_a_file_is_no_proof(lab: Lab) -> None:
    job = a_job()
    submitted(lab, job)
    lab.ended(job)
    lab.restart()
    file = _output(lab, job) / "result_00001_.png"
    file.write_bytes(file.read_bytes()[:-20])
    assert lab.adapter.find(job) == Gone()


def test_a_finished_job_whose_entry_comes_late_is_not_gone(lab: Lab) -> None:
    lab.faults(history_lag_seconds=0.15)
    job = a_job()
    submitted(lab, job)
    assert isinstance(lab.ended(job)[job.job_key], Succeeded)


def test_poisoned_job_lists_are_read_another_way(lab: Lab) -> None:
    running, done = a_job(), a_job()
    submitted(lab, done)
    lab.ended(done)
    body = lab.adapter.prepare(a_job()).body
    _post(lab, "/prompt", {"prompt": body["prompt"], "extra_data": {"extra_pnginfo": None}})
    eventually(lambda: lab.stats()["queue_remaining"] == 0, within=5)
    lab.faults(seconds_per_image=5, answer_500={"paths": ["/api/jobs*"], "queue": False})
    submitted(lab, running)
    states = lab.adapter.check([running, done])
    assert isinstance(states[running.job_key], Running)
    assert isinstance(states[done.job_key], Succeeded)


@pytest.mark.parametrize("kind", ["html", "cut_json", "cut_body"])
def test_answers_that_are_none_teach_nothing(lab: Lab, kind: str) -> None:
    job = a_job()
    submitted(lab, job)
    lab.ended(job)
    lab.faults(garbage={"paths": ["/api/jobs*", "/queue", "/history/*"], "kind": kind})
    with pytest.raises(ProviderAway):
        lab.adapter.check([job])
    with pytest.raises(ProviderAway):
        lab.adapter.check([job, a_job()])


def test_one_unreadable_entry_does_not_hide_its_neighbours(lab: Lab) -> None:
    odd, good = a_job(), a_job()
    submitted(lab, odd, good)
    lab.ended(odd, good)
    unreadable = [f"/api/jobs/{odd.job_key}", f"/history/{odd.job_key}", "/history"]
    lab.faults(garbage={"paths": unreadable, "kind": "html"})
    states = lab.adapter.check([odd, good])
    assert states[odd.job_key] == Running(unknown=True)
    assert lab.unknown == 1
    assert isinstance(states[good.job_key], Succeeded)


def test_a_refused_connection_teaches_nothing(lab: Lab) -> None:
    job = a_job()
    submitted(lab, job)
    lab.ended(job)
    lab.faults(refuse={"seconds": 0.5})
    with pytest.raises(ProviderAway):
        lab.adapter.check([job])
    eventually(lab.adapter.is_alive, within=5)
    assert isinstance(lab.adapter.find(job), Succeeded)


def test_a_frozen_worker_leaves_the_job_running(lab: Lab) -> None:
    job = a_job()
    lab.faults(freeze=True)
    submitted(lab, job)
    eventually(lambda: not lab.stats()["worker_alive"], within=5)
    assert isinstance(lab.adapter.find(job), Running)
    assert lab.adapter.is_alive()
    assert lab.adapter.queue_remaining() == 1
    assert lab.adapter.cancel(job) is False


def test_a_picture_that_is_gone_is_a_missing_file(lab: Lab) -> None:
    job = a_job()
    submitted(lab, job)
    state = lab.ended(job)[job.job_key]
    assert isinstance(state, Succeeded)
    (_output(lab, job) / "result_00001_.png").unlink()
    with pytest.raises(FileNotFoundError):
        list(lab.adapter.fetch(job, state.outputs))


@pytest.mark.parametrize("kind", ["cut_body", "html"])
def test_half_a_picture_or_a_page_in_its_place_is_never_handed_over(lab: Lab, kind: str) -> None:
    job = a_job()
    submitted(lab, job)
    state = lab.ended(job)[job.job_key]
    assert isinstance(state, Succeeded)
    lab.faults(garbage={"paths": ["/view"], "kind": kind, "times": 1})
    with pytest.raises(ProviderAway):
        list(lab.adapter.fetch(job, state.outputs))
    for file in lab.adapter.fetch(job, state.outputs):
        file.close()


def _fields(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in Job.__slots__}


def _output(lab: Lab, job: Job) -> Path:
    return Path(lab.stats()["directory"]) / "output" / "darkroom" / str(job.job_key)


def _post(lab: Lab, path: str, body: dict[str, Any]) -> None:
    requests.post(lab.url + path, json=body, timeout=5).raise_for_status()
