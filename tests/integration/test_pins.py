"""Orders that a replay sends to one backend alone: they wait for it, go nowhere else, and keep nobody waiting."""

import json
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from services.cli import app
from services.ops.trace import events_of
from shared.database.adopt import Refused, adopt
from shared.database.fallbacks import fall_back
from shared.database.history import History
from shared.database.plans import Plan, Preview
from shared.database.predictions import Outcome
from shared.database.state import read_state
from shared.domain.task import Priority, Reason, Stage, Status, Task
from tests.factories import POOL, Rows
from tests.integration.plans_lab import AT_ONCE, PlansLab


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    rows = Rows(database_url, threads=10)
    rows.backends(gpu_1=2, gpu_2=2)
    yield rows
    rows.close()


def pinned(rows: Rows, to: str, **fields: object) -> Task:
    task = rows.pending(**fields)
    rows.sql("update tasks set pinned_backend = :name where id = :id", name=to, id=task.id)
    return rows.now(task)


# --- the taking of rows


def test_a_pinned_row_goes_to_its_backend_whatever_the_others_have_free(rows: Rows) -> None:
    rows.pending()
    assert rows.take()[0].backend == "gpu-1"
    task = pinned(rows, "gpu-1")

    (taken,) = rows.take()

    assert (taken.id, taken.backend, taken.pinned_backend) == (task.id, "gpu-1", "gpu-1")


@pytest.mark.parametrize("state", ["full", "paused", "down", "gone"])
def test_rows_whose_backend_takes_nothing_keep_no_other_row_waiting(rows: Rows, state: str) -> None:
    alone = [pinned(rows, "gpu-2", priority=Priority.HIGH) for _ in range(12)]
    match state:
        case "full":
            assert {task.backend for task in rows.take(4)} == {"gpu-2"}
        case "paused":
            rows.slots.pause("gpu-2", "ann", "new driver", None)
        case "down":
            rows.slots.set_health("gpu-2", "down")
        case "gone":
            rows.backends(gpu_1=2)
    others = [rows.pending() for _ in range(2)]

    taken = rows.take(10)

    assert [(task.id, task.backend) for task in taken] == [(task.id, "gpu-1") for task in others]
    assert {rows.now(task).status for task in alone[2:]} == {Status.PENDING}


def test_of_many_pinned_rows_no_more_are_picked_than_their_backend_has_slots(rows: Rows) -> None:
    """All in one look: rows behind them do not wait for the next one."""
    rows.backends(gpu_1=1, gpu_2=4)
    alone = [pinned(rows, "gpu-1", priority=Priority.HIGH) for _ in range(9)]
    others = [rows.pending() for _ in range(4)]

    taken = {task.id: task.backend for task in rows.take(10)}

    assert taken == {alone[0].id: "gpu-1"} | {task.id: "gpu-2" for task in others}


def test_rows_with_a_choice_leave_the_slot_to_those_without(rows: Rows) -> None:
    rows.backends(gpu_1=1, gpu_2=1)
    first, alone = rows.pending(), pinned(rows, "gpu-1")

    taken = {task.id: task.backend for task in rows.take(2)}

    assert taken == {alone.id: "gpu-1", first.id: "gpu-2"}


def test_a_pinned_row_is_picked_in_its_turn_and_not_before(rows: Rows) -> None:
    rows.backends(gpu_1=1)
    high, alone, later = rows.pending(priority=Priority.HIGH), pinned(rows, "gpu-1"), rows.pending()
    picked = []
    for _ in range(3):
        (task,) = rows.take()
        picked.append(task.id)
        rows.moved(task, Status.FAILED)
    assert picked == [high.id, alone.id, later.id]


def test_permits_are_held_for_a_pinned_row_while_its_backend_works_and_no_longer(rows: Rows) -> None:
    pinned(rows, "gpu-2")
    busy = rows.slots.take(POOL, at_most=1, lease_seconds=60)
    rows.backends(gpu_1=2, gpu_2=1, gpu_3=2)
    alone = pinned(rows, "gpu-2")
    assert [task.backend for task in busy.tasks] == ["gpu-2"]
    assert not rows.slots.take(POOL, at_most=5, lease_seconds=60).none_left
    assert rows.tasks.free_rows({POOL: 10}) == {POOL: 1}
    rows.slots.pause("gpu-2", "ann", "new driver", None)
    assert rows.slots.take(POOL, at_most=5, lease_seconds=60).none_left
    assert rows.tasks.free_rows({POOL: 10}) == {POOL: 0}
    assert read_state(rows.engine).stuck == {"gpu-2": 1}
    rows.slots.resume("gpu-2", "ann")
    rows.moved(busy.tasks[0], Status.FAILED)
    assert [task.id for task in rows.take(5)] == [alone.id]


def test_a_look_costs_no_statement_more_where_nothing_is_pinned(rows: Rows) -> None:
    rows.pending()
    seen: list[str] = []
    sa.event.listen(rows.engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    rows.take(5)
    assert len(seen) == 6, "lock, count, leases that are over, rows by priority, take, attempts"
    pinned(rows, "gpu-2")
    seen.clear()
    rows.take(5)
    assert len(seen) == 6, "nor where something is"


# --- how long a pin holds


def test_every_attempt_keeps_the_pin_also_where_the_row_would_avoid_that_backend(rows: Rows) -> None:
    pinned(rows, "gpu-2")
    for attempt in (1, 2, 3):
        (task,) = rows.take()
        assert (task.attempt, task.backend) == (attempt, "gpu-2")
        rows.moved(task, Status.PENDING, charge=True, avoid_backend="gpu-2", attempt_outcome="out_of_memory")


def test_a_pin_ends_in_the_next_pool_and_with_an_adopted_job_and_not_by_waiting(rows: Rows) -> None:
    rows.slots.pause("gpu-1", "ann", "new driver", None)
    rows.slots.pause("gpu-2", "ann", "new driver", None)
    waiting = pinned(rows, "gpu-2", pools=[POOL, "other-pool"])
    rows.age(waiting, changed_at=100)
    assert fall_back(rows.engine, 60.0, 10) == []
    rows.slots.resume("gpu-2", "ann")
    (task,) = rows.take()
    moved = rows.moved(task, Status.PENDING, pool="other-pool", attempt_outcome="rejected")
    assert (moved.pool, moved.pinned_backend) == ("other-pool", None)

    pinned(rows, "gpu-2")
    (task,) = rows.take()
    failed = rows.moved(task, Status.FAILED)
    rows.sql("update tasks set due_at = null where id = :id", id=failed.id)
    adopted = adopt(rows.engine, failed, "job-7", "ann", "seen", default_deadline=60.0, tries=5)
    assert not isinstance(adopted, Refused)
    assert (adopted.backend, adopted.pinned_backend) == ("gpu-2", None)


def test_the_database_refuses_a_backend_that_does_not_exist_and_a_plan_without_its_pool(rows: Rows) -> None:
    rows.pending()
    with pytest.raises(sa.exc.IntegrityError):
        rows.sql("update tasks set pinned_backend = 'nobody'")
    with pytest.raises(sa.exc.IntegrityError):
        rows.sql(
            "insert into plans (by_whom, chosen, changed_by, rate, ramp, stop_window, backend)"
            " values ('ann', '{}', 'ann', 1, '{}', 1, 'gpu-1')"
        )


def test_nobody_who_takes_rows_waits_for_a_plan_that_is_being_made(rows: Rows) -> None:
    rows.pending()
    with rows.engine.begin() as connection:
        connection.execute(sa.text("select 1 from backends order by name for key share"))  # as a foreign key asks
        assert len(rows.take()) == 1


# --- plans


@pytest.fixture
def lab(database_url: str) -> Iterator[PlansLab]:
    lab = PlansLab(database_url)
    backends(lab)
    yield lab
    lab.close()


def backends(lab: PlansLab, *, big: bool = True) -> None:
    there = [("gpu-1", POOL), ("other", "other-pool"), *([("big", POOL)] if big else [])]
    lab.slots.sync([(name, pool, "comfyui", "http://127.0.0.1:1", 100, 60.0) for name, pool in there])


def made(lab: PlansLab, letters: list[int], **more: object) -> tuple[Plan, Preview]:
    answer = lab.plans.make(letters, "ann", pace=AT_ONCE, **more)  # type: ignore[arg-type]
    assert not isinstance(answer, Refused), answer
    return answer


def test_a_plan_names_a_backend_that_is_there_and_takes_what_the_orders_say(lab: PlansLab) -> None:
    letters = lab.dead(2)
    for given, said in (
        ({"backend": "moon"}, "no backend in use is called 'moon'; there are: big, gpu-1, other"),
        ({"backend": "big", "pool": "other-pool"}, "big serves pool comfyui, not other-pool"),
        ({"backend": "big", "pool": "moon"}, "no backend serves pool 'moon'"),
        ({"backend": "big", "check": lambda pool, *_: [f"not in {pool}"]}, "pool comfyui does not take 2 of 2 orders"),
    ):
        answer = lab.plans.make(letters, "ann", **given)  # type: ignore[arg-type]
        assert isinstance(answer, Refused)
        assert said in answer.why
    backends(lab, big=False)
    assert isinstance(lab.plans.make(letters, "ann", backend="big"), Refused)
    assert lab.sql("select 1 from plans") == []


def test_a_plan_sends_its_orders_to_the_one_backend_and_everybody_can_see_it(
    lab: PlansLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = lab.dead(3)
    plan, preview = made(lab, letters, backend="big", note="gpu-1 has too little memory")
    assert (plan.pool, plan.backend) == (POOL, "big")
    assert preview.outcomes == {Outcome.WILL_RUN: 3}
    lab.plans.apply(plan.id, "ann")
    lab.turn(plan.id)
    taken = lab.slots.take(POOL, at_most=10, lease_seconds=60).tasks
    assert [task.backend for task in taken] == ["big"] * 3

    (action,) = lab.sql("select detail from operator_actions where action = 'plan make'")
    assert (action.detail["pool"], action.detail["backend"]) == (POOL, "big")
    replays = lab.sql("select detail from operator_actions where action = 'dead letter replay'")
    assert {row.detail["to_backend"] for row in replays} == {"big"}
    story = History(lab.engine).story(taken[0].id)
    assert story is not None
    told = [event for event in events_of(story) if event.what == "person"]
    assert [(event.text, event.by) for event in told] == [
        ("dead letter replay to big alone: gpu-1 has too little memory", "ann")
    ]
    monkeypatch.setenv("DARKROOM_DATABASE_URL", lab.url)
    run = CliRunner().invoke
    assert "made at   big alone\n" in run(app, ["order", "show", str(taken[0].id)]).output
    assert json.loads(run(app, ["order", "trace", str(taken[0].id), "--json"]).output)["pinned_backend"] == "big"


def test_a_plan_to_a_backend_that_is_paused_says_blocked_and_waits_for_it(
    lab: PlansLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.slots.pause("big", "ann", "new driver", None)
    plan, preview = made(lab, lab.dead(1), backend="big")
    assert preview.outcomes == {Outcome.BLOCKED: 1}
    assert preview.going == 1
    lab.plans.apply(plan.id, "ann")
    lab.turn(plan.id)
    assert lab.slots.take(POOL, at_most=10, lease_seconds=60).tasks == []
    (row,) = lab.sql("select id from tasks where status = 'pending'")
    monkeypatch.setenv("DARKROOM_DATABASE_URL", lab.url)
    shown = CliRunner().invoke(app, ["order", "show", str(row.id)]).output
    assert "made at   big alone; blocked: it is paused (new driver)" in shown
    lab.slots.resume("big", "ann")
    assert [task.backend for task in lab.slots.take(POOL, at_most=10, lease_seconds=60).tasks] == ["big"]


def test_a_plan_whose_backend_goes_meanwhile_stops_and_goes_on_when_it_is_back(lab: PlansLab) -> None:
    letters = lab.dead(1)
    plan_id = lab.applied(letters, backend="big")
    backends(lab, big=False)
    lab.turn(plan_id)
    plan = lab.plans.get(plan_id)
    assert plan is not None
    assert (plan.state, plan.state_why) == ("stopped", "big serves pool comfyui no more")
    assert [item.state for item in lab.plans.items(plan_id, limit=10)] == ["waiting"]

    backends(lab, big=True)
    lab.plans.resume(plan_id, "ann")
    lab.turn(plan_id)
    assert [item.state for item in lab.plans.items(plan_id, limit=10)] == ["sent"]


def test_a_replay_without_a_backend_ends_the_pin_of_the_last_one(lab: PlansLab) -> None:
    (letter,) = lab.dead(1)
    lab.turn(lab.applied([letter], backend="big"))
    (task,) = lab.slots.take(POOL, at_most=1, lease_seconds=60).tasks
    failed = lab.paid(
        lab.end(task, Status.FAILED, reason=Reason.EXECUTION_FAILED, detail="d", stage=Stage.CHECK, charge=True)
    )
    assert failed.pinned_backend == "big", "it shows where it failed"
    lab.sql("update dead_letters set state = 'open', closed_at = null, closed_by = null, attempt = :n", n=task.attempt)
    lab.turn(lab.applied([letter]))
    assert lab.row(task).pinned_backend is None


def test_what_a_plan_takes_is_guessed_from_the_one_backend(lab: PlansLab) -> None:
    done = lab.completed()
    lab.sql("update attempts set started_at = ended_at - interval '10 seconds' where task_id = :id", id=done.id)
    letters = lab.dead(2)
    at_first = done.backend or ""
    other = "big" if at_first == "gpu-1" else "gpu-1"
    _, known = made(lab, letters, backend=at_first)
    _, unknown = made(lab, letters, backend=other)
    assert known.estimate.order_seconds == pytest.approx(10.0, abs=0.01)
    assert known.seconds is not None
    assert unknown.seconds is None
