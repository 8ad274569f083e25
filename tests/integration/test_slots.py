"""Slots: never more in flight than a backend takes, the right row first, a lease that can be taken over."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from shared.database.slots import Slots
from shared.domain.rate import Rate
from shared.domain.task import Priority, Status, Task, job_key_for, seed_for
from tests.factories import MEASURED, POOL, Rows, a_claim, at_once
from tests.waiting import eventually


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    rows = Rows(database_url, threads=50)
    rows.backends(gpu_1=2)
    yield rows
    rows.close()


def many(rows: Rows, count: int, **fields: object) -> list[Task]:
    """In the order of their age, a second apart."""
    tasks = [claimed.task for claimed in rows.tasks.claim([a_claim(**fields) for _ in range(count)])]  # type: ignore[arg-type]
    return [rows.age(task, created_at=1000 - number) for number, task in enumerate(tasks)]


def none_left(rows: Rows, at_most: int = 1) -> bool:
    return rows.slots.take(POOL, at_most=at_most, lease_seconds=60).none_left


def test_a_taken_row_has_an_attempt_a_job_key_a_backend_and_a_lease(rows: Rows) -> None:
    waiting = rows.pending()

    (task,) = rows.take(lease_seconds=60)

    assert (task.id, task.status, task.attempt, task.backend) == (waiting.id, Status.SUBMITTING, 1, "gpu-1")
    assert task.job_key == job_key_for(task.id, 1)
    assert task.free_at == task.due_at
    assert (task.free_at - task.changed_at).total_seconds() == 60
    assert not task.taken_over
    (attempt,) = rows.attempts(task)
    assert (attempt.backend, attempt.job_key, attempt.seed) == ("gpu-1", task.job_key, seed_for(task.job_key))


def test_fifty_takers_never_exceed_the_capacity_of_any_backend(rows: Rows) -> None:
    rows.backends(gpu_1=3, gpu_2=4, gpu_3=1)
    many(rows, 60)
    most: Counter[str] = Counter()

    def take_and_finish(number: int) -> int:
        taken = rows.take(1 + number % 4)
        live = {b.name: b.in_flight for b in rows.slots.backends()}
        for name, count in live.items():
            most[name] = max(most[name], count)
        for task in taken:
            rows.moved(task, Status.FAILED)
        return len(taken)

    with ThreadPoolExecutor(50) as threads:
        total = sum(threads.map(take_and_finish, range(150)))
        while total < 60:
            total += take_and_finish(3)

    assert total == 60
    assert all(most[name] <= limit for name, limit in {"gpu-1": 3, "gpu-2": 4, "gpu-3": 1}.items())
    assert most["gpu-2"] > 0
    attempts = rows.sql("select count(*) as attempts, count(distinct task_id) as tasks from attempts")[0]
    assert (attempts.attempts, attempts.tasks) == (60, 60)


def test_fifty_takers_at_once_start_exactly_as_many_rows_as_there_are_slots(rows: Rows) -> None:
    rows.backends(gpu_1=8)
    many(rows, 100)

    taken = at_once([lambda: rows.take(2)] * 50)

    assert sum(map(len, taken)) == 8
    assert len({task.id for batch in taken for task in batch}) == 8


def test_the_least_loaded_backend_comes_first(rows: Rows) -> None:
    rows.backends(gpu_1=4, gpu_2=2)
    many(rows, 6)

    one_by_one = [rows.take()[0].backend for _ in range(6)]

    assert one_by_one == ["gpu-1", "gpu-2", "gpu-1", "gpu-2", "gpu-1", "gpu-1"]


def avoiding(rows: Rows, backend: str) -> Task:
    task = rows.pending()
    rows.sql("update tasks set avoid_backend = :name where id = :id", name=backend, id=task.id)
    return rows.now(task)


def test_a_row_goes_elsewhere_than_the_backend_it_avoids_and_waits_for_that(rows: Rows) -> None:
    rows.backends(gpu_1=5, gpu_2=1)
    first, second = avoiding(rows, "gpu-1"), avoiding(rows, "gpu-1")

    taken = rows.take(2)

    assert [task.backend for task in taken] == ["gpu-2"]
    assert rows.take(2) == []
    assert not none_left(rows, 2)
    rows.moved(taken[0], Status.FAILED)
    assert [task.backend for task in rows.take(2)] == ["gpu-2"]
    assert {rows.now(task).backend for task in (first, second)} == {"gpu-2"}


def test_a_row_goes_to_the_backend_it_avoids_when_no_other_one_works(rows: Rows) -> None:
    rows.backends(gpu_1=5, gpu_2=1)
    rows.slots.set_health("gpu-2", "down")
    avoiding(rows, "gpu-1")

    assert [task.backend for task in rows.take()] == ["gpu-1"]


def test_rows_that_avoid_the_only_free_backend_do_not_stand_in_the_way_of_others(rows: Rows) -> None:
    rows.backends(gpu_1=5, gpu_2=1)
    rows.pending()
    assert rows.take()[0].backend == "gpu-1"
    rows.backends(gpu_1=1, gpu_2=1)
    avoiding(rows, "gpu-2")
    later = rows.pending()

    assert [(task.id, task.backend) for task in rows.take()] == [(later.id, "gpu-2")]


def test_a_lease_that_is_not_over_is_not_taken_over(rows: Rows) -> None:
    rows.submitting(lease_seconds=60)

    assert rows.take(5) == []


def test_after_the_lease_another_worker_has_the_same_attempt_and_job(rows: Rows) -> None:
    task = rows.age(rows.submitting(), free_at=1)

    (over,) = rows.take()

    assert over.taken_over
    assert over.may_send
    assert (over.attempt, over.job_key, over.backend) == (task.attempt, task.job_key, task.backend)
    assert over.version == task.version + 1
    assert over.free_at > over.now
    assert len(rows.attempts(task)) == 1
    assert rows.history(task)[-1] == ("submitting", "submitting")


def test_of_ten_workers_one_takes_over(rows: Rows) -> None:
    rows.age(rows.submitting(), free_at=1)

    assert sum(len(taken) for taken in at_once([rows.take] * 10)) == 1


def test_a_takeover_needs_no_free_slot_and_comes_first(rows: Rows) -> None:
    rows.backends(gpu_1=1)
    task = rows.age(rows.submitting(), free_at=1)
    rows.pending(priority=Priority.HIGH)

    assert [taken.id for taken in rows.take(5)] == [task.id]


def close_gpu_1(rows: Rows, state: str) -> None:
    match state:
        case "paused":
            rows.slots.pause("gpu-1", "ann", "new driver", None)
        case "paused for a while":
            rows.slots.pause("gpu-1", None, "429", 60)
        case "gone from the file":
            rows.backends(gpu_2=1)
            rows.slots.set_health("gpu-2", "down")
        case _:
            rows.slots.set_health("gpu-1", state)


@pytest.mark.parametrize("state", ["down", "frozen", "paused", "paused for a while", "gone from the file"])
def test_a_backend_that_takes_no_work_gets_none(rows: Rows, state: str) -> None:
    rows.pending()
    close_gpu_1(rows, state)

    taken = rows.slots.take(POOL, at_most=5, lease_seconds=60)

    assert (taken.tasks, taken.none_left) == ([], False)
    assert not any(backend.wants_permits for backend in rows.slots.backends())


@pytest.mark.parametrize("state", ["frozen", "paused", "paused for a while", "gone from the file"])
def test_a_row_whose_lease_is_over_where_no_work_is_taken_is_taken_over_to_ask_and_not_to_send(
    rows: Rows, state: str
) -> None:
    task = rows.age(rows.submitting(), free_at=1)
    rows.pending()
    close_gpu_1(rows, state)
    assert [backend.name for backend in rows.slots.backends() if backend.wants_permits] == ["gpu-1"]

    (over,) = rows.take(5)

    assert (over.id, over.backend, over.taken_over, over.may_send) == (task.id, "gpu-1", True, False)
    assert not any(backend.wants_permits for backend in rows.slots.backends())


def test_a_row_at_a_server_that_is_down_waits_for_it(rows: Rows) -> None:
    rows.age(rows.submitting(), free_at=1)
    close_gpu_1(rows, "down")

    assert rows.take(5) == []
    assert not rows.slots.backends()[0].wants_permits


def test_a_pause_that_is_over_and_a_resumed_backend_get_work(rows: Rows) -> None:
    rows.slots.pause("gpu-1", None, "429", -1)
    many(rows, 2)
    assert len(rows.take()) == 1
    rows.slots.pause("gpu-1", "ann", "new driver", None)
    assert not rows.slots.pause("gpu-1", None, "429", -1), "a provider's wish does not end a person's pause"
    assert rows.take() == []

    rows.slots.resume("gpu-1", "ann")

    assert len(rows.take()) == 1


def test_a_backend_the_worker_has_no_provider_for_is_left_to_others(rows: Rows) -> None:
    rows.backends(gpu_1=1, gpu_2=5)
    many(rows, 3)

    taken = rows.slots.take(POOL, at_most=3, lease_seconds=60, known={"gpu-1": object()})

    assert [task.backend for task in taken.tasks] == ["gpu-1"]
    assert rows.slots.take(POOL, at_most=3, lease_seconds=60, known=[]).tasks == []


def test_high_priority_comes_first_and_every_fifth_pick_goes_by_age_alone(rows: Rows) -> None:
    rows.backends(gpu_1=100)
    normal = many(rows, 5)
    high = many(rows, 10, priority=Priority.HIGH)
    high = [rows.age(task, created_at=100 - number) for number, task in enumerate(high)]

    picked = [rows.take()[0].id for _ in range(10)]

    h, n = [task.id for task in high], [task.id for task in normal]
    assert picked == [*h[:4], n[0], *h[4:8], n[1]]


def test_a_high_order_comes_first_also_when_many_permits_wait_for_one_slot(rows: Rows) -> None:
    """A busy pool: ten permits in hand, and one slot comes free at a time."""
    rows.backends(gpu_1=1)
    many(rows, 10)
    high = [rows.age(task, created_at=100).id for task in many(rows, 8, priority=Priority.HIGH)]

    picked = []
    for _ in range(10):
        (task,) = rows.take(10)
        picked.append(task.id in high)
        rows.moved(task, Status.FAILED)

    assert picked == [True] * 4 + [False] + [True] * 4 + [False]


def test_a_row_in_its_backoff_is_not_taken_before_that_is_over(rows: Rows) -> None:
    task = rows.moved(rows.processing(), Status.PENDING, free_in=60.0)
    assert rows.take() == []
    rows.age(task, free_at=0)

    (again,) = rows.take()

    assert (again.id, again.attempt) == (task.id, 2)


def test_a_row_past_its_deadline_is_not_started_any_more(rows: Rows) -> None:
    rows.age(rows.pending(), deadline_at=1)

    assert rows.take() == []


def test_rows_of_another_pool_are_not_taken(rows: Rows) -> None:
    rows.pending(pool="other-pool")

    assert rows.take() == []


def test_a_cancelled_row_holds_its_slot_until_the_job_is_cancelled_too(rows: Rows) -> None:
    rows.backends(gpu_1=1)
    cancelled = rows.tasks.cancel(rows.processing().id)
    assert cancelled is not None
    rows.pending()
    assert rows.slots.backends()[0].in_flight == 1
    assert rows.take() == []

    rows.sql("update tasks set cancel_owed = false where id = :id", id=cancelled.id)

    assert len(rows.take()) == 1


@pytest.mark.parametrize(
    ("free", "waiting", "at_most", "expected"),
    [
        (0, 0, 1, False),  # nobody looked: there may be rows
        (0, 3, 2, False),
        (2, 0, 1, True),
        (2, 1, 3, True),
        (2, 2, 2, False),  # every permit found a row
        (2, 2, 3, False),  # the slots are used up; whether rows are left is not known
        (2, 5, 5, False),
    ],
)
def test_none_left_means_that_a_free_slot_found_no_row(
    rows: Rows, free: int, waiting: int, at_most: int, expected: bool
) -> None:
    if free == 0:
        many(rows, 2)
        assert len(rows.take(2)) == 2
    many(rows, waiting)

    assert none_left(rows, at_most) is expected


def test_a_synced_file_changes_switches_off_and_switches_on_backends(rows: Rows) -> None:
    rows.backends(gpu_2=3)
    assert {b.name: (b.enabled, b.capacity) for b in rows.slots.backends()} == {"gpu-1": (False, 2), "gpu-2": (True, 3)}

    at_once([lambda: rows.backends(gpu_1=7, gpu_2=3)] * 5)

    assert {b.name: (b.enabled, b.capacity) for b in rows.slots.backends()} == {"gpu-1": (True, 7), "gpu-2": (True, 3)}


def test_health_is_written_once_and_only_from_the_state_that_was_named(rows: Rows) -> None:
    assert sum(at_once([lambda: rows.slots.set_health("gpu-1", "down", "refused")] * 5)) == 1
    assert not rows.slots.set_health("gpu-1", "frozen", only_from="up")
    assert rows.slots.set_health("gpu-1", "up", only_from="down")


def test_what_people_do_to_a_backend_is_noted_with_their_name(rows: Rows) -> None:
    assert rows.slots.pause("gpu-1", "ann", "new driver", 60)
    assert rows.slots.resume("gpu-1", "bob")
    assert not rows.slots.pause("no-such", "ann", "?", None)
    rows.slots.pause("gpu-1", None, "429", 1)

    noted = rows.sql("select by_whom, action, subject from operator_actions order by id")
    assert [tuple(line) for line in noted] == [("ann", "backend pause", "gpu-1"), ("bob", "backend resume", "gpu-1")]


def test_a_provider_lengthens_a_pause_and_never_shortens_it(rows: Rows) -> None:
    def pause() -> tuple[float, str]:
        row = rows.sql("select extract(epoch from paused_until - now()) as left, pause_reason from backends")[0]
        return round(float(row.left), -1), row.pause_reason

    rows.slots.pause("gpu-1", "ann", "new driver", 600)
    assert not rows.slots.pause("gpu-1", None, "429", 30)
    assert pause() == (600, "new driver")

    assert rows.slots.pause("gpu-1", None, "429", 900)
    assert pause() == (900, "429")

    assert rows.slots.pause("gpu-1", "ann", "only for a moment", 60), "a person's word counts"
    assert pause() == (60, "only for a moment")


def rated(rows: Rows, rate: str, capacity: int = 100) -> None:
    rows.slots.sync(
        [("gpu-1", POOL, "comfyui", "http://127.0.0.1:1", capacity, 60.0)], rates={"gpu-1": Rate.read(rate)}
    )


def test_three_takers_at_once_never_exceed_the_rate_and_use_it_up(rows: Rows) -> None:
    rated(rows, "10/s")
    many(rows, 40)

    def take_all(number: int) -> int:
        slots = Slots(rows.engine, f"taker-{number}", MEASURED)
        taken = 0

        def is_done() -> bool:
            nonlocal taken
            found = slots.take(POOL, at_most=4, lease_seconds=60)
            taken += len(found.tasks)
            return found.none_left

        eventually(is_done, within=30, every=0.01)
        return taken

    taken = at_once([partial(take_all, number) for number in range(3)])

    assert sum(taken) == 40
    most = rows.sql("""
        select max(starts) as starts from (select count(*) over (order by started_at
            range between interval '999999 microseconds' preceding and current row) as starts from attempts) windows
    """)
    assert most[0].starts == 10
    spent = rows.sql("select extract(epoch from max(started_at) - min(started_at)) as seconds from attempts")
    assert 3 <= spent[0].seconds < 6


def test_a_used_up_rate_keeps_rows_waiting_until_its_oldest_start_is_past(rows: Rows) -> None:
    rated(rows, "3/m")
    tasks = many(rows, 5)

    assert len(rows.take(5)) == 3
    assert rows.take(5) == []
    assert not none_left(rows, 5), "the rows are there"

    rows.sql("update attempts set started_at = now() - interval '61 seconds' where task_id = :id", id=tasks[0].id)
    assert [task.id for task in rows.take(5)] == [tasks[3].id]


def test_a_backend_whose_rate_is_used_up_leaves_the_work_to_another(rows: Rows) -> None:
    url = "http://127.0.0.1:1"
    both = [("gpu-1", POOL, "comfyui", url, 9, 60.0), ("gpu-2", POOL, "comfyui", url, 9, 60.0)]
    rows.slots.sync(both, rates={"gpu-1": Rate.read("1/m")})
    many(rows, 4)

    assert Counter(task.backend for task in rows.take(4)) == {"gpu-1": 1, "gpu-2": 3}


def test_a_row_taken_over_needs_no_start(rows: Rows) -> None:
    rated(rows, "1/m")
    task = rows.age(rows.submitting(), free_at=1)

    assert [over.id for over in rows.take()] == [task.id]


def test_a_rate_that_is_gone_from_the_file_limits_nothing_any_more(rows: Rows) -> None:
    rated(rows, "1/m")
    many(rows, 3)
    assert len(rows.take(3)) == 1

    rows.backends(gpu_1=100)

    assert len(rows.take(3)) == 2
