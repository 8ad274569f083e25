"""The whole system in real processes: simulated GPU servers and our services, and a look at it from outside."""

import itertools
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from shared.database.slots import Slots
from shared.database.tasks import Tasks
from shared.domain.messages import Order
from shared.observe import metrics
from shared.observe.crash import CrashPoint
from tests.e2e.gpu import Gpu
from tests.e2e.mail import POOLS, Mail
from tests.e2e.worker import ROOT, Worker
from tests.waiting import eventually

#: Everything that takes seconds in production takes parts of one here. The lease is just longer than one submission
#: may last, see _check_lease in services/submitter/__main__.py.
QUICK: Final[Mapping[str, float]] = {
    "BACKEND_TIMEOUT_SECONDS": 0.5,
    "INPUT_TIMEOUT_SECONDS": 1,
    "SETTLE_SECONDS": 0.2,
    "LEASE_SECONDS": 9,
    "CHECK_INTERVAL_SECONDS": 0.5,
    "SCHEDULE_INTERVAL_SECONDS": 0.2,
    "PERMIT_INTERVAL_SECONDS": 0.5,
    "RETRY_FIRST_SECONDS": 0.2,
    "RETRY_CAP_SECONDS": 1,
    "FROZEN_AFTER_SECONDS": 1,
    "MAX_RUN_SECONDS": 120,
    "DRAIN_SECONDS": 10,
    "METRICS_PORT": 0,
    "CONSOLE_PORT": -1,
}
FINAL: Final = frozenset({"completed", "failed", "cancelled"})


class System:
    """N servers, one database, one virtual host; workers are added and killed as a test likes.

    pools     -- the servers belong to these in turn
    apis      -- addresses of image APIs by the name of their provider, each a pool of its own
    workflows -- templates of deploy/workflows to offer; one with a picture input needs a lease of 12 s
    settings  -- beside QUICK, without the prefix
    reach     -- the URL under which the workers know a server
    one_disk  -- all servers share one folder of outputs
    canary    -- ops places its own order every minute
    """

    def __init__(
        self,
        folder: Path,
        database_url: str,
        amqp_url: str,
        *,
        gpus: int = 1,
        capacity: int = 2,
        seconds_per_image: float = 0.02,
        workflows: Sequence[str] = ("solid-invert",),
        pools: Sequence[str] = POOLS,
        apis: Mapping[str, str] | None = None,
        settings: Mapping[str, object] | None = None,
        reach: Callable[[Gpu], str] = lambda gpu: gpu.url,
        one_disk: bool = False,
        canary: bool = False,
    ) -> None:
        self.folder = folder
        apis = apis or {}
        self.mail = Mail(amqp_url, [*pools, *apis])
        disk = folder / "shared-disk" if one_disk else None
        self.gpus = [Gpu(f"gpu-{n + 1}", folder, capacity, seconds_per_image, disk) for n in range(gpus)]
        self.workers: list[Worker] = []
        self._commands: list[Worker] = []
        #: Messages of log lines that may carry a traceback, and prompt ids that may have run twice.
        self.expected_exceptions: set[str] = set()
        self.paid_twice_allowed: set[str] = set()
        self.engine = sa.create_engine(  # asks whether the server is still there: some tests stop it
            sa.make_url(database_url).set(drivername="postgresql+psycopg2"), pool_pre_ping=True, max_overflow=100
        )
        counters = metrics.build(metrics.EVERYTHING, pools=[*pools, *apis])
        self.tasks = Tasks(self.engine, "person", counters)
        self.slots = Slots(self.engine, "person", counters)
        for name in workflows:
            shutil.copytree(ROOT / "deploy" / "workflows" / name, folder / "workflows" / name)
        (folder / "backends.toml").write_text(
            "".join(
                f'[[backend]]\nname = "{gpu.name}"\nadapter = "comfyui"\nurl = "{reach(gpu)}"\ncapacity = {capacity}\n'
                f'pool = "{pool}"\n'
                for gpu, pool in zip(self.gpus, itertools.cycle(pools), strict=False)
            )
            + "".join(
                f'[[backend]]\nname = "{name}"\nadapter = "http"\nprovider = "{name}"\nurl = "{url}"\n'
                for name, url in apis.items()
            )
            + ('[[backend]]\nname = "canary"\nadapter = "canary"\n' if canary else "")
        )
        self.settings = {
            f"DARKROOM_{name}": str(value)
            for name, value in {
                **QUICK,
                "DATABASE_URL": database_url,
                "AMQP_URL": amqp_url,
                "BACKENDS_FILE": folder / "backends.toml",
                "WORKFLOWS_DIR": folder / "workflows",
                "ARTIFACTS_URL": (folder / "pictures").as_uri(),
                **(settings or {}),
            }.items()
        }

        for gpu in self.gpus:
            gpu.wait_until_up()

    # --- processes

    def start(self, *, submitters: int = 1, pollers: int = 1, ops: int = 1) -> list[Worker]:
        """Returns when all of them are ready."""
        wanted = ["submitter"] * submitters + ["poller"] * pollers + ["ops"] * ops
        workers = [self.add(service, wait=False) for service in wanted]
        self.wait_ready(workers)
        return workers

    def add(
        self,
        service: str,
        *,
        via: str | None = None,
        wait: bool = True,
        environment: Mapping[str, str] | None = None,
        **settings: object,
    ) -> Worker:
        """One more healthy worker. via -- a module of tests/e2e that runs it; environment -- no settings of ours"""
        command = [f"services.{service}"] if via is None else [via, service]
        worker = self._launch(service, command, settings, environment)
        if wait:
            self.wait_ready([worker])
        return worker

    def add_dying(self, service: str, point: CrashPoint, nth: int = 1) -> Worker:
        """A worker that kills itself at a crash point, maybe before it is ready."""
        return self.add(service, wait=False, KILL_AT=f"{point}:{nth}")

    def darkroom(self, *words: str, **settings: object) -> tuple[int, str]:
        """Run one `darkroom` command to its end: the exit status, and all it printed."""
        own = {f"DARKROOM_{key}": str(value) for key, value in settings.items()}
        name = f"darkroom-{len(self._commands) + 1}"
        command = Worker(name, ["services.cli", *words], self.folder, self.settings | own)
        self._commands.append(command)
        return command.ended(60), command.log.read_text()

    def wait_ready(self, workers: Iterable[Worker]) -> None:
        for worker in workers:
            eventually(worker.is_ready, within=60, what=f"{worker.name} is ready")

    def living(self, service: str) -> list[Worker]:
        return [worker for worker in self.workers if worker.is_alive and worker.name.startswith(service)]

    def stop(self) -> None:
        """Every process that was started here is gone."""
        for worker in self.workers:
            if worker.is_alive:
                worker.terminate()
        for process in [*self.workers, *self._commands, *(gpu.process for gpu in self.gpus)]:
            process.stop()
        self.engine.dispose()

    def tails(self) -> str:
        """The last log lines of every process, for a test that failed."""
        processes = [*self.workers, *(gpu.process for gpu in self.gpus)]
        return "\n".join(f"--- {process.name}\n{process.tail()}" for process in processes)

    def _launch(
        self,
        service: str,
        command: Sequence[str],
        settings: Mapping[str, object],
        environment: Mapping[str, str] | None = None,
    ) -> Worker:
        name = f"{service}-{len(self.workers) + 1}"
        own = {f"DARKROOM_{key}": str(value) for key, value in settings.items()} | {"DARKROOM_INSTANCE": name}
        worker = Worker(name, command, self.folder, self.settings | own | dict(environment or {}))
        self.workers.append(worker)
        return worker

    # --- orders and rows

    def place(self, *orders: Order, publishers: int = 1) -> None:
        """Publish them as an upstream system does."""
        self.mail.place(orders, publishers)

    def sql(self, statement: str, **values: Any) -> list[Any]:
        with self.engine.begin() as connection:
            result = connection.execute(sa.text(statement), values)
            return list(result) if result.returns_rows else []

    def row(self, order: Order) -> Any:
        """The row of an order as it is now, None before there is one."""
        return next(iter(self.sql("select * from tasks where id = :id", id=order.task_id)), None)

    def rows(self, orders: Iterable[Order]) -> list[Any]:
        ids = [str(order.task_id) for order in orders]
        return self.sql("select * from tasks where id = any(cast(:ids as uuid[]))", ids=ids)

    def statuses(self, orders: Iterable[Order]) -> dict[str, int]:
        """How many of them are in each status."""
        found: dict[str, int] = {}
        for row in self.rows(orders):
            found[row.status] = found.get(row.status, 0) + 1
        return found

    def await_status(self, status: str, *orders: Order, within: float = 45.0) -> list[Any]:
        """The rows, once each is in this status and, if that is final, nothing is owed for it any more."""

        def reached() -> bool:
            rows = self.rows(orders)
            settled = [r for r in rows if r.status == status and (status not in FINAL or r.due_at is None)]
            return len(settled) == len(orders)

        try:
            eventually(reached, within=within, what=f"{len(orders)} x {status}")
        except AssertionError as error:
            raise AssertionError(f"{error}; they are {self.statuses(orders)}") from None
        return self.rows(orders)

    def moves(self, order: Order) -> list[tuple[str | None, str]]:
        """Its history, without the beginning."""
        found = self.sql(
            "select from_status, to_status from task_moves where task_id = :id order by version", id=order.task_id
        )
        return [(row.from_status, row.to_status) for row in found][1:]

    def letters(self, order: Order | None = None) -> list[Any]:
        """Recorded dead letters: of one order, or of messages that belong to no row."""
        if order is None:
            return self.sql("select * from dead_letters where task_id is null order by id")
        return self.sql("select * from dead_letters where task_id = :id order by id", id=order.task_id)

    def events(self, order: Order) -> list[str]:
        """What the upstream system was told about an order, without repeats and without `processing`."""
        told = [event for event in self.mail.events() if event["task_id"] == str(order.task_id)]
        return [event["event"] for event in told if event["event"] != "processing"]

    def cancel(self, order: Order) -> None:
        self.tasks.cancel(order.task_id, "the customer changed their mind")

    def pass_time(self, order: Order, seconds: float) -> None:
        """Everything this row waits for, but its deadline, comes so much earlier. Saves a test the waiting."""
        self.sql(
            "update tasks set free_at = free_at - :s * interval '1 second', due_at = due_at - :s * interval '1 second'"
            " where id = :id",
            id=order.task_id,
            s=seconds,
        )

    def pass_deadline(self, order: Order) -> None:
        """The deadline of an order that is being submitted or made is over."""
        self.sql("update tasks set deadline_at = now() where id = :id", id=order.task_id)

    def runs_of(self, order: Order) -> list[dict[str, Any]]:
        """What the servers did for an order, over all its attempts."""
        rows = self.sql("select job_key from attempts where task_id = :id", id=order.task_id)
        keys = {str(row.job_key) for row in rows}
        return [run for gpu in self.gpus for run in gpu.executions if run["prompt_id"] in keys]


_colors = iter(range(1_000_000, 9_000_000))


def an_order(**given: Any) -> Order:
    """An order of a small plain picture in a colour of its own. What is given replaces or adds a field."""
    values: dict[str, Any] = {
        "idempotency_key": str(uuid.uuid4()),
        "pool": "comfyui",
        "workflow": "solid-invert",
        "inputs": {"width": 32, "height": 32, "color": next(_colors)},
    }
    return Order(**{**values, **given})


def some_orders(count: int, **given: Any) -> list[Order]:
    return [an_order(**given) for _ in range(count)]
