"""POST /prompt and its doubts: one attempt, one execution."""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shared.domain.errors import OutcomeUnknown, ProviderBusy, ProviderRejected
from shared.domain.task import Reason, Sent
from shared.providers.base import Accepted, Failed, Gone, Prepared, Running, Succeeded, Unclear
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


def test_an_accepted_job_keeps_our_id_and_gives_its_picture(lab: Lab) -> None:
    job = a_job()
    prepared = lab.adapter.prepare(job)
    assert lab.adapter.submit(prepared) == Accepted(str(job.job_key))
    state = lab.ended(job)[job.job_key]
    assert isinstance(state, Succeeded)
    assert [output["subfolder"] for output in state.outputs] == [f"darkroom/{job.job_key}"]
    assert state.finished_at is not None
    assert lab.outcomes(job) == ["success"]


def test_preparing_twice_makes_the_same_body(lab: Lab) -> None:
    job = a_job("photo-invert", photo="cat.jpg")
    assert lab.adapter.prepare(job).body_hash == lab.adapter.prepare(job).body_hash
    assert lab.uploads == 1, "the server is known to hold the picture"


def test_an_answer_lost_after_acceptance_is_found_by_looking(lab: Lab) -> None:
    job = a_job()
    lab.faults(drop_after_accept={"times": 1})
    assert lab.adapter.submit(lab.adapter.prepare(job)) == Accepted(str(job.job_key))
    lab.ended(job)
    assert lab.posts == 1
    assert lab.outcomes(job) == ["success"]


def test_a_500_for_a_queued_job_is_found_by_looking(lab: Lab) -> None:
    job = a_job()
    lab.faults(answer_500={"queue": True, "times": 1})
    lab.adapter.submit(lab.adapter.prepare(job))
    lab.ended(job)
    assert lab.posts == 1
    assert lab.outcomes(job) == ["success"]


@pytest.mark.parametrize(
    "fault",
    [
        {"answer_500": {"queue": False, "times": 1}},
        {"drop_before_read": {"times": 1}},
        {"garbage": {"kind": "html", "times": 1}},
    ],
    ids=lambda fault: next(iter(fault)),
)
def test_a_job_proven_absent_is_posted_exactly_once_more(lab: Lab, fault: dict[str, object]) -> None:
    job = a_job()
    lab.faults(**fault)
    assert lab.adapter.submit(lab.adapter.prepare(job)) == Accepted(str(job.job_key))
    lab.ended(job)
    assert lab.posts == 2
    assert lab.outcomes(job) == ["success"]


@pytest.mark.parametrize("kind", ["cut_json", "cut_body"])
def test_a_cut_answer_is_settled_without_a_second_post(lab: Lab, kind: str) -> None:
    job = a_job()
    lab.faults(garbage={"kind": kind, "times": 1})
    lab.adapter.submit(lab.adapter.prepare(job))
    lab.ended(job)
    assert lab.posts == 1
    assert lab.outcomes(job) == ["success"]


def test_a_slow_answer_is_settled_without_a_second_post(lab: Lab) -> None:
    job = a_job()
    lab.faults(slow={"seconds": 1.0, "paths": ["/prompt"], "times": 1})
    lab.adapter.submit(lab.adapter.prepare(job))
    lab.ended(job)
    assert lab.posts == 1
    assert ("submit", "timeout") in lab.observed


@pytest.mark.parametrize(
    ("faults", "was_answered"),
    [
        ({"drop_before_read": {}}, False),
        ({"answer_500": {}}, True),
        ({"drop_before_read": {"times": 1}, "answer_500": {}}, False),
    ],
    ids=["lost", "answered", "lost and answered"],
)
def test_two_useless_answers_end_in_outcome_unknown_and_never_a_third_post(
    lab: Lab, faults: dict[str, object], was_answered: bool
) -> None:
    job = a_job()
    lab.faults(**faults)
    with pytest.raises(OutcomeUnknown) as caught:
        lab.adapter.submit(lab.adapter.prepare(job))
    assert lab.posts == 2
    assert caught.value.was_answered is was_answered
    lab.faults(clear=True)
    assert isinstance(lab.adapter.find(job), Gone)


def test_a_post_that_nobody_answers_is_not_repeated_and_makes_one_job_when_it_arrives_after_all(lab: Lab) -> None:
    job = a_job()
    lab.faults(slow={"seconds": 2.5, "before": True, "paths": ["/prompt"], "times": 1})
    with pytest.raises(OutcomeUnknown) as caught:
        lab.adapter.submit(lab.adapter.prepare(job))
    assert caught.value.may_arrive
    eventually(lambda: lab.outcomes(job) == ["success"], within=5)
    assert lab.posts == 1
    assert lab.adapter.recover(job) == Accepted(str(job.job_key))


def test_a_repeat_that_nobody_answers_may_arrive_as_well(lab: Lab) -> None:
    job = a_job()
    late = {"seconds": 2.5, "before": True, "paths": ["/prompt"], "times": 1}
    lab.faults(drop_before_read={"times": 1}, slow=late)
    with pytest.raises(OutcomeUnknown) as caught:
        lab.adapter.submit(lab.adapter.prepare(job))
    assert caught.value.may_arrive
    eventually(lambda: lab.outcomes(job) == ["success"], within=5)
    assert lab.posts == 2, "the first one never arrived"


@pytest.mark.parametrize("looks", [0, 1])
def test_absence_after_a_silence_is_doubtful_and_after_a_broken_connection_certain(lab: Lab, looks: int) -> None:
    now = datetime.now(UTC)
    job = dataclasses.replace(a_job(), sent=Sent(posts=1, looks=looks, first_at=now, now=now))
    found = lab.adapter.recover(job)
    assert isinstance(found, Unclear if looks else Gone)
    assert not isinstance(found, Unclear) or (found.resend and found.ask_in is None)


def test_after_a_lost_answer_and_deaf_looks_nothing_more_is_sent(lab: Lab) -> None:
    job = a_job()
    lab.faults(
        drop_after_accept={"times": 1}, garbage={"paths": ["/api/jobs*", "/queue", "/history/*"], "kind": "html"}
    )
    with pytest.raises(OutcomeUnknown):
        lab.adapter.submit(lab.adapter.prepare(job))
    assert lab.posts == 1
    lab.faults(clear=True)
    assert isinstance(lab.adapter.find(job), Running | Succeeded)


def test_pictures_on_disk_prove_a_job_that_a_restart_forgot(lab: Lab) -> None:
    job = a_job()
    prepared = lab.adapter.prepare(job)
    lab.adapter.submit(prepared)
    lab.ended(job)
    lab.restart()
    lab.faults(drop_before_read={"times": 1})
    assert lab.adapter.submit(prepared) == Accepted(str(job.job_key))
    assert lab.outcomes(job) == ["success"]
    assert isinstance(lab.adapter.find(job), Succeeded)


def test_no_connection_means_nothing_was_created_and_the_server_is_down(lab: Lab) -> None:
    job = a_job()
    prepared = lab.adapter.prepare(job)
    lab.faults(refuse={"seconds": 0.5})
    with pytest.raises(ProviderBusy) as caught:
        lab.adapter.submit(prepared)
    assert caught.value.is_down
    assert not lab.adapter.is_alive()
    eventually(lab.adapter.is_alive, within=5)
    assert lab.posts == 0


def test_a_partly_accepted_graph_is_cancelled_and_refused(lab: Lab) -> None:
    job = a_job()
    blocker = a_job()
    lab.faults(seconds_per_image=1)
    lab.adapter.submit(lab.adapter.prepare(blocker))
    prepared = lab.adapter.prepare(job)
    prompt = {**prepared.body["prompt"], "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "darkroom/x"}}}
    partly = Prepared(job=job, body={**prepared.body, "prompt": prompt}, body_hash="")
    with pytest.raises(ProviderRejected, match=r"only in part.*node 9 SaveImage: required_input_missing"):
        lab.adapter.submit(partly)
    assert lab.outcomes(job) == ["deleted"]


def test_a_missing_model_is_refused_and_the_sentence_says_so(lab: Lab) -> None:
    with pytest.raises(ProviderRejected, match=r"ckpt_name.*another one may have"):
        lab.adapter.submit(lab.adapter.prepare(a_job("sdxl-txt2img", prompt="a lighthouse")))
    assert lab.posts == 1


def test_a_picture_the_server_lost_is_uploaded_once_more(lab: Lab) -> None:
    job = a_job("photo-invert", photo="cat.jpg", width=64, height=64)
    prepared = lab.adapter.prepare(job)
    picture = prepared.body["prompt"]["10"]["inputs"]["image"]
    (_folder(lab) / "input" / picture).unlink()
    assert lab.adapter.submit(prepared) == Accepted(str(job.job_key))
    assert isinstance(lab.ended(job)[job.job_key], Succeeded)
    assert (lab.posts, lab.uploads) == (2, 2)


def test_a_name_the_server_changed_is_the_name_the_graph_uses(lab: Lab) -> None:
    job = a_job("photo-invert", photo="coffee.jpg", width=64, height=64)
    name = lab.adapter.prepare(job).body["prompt"]["10"]["inputs"]["image"]
    (_folder(lab) / "input" / name).write_bytes(b"other bytes")
    again = lab.new_adapter().prepare(job)
    assert again.body["prompt"]["10"]["inputs"]["image"] == name.replace(".png", " (1).png")
    lab.adapter.submit(again)
    assert isinstance(lab.ended(job)[job.job_key], Succeeded)


@pytest.mark.parametrize(
    ("workflow", "inputs", "reason"),
    [
        ("no-such", {}, Reason.INVALID_WORKFLOW),
        (None, {}, Reason.INVALID_WORKFLOW),
        ("solid-invert", {"width": 10**9}, Reason.REJECTED),
        ("solid-invert", {"width": ["3", 0]}, Reason.REJECTED),
    ],
)
def test_a_bad_order_is_refused_before_anything_is_sent(
    lab: Lab, workflow: str | None, inputs: dict[str, object], reason: Reason
) -> None:
    with pytest.raises(ProviderRejected) as caught:
        lab.adapter.prepare(a_job(workflow, **inputs))
    assert caught.value.reason == reason
    assert (lab.posts, lab.uploads) == (0, 0)


def test_every_call_is_observed_with_its_result(lab: Lab) -> None:
    job = a_job()
    lab.adapter.submit(lab.adapter.prepare(job))
    state = lab.ended(job)[job.job_key]
    assert not isinstance(state, Failed)
    assert ("submit", "ok") in lab.observed
    assert ("poll", "ok") in lab.observed
    assert {result for _, result in lab.observed} == {"ok"}


def _folder(lab: Lab) -> Path:
    return Path(lab.stats()["directory"])


def test_many_threads_may_use_one_adapter(lab: Lab) -> None:
    lab.faults(seconds_per_image=0.01)
    jobs = [a_job() for _ in range(24)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda job: lab.adapter.submit(lab.adapter.prepare(job)), jobs))
    assert all(isinstance(state, Succeeded) for state in lab.ended(*jobs).values())
    assert lab.posts == len(jobs)
