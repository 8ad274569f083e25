"""Death beside image APIs: who dies where while orders of all five are made, and what must be true afterwards.

Where a provider can be asked, the order is made; where it cannot, a person decides about those alone that a dead worker
had in hand. No order has two jobs anywhere.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.local import Stack
from services.ops.audit_apis import api_jobs_found
from services.ops.audit_command import keys_lost
from shared.config import load_settings
from shared.database.engine import connect
from shared.domain.messages import Order
from shared.domain.task import Reason, Status
from shared.observe.crash import CrashPoint
from shared.providers.table_files import load_tables
from tests.conformance.simulated_apis import SimulatedApis
from tests.conformance.table_lab import PLACES
from tests.drill.matrix import Drill, Victim
from tests.e2e.image_apis import addresses, an_api_order, write_tables
from tests.e2e.promises import audit
from tests.e2e.system import System
from tests.integration.api_lab import KEYS
from tests.servers import new_database, new_vhost
from tests.waiting import eventually

#: Orders of each provider.
_EACH: Final = 3
#: What a worker leaves that died after its POST fails at these alone: they cannot be asked about it.
_UNASKABLE: Final = ("openai_images", "runpod_comfyui")
_WORKERS: Final = {Victim.SUBMITTER: 2, Victim.POLLER: 2, Victim.OPS: 1}
_DEATH_SECONDS: Final = 60.0
_END_SECONDS: Final = 90.0

_S, _P = Victim.SUBMITTER, Victim.POLLER
_ = CrashPoint
MATRIX: Final = (
    Drill(_.ROW_TAKEN, _S),
    Drill(_.POST_ALLOWED, _S, 2),
    Drill(_.POSTING, _S, 2),
    Drill(_.POSTED, _S, 2),
    Drill(_.JOB_LOOKED_UP, _S, after=_.POSTED),
    Drill(_.RECORD_COMMITTED, _S, 2),
    Drill(_.PICTURE_FETCHED, _S),
    Drill(_.PICTURE_WRITTEN, _S),
    Drill(_.PICTURE_STORED, _S),
    Drill(_.COMPLETED_COMMITTED, _S),
    Drill(_.SUBMISSION_FAILED, _S, after=_.POSTED),
    Drill(_.SUBMIT_DECIDED, _S, 2),
    Drill(_.STATES_READ, _P),
    Drill(_.PICTURE_FETCHED, _P, 2),
    Drill(_.PICTURE_STORED, _P, 2),
    Drill(_.COMPLETED_COMMITTED, _P, 2),
    Drill(_.JOB_CANCELLED, _P),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was there after one drill: orders, jobs that the APIs made, completed and unknown ones."""

    orders: int
    jobs: int
    completed: int
    unknown: int


class ApiLane:
    """One system beside the simulated APIs, gone through by one drill after the other."""

    def __init__(self, stack: Stack, folder: Path, apis: SimulatedApis) -> None:
        self._apis = apis
        tables = write_tables(folder / "tables")
        self._tables = load_tables(tables)
        amqp_url = stack.broker.url_of(new_vhost(stack))
        settings = {"LEASE_SECONDS": 6, "PROVIDERS_DIR": tables, "RETRY_MAX_ATTEMPTS": 3}
        self._system = System(folder, new_database(stack), amqp_url, gpus=0, apis=addresses(apis), settings=settings)
        self._system.settings |= KEYS

    def close(self) -> None:
        self._system.stop()

    def run(self, drill: Drill) -> Found:
        """Raises AssertionError with what is not as it must be."""
        system, before = self._system, self._counts()
        started = []
        for kind, count in _WORKERS.items():
            living = system.living(kind)
            if kind is drill.victim:
                for worker in living:
                    worker.kill()
            else:
                started += [system.add(kind, wait=False) for _ in range(count - len(living))]
        points = [(drill.after, 1) if drill.after else (drill.point, drill.nth), (drill.point, drill.nth)]
        armed = [system.add_dying(drill.victim, point, nth) for point, nth in points]
        system.wait_ready(started)
        for worker in armed:  # the first one could do it all before the other one is there
            eventually(
                lambda w=worker: not w.is_alive or w.is_ready(),  # type: ignore[misc]
                within=_DEATH_SECONDS,
                what=f"{worker.name} begins",
            )
        *orders, unwanted = self._orders(_UNASKABLE if drill.point is CrashPoint.SUBMISSION_FAILED else tuple(PLACES))
        self._apis.faults(clear=True, slow_job={"match": "unwanted", "seconds": 8})
        system.place(*[order for order in orders for _ in (1, 2)])
        if drill.after:
            eventually(lambda: not armed[0].is_alive, within=_DEATH_SECONDS, what=f"somebody reaches {drill.after}")
        system.place(unwanted, unwanted)
        orders.append(unwanted)

        def died() -> list[str | None]:
            self._cancel(unwanted)
            return [worker.died_at() for worker in armed if not worker.is_alive]

        eventually(lambda: drill.point in died(), within=_DEATH_SECONDS, what=f"somebody reaches {drill.point}")
        system.add(drill.victim, wait=False)
        self._await_ends(orders, unwanted)
        for worker in armed:
            if worker.is_alive:
                worker.kill()
        audit(system)
        dead = {worker.name for worker in armed}
        return self._judged(orders, unwanted, dead, before)

    def _orders(self, pools: Sequence[str]) -> list[Order]:
        """The one that is cancelled last."""
        made = [an_api_order(name) for name in pools for _ in range(_EACH)]
        unwanted = {"model": "black-forest-labs/flux-schnell", "input": {"prompt": f"unwanted {time.monotonic_ns()}"}}
        return [*made, an_api_order("replicate", inputs=unwanted)]

    def _cancel(self, unwanted: Order) -> None:
        row = self._system.row(unwanted)
        if row is not None and row.status == Status.PROCESSING:
            self._system.cancel(unwanted)

    def _await_ends(self, orders: list[Order], unwanted: Order) -> None:
        def ended() -> bool:
            self._cancel(unwanted)
            rows = self._system.rows(orders)
            return len(rows) == len(orders) and all(Status(row.status).is_final and row.due_at is None for row in rows)

        eventually(ended, within=_END_SECONDS, what=f"the end of all orders: {self._system.statuses(orders)}")

    def _counts(self) -> Counter[str]:
        return Counter(
            {
                f"{name} {what}": self._apis.stats(place.split("/")[1])[what]
                for name, place in PLACES.items()
                for what in ("jobs", "same_words_twice", "same_seed_twice")
            }
        )

    def _judged(self, orders: list[Order], unwanted: Order, dead: set[str], before: Counter[str]) -> Found:
        made = self._counts()
        made.subtract(before)
        for name in PLACES:
            own = [order for order in orders if order.pool == name]
            assert made[f"{name} jobs"] <= len(own), f"{name} made {made[f'{name} jobs']} jobs of {len(own)} orders"
            assert made[f"{name} same_words_twice"] == 0, f"{name} made an order twice"
        rows = {row.id: row for row in self._system.rows(orders)}
        assert rows[unwanted.task_id].status == Status.CANCELLED, rows[unwanted.task_id].status
        unknown = [row for row in rows.values() if row.reason == Reason.OUTCOME_UNKNOWN]
        others = [r for r in rows.values() if r.status == Status.FAILED and r.reason != Reason.OUTCOME_UNKNOWN]
        assert not others, f"{others[0].pool}: {others[0].reason} {others[0].detail}"
        for row in unknown:
            assert row.pool != "replicate", "its list proves what there is"
            takers = self._system.sql(
                "select actor from task_moves where task_id = :id and from_status = 'pending'", id=row.id
            )
            assert {taker.actor.partition("@")[2] for taker in takers} <= dead, "no dead worker had it in hand"
        self._ask_outside(orders)
        completed = sum(row.status == Status.COMPLETED for row in rows.values())
        jobs = sum(made[f"{name} jobs"] for name in PLACES)
        return Found(orders=len(orders), jobs=jobs, completed=completed, unknown=len(unknown))

    def _ask_outside(self, orders: list[Order]) -> None:
        """What `darkroom audit --keys` asks of providers and queues."""
        engine = connect(self._system.settings["DARKROOM_DATABASE_URL"])
        try:
            found, silent = api_jobs_found(engine, self._tables, KEYS)
            ours = {name: value for name, value in self._system.settings.items() if name.startswith("DARKROOM_")}
            chosen = load_settings(ours, dotenv=None)
            found += keys_lost(engine, chosen, [order.idempotency_key for order in orders])
        finally:
            engine.dispose()
        assert not found, "; ".join(f"{f.check}: {f.subject} {f.detail}" for f in found)
        assert not silent, f"providers that do not answer: {silent}"
