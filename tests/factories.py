"""Things tests need, filled in where the test does not care: orders, rows in every status, deliveries, a provider."""

import io
import itertools
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar

import sqlalchemy as sa
from PIL import Image

from shared.database.claims import Claim
from shared.database.engine import connect
from shared.database.moves import Change
from shared.database.slots import Slots
from shared.database.tasks import Tasks
from shared.domain.messages import CheckTasks, Delivery, Message, Order, TaskRef, check, permit
from shared.domain.task import Reason, Stage, Status, Task, job_key_for
from shared.observe import metrics
from shared.providers.base import Accepted, Failed, Gone, Job, JobState, Prepared, Running, Succeeded, Unclear

T = TypeVar("T")

POOL = "comfyui"
BACKENDS = ("gpu-1", "gpu-2", "gpu-3")
MEASURED = metrics.build(
    metrics.EVERYTHING,
    pools=[POOL, "other-pool"],
    backends=BACKENDS,
    queues=["orders", "submit.comfyui", "check.comfyui", "orders.dead", "submit.dead", "check.dead"],
    strict=True,
)
_numbers = itertools.count(1)


def an_order(**fields: Any) -> Order:
    """An order nobody has placed before."""
    return Order(**{"idempotency_key": f"key-{next(_numbers)}", "pool": POOL, "workflow": "demo"} | fields)


def a_claim(order: Order | None = None, **fields: Any) -> Claim:
    order = order or an_order(**fields)
    return Claim(
        idempotency_key=order.idempotency_key,
        order_id=order.order_id,
        fingerprint=order.fingerprint,
        pool=order.pool,
        priority=order.priority,
        deadline_seconds=order.deadline_seconds or 3600.0,
        body=order.model_dump(mode="json"),
        trace_id=uuid.uuid4().hex,
    )


def delivered(message: Message, *, queue: str = "orders", redelivered: bool = False, **fields: Any) -> Delivery:
    """The message as a consumer gets it."""
    values: dict[str, Any] = {
        "queue": queue,
        "body": message.body,
        "type": message.type,
        "message_id": message.message_id,
        "correlation_id": message.correlation_id,
        "headers": message.headers,
        "redelivered": redelivered,
    }
    return Delivery(**values | fields)


def permits(count: int) -> list[Delivery]:
    return [delivered(permit(POOL), queue="submit.comfyui") for _ in range(count)]


def a_check(*rows: Task) -> Delivery:
    refs = [TaskRef(task_id=row.id, attempt=row.attempt) for row in rows]
    return delivered(check(POOL, CheckTasks(pool=POOL, tasks=refs)), queue="check.comfyui")


def a_hint(backend: str) -> Delivery:
    return delivered(check(POOL, CheckTasks(pool=POOL, backend=backend, via="push")), queue="check.comfyui")


def a_picture(colour: str = "red") -> BinaryIO:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    file.seek(0)
    return file


def at_once(works: Iterable[Callable[[], T]]) -> list[T]:
    """Every work in a thread of its own, all let go at the same moment; their answers in order."""
    todo = list(works)
    start = threading.Barrier(len(todo))

    def run(work: Callable[[], T]) -> T:
        start.wait()
        return work()

    with ThreadPoolExecutor(len(todo)) as threads:
        return list(threads.map(run, todo))


class Rows:
    """One test's database. Rows reach their status the way the services make them do it."""

    def __init__(self, url: str, *, threads: int = 5) -> None:
        self.url = url
        self.engine = connect(url, pool_size=threads)
        self.tasks = Tasks(self.engine, "test", MEASURED)
        self.slots = Slots(self.engine, "test", MEASURED)

    def close(self) -> None:
        self.engine.dispose()

    def backends(self, **capacities: int) -> None:
        """gpu_1=2 is a backend gpu-1 with capacity 2; the ones not named are switched off."""
        self.slots.sync(
            [
                (name.replace("_", "-"), POOL, "comfyui", "http://127.0.0.1:1", capacity, 1800.0)
                for name, capacity in capacities.items()
            ]
        )

    def sql(self, statement: str, **values: Any) -> Sequence[sa.Row[Any]]:
        with self.engine.begin() as connection:
            result = connection.execute(sa.text(statement), values)
            return result.all() if result.returns_rows else []

    def pending(self, **fields: Any) -> Task:
        return self.tasks.claim([a_claim(**fields)])[0].task

    def take(self, at_most: int = 1, lease_seconds: float = 60.0) -> Sequence[Task]:
        return self.slots.take(POOL, at_most=at_most, lease_seconds=lease_seconds).tasks

    def submitting(self, lease_seconds: float = 60.0, **fields: Any) -> Task:
        """No other row may be pending."""
        task = self.pending(**fields)
        (taken,) = self.take(lease_seconds=lease_seconds)
        assert taken.id == task.id
        return taken

    def processing(self, **fields: Any) -> Task:
        task = self.submitting(**fields)
        recorded = self.record(task)
        assert recorded is not None
        return recorded

    def may_post(self, task: Task, body_hash: str = "hash", lease_seconds: float = 60) -> bool:
        return self.tasks.may_post([(task, body_hash)], lease_seconds)[0]

    def record(self, task: Task, job_id: str | None = None, due_in: float = 60) -> Task | None:
        return self.tasks.record([(task, Accepted(job_id or str(task.job_key)))], due_in)[0]

    def failed(self, task: Task | None = None, **fields: Any) -> Task:
        task = task or self.pending(**fields)
        return self.moved(task, Status.FAILED)

    def moved(self, task: Task, to: Status, **fields: Any) -> Task:
        return self.tasks.move([a_change(task, to, **fields)])[task.id]

    def now(self, task: Task) -> Task:
        return self.tasks.refresh(task)

    def age(self, task: Task, **seconds: float) -> Task:
        """Put moments of the row into the past: age(task, due_at=5) lets it have come due 5 seconds ago."""
        for column, ago in seconds.items():
            statement = f"update tasks set {column} = now() - :ago * interval '1 second' where id = :id"  # noqa: S608 - ours
            self.sql(statement, ago=ago, id=task.id)
        return self.now(task)

    def history(self, task: Task) -> list[tuple[str | None, str]]:
        rows = self.sql(
            "select from_status, to_status from task_moves where task_id = :id order by version", id=task.id
        )
        return [(row.from_status, row.to_status) for row in rows]

    def attempts(self, task: Task) -> Sequence[sa.Row[Any]]:
        return self.sql("select * from attempts where task_id = :id order by attempt", id=task.id)


def a_change(task: Task, to: Status, **fields: Any) -> Change:
    if to is Status.FAILED:
        fields = {"reason": Reason.BUG, "detail": "it broke", "stage": Stage.CHECK} | fields
    return Change(task=task, to=to, **fields)


class FakeProvider:
    """A provider with a memory. Slow on purpose: with an instant one, races stay hidden.

    plan("submit", error)                -- the next submit raises it; None: this one goes well
    plan("submit", error, accepted=True) -- it raises too, but the job exists
    meanwhile                            -- name of a call -> what happens while it is under way
    answer                               -- of submit, instead of the job's id
    unclear                              -- what `recover` says whatever it is asked
    """

    submit_limit_seconds = 1.0
    result_ttl_seconds: float | None = None

    def __init__(self, seconds: float = 0.05) -> None:
        self.seconds = seconds
        self.calls: list[tuple[str, uuid.UUID]] = []
        self.jobs: dict[uuid.UUID, JobState] = {}
        self.cancelled: list[Job] = []
        self.meanwhile: dict[str, Callable[[], object]] = {}
        self.can_cancel = True
        self.answer: Accepted | Succeeded | Failed | None = None
        self.unclear: Unclear | None = None
        self.alive = True
        self._plans: dict[str, list[tuple[BaseException | None, bool]]] = defaultdict(list)
        self._lock = threading.Lock()

    def plan(self, call: str, *errors: BaseException | None, accepted: bool = False) -> None:
        self._plans[call] += [(error, accepted) for error in errors]

    def count(self, call: str) -> int:
        return sum(name == call for name, _ in self.calls)

    def finish(self, task: Task, state: JobState | None = None) -> None:
        self.jobs[task.job_key or job_key_for(task.id, 1)] = state or Succeeded(outputs=[{"filename": "a.png"}])

    def prepare(self, job: Job) -> Prepared:
        self._step("prepare", job)
        return Prepared(job=job, body={}, body_hash="hash")

    def submit(self, prepared: Prepared) -> Accepted | Succeeded | Failed:
        job = prepared.job
        self._step("submit", job, lambda: self.jobs.__setitem__(job.job_key, Running()))
        return self.answer or Accepted(str(job.job_key))

    def problems(self, workflow: str | None, inputs: Mapping[str, Any]) -> list[str]:
        return []

    def recover(self, job: Job) -> Accepted | Gone | Unclear:
        self._step("find", job)
        if self.unclear is not None:
            return self.unclear
        return Accepted(job.provider_job_id or str(job.job_key)) if job.job_key in self.jobs else Gone()

    def check(self, jobs: Sequence[Job]) -> Mapping[uuid.UUID, JobState]:
        for job in jobs:
            self._step("check", job)
        return {job.job_key: self.jobs.get(job.job_key, Gone()) for job in jobs}

    def ended(self, ours: Callable[[Sequence[str]], Sequence[Job]]) -> Mapping[uuid.UUID, JobState]:
        over = {str(key): state for key, state in self.jobs.items() if not isinstance(state, Running)}
        found = ours(list(over))
        for job in found:
            self._step("ended", job)
        return {job.job_key: over[str(job.job_key)] for job in found}

    def fetch(self, job: Job, outputs: Sequence[Mapping[str, Any]]) -> Iterator[BinaryIO]:
        for _ in outputs:
            self._step("fetch", job)
            yield a_picture()

    def cancel(self, job: Job) -> bool:
        self._step("cancel", job)
        self.cancelled.append(job)
        if self.can_cancel and isinstance(self.jobs.get(job.job_key), Running):
            del self.jobs[job.job_key]
        return self.can_cancel

    def is_alive(self) -> bool:
        return self.alive

    def _step(self, call: str, job: Job, work: Callable[[], object] = lambda: None) -> None:
        with self._lock:
            self.calls.append((call, job.job_key))
            error, accepted = self._plans[call].pop(0) if self._plans[call] else (None, True)
        time.sleep(self.seconds)
        if error is None or accepted:
            work()
        if call in self.meanwhile:
            self.meanwhile.pop(call)()
        if error is not None:
            raise error
