"""A job that exists after all: a person names it, and the failed order gets its pictures from it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.ops.order_commands import order_app
from services.poller.check import Check
from shared.database.audit import run_audit
from shared.domain.messages import dead_letter
from shared.domain.outcome import Done, FollowUp
from shared.domain.retry import RetryPolicy
from shared.domain.task import Reason, Status, Task
from shared.observe.logs import ContextPool
from shared.providers.base import Job
from shared.storage import Artifacts
from tests.factories import MEASURED, POOL, Rows, a_check
from tests.integration.check_lab import names
from tests.integration.comfyui_lab import Lab, a_job, running_lab

INPUTS = {"width": 32, "height": 32, "color": 0x00FF00}

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def simulator() -> Iterator[Lab]:
    with running_lab("modern") as lab:
        yield lab


class Adopting(Rows):
    def __init__(self, url: str, simulator: Lab) -> None:
        super().__init__(url)
        self.slots.sync([("gpu-1", POOL, "comfyui", simulator.url, 1, 60.0)])
        self.store = Artifacts("memory://")
        self.simulator = simulator
        self.check = Check(
            self.tasks,
            self.slots,
            {"gpu-1": simulator.adapter},
            self.store,
            retry=RetryPolicy(),
            max_run_seconds={"gpu-1": 60.0},
            frozen_after_seconds=30.0,
            metrics=MEASURED,
            threads=ContextPool(2),
        )

    def given_up(self) -> Task:
        """An order that failed because nobody knew what had become of its job."""
        task = self.submitting(workflow="solid-invert", inputs=INPUTS)
        failed = self.moved(
            task, Status.FAILED, reason=Reason.OUTCOME_UNKNOWN, charge=True, attempt_outcome="outcome_unknown"
        )
        self.tasks.clear_due([FollowUp(failed.id, failed.version)])
        return self.now(failed)

    def look(self, task: Task) -> Done:
        (outcome,) = self.check.handle([a_check(self.now(task))])
        assert isinstance(outcome, Done)
        return outcome


@pytest.fixture
def lab(database_url: str, simulator: Lab) -> Iterator[Adopting]:
    simulator.begin()
    lab = Adopting(database_url, simulator)
    yield lab
    lab.close()


@pytest.fixture
def adopt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str) -> Run:
    """`darkroom order adopt …`: the exit status and all that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DARKROOM_DATABASE_URL", database_url)

    def run(task: Task, job: str) -> tuple[int, str]:
        words = ["adopt", str(task.id), "--job", job, "--by", "ann", "--why", "seen in its history"]
        result = CliRunner().invoke(order_app, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return run


def test_the_pictures_of_an_adopted_job_complete_the_order(lab: Adopting, adopt: Run, simulator: Lab) -> None:
    task = lab.given_up()
    other = a_job()  # somebody ran the same by hand, under an id of its own
    simulator.adapter.submit(simulator.adapter.prepare(other))
    simulator.ended(other)

    status, out = adopt(task, str(other.job_key))

    assert (status, "waits for job" in out) == (0, True)
    row = lab.now(task)
    assert (row.status, row.attempt, row.provider_job_id) == (Status.PROCESSING, 1, str(other.job_key))
    assert row.due_at is not None
    assert row.due_at <= lab.now(task).now
    outcome = lab.look(task)
    assert names(outcome) == ["order.completed"]
    lab.tasks.clear_due(outcome.follow_up_of)
    assert lab.history(task)[-2:] == [("failed", "processing"), ("processing", "completed")]
    (attempt,) = lab.attempts(task)
    assert (attempt.outcome, attempt.provider_job_id) == ("completed", str(other.job_key))
    assert run_audit(lab.engine, lab.store) == []


def test_a_job_sent_under_the_orders_own_key_is_adopted_too(lab: Adopting, adopt: Run, simulator: Lab) -> None:
    task = lab.given_up()
    job = Job.of(task)
    simulator.adapter.submit(simulator.adapter.prepare(job))
    simulator.ended(job)

    adopt(task, str(task.job_key))

    assert names(lab.look(task)) == ["order.completed"]


def test_a_wrong_id_ends_as_failed_again_and_makes_no_other_picture(lab: Adopting, adopt: Run) -> None:
    task = lab.given_up()
    adopt(task, "no-such-job")

    outcome = lab.look(task)

    row = lab.now(task)
    assert (row.status, row.reason, row.attempt) == (Status.FAILED, Reason.LOST, 1)
    assert names(outcome) == ["check.dead", "order.failed"]


def test_it_is_noted_with_who_and_why_and_its_letter_is_closed(lab: Adopting, adopt: Run) -> None:
    task = lab.given_up()
    letter = dead_letter(task)
    lab.sql(
        "insert into dead_letters (identity, task_id, attempt, stage, reason, detail, fingerprint, message_id)"
        " values (:key, :id, 1, 'check', 'outcome_unknown', '', '', :key)",
        key=letter.message_id,
        id=task.id,
    )

    adopt(task, "job-7")

    (action,) = lab.sql("select by_whom, action, subject, detail from operator_actions")
    assert tuple(action) == (
        "ann",
        "order adopt",
        str(task.id),
        {"job": "job-7", "attempt": 1, "backend": "gpu-1", "why": "seen in its history"},
    )
    assert [tuple(row) for row in lab.sql("select state, closed_by from dead_letters")] == [("replayed", "ann")]


def test_an_order_that_failed_while_it_waited_adopts_the_job_of_its_last_attempt(lab: Adopting, adopt: Run) -> None:
    task = lab.processing(workflow="solid-invert", inputs=INPUTS)
    waiting = lab.moved(task, Status.PENDING, charge=True, attempt_outcome="lost")
    failed = lab.moved(waiting, Status.FAILED, reason=Reason.DEADLINE)
    lab.tasks.clear_due([FollowUp(failed.id, failed.version)])
    lab.age(failed, deadline_at=60)

    assert adopt(failed, "job-7")[0] == 0

    row = lab.now(task)
    assert (row.backend, row.job_key, row.is_past_deadline) == ("gpu-1", task.job_key, False)


def test_what_cannot_be_adopted_is_refused_with_the_reason(lab: Adopting, adopt: Run) -> None:
    def refusal(task: Task, job: str = "job-7") -> str:
        before = lab.now(task)
        status, out = adopt(task, job)
        assert status != 0
        assert (lab.now(task).status, lab.now(task).version) == (before.status, before.version)
        return out

    task = lab.given_up()
    assert "a job id is" in refusal(task, "../../x")
    lab.sql("update tasks set due_at = now()")
    assert "still being told" in refusal(task)
    lab.sql("update tasks set cancel_owed = true")
    assert "still being cancelled" in refusal(task)
    lab.sql("update tasks set cancel_owed = false, due_at = null")
    running = lab.processing()
    assert "only failed ones" in refusal(running)
    assert "gpu-1 takes 1 at a time and is full" in refusal(task)
    lab.moved(running, Status.COMPLETED)
    never_sent = lab.failed()
    lab.tasks.clear_due([FollowUp(never_sent.id, never_sent.version)])
    assert "never sent anywhere" in refusal(never_sent)


def test_an_order_id_that_has_another_active_task_is_refused(lab: Adopting, adopt: Run) -> None:
    task = lab.given_up()
    lab.sql("update tasks set order_id = 'o-1'")
    lab.pending(order_id="o-1")

    status, out = adopt(task, "job-7")

    assert (status, "another task for order o-1 is active" in out) == (1, True)
    assert lab.now(task).status is Status.FAILED
