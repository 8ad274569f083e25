"""Results that a provider throws away: looked at first, and warned of in time."""

from collections.abc import Iterator

import pytest

from shared.database.state import read_state
from shared.domain.errors import ProviderAway
from shared.domain.task import Cost, Status
from shared.providers.base import Running, Succeeded
from tests.integration.check_lab import Lab, names


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    lab.slots.sync(
        [(name, "comfyui", "http:x", "http://127.0.0.1:1", 20, 100.0) for name in ("gpu-1", "gpu-2")],
        result_ttls={"gpu-1": 1000.0},
    )
    lab.provider.result_ttl_seconds = 1000.0
    yield lab
    lab.close()


def left(lab: Lab, *, of: object) -> float | None:
    (row,) = lab.sql(
        "select extract(epoch from result_until - clock_timestamp())::float8 as left from tasks where id = :id", id=of
    )
    return row.left  # type: ignore[no-any-return]


def test_a_job_seen_running_has_its_result_s_whole_time_before_it(lab: Lab) -> None:
    task = lab.running(Running())
    assert 900 < (left(lab, of=task.id) or 0) <= 1000
    lab.sql("update tasks set result_until = now() + interval '300 seconds'")

    lab.look(task)

    assert (left(lab, of=task.id) or 0) > 900


def test_a_look_that_learns_nothing_wins_no_time(lab: Lab) -> None:
    task = lab.running(Running())
    lab.provider.plan("check", ProviderAway("no answer"))
    lab.sql("update tasks set result_until = now() + interval '300 seconds'")

    lab.look(task)

    assert 0 < (left(lab, of=task.id) or 0) <= 300


def test_jobs_at_risk_are_counted_by_backend_until_they_are_seen(lab: Lab) -> None:
    task = lab.running(Running())
    assert read_state(lab.engine).at_risk == {}
    lab.sql("update tasks set result_until = now() + interval '499 seconds'")
    assert read_state(lab.engine).at_risk == {"gpu-1": 1}

    lab.look(task)

    assert read_state(lab.engine).at_risk == {}


def test_what_vanishes_first_is_looked_at_first(lab: Lab) -> None:
    rows = [lab.running() for _ in range(3)]
    for row, seconds in zip(rows, (300, 100, 200), strict=True):
        lab.sql(
            "update tasks set result_until = now() + :s * interval '1 second', due_at = now() - interval '1 second'"
            " where id = :id",
            s=seconds,
            id=row.id,
        )
    first = lab.tasks.take_due(1, 2.0)
    second = lab.tasks.take_due(1, 2.0)
    assert [row.id for row in (*first, *second)] == [rows[1].id, rows[2].id]


def test_a_finished_job_leaves_nothing_at_risk_and_keeps_its_cost(lab: Lab) -> None:
    task = lab.running(Succeeded(outputs=[{"filename": "a.png"}], cost=Cost(3, "images")))

    assert names(lab.look(task)) == ["order.completed"]

    assert lab.now(task).status is Status.COMPLETED
    assert left(lab, of=task.id) is None
    (attempt,) = lab.attempts(task)
    assert (attempt.cost_actual, attempt.cost_unit) == (3, "images")
