"""A server that is gone for good: a person says so, and nothing waits for it any more."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.ops.backend_commands import backend_app
from services.ops.collector import Collector
from shared.database.audit import run_audit
from shared.database.dead_letters import DeadLetters
from shared.database.letters import LetterFilter
from shared.database.replays import Replays, Way
from shared.domain.errors import ProviderAway
from shared.domain.task import Reason, Status
from shared.observe import metrics
from tests.factories import delivered
from tests.integration.check_lab import Lab, names

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str) -> Run:
    """`darkroom backend forget …`: the exit status and all that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DARKROOM_DATABASE_URL", database_url)

    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(backend_app, ["forget", *words, "--by", "ann", "--why", "the rack burned"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return run


def test_what_ran_there_goes_elsewhere_charged(lab: Lab, forget: Run) -> None:
    task = lab.running()
    lab.slots.set_health("gpu-1", "down")

    assert forget("gpu-1") == (0, "gpu-1 is forgotten: 1 wait for another server, 0 failed, 0 owed cancels dropped\n")

    row = lab.now(task)
    assert (row.status, row.reason, row.charged, row.avoid_backend) == (Status.PENDING, Reason.LOST, 1, "gpu-1")
    assert lab.attempts(task)[0].outcome == Reason.LOST
    assert "ann says that gpu-1 is gone or was restarted: the rack burned" in (row.detail or "")


def test_an_order_without_tries_left_fails_with_a_letter(lab: Lab, forget: Run) -> None:
    task = lab.running()
    lab.sql("update tasks set charged = 4")
    lab.slots.set_health("gpu-1", "down")

    forget("gpu-1")

    row = lab.now(task)
    assert (row.status, row.reason) == (Status.FAILED, Reason.LOST)
    assert names(lab.look(row)) == ["check.dead", "order.failed"]


def test_an_order_whose_owed_cancel_was_dropped_can_be_replayed_and_the_audit_is_clean(lab: Lab, forget: Run) -> None:
    task = lab.age(lab.running(), deadline_at=1)
    lab.provider.plan("cancel", ProviderAway("no answer"))
    outcome = lab.look(task)
    lab.tasks.clear_due(outcome.follow_up_of)
    letters, replays = DeadLetters(lab.engine, "test"), Replays(lab.engine, 3600.0)
    counted = metrics.build("ops", pools=["comfyui"], queues=["check.dead"], strict=True)
    Collector(letters, counted).handle([delivered(m, queue="check.dead") for m in outcome.then[:1]])
    (letter,) = letters.ids(LetterFilter())
    assert replays.preview([letter])[0].way is Way.REFUSED
    lab.slots.set_health("gpu-1", "down")

    assert forget("gpu-1")[1].endswith("1 owed cancels dropped\n")

    assert (lab.now(task).cancel_owed, lab.now(task).due_at) == (False, None)
    assert replays.preview([letter])[0].way is Way.ROW
    lab.age(lab.now(task), finished_at=4000, told_at=4000)
    assert run_audit(lab.engine, lab.store) == []


def test_a_last_word_that_is_still_owed_stays_owed(lab: Lab, forget: Run) -> None:
    task = lab.tasks.cancel(lab.running().id)
    assert task is not None
    lab.slots.set_health("gpu-1", "down")

    forget("gpu-1")

    row = lab.now(task)
    assert (row.cancel_owed, row.due_at is None) == (False, False)
    assert names(lab.look(row)) == ["order.cancelled"]
    assert lab.provider.cancelled == []


def test_rows_whose_submitter_is_gone_wait_uncharged_and_one_at_work_is_left_alone(lab: Lab, forget: Run) -> None:
    gone, late, at_work = lab.submitting(), lab.submitting(), lab.submitting()
    lab.age(gone, free_at=1)
    lab.age(late, free_at=1, deadline_at=1)
    lab.slots.set_health("gpu-1", "down")

    status, out = forget("gpu-1", "--json")

    assert (status, json.loads(out)["left"]) == (0, 1)
    assert [(lab.now(t).status, lab.now(t).charged) for t in (gone, late, at_work)] == [
        (Status.PENDING, 0),
        (Status.FAILED, 0),
        (Status.SUBMITTING, 0),
    ]
    assert lab.now(late).reason == Reason.DEADLINE


def test_it_is_noted_with_who_and_why(lab: Lab, forget: Run) -> None:
    lab.running()
    lab.slots.set_health("gpu-1", "down")

    forget("gpu-1")

    (action,) = lab.sql("select by_whom, action, subject, detail from operator_actions")
    assert tuple(action) == (
        "ann",
        "backend forget",
        "gpu-1",
        {"why": "the rack burned", "pending": 1, "failed": 0, "cancels": 0},
    )


def test_a_frozen_server_is_down_until_the_poller_hears_of_it(lab: Lab, forget: Run) -> None:
    lab.slots.freeze("gpu-1", lab.running().job_key)

    assert forget("gpu-1")[0] == 0

    assert lab.health() == "down"


def test_a_server_that_is_up_is_not_forgotten_and_one_that_was_removed_is(lab: Lab, forget: Run) -> None:
    task = lab.running()

    status, out = forget("gpu-1")
    assert (status, "gpu-1 is up" in out) == (1, True)
    assert lab.now(task).status is Status.PROCESSING

    lab.backends(gpu_2=1)
    assert forget("gpu-1")[0] == 0
    assert lab.now(task).status is Status.PENDING


def test_an_unknown_server_is_answered_with_the_known_ones(lab: Lab, forget: Run) -> None:
    assert lab.slots.backends()

    status, out = forget("gpu-9")

    assert (status, "there are: gpu-1, gpu-2" in out) == (1, True)
