"""The exporter: gauges say what the rows are, and nothing while the rows cannot be read."""

import threading
from collections.abc import Iterator

import pytest

from services.ops.collector import Collector
from services.ops.exporter import Exporter
from shared.database.dead_letters import DeadLetters
from shared.database.state import Bound, read_state
from shared.domain.task import Status
from shared.observe.catalog import BOUNDS, OTHER, PREFIX, REPLAYS
from tests.integration.rows_lab import POOL, Lab, letter_about


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


@pytest.fixture
def exporter(lab: Lab) -> Exporter:
    return Exporter(lab.engine, lab.metrics, pools=[POOL], backends=["gpu-1"])


def gauge(lab: Lab, name: str, **labels: str) -> float | None:
    return lab.metrics.registry.get_sample_value(PREFIX + name, labels)


def test_unfinished_tasks_are_counted_by_pool_and_status(lab, exporter):
    lab.completed()
    lab.processing()
    lab.pending()
    lab.pending()
    lab.pending(pool="elsewhere")
    lab.pending(pool="nowhere")
    exporter.turn()
    assert gauge(lab, "tasks", pool=POOL, status="pending") == 2
    assert gauge(lab, "tasks", pool=POOL, status="submitting") == 0
    assert gauge(lab, "tasks", pool=POOL, status="processing") == 1
    assert gauge(lab, "tasks", pool=OTHER, status="pending") == 2
    assert gauge(lab, "tasks", pool=POOL, status="completed") is None


def test_the_age_is_that_of_the_oldest_and_0_where_there_is_none(lab, exporter):
    old = lab.pending()
    lab.pending()
    lab.sql("update tasks set changed_at = now() - interval '90 seconds' where id = :id", id=old.id)
    exporter.turn()
    assert gauge(lab, "task_oldest_age_seconds", pool=POOL, status="pending") == pytest.approx(90, abs=5)
    assert gauge(lab, "task_oldest_age_seconds", pool=POOL, status="processing") == 0


def test_what_is_late_is_counted_by_the_bound_it_is_past(lab, exporter):
    for task in (lab.submitting(), lab.processing(), lab.completed()):
        lab.sql("update tasks set due_at = now() - interval '1 minute' where id = :id", id=task.id)
    lab.sql("update tasks set deadline_at = now() - interval '1 minute' where id = :id", id=lab.pending().id)
    assert read_state(lab.engine).overdue == dict.fromkeys(Bound, 1)
    exporter.turn()
    assert {bound: gauge(lab, "tasks_overdue", bound=bound) for bound in BOUNDS} == dict.fromkeys(BOUNDS, 1)


def test_a_row_that_came_due_just_now_is_not_late(lab):
    task = lab.processing()
    lab.sql("update tasks set due_at = now() - interval '1 second' where id = :id", id=task.id)
    assert read_state(lab.engine).overdue == dict.fromkeys(Bound, 0)


def test_bounds_and_label_values_are_the_same_closed_list():
    assert set(Bound) == set(BOUNDS)


def test_backends_show_their_load_their_capacity_and_whether_they_are_up(lab, exporter):
    lab.processing()
    exporter.turn()
    assert gauge(lab, "backend_inflight_tasks", backend="gpu-1") == 1
    assert gauge(lab, "backend_capacity_tasks", backend="gpu-1") == 100
    assert gauge(lab, "backend_limit_tasks", backend="gpu-1") == 100
    assert gauge(lab, "backend_up", backend="gpu-1") == 1
    lab.slots.set_health("gpu-1", "frozen")
    lab.sql("update backends set limit_now = 7, limit_since = now()")
    exporter.turn()
    assert gauge(lab, "backend_limit_tasks", backend="gpu-1") == 7
    assert gauge(lab, "backend_up", backend="gpu-1") == 0


def test_a_refused_account_and_results_that_may_vanish_show_at_their_backend(lab, exporter):
    lab.processing()
    lab.sql("update backends set result_ttl_seconds = 1000")
    lab.sql("update tasks set result_until = now() + interval '600 seconds'")
    exporter.turn()
    assert (gauge(lab, "backend_account_refused", backend="gpu-1"), gauge(lab, "results_at_risk", backend="gpu-1")) == (
        0,
        0,
    )
    lab.sql("update tasks set result_until = now() + interval '499 seconds'")
    lab.slots.refuse("gpu-1", "no money")
    exporter.turn()
    assert (gauge(lab, "backend_account_refused", backend="gpu-1"), gauge(lab, "results_at_risk", backend="gpu-1")) == (
        1,
        1,
    )


def test_work_on_a_backend_that_left_the_configuration_is_not_forgotten(lab):
    lab.processing()
    Exporter(lab.engine, lab.metrics, pools=[POOL], backends=[]).turn()
    assert gauge(lab, "backend_inflight_tasks", backend=OTHER) == 1
    assert gauge(lab, "backend_capacity_tasks", backend="gpu-1") is None


def test_a_dead_letter_is_open_until_somebody_decides(lab, exporter):
    Collector(DeadLetters(lab.engine, "test"), lab.metrics).handle([letter_about(lab.failed())])
    exporter.turn()
    assert gauge(lab, "dead_letters_open", stage="check", reason="execution_failed") == 1
    lab.sql("update dead_letters set state = 'discarded', closed_at = now(), closed_by = 'ann'")
    exporter.turn()
    assert gauge(lab, "dead_letters_open", stage="check", reason="execution_failed") == 0


def test_replays_are_counted_by_what_has_become_of_them(lab, exporter):
    Collector(DeadLetters(lab.engine, "test"), lab.metrics).handle([letter_about(lab.failed()) for _ in range(3)])
    lab.sql("insert into replays (dead_letter_id, by_whom, task_id) select id, 'ann', task_id from dead_letters")
    lab.sql("update replays set state = 'closed', closed_at = now(), result = 'completed' where id > 1")
    exporter.turn()
    counted = {result: gauge(lab, "dead_letter_replays", result=result) for result in REPLAYS}
    assert counted == {"open": 1, "completed": 2, "failed": 0, "cancelled": 0, "published": 0}


def test_without_an_answer_the_numbers_go_and_the_time_of_the_last_one_stays(lab, exporter):
    exporter.turn()
    before = gauge(lab, "state_last_success_timestamp_seconds", question="state")
    assert before is not None
    lab.sql("alter table backends rename pause_reason to elsewhere")
    exporter.turn()
    assert gauge(lab, "tasks", pool=POOL, status="pending") is None
    assert gauge(lab, "dead_letters_open", stage="check", reason="bug") is None
    assert gauge(lab, "state_last_success_timestamp_seconds", question="state") == before
    assert gauge(lab, "invariant_violations", check="zombie") == 0


def test_the_longer_the_promises_take_the_less_often_they_are_asked_for(lab):
    now = 0.0
    exporter = Exporter(lab.engine, lab.metrics, pools=[POOL], backends=[], clock=lambda: now)
    asked = []

    def slow_question() -> None:
        nonlocal now
        asked.append(now)
        now += 20

    exporter._invariants = slow_question
    for later in (0, 30, 799, 800, 1599, 1600):
        now = max(now, later)
        exporter.turn()
    assert asked == [0, 800, 1600]


def test_it_turns_until_it_is_told_to_stop(lab, exporter):
    stopping, turned = threading.Event(), threading.Event()
    turning = threading.Thread(target=exporter.run, args=(stopping, turned.set))
    turning.start()
    assert turned.wait(15)
    stopping.set()
    turning.join(15)
    assert not turning.is_alive()


def test_every_unfinished_status_is_exported(lab, exporter):
    exporter.turn()
    for status in Status:
        assert (gauge(lab, "tasks", pool=POOL, status=status) is None) == status.is_final


def test_a_pool_says_how_many_of_its_backends_work(lab, exporter):
    def backends() -> dict[str, float | None]:
        exporter.turn()
        states = ("working", "paused", "away")
        return {state: gauge(lab, "pool_backends", pool=POOL, state=state) for state in states}

    assert backends() == {"working": 1, "paused": 0, "away": 0}
    lab.slots.set_health("gpu-1", "down")
    assert backends() == {"working": 0, "paused": 0, "away": 1}
    lab.slots.set_health("gpu-1", "up")
    lab.slots.pause("gpu-1", "somebody", "a test", None)
    assert backends() == {"working": 0, "paused": 1, "away": 0}


def test_the_connections_of_the_database_and_their_limit_are_shown(lab, exporter):
    exporter.turn()
    limit = int(lab.sql("show max_connections")[0][0])
    assert gauge(lab, "database_connections", kind="limit") == limit
    assert 0 < (gauge(lab, "database_connections", kind="open") or 0) < limit
