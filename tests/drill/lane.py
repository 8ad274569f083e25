"""One system in which processes die, one drill after the other, and what is asked of it after each."""

import collections
import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.local import Stack
from services.ops.audit_command import jobs_found, keys_lost
from shared.config import load_settings
from shared.database.adopt import Refused
from shared.database.engine import connect
from shared.database.plans import Pace, Plans
from shared.domain.messages import Order
from shared.domain.task import Reason, Status
from tests.drill.matrix import Drill, Victim
from tests.e2e.promises import audit, owed
from tests.e2e.system import System, an_order, some_orders
from tests.e2e.worker import Worker
from tests.servers import free_port, new_database, new_vhost
from tests.waiting import eventually

#: Processes of each kind: several, so that there is work in flight elsewhere while one dies.
_WORKERS: Final = {Victim.SUBMITTER: 2, Victim.POLLER: 2, Victim.OPS: 1}
_ARMED: Final = 2
_DEATH_SECONDS: Final = 60.0
_END_SECONDS: Final = 120.0
_SETTINGS: Final = {
    "CHECK_INTERVAL_SECONDS": 0.2,  # jobs are looked at while they run, though the websocket tells of their ends
    "LEASE_SECONDS": 12,  # longer than one submission with a picture may last
    "RETRY_MAX_ATTEMPTS": 3,
    "RETRY_CAP_SECONDS": 0.3,
    "PREFETCH_INTAKE": 4,  # several batches
    "PREFETCH_COMFYUI": 4,
    "ALLOW_PRIVATE_INPUTS": True,
}
_PICTURE_SECONDS: Final = 0.25
_one_at_a_time: Final = threading.Lock()
_COPIES: Final = 8
#: A replay that is so old and not published was left behind by its replayer, see services/ops/replay.py.
_ABANDONED_SECONDS: Final = 31.0
#: For orders that name none.
_DEADLINE_SECONDS: Final = 86400.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Orders of every kind, each published twice: what becomes of them is known beforehand."""

    good: list[Order]
    unknown_workflow: Order
    overdue: Order
    breaks: Order
    no_picture: Order
    unwanted: Order

    @classmethod
    def new(cls, photo: Path) -> "Workload":
        picture = {"photo": photo.as_uri(), "width": 16, "height": 16}
        closed = f"http://127.0.0.1:{free_port()}/photo.png"
        return cls(
            good=some_orders(6) + some_orders(2, workflow="photo-invert", inputs=picture),
            unknown_workflow=an_order(workflow="no-such-workflow"),
            overdue=an_order(deadline_seconds=0.001),
            breaks=an_order(),
            no_picture=an_order(workflow="photo-invert", inputs={**picture, "photo": closed}),
            unwanted=an_order(workflow="photo-batch", inputs={**picture, "copies": _COPIES}),
        )

    @property
    def orders(self) -> list[Order]:
        """The unwanted one first, so that it runs while the others come."""
        bad = [self.unknown_workflow, self.overdue, self.breaks, self.no_picture]
        return [self.unwanted, *self.good, *bad]

    @property
    def ends(self) -> dict[Any, tuple[str, str | None]]:
        """Status and reason of each, by task id."""
        return {order.task_id: (Status.COMPLETED, None) for order in self.good} | {
            self.unknown_workflow.task_id: (Status.FAILED, Reason.INVALID_WORKFLOW),
            self.overdue.task_id: (Status.FAILED, Reason.DEADLINE),
            self.breaks.task_id: (Status.FAILED, Reason.EXECUTION_FAILED),
            self.no_picture.task_id: (Status.FAILED, Reason.INPUT_UNAVAILABLE),
            self.unwanted.task_id: (Status.CANCELLED, "on request"),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found after one drill. verdict -- `kept`, or what was not"""

    drill: Drill
    orders: int = 0
    tasks: int = 0
    provider_jobs: int = 0
    pictures: int = 0
    dead_letters: int = 0
    deaths: int = 0
    seconds: float = 0.0
    verdict: str

    @property
    def is_kept(self) -> bool:
        return self.verdict == "kept"


class Lane:
    """Workers go on from drill to drill, but those of the kind that dies next; a drill that fails gets a new system."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self._system: System | None = None

    def run(self, drill: Drill) -> Report:
        """One death, its repair, and the audit. Raises nothing but what a broken machine raises."""
        begun = time.monotonic()
        system = self._system or self._new_system()
        self._system = None
        done = Progress(system, drill)
        try:
            done.run()
        except AssertionError as error:
            report = done.report(str(error) or "an assertion failed", time.monotonic() - begun)
            (system.folder / "tails.txt").write_text(system.tails())
            system.stop()
            return report
        self._system = system
        return done.report("kept", time.monotonic() - begun)

    @property
    def folder(self) -> Path | None:
        return self._system.folder if self._system else None

    def close(self) -> None:
        if self._system is not None:
            self._system.stop()

    def _new_system(self) -> System:
        folder = Path(tempfile.mkdtemp(prefix="system-", dir=self._folder))
        photos = folder / "photos"
        photos.mkdir()
        with _one_at_a_time:  # the first one makes the migrated template of all others
            database_url = new_database(self._stack)
        return System(
            folder,
            database_url,
            self._stack.broker.url_of(new_vhost(self._stack)),
            gpus=2,
            seconds_per_image=_PICTURE_SECONDS,
            workflows=("solid-invert", "photo-invert", "photo-batch"),
            settings={**_SETTINGS, "INPUT_FOLDERS": photos},
        )


class Progress:
    """One drill in one system."""

    def __init__(self, system: System, drill: Drill) -> None:
        self._system = system
        self._drill = drill
        self._armed: list[Worker] = []
        self._died: list[str] = []
        self._commands_died = 0
        self._workload = Workload.new(_photo(system.folder / "photos"))
        self._letters_before = len(system.letters())
        self._unreadable = 0
        self._over = threading.Event()

    def run(self) -> None:
        """Raises AssertionError with the first thing that is not as it must be."""
        self._have_healthy()
        if not self._drill.victim.replays:
            self._arm()
        customer = threading.Thread(target=self._cancel_unwanted, daemon=True)
        customer.start()
        try:
            self._go_through()
        finally:
            self._over.set()
            customer.join()

    def _go_through(self) -> None:
        self._place()
        if not self._drill.victim.replays:
            self._await_death()
        self._await_ends()
        if self._drill.victim.replays:
            self._send_round()
        self._stop_armed()
        audit(self._system)
        self._ask_outside()
        self._compare()

    def report(self, verdict: str, seconds: float) -> Report:
        system, orders = self._system, self._workload.orders
        pictures = [list((system.folder / "pictures" / str(order.task_id)).rglob("*.png")) for order in orders]
        return Report(
            drill=self._drill,
            orders=len(orders),
            tasks=len(system.rows(orders)),
            provider_jobs=sum(len(system.runs_of(order)) for order in orders),
            pictures=sum(map(len, pictures)),
            dead_letters=sum(len(system.letters(o)) for o in orders) + len(system.letters()) - self._letters_before,
            deaths=len(self._died),
            seconds=seconds,
            verdict=verdict,
        )

    # --- processes

    def _have_healthy(self) -> None:
        """Everybody but the victims, who would find nothing to die of if others did their work."""
        started = []
        for kind, count in _WORKERS.items():
            living = self._system.living(kind)
            if kind is self._drill.victim:
                for worker in living:
                    worker.kill()  # nothing is owed now, as the last audit has seen
            else:
                started += [self._system.add(kind, wait=False) for _ in range(count - len(living))]
        self._system.wait_ready(started)

    def _arm(self) -> None:
        drill = self._drill
        points = [(drill.point, drill.nth)] * _ARMED
        if drill.after is not None:
            points[0] = (drill.after, 1)
        self._armed = [self._system.add_dying(drill.victim.service, point, nth) for point, nth in points]
        for worker in self._armed:
            eventually(lambda w=worker: _has_begun(w), within=_DEATH_SECONDS, what=f"{worker.name} begins")

    def _await_death(self) -> None:
        """Somebody died where it should; then a healthy one comes, as a supervisor would start it."""
        point = self._drill.point
        eventually(
            lambda: point in self._deaths(),
            within=_DEATH_SECONDS,
            what=f"somebody reaches {point}",
            every=0.05,
        )
        self._system.add(self._drill.victim.service, wait=False)

    def _deaths(self) -> list[str]:
        self._died = []
        for worker in self._armed:
            if not worker.is_alive:
                where = worker.died_at()
                assert where is not None, f"{worker.name} ended with {worker.process.returncode}: {worker.tail(5)}"
                self._died.append(where)
        return self._died

    def _stop_armed(self) -> None:
        """Where they died, and nowhere else; who never came by is not needed any more."""
        allowed = {self._drill.point, self._drill.after}
        assert set(self._deaths()) <= allowed, f"died at {self._died}"
        for worker in self._armed:
            if worker.is_alive:
                worker.kill()
        others = [w for w in self._system.workers if not w.is_alive and w.process.returncode not in (0, -9)]
        assert not others, f"{others[0].name} ended with {others[0].process.returncode}: {others[0].tail(5)}"
        if self._drill.victim is Victim.COMMAND:
            self._died = [self._drill.point] * self._commands_died

    # --- orders

    def _place(self) -> None:
        for gpu in self._system.gpus:
            gpu.faults(fail_execution={"match": f'"color": {self._workload.breaks.inputs["color"]}'})
        self._system.place(*[order for order in self._workload.orders for _ in (1, 2)], publishers=2)
        self._system.mail.send(b"not even JSON")
        self._unreadable = 1

    def _cancel_unwanted(self) -> None:
        """A thread's whole life: the customer of the unwanted order cancels it as soon as it runs."""
        status = None
        while not self._over.wait(0.02) and (status is None or not Status(status).is_final):
            row = self._system.row(self._workload.unwanted)
            status = row.status if row is not None else None
            if status == Status.PROCESSING:
                self._system.tasks.cancel(row.id)

    def _await_ends(self) -> None:
        wanted = len(self._workload.ends)
        letters = self._letters_before + self._unreadable

        def is_over() -> bool:
            rows = self._system.rows(self._workload.orders)
            settled = [row for row in rows if Status(row.status).is_final and row.due_at is None]
            return len(settled) == wanted and len(self._system.letters()) >= letters and not owed(self._system)

        try:
            eventually(is_over, within=_END_SECONDS, what="every order ends", every=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}; still owed: {owed(self._system)}") from None

    def _send_round(self) -> None:
        """Three letters go round: of an order that may be made now, of one that fails again, and of no order."""
        system, load = self._system, self._workload
        for gpu in system.gpus:
            gpu.heal()
        letters = [system.letters(load.overdue)[0].id, system.letters(load.breaks)[0].id, system.letters()[-1].id]
        if self._drill.victim is Victim.PLANS:
            self._carry_out(letters)
        else:
            self._replay(letters)
        system.sql(
            "update replays set at = at - :s * interval '1 second' where state = 'open' and task_id is null",
            s=_ABANDONED_SECONDS,
        )
        system.await_status("completed", load.breaks, within=_END_SECONDS)
        unfinished = "select 1 from replays where state = 'open' union select 1 from plans where state = 'running'"
        eventually(lambda: not system.sql(unfinished), within=_END_SECONDS, what="every replay ends")
        self._unreadable = 2
        self._await_ends()

    def _replay(self, letters: list[int]) -> None:
        """Somebody sends letters round; the command dies, and the same person gives it again."""
        words = ["dead", "replay", *map(str, letters), "--by", "drill"]
        status, said = self._system.darkroom(*words, KILL_AT=f"{self._drill.point}:{self._drill.nth}")
        assert status == -9, f"the command ended with {status}: {said[-300:]}"
        assert f'"{self._drill.point}"' in said, said[-300:]
        self._commands_died = 1
        self._system.darkroom(*words)  # refuses what the first one did, does the rest

    def _carry_out(self, letters: list[int]) -> None:
        """Somebody applies a plan; those who carry it out die, and another one comes."""
        for worker in self._system.living(self._drill.victim.service):
            worker.kill()
        self._arm()
        plans = Plans(self._system.engine)
        made = plans.make(letters, "drill", pace=Pace(rate=1000, ramp=(), stop_at=None))
        assert not isinstance(made, Refused), made
        plans.apply(made[0].id, "drill")
        self._await_death()

    def _ask_outside(self) -> None:
        """What `darkroom audit --keys` asks of servers and queues."""
        engine = connect(self._system.settings["DARKROOM_DATABASE_URL"])
        try:
            found, silent = jobs_found(engine)
            chosen = load_settings(self._system.settings, dotenv=None)
            found += keys_lost(engine, chosen, [order.idempotency_key for order in self._workload.orders])
        finally:
            engine.dispose()
        assert not found, "; ".join(f"{f.check}: {f.subject} {f.detail}" for f in found)
        assert not silent, f"servers that do not answer: {silent}"

    def _compare(self) -> None:
        """Every order ended as it must, whoever died."""
        ends = dict(self._workload.ends)
        if self._drill.victim.replays:
            ends[self._workload.breaks.task_id] = (Status.COMPLETED, None)
        found = {row.id: (row.status, row.reason) for row in self._system.rows(self._workload.orders)}
        if self._drill.victim.replays:  # it waits no longer than it did the first time
            ends.pop(self._workload.overdue.task_id)
            found.pop(self._workload.overdue.task_id)
        wrong = [f"{found.get(task)}, not {end}" for task, end in ends.items() if found.get(task) != end]
        assert not wrong, "; ".join(wrong)
        again = collections.Counter(
            run["prompt_id"] for order in self._workload.orders for run in self._system.runs_of(order)
        )
        assert set(again.values()) <= {1}, f"jobs accepted more than once: {again.most_common(3)}"


_colours: Iterator[int] = iter(range(1, 10_000_000))


def _has_begun(worker: Worker) -> bool:
    """Also one that has come by its point already, perhaps while it was asked."""
    with contextlib.suppress(AssertionError):
        return worker.is_ready()
    return not worker.is_alive


def _photo(folder: Path) -> Path:
    """A photo that no server has been given yet."""
    from PIL import Image

    number = next(_colours)
    path = folder / f"{number}.png"
    Image.new("RGB", (16, 16), (number % 256, number // 256 % 256, 7)).save(path)
    return path
