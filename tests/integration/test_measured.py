"""What orders leave in the metrics is as long, as often and as large as what happened to them."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

from shared.domain.errors import ProviderAway
from shared.domain.outcome import FollowUp
from shared.domain.task import Reason, Status, Task
from shared.observe.catalog import PREFIX
from shared.providers.base import Failed, Gone, Running, Succeeded
from tests.factories import MEASURED, POOL
from tests.integration.check_lab import Lab

Since = Callable[..., float]


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


@pytest.fixture
def since() -> Since:
    """How much a sample has grown since the beginning of the test, without the prefix of its name."""
    before = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in MEASURED.registry.collect()
        for sample in family.samples
    }

    def grown(sample: str, **labels: str) -> float:
        now = MEASURED.registry.get_sample_value(PREFIX + sample, labels) or 0.0
        return now - before.get((PREFIX + sample, tuple(sorted(labels.items()))), 0.0)

    return grown


def ended(task: Task, seconds_ago: float) -> Succeeded:
    """Its job, done so long before the row was read."""
    return Succeeded(outputs=[{}], finished_at=(task.now - timedelta(seconds=seconds_ago)).timestamp())


def test_the_stages_of_an_order_add_up_to_its_duration(lab: Lab, since: Since) -> None:
    lab.age(lab.pending(), created_at=85, changed_at=40, free_at=40)
    (task,) = lab.take()
    lab.record(lab.age(task, created_at=85, changed_at=10))
    row = lab.age(task, created_at=85, changed_at=35)
    lab.provider.finish(row, ended(row, 5))
    lab.look(row)
    done = lab.age(row, changed_at=3)
    for _ in range(2):  # a second confirm says nothing new
        lab.tasks.clear_due([FollowUp(done.id, done.version)])
        lab.sql("update tasks set due_at = now()")

    stages = {stage: since("order_stage_seconds_sum", pool=POOL, stage=stage) for stage in ("queue", "submit")}
    stages |= {stage: since("order_stage_seconds_sum", pool=POOL, stage=stage) for stage in ("execute", "detect")}
    assert stages == pytest.approx({"queue": 40, "submit": 10, "execute": 30, "detect": 5}, abs=1)
    assert since("order_duration_seconds_sum", pool=POOL, outcome="completed") == pytest.approx(85, abs=1)
    assert since("order_stage_seconds_sum", pool=POOL, stage="deliver") == pytest.approx(3, abs=1)
    assert since("order_stage_seconds_count", pool=POOL, stage="deliver") == 1


def test_a_job_that_its_backend_says_ended_later_than_we_saw_it_tells_of_wrong_clocks(lab: Lab, since: Since) -> None:
    row = lab.age(lab.processing(), changed_at=20)
    lab.provider.finish(row, ended(row, -60))
    lab.look(row)
    assert since("clock_skew_total", backend="gpu-1") == 1
    assert since("completion_detection_seconds_sum", backend="gpu-1", via="poll") == 0
    assert since("order_stage_seconds_sum", pool=POOL, stage="execute") == pytest.approx(20, abs=1)
    assert since("order_stage_seconds_sum", pool=POOL, stage="detect") == 0


def test_a_wait_is_counted_with_what_kept_the_row_from_its_start(lab: Lab, since: Since) -> None:
    def taken(reason: str, *, free_for: float) -> None:
        lab.sql("update tasks set free_at = now() - :s * interval '1 second' where status = 'pending'", s=free_for)
        assert len(lab.take()) == 1
        assert since("backend_wait_seconds_count", pool=POOL, reason=reason) == 1
        assert since("backend_wait_seconds_sum", pool=POOL, reason=reason) == pytest.approx(free_for, abs=1)

    lab.backends(gpu_1=1)
    first = lab.pending()
    taken("permit", free_for=3)
    lab.pending()
    assert not lab.take()  # the one slot is in use
    lab.failed(lab.now(first))
    taken("slot", free_for=50)
    lab.sql(
        "update tasks set status = 'failed', reason = 'bug', stage = 'check', version = version + 1,"
        " finished_at = now() where status = 'submitting'"
    )
    lab.pending()
    lab.slots.pause("gpu-1", "ann", "for a test", None)
    assert not lab.take()
    lab.slots.resume("gpu-1", "ann")
    taken("closed", free_for=700)
    lab.backends(gpu_1=5)
    lab.sql("update backends set rate_starts = 1, rate_seconds = 3600 where name = 'gpu-1'")
    lab.pending()
    assert not lab.take()
    lab.sql("update backends set rate_starts = null, rate_seconds = null")
    taken("rate", free_for=20)


def test_a_retry_is_counted_by_its_step_and_by_what_ended_the_attempt(lab: Lab, since: Since) -> None:
    lost = Failed(reason=Reason.LOST, why="gone", retryable=True)
    memory = Failed(reason=Reason.EXECUTION_FAILED, why="oom", retryable=True, attempt_outcome="out_of_memory")
    for state in (lost, memory):
        row = lab.running(state)
        lab.look(row)
        assert lab.now(row).status is Status.PENDING
        lab.failed(lab.now(row))
    lab.moved(lab.submitting(), Status.PENDING, attempt_outcome="not_created")
    assert since("retries_total", stage="check", reason="lost") == 1
    assert since("retries_total", stage="check", reason="out_of_memory") == 1
    assert since("retries_total", stage="submit", reason="not_created") == 1


def test_a_replay_is_no_retry_and_its_order_counts_all_attempts_it_took(lab: Lab, since: Since) -> None:
    failed = lab.moved(lab.processing(), Status.FAILED, reason=Reason.LOST)
    lab.moved(failed, Status.PENDING, deadline_in=60.0)
    (again,) = lab.take()
    row = lab.record(again)
    assert row is not None
    lab.provider.finish(row)
    lab.look(row)
    assert sum(since("retries_total", stage=stage, reason="lost") for stage in ("submit", "check")) == 0
    assert since("task_attempts_count", pool=POOL) == 2  # it ended twice: at its first attempt and at its second
    assert since("task_attempts_sum", pool=POOL) == 3


def test_looks_are_counted_by_what_they_found(lab: Lab, since: Since) -> None:
    states = {
        "pending": Running(waiting=True),
        "running": Running(),
        "done": Succeeded(outputs=[{}]),
        "failed": Failed(reason=Reason.LOST, why="gone", retryable=True),
        "missing": Gone(),
    }
    rows = [lab.running(state) for state in states.values()]
    lab.look(*rows)
    assert {word: since("polls_total", backend="gpu-1", result=word) for word in states} == dict.fromkeys(states, 1)
    lab.provider.plan("check", ProviderAway("no answer"))
    lab.look(lab.now(rows[0]))
    assert since("polls_total", backend="gpu-1", result="unknown") == 1


def test_kept_pictures_are_counted_with_their_size(lab: Lab, since: Since) -> None:
    row = lab.running(Succeeded(outputs=[{}, {}]))
    lab.look(row)
    kept = lab.sql("select bytes from artifacts where task_id = :id", id=row.id)
    assert since("artifact_bytes_count", pool=POOL) == len(kept) == 2
    assert since("artifact_bytes_sum", pool=POOL) == sum(picture.bytes for picture in kept)


def test_each_transaction_on_the_way_of_an_order_is_timed_once(lab: Lab, since: Since) -> None:
    row = lab.submitting()
    assert lab.may_post(row)
    assert lab.record(row) is not None
    lab.tasks.take_due(10, 1.0)
    lab.tasks.clear_due([])
    names = ("claim", "take", "may_post", "move", "due", "follow_up")
    assert {name: since("database_seconds_count", operation=name) for name in names} == dict.fromkeys(names, 1)
    assert 0 < since("database_seconds_sum", operation="claim") < 5


def test_a_duration_carries_the_trace_of_its_order_for_those_who_ask_for_it(lab: Lab) -> None:
    row = lab.age(lab.running(Succeeded(outputs=[{}])), created_at=100_000)  # a bucket that no other test's order is in
    lab.look(row)
    exposed = openmetrics(MEASURED.registry).decode().splitlines()
    (line,) = [line for line in exposed if f'# {{trace_id="{row.trace_id}"}}' in line]
    assert line.startswith("darkroom_order_duration_seconds_bucket{")
    assert 'le="+Inf"' in line
