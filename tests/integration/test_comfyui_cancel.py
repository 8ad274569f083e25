"""Cancelling by id, on both generations, without touching what belongs to somebody else."""

import time
from collections.abc import Iterator

import pytest

from shared.domain.errors import ProviderAway
from shared.providers.base import Failed, Gone, Running, Succeeded
from tests.integration.comfyui_lab import Lab, a_job, running_lab
from tests.waiting import eventually


@pytest.fixture(scope="module", params=["modern", "legacy"])
def server(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with running_lab(request.param) as lab:
        yield lab


@pytest.fixture
def lab(server: Lab) -> Lab:
    server.begin()
    server.faults(seconds_per_image=5)
    return server


def test_a_running_job_is_interrupted_and_the_waiting_one_starts(lab: Lab) -> None:
    first, second = a_job(), a_job()
    for job in (first, second):
        lab.adapter.submit(lab.adapter.prepare(job))
    eventually(lambda: lab.outcomes(first) == ["running"], within=3)
    assert lab.adapter.cancel(first) is True
    assert lab.outcomes(first) == ["interrupted"]
    eventually(lambda: lab.outcomes(second) == ["running"], within=3)
    assert isinstance(lab.adapter.find(first), Failed)


def test_a_waiting_job_is_taken_out_and_the_running_one_goes_on(lab: Lab) -> None:
    first, second = a_job(), a_job()
    for job in (first, second):
        lab.adapter.submit(lab.adapter.prepare(job))
    eventually(lambda: lab.outcomes(first) == ["running"], within=3)
    assert lab.adapter.cancel(second) is True
    assert lab.outcomes(second) == ["deleted"]
    assert lab.outcomes(first) == ["running"]
    assert lab.adapter.find(second) == Gone()


def test_cancelling_a_finished_or_unknown_job_changes_nothing(lab: Lab) -> None:
    lab.faults(seconds_per_image=0)
    done = a_job()
    lab.adapter.submit(lab.adapter.prepare(done))
    assert isinstance(lab.ended(done)[done.job_key], Succeeded)
    lab.faults(seconds_per_image=5)
    bystander = a_job()
    lab.adapter.submit(lab.adapter.prepare(bystander))
    eventually(lambda: lab.outcomes(bystander) == ["running"], within=3)
    assert lab.adapter.cancel(done) is True
    assert lab.adapter.cancel(a_job()) is True
    assert lab.outcomes(bystander) == ["running"]


def test_a_job_that_does_not_stop_is_reported_within_two_seconds(lab: Lab) -> None:
    job = a_job()
    lab.faults(freeze=True)
    lab.adapter.submit(lab.adapter.prepare(job))
    began = time.monotonic()
    assert lab.adapter.cancel(job) is False
    assert time.monotonic() - began < 2


def test_cancelling_at_a_server_that_is_away_raises(lab: Lab) -> None:
    job = a_job()
    lab.adapter.submit(lab.adapter.prepare(job))
    lab.faults(refuse={"seconds": 0.4})
    with pytest.raises(ProviderAway):
        lab.adapter.cancel(job)
    eventually(lab.adapter.is_alive, within=5)
    assert isinstance(lab.adapter.find(job), Running)
    assert lab.adapter.cancel(job) is True
