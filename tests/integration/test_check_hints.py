"""A word from the websocket makes the poller ask a server at once, and changes nothing by itself."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from shared.domain.errors import ProviderAway
from shared.domain.outcome import Done
from shared.domain.task import Accepted, Status
from shared.providers.base import Succeeded
from tests.factories import a_hint
from tests.integration.check_lab import Lab, names


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


def test_a_hint_completes_what_ended_there_and_asks_for_nothing_else(lab: Lab) -> None:
    ended, running = lab.running(Succeeded(outputs=[{}])), lab.running()
    lab.provider.jobs[uuid.uuid4()] = Succeeded(outputs=[{}])  # somebody else's

    (outcome,) = lab.check.handle([a_hint("gpu-1")])

    assert isinstance(outcome, Done)
    assert [message.routing_key for message in outcome.then] == ["order.completed"]
    assert [follow_up.task_id for follow_up in outcome.follow_up_of] == [ended.id]
    assert (lab.now(ended).status, lab.now(running).status) == (Status.COMPLETED, Status.PROCESSING)
    assert lab.provider.calls == [("ended", ended.job_key), ("fetch", ended.job_key)]


def test_a_hint_that_comes_while_another_is_followed_is_followed_after_it(lab: Lab) -> None:
    first, second = lab.running(Succeeded(outputs=[{}])), lab.running()
    hints: list[Sequence[Any]] = []

    def meanwhile() -> None:
        lab.provider.finish(second, Succeeded(outputs=[{}]))
        hints.append(lab.check.handle([a_hint("gpu-1")]))

    lab.provider.meanwhile["fetch"] = meanwhile

    (outcome,) = lab.check.handle([a_hint("gpu-1")])

    assert hints == [[Done(then=[], follow_up_of=[])]]
    assert names(outcome) == ["order.completed", "check.comfyui"]
    assert [follow_up.task_id for follow_up in outcome.follow_up_of] == [first.id]
    (once_more,) = lab.check.handle([replace(a_hint("gpu-1"), body=outcome.then[1].body)])
    assert names(once_more) == ["order.completed"]
    assert lab.now(second).status is Status.COMPLETED


def test_a_job_that_ended_before_its_row_could_say_so_is_looked_for_again(lab: Lab) -> None:
    """One that was made before takes ComfyUI no time, and its end is announced once."""
    row = lab.submitting()
    lab.provider.finish(row, Succeeded(outputs=[{}]))

    (early,) = lab.check.handle([a_hint("gpu-1")])
    assert names(early) == ["check.comfyui"]
    assert lab.now(row).status is Status.SUBMITTING

    lab.tasks.record([(row, Accepted(str(row.job_key)))], due_in=60)
    (again,) = lab.check.handle([replace(a_hint("gpu-1"), body=early.then[0].body)])
    assert names(again) == ["order.completed"]
    assert lab.now(row).status is Status.COMPLETED


def test_a_job_of_a_row_that_nobody_owns_is_left_to_whoever_takes_it_over(lab: Lab) -> None:
    row = lab.submitting()
    lab.provider.finish(row, Succeeded(outputs=[{}]))
    lab.age(row, free_at=1)

    assert lab.check.handle([a_hint("gpu-1")]) == [Done(then=[], follow_up_of=[])]


def test_a_hint_of_a_server_that_does_not_answer_teaches_nothing(lab: Lab) -> None:
    task = lab.running(Succeeded(outputs=[{}]))
    lab.provider.plan("ended", ProviderAway("gone"))

    assert lab.check.handle([a_hint("gpu-1")]) == [Done(then=[], follow_up_of=[])]
    assert lab.now(task).status is Status.PROCESSING
    assert len(lab.check.handle([a_hint("gpu-1")])[0].follow_up_of) == 1
