"""The audit: silent on what the services make, and each check alone catches the fault it is there for."""

import itertools
import json
from collections.abc import Callable, Iterator

import pytest
import typer
from typer.testing import CliRunner

from services.ops import audit_command
from services.ops.collector import letter_of
from services.ops.exporter import WINDOW_SECONDS, Exporter
from shared.database import audit
from shared.database.audit import PROMISES, Check, Finding, count_violations, run_audit
from shared.database.dead_letters import DeadLetters
from shared.domain.errors import StorageAway
from shared.domain.task import Reason, Stage, Status
from shared.observe.catalog import INVARIANTS
from tests.integration.rows_lab import Lab, a_picture, letter_about


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


@pytest.fixture
def findings(lab: Lab) -> Callable[[], list[Finding]]:
    return lambda: run_audit(lab.engine, lab.artifacts)


def without_triggers(lab: Lab, *statements: str, **values: object) -> None:
    """Write behind the back of the history."""
    lab.sql("alter table tasks disable trigger user")
    lab.sql("alter table task_moves disable trigger user")
    for statement in statements:
        lab.sql(statement, **values)


def drop_check(lab: Lab, table: str, holds: str) -> None:
    """Drop the table's check constraint whose text has these words."""
    found = lab.sql(
        "select conname from pg_constraint where conrelid = cast(:table as regclass) and contype = 'c'"
        " and pg_get_constraintdef(oid) like :holds",
        table=table,
        holds=f"%{holds}%",
    )
    for row in found:
        lab.sql(f"alter table {table} drop constraint {row.conname}")


def shrink(lab: Lab, capacity: int = 1) -> None:
    """The backend had this capacity all the time."""
    lab.sql("update backends set capacity = :capacity", capacity=capacity)
    lab.sql("alter table capacities disable trigger user")
    lab.sql("update capacities set capacity = :capacity", capacity=capacity)


def test_an_empty_database_keeps_every_promise(findings):
    assert findings() == []


def test_rows_in_every_status_made_by_the_services_keep_every_promise(lab, findings):
    lab.completed(order_id="o-1")
    lab.failed(order_id="o-1")
    lab.failed_at_once(lab.pending())
    lab.end(lab.processing(), Status.FAILED, reason=Reason.BUG, stage=Stage.CHECK, cancel_owed=True)
    lab.tasks.cancel(lab.pending().id)
    lab.tasks.cancel(lab.submitting().id)
    lab.tasks.cancel(lab.processing().id)
    lab.end(lab.processing(), Status.PENDING, charge=True, attempt_outcome="lost", free_in=60.0)
    lab.processing()
    lab.pending(order_id="o-1")
    lab.pending(order_id="o-1")  # a duplicate
    assert findings() == []
    assert set(count_violations(lab.engine, WINDOW_SECONDS).values()) == {0}


def caught(lab: Lab, found: list[Finding], check: Check, subject: object) -> None:
    """That check alone, about that subject; the exporter counts the same."""
    assert [(f.check, f.subject) for f in found] == [(check, str(subject))], found
    assert found[0].detail
    counts = count_violations(lab.engine, WINDOW_SECONDS)
    assert {name for name, rows in counts.items() if rows} == {check}


def test_a_key_with_two_tasks_is_found(lab, findings):
    lab.sql("alter table tasks drop constraint tasks_idempotency_key_key")
    task, other = lab.pending(), lab.pending()
    lab.sql("update tasks set idempotency_key = :key where id = :id", key=task.idempotency_key, id=other.id)
    caught(lab, findings(), Check.DUPLICATE_TASK, task.idempotency_key)


def test_a_key_that_has_a_task_and_is_kept_as_a_duplicate_too_is_found(lab, findings):
    first, second = lab.pending(), lab.pending()
    lab.sql(
        "insert into duplicate_keys (idempotency_key, task_id, own_task_id, fingerprint)"
        " values (:key, :task, :own, 'f')",
        key=second.idempotency_key,
        task=first.id,
        own=second.id,
    )
    caught(lab, findings(), Check.DUPLICATE_TASK, second.idempotency_key)


def test_an_order_id_with_two_active_tasks_is_found(lab, findings):
    lab.sql("drop index tasks_one_active_order")
    lab.pending(order_id="o-1")
    other = lab.pending()
    lab.sql("update tasks set order_id = 'o-1' where id = :id", id=other.id)
    caught(lab, findings(), Check.DUPLICATE_ORDER, "o-1")


def test_a_task_that_two_attempts_completed_is_found(lab, findings):
    task = lab.completed()
    lab.sql(
        "insert into attempts (task_id, attempt, backend, job_key, seed, outcome)"
        " values (:id, 2, 'gpu-1', gen_random_uuid(), 1, 'completed')",
        id=task.id,
    )
    caught(lab, findings(), Check.DOUBLE_SUBMIT, task.id)


def test_a_completed_task_with_a_second_job_that_was_accepted_and_never_ended_is_found(lab, findings):
    task = lab.completed()
    lab.sql(
        "insert into attempts (task_id, attempt, backend, job_key, seed, accepted_at, provider_job_id)"
        " values (:id, 2, 'gpu-1', gen_random_uuid(), 1, now(), 'another')",
        id=task.id,
    )
    caught(lab, findings(), Check.DOUBLE_SUBMIT, task.id)


def test_an_attempt_with_two_known_jobs_is_found(lab, findings):
    task = lab.processing()
    lab.sql("update attempts set provider_job_id = 'another' where task_id = :id", id=task.id)
    caught(lab, findings(), Check.DOUBLE_SUBMIT, task.id)


def test_a_job_that_stands_for_two_attempts_is_found(lab, findings):
    first, second = lab.processing(), lab.processing()
    lab.sql("update attempts set provider_job_id = 'shared'")
    lab.sql("update tasks set provider_job_id = 'shared'")
    caught(lab, findings(), Check.DOUBLE_SUBMIT, min(str(first.id), str(second.id)))


@pytest.mark.parametrize("status", ["pending", "processing"])
def test_an_unfinished_task_that_nobody_will_look_at_is_found(lab, findings, status):
    drop_check(lab, "tasks", "due_at IS NOT NULL")
    task = lab.processing() if status == "processing" else lab.pending()
    lab.sql("update tasks set due_at = null where id = :id", id=task.id)
    caught(lab, findings(), Check.LOST_ORDER, task.id)


def test_a_completed_task_without_a_picture_is_found(lab, findings):
    task = lab.completed()
    lab.sql("delete from artifacts where task_id = :id", id=task.id)
    caught(lab, findings(), Check.MISSING_ARTIFACT, task.id)


@pytest.mark.parametrize("end", [Status.FAILED, Status.CANCELLED])
def test_a_task_that_ended_without_a_reason_is_found(lab, findings, end):
    drop_check(lab, "tasks", "reason IS NOT NULL")
    task = lab.failed() if end is Status.FAILED else lab.tasks.cancel(lab.pending().id)
    lab.sql("update tasks set reason = null where id = :id", id=task.id)
    caught(lab, findings(), Check.MISSING_ARTIFACT, task.id)


def test_a_picture_that_is_gone_from_the_store_is_found(lab):
    task = lab.completed()
    lab.sql("update artifacts set key = replace(key, '/0.png', '/7.png')")
    (finding,) = run_audit(lab.engine, lab.artifacts)
    assert (finding.check, finding.subject) == (Check.MISSING_ARTIFACT, str(task.id))
    assert "not in the store" in finding.detail


def test_a_picture_that_changed_in_the_store_is_found(lab, findings):
    task = lab.completed()
    lab.artifacts.put(task.id, task.attempt, 0, a_picture("blue"))
    (finding,) = findings()
    assert (finding.check, finding.subject) == (Check.MISSING_ARTIFACT, str(task.id))
    assert "changed" in finding.detail


def test_a_store_that_is_away_is_no_finding(lab):
    class Away:
        def digest(self, key: str) -> str:
            raise StorageAway("no answer")

    lab.completed()
    with pytest.raises(StorageAway):
        run_audit(lab.engine, Away())


@pytest.mark.parametrize("how", ["running", "still to be cancelled"])
def test_a_backend_with_more_in_flight_than_it_takes_is_found(lab, findings, how):
    lab.processing()
    other = lab.processing()
    if how != "running":
        lab.tasks.cancel(other.id)
    assert findings() == []
    shrink(lab)
    caught(lab, findings(), Check.OVER_CAPACITY, "gpu-1")


def test_a_row_that_was_taken_beyond_the_capacity_is_found_when_all_is_over(lab, findings):
    ended = [lab.processing(), lab.processing()]
    for task in ended:
        lab.paid(lab.end(task, Status.CANCELLED, reason="on request", attempt_outcome="cancelled"))
    assert findings() == []
    shrink(lab)
    (finding,) = findings()
    assert (finding.check, finding.subject) == (Check.OVER_CAPACITY, "gpu-1")
    assert "1 rows were taken beyond its capacity" in finding.detail
    assert "number 2 of 1" in finding.detail
    assert set(count_violations(lab.engine, WINDOW_SECONDS).values()) == {0}


def test_what_was_taken_before_a_capacity_was_lowered_or_after_it_was_raised_breaks_no_promise(lab, findings):
    first = [lab.processing() for _ in range(3)]
    lab.sql("update backends set capacity = 2")
    assert findings() == []
    for task in first:
        lab.paid(lab.end(task, Status.CANCELLED, reason="on request", attempt_outcome="cancelled"))
    for _ in range(2):
        lab.processing()
    lab.sql("update backends set capacity = 4")
    for _ in range(2):
        lab.processing()
    lab.sql("update backends set capacity = 1")
    assert findings() == []


def test_a_row_taken_over_stands_in_one_slot_and_one_given_back_in_none(lab, findings):
    taken = lab.submitting()
    lab.sql("update tasks set free_at = now()")
    (again,) = lab.take()
    lab.end(again, Status.PENDING, attempt_outcome="not_created")
    lab.take()
    assert lab.row(taken).attempt == 2
    shrink(lab)
    assert findings() == []


def test_a_failed_task_without_a_dead_letter_is_found(lab, findings):
    task = lab.failed()
    assert findings() == []  # the collector has a minute
    lab.sql("update tasks set told_at = now() - interval '2 minutes' where id = :id", id=task.id)
    caught(lab, findings(), Check.MISSING_LETTER, task.id)
    DeadLetters(lab.engine, "lab").record([letter_of(letter_about(task))])
    assert findings() == []


def test_a_final_task_that_owes_its_follow_up_for_long_is_found(lab, findings):
    task = lab.end(lab.processing(), Status.FAILED, reason=Reason.BUG, stage=Stage.CHECK)
    lab.sql("update tasks set finished_at = now() - interval '4 minutes'")
    assert findings() == []
    lab.sql("update tasks set finished_at = now() - interval '6 minutes'")
    caught(lab, findings(), Check.ZOMBIE, task.id)


def test_a_task_cancelled_while_submitting_owes_nothing_before_its_lease_is_over(lab, findings):
    task = lab.submitting()
    lab.tasks.cancel(task.id)
    lab.sql("update tasks set finished_at = now() - interval '6 minutes'")
    assert findings() == []
    lab.sql("update tasks set free_at = now() - interval '6 minutes'")
    caught(lab, findings(), Check.ZOMBIE, task.id)


@pytest.mark.parametrize(
    "fault",
    [
        "update tasks set status = 'pending', due_at = now() where id = :id",
        "update tasks set version = version + 1 where id = :id",
        "delete from task_moves where task_id = :id and version = 1",
        "delete from task_moves where task_id = :id and version = 2",
        "update task_moves set from_status = 'submitting' where task_id = :id and version = 2",
        "update task_moves set attempt = 5 where task_id = :id and version = 2",
    ],
    ids=["status", "version", "no beginning", "a gap", "a leap", "attempt falls"],
)
def test_a_history_that_is_no_chain_to_the_status_is_found(lab, findings, fault):
    task = lab.processing()
    without_triggers(lab, fault, id=task.id)
    caught(lab, findings(), Check.BAD_HISTORY, task.id)


def test_a_task_without_a_history_is_found(lab, findings):
    task = lab.processing()
    without_triggers(lab, "delete from task_moves where task_id = :id", id=task.id)
    (finding,) = findings()
    assert (finding.check, finding.subject, finding.detail) == (Check.BAD_HISTORY, str(task.id), "no history")


def test_a_move_that_is_not_legal_is_found(lab, findings):
    lab.sql("alter table task_moves drop constraint task_moves_from_status_to_status_fkey")
    task = lab.pending()
    lab.sql(
        "update tasks set status = 'cancelled', reason = 'x', due_at = null, finished_at = now(), version = 2"
        " where id = :id",
        id=task.id,
    )
    lab.sql(
        "update tasks set status = 'pending', due_at = now(), finished_at = null, version = 3 where id = :id",
        id=task.id,
    )
    found = findings()
    caught(lab, found, Check.BAD_HISTORY, task.id)
    assert found[0].detail == "version 3: moves from cancelled to pending"


@pytest.mark.parametrize(
    ("statement", "subject"),
    [
        ("insert into legal_moves values ('completed', 'pending')", "completed -> pending"),
        ("delete from legal_moves where from_status = 'failed' and to_status = 'processing'", "failed -> processing"),
    ],
)
def test_a_database_that_allows_other_moves_than_the_code_is_found(lab, findings, statement, subject):
    lab.sql(statement)
    caught(lab, findings(), Check.LEGAL_MOVES, subject)


def test_a_fault_older_than_the_window_is_left_to_the_audit(lab, findings):
    task = lab.processing()
    without_triggers(
        lab,
        "update tasks set version = version + 1 where id = :id",
        "update task_moves set at = at - interval '1 day' where task_id = :id",
        id=task.id,
    )
    assert len(findings()) == 1
    assert count_violations(lab.engine, WINDOW_SECONDS)[Check.BAD_HISTORY] == 0


def test_in_a_busy_time_the_exporter_looks_at_the_last_moves_alone(lab, findings, monkeypatch):
    first, *_ = [lab.processing() for _ in range(4)]
    without_triggers(lab, "update tasks set version = version + 1 where id = :id", id=first.id)
    monkeypatch.setattr(audit, "_MOST_MOVES", 6)
    assert len(findings()) == 1
    assert count_violations(lab.engine, WINDOW_SECONDS)[Check.BAD_HISTORY] == 0


def test_checks_promises_and_label_values_are_the_same_closed_list():
    assert set(Check) == set(PROMISES)
    assert set(Check) - set(INVARIANTS) == {Check.DOUBLE_JOB, Check.STRAY_JOB, Check.UNACCOUNTED}


def test_the_help_names_each_check_and_what_it_proves():
    said = " ".join((audit_command.audit.__doc__ or "").split())
    for check in Check:
        assert f"{check} {PROMISES[check]}" in said


def test_the_gauge_shows_each_check_and_nothing_while_the_database_cannot_be_asked(lab):
    minutes = itertools.count(0.0, 60.0)
    exporter = Exporter(lab.engine, lab.metrics, pools=[], backends=["gpu-1"], clock=lambda: next(minutes))
    lab.processing()
    lab.processing()
    shrink(lab)
    exporter.turn()
    values = {check: lab.metrics.value("invariant_violations", check=check) for check in INVARIANTS}
    assert values == {check: float(check == Check.OVER_CAPACITY) for check in INVARIANTS}
    lab.sql("alter table backends rename to elsewhere")
    for _ in range(150):  # each question took minutes, by this clock
        exporter.turn()
    sample = lab.metrics.registry.get_sample_value("darkroom_invariant_violations", {"check": "over_capacity"})
    assert sample is None


def test_the_gauge_shows_what_is_broken_until_it_is_mended_however_long_ago_it_broke(lab):
    minutes = itertools.count(0.0, 1.0)
    exporter = Exporter(lab.engine, lab.metrics, pools=[], backends=["gpu-1"], clock=lambda: next(minutes))
    task = lab.processing()
    broken = "update tasks set version = version + 1 where id = :id"
    without_triggers(lab, broken, id=task.id)
    shown = []
    for statement in (
        "update task_moves set at = at - interval '20 minutes' where task_id = :id",
        "update task_moves set at = at - interval '1 day' where task_id = :id",
        "update tasks set version = version - 1 where id = :id",
    ):
        without_triggers(lab, statement, id=task.id)
        for _ in range(50):
            exporter.turn()
        shown.append(lab.metrics.value("invariant_violations", check=Check.BAD_HISTORY))
    assert shown == [1, 1, 0]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """`darkroom audit` on a database, with a folder for the pictures."""
    app = typer.Typer()
    app.command("audit")(audit_command.audit)
    app.command("other")(lambda: None)
    monkeypatch.chdir(tmp_path)

    def run(url: str, *words: str) -> tuple[int, str, str]:
        monkeypatch.setenv("DARKROOM_DATABASE_URL", url)
        monkeypatch.setenv("DARKROOM_AMQP_URL", "amqp://127.0.0.1:1")
        monkeypatch.setenv("DARKROOM_ARTIFACTS_URL", str(tmp_path / "pictures"))
        result = CliRunner().invoke(app, ["audit", *words])
        return result.exit_code, result.stdout, result.stderr

    return run


def test_the_command_on_an_empty_migrated_database_says_that_all_is_kept(run, database_url):
    status, out, _ = run(database_url)
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        [check, "kept"] for check in Check if check is not Check.UNACCOUNTED
    ]


def test_the_command_names_what_is_broken_and_ends_with_1(run, lab, database_url):
    lab.processing()
    lab.processing()
    shrink(lab)
    status, out, error = run(database_url)
    assert status == 1
    assert "over_capacity: gpu-1: 2 in flight, it took at most 1" in out
    assert "not asked about their jobs, since they do not answer: gpu-1" in error
    status, out, _ = run(database_url, "--json")
    answer = json.loads(out)
    assert status == 1
    assert answer["ok"] is False
    assert answer["checks"]["over_capacity"]["findings"] == 1
    assert answer["findings"] == [
        {"check": "over_capacity", "subject": "gpu-1", "detail": "2 in flight, it took at most 1"}
    ]
    assert answer["silent_backends"] == ["gpu-1"]


def test_the_command_on_a_database_without_tables_names_the_migration(run, empty_database_url):
    status, _, error = run(empty_database_url)
    assert status == 2
    assert "darkroom migrate" in error
    assert len(error.splitlines()) == 1
