"""Whatever several workers do to rows: the history is a chain of legal moves that ends in the status."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test

from shared.domain.outcome import FollowUp
from shared.domain.task import FINAL, LEGAL_MOVES, Status, Task
from tests.factories import Rows, a_change, a_claim

ORDER_IDS = st.sampled_from([None, "o-1", "o-2"])


class Workers(RuleBasedStateMachine):
    """Workers act on rows as they read them at some time, often long ago; the model is only what must always hold."""

    rows: Rows
    read = Bundle("read")

    def __init__(self) -> None:
        super().__init__()
        self.rows.sql("truncate task_moves, attempts, artifacts, duplicate_keys, tasks cascade")
        self.ended: dict[object, Status] = {}

    @rule(target=read, order_id=ORDER_IDS, number=st.integers(0, 3))
    def claim(self, order_id: str | None, number: int) -> Task:
        return self.rows.tasks.claim([a_claim(idempotency_key=f"k-{number}-{order_id}", order_id=order_id)])[0].task

    @rule(target=read, at_most=st.integers(1, 3))
    def take(self, at_most: int) -> object:
        return multiple(*self.rows.take(at_most))

    @rule(target=read, task=read)
    def look_again(self, task: Task) -> Task:
        return self.rows.now(task)

    @rule(task=read)
    def let_the_lease_end(self, task: Task) -> None:
        self.rows.age(task, free_at=1)

    @rule(target=read, task=read)
    def record(self, task: Task) -> object:
        if task.status is not Status.SUBMITTING:
            return multiple()
        recorded = self.rows.record(task, "job", 60)
        return recorded or multiple()

    @rule(
        target=read,
        tasks=st.lists(read, min_size=1, max_size=3),
        to=st.sampled_from(sorted(Status)),
        charge=st.booleans(),
    )
    def move(self, tasks: list[Task], to: Status, charge: bool) -> object:
        legal = {task.id: task for task in tasks if (task.status, to) in LEGAL_MOVES}
        legal = {id_: task for id_, task in legal.items() if to not in (Status.SUBMITTING, Status.PROCESSING)}
        if to is Status.PENDING:  # a replay needs that no other order of its order_id is active: not this test's
            legal = {id_: task for id_, task in legal.items() if task.status not in FINAL}
        moved = self.rows.tasks.move([a_change(task, to, charge=charge) for task in legal.values()])
        return multiple(*moved.values())

    @rule(target=read, task=read)
    def cancel(self, task: Task) -> object:
        return self.rows.tasks.cancel(task.id) or multiple()

    @rule(task=read)
    def pay(self, task: Task) -> None:
        self.rows.tasks.clear_due([FollowUp(task.id, task.version)])

    @rule()
    def schedule(self) -> None:
        self.rows.sql("update tasks set due_at = now() where due_at is not null")
        self.rows.tasks.take_due(10, 60)

    @invariant()
    def every_history_is_a_legal_chain(self) -> None:
        moves: dict[object, list[object]] = {}
        for move in self.rows.sql("select * from task_moves order by task_id, version"):
            moves.setdefault(move.task_id, []).append(move)
        tasks = self.rows.sql("select * from tasks")
        assert {task.id for task in tasks} == moves.keys()
        for task in tasks:
            chain: list[object] = moves[task.id]
            self.holds(task, chain)

    def holds(self, task: object, chain: list[object]) -> None:
        assert [move.version for move in chain] == list(range(1, task.version + 1))  # type: ignore[attr-defined]
        assert (chain[0].from_status, chain[0].to_status) == (None, "pending")  # type: ignore[attr-defined]
        for before, after in pairwise(chain):
            assert before.to_status == after.from_status  # type: ignore[attr-defined]
            assert (after.from_status, after.to_status) in LEGAL_MOVES  # type: ignore[attr-defined]
            assert after.attempt - before.attempt in (0, 1)  # type: ignore[attr-defined]
        assert chain[-1].to_status == task.status  # type: ignore[attr-defined]
        assert task.due_at is not None or task.status in FINAL  # type: ignore[attr-defined]
        assert task.charged <= task.attempt or task.attempt == 0  # type: ignore[attr-defined]

    @invariant()
    def no_order_id_has_two_active_tasks_and_no_backend_too_many(self) -> None:
        assert not self.rows.sql(
            "select order_id from tasks where order_id is not null"
            " and status in ('pending', 'submitting', 'processing') group by order_id having count(*) > 1"
        )
        assert all(backend.in_flight <= backend.capacity for backend in self.rows.slots.backends())

    @invariant()
    def completed_and_cancelled_rows_never_change(self) -> None:
        for task in self.rows.sql("select id, status from tasks"):
            if task.id in self.ended:
                assert task.status == self.ended[task.id]
            elif task.status in ("completed", "cancelled"):
                self.ended[task.id] = Status(task.status)


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    rows = Rows(database_url)
    rows.backends(gpu_1=2, gpu_2=1)
    yield rows
    rows.close()


def test_the_history_of_every_row_is_a_chain_of_legal_moves_that_ends_in_its_status(rows: Rows) -> None:
    machine = type("TheseWorkers", (Workers,), {"rows": rows})

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
