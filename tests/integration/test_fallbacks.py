"""Orders that name several pools go on where a job was surely not made, as the same row, and nowhere else."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from services.poller.check import Check
from services.submitter.intake import Intake
from services.submitter.submit import Submit
from shared.database.fallbacks import fall_back
from shared.domain.errors import AccountRefused, OutcomeUnknown, ProviderBusy, ProviderRejected
from shared.domain.messages import order_placed
from shared.domain.retry import RetryPolicy
from shared.domain.task import Reason, Status, Task
from shared.observe.logs import ContextPool
from shared.providers.base import Failed, Succeeded, Unclear
from shared.storage import Artifacts
from tests.factories import MEASURED, FakeProvider, Rows, a_check, an_order, at_once, delivered, permits

POOLS = {"comfyui": "gpu-1", "other-pool": "gpu-2"}
CHAIN: list[Any] = ["comfyui", {"pool": "other-pool", "inputs": {"prompt": "there"}}]
#: How long a pool must have been shut.
AFTER = 60.0


class Lab(Rows):
    """Two pools with one backend each, and a submitter for either."""

    def __init__(self, url: str) -> None:
        super().__init__(url, threads=12)
        self.slots.sync([(name, pool, "comfyui", "http://127.0.0.1:1", 5, 60.0) for pool, name in POOLS.items()])
        self.providers = {name: FakeProvider(seconds=0.005) for name in POOLS.values()}
        self.calls = ContextPool(4)
        retry = RetryPolicy(max_charged=2, first_seconds=0)
        store = Artifacts("memory://")
        self.submits = {
            pool: Submit(
                pool,
                self.tasks,
                self.slots,
                self.providers,
                calls=self.calls,
                lease_seconds=60,
                first_look_seconds=7,
                retry=retry,
                metrics=MEASURED,
                stopping=threading.Event(),
                artifacts=store,
            )
            for pool in POOLS
        }
        self.check = Check(
            self.tasks,
            self.slots,
            self.providers,
            store,
            retry=retry,
            max_run_seconds={},
            frozen_after_seconds=50.0,
            metrics=MEASURED,
            threads=ContextPool(2),
        )

    def order(self, **fields: Any) -> Task:
        return self.pending(**{"pools": CHAIN, "inputs": {"width": 1}} | fields)

    def start(self, pool: str) -> Any:
        (answer,) = self.submits[pool].handle(permits(1))
        return answer.result(20) if isinstance(answer, Future) else answer

    def provider(self, pool: str) -> FakeProvider:
        return self.providers[POOLS[pool]]


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.calls.shutdown()
    lab.close()


def counted() -> float:
    return MEASURED.value("fallbacks_total", pool="comfyui")


# --- at the first pool's answer


def test_what_the_first_refuses_is_made_by_the_next_with_what_the_order_says_there(lab: Lab) -> None:
    lab.provider("comfyui").plan("submit", ProviderRejected("no such model"))
    task, before = lab.order(), counted()

    verdict = lab.start("comfyui")

    row = lab.now(task)
    assert (row.status, row.pool, row.charged, row.attempt) == (Status.PENDING, "other-pool", 0, 1)
    assert not verdict.then, "nobody is told of an end that is none"
    assert counted() == before + 1
    lab.start("other-pool")
    row = lab.now(task)
    assert (row.status, row.pool, row.backend, row.attempt) == (Status.PROCESSING, "other-pool", "gpu-2", 2)
    assert row.inputs == {"prompt": "there"}
    assert [(a.backend, a.outcome) for a in lab.attempts(task)] == [("gpu-1", "rejected"), ("gpu-2", None)]


def test_what_the_last_refuses_fails(lab: Lab) -> None:
    for pool in POOLS:
        lab.provider(pool).plan("submit", ProviderRejected("no such model"))
    task = lab.order()
    lab.start("comfyui")

    verdict = lab.start("other-pool")

    assert (lab.now(task).status, lab.now(task).reason) == (Status.FAILED, Reason.REJECTED)
    assert [message.routing_key for message in verdict.then] == ["submit.dead", "order.failed"]


@pytest.mark.parametrize(
    ("allowed", "pool", "status"),
    [([], "comfyui", Status.FAILED), (["content_rejected"], "other-pool", Status.PENDING)],
)
def test_refused_content_goes_on_only_where_the_order_allows_it(
    lab: Lab, allowed: list[str], pool: str, status: Status
) -> None:
    lab.provider("comfyui").plan("submit", ProviderRejected("unsafe", reason=Reason.CONTENT_REJECTED))
    task = lab.order(fallback_on=allowed)
    lab.start("comfyui")
    assert (lab.now(task).pool, lab.now(task).status) == (pool, status)


def test_a_job_in_doubt_never_goes_on(lab: Lab) -> None:
    lab.provider("comfyui").plan("submit", OutcomeUnknown("silence", ask_in=0.0))
    lab.provider("comfyui").unclear = Unclear("this provider cannot be asked")
    task = lab.order(fallback_on=["failed", "content_rejected"])
    lab.start("comfyui")
    lab.start("comfyui")

    row = lab.now(task)
    assert (row.status, row.reason, row.pool) == (Status.FAILED, Reason.OUTCOME_UNKNOWN, "comfyui")
    assert lab.provider("other-pool").calls == []


def test_a_refused_account_sends_its_orders_on_at_once(lab: Lab) -> None:
    lab.provider("comfyui").plan("submit", AccountRefused("no credit"))
    task, plain = lab.order(), None
    lab.start("comfyui")
    assert (lab.now(task).status, lab.now(task).pool) == (Status.PENDING, "other-pool")

    lab.slots.resume("gpu-1", "ana")
    lab.provider("comfyui").plan("submit", AccountRefused("no credit"))
    plain = lab.pending()
    lab.start("comfyui")
    assert (lab.now(plain).status, lab.now(plain).pool) == (Status.PENDING, "comfyui")


def test_a_busy_provider_keeps_its_orders(lab: Lab) -> None:
    lab.provider("comfyui").plan("submit", ProviderBusy("too fast", retry_after_seconds=1, is_too_fast=True))
    task = lab.order()
    lab.start("comfyui")
    assert (lab.now(task).status, lab.now(task).pool) == (Status.PENDING, "comfyui")


# --- after a job


@pytest.mark.parametrize(
    ("allowed", "pool", "status"), [([], "comfyui", Status.FAILED), (["failed"], "other-pool", Status.PENDING)]
)
def test_jobs_that_failed_are_tried_elsewhere_only_where_the_order_allows_it(
    lab: Lab, allowed: list[str], pool: str, status: Status
) -> None:
    task = lab.order(fallback_on=allowed)
    for _ in range(2):
        lab.start("comfyui")
        lab.provider("comfyui").finish(lab.now(task), Failed(reason=Reason.LOST, why="gone", retryable=True))
        (outcome,) = lab.check.handle([a_check(lab.now(task))])

    row = lab.now(task)
    assert (row.status, row.pool, row.attempt) == (status, pool, 2)
    assert row.charged == (2 if status is Status.FAILED else 0)
    assert len(outcome.then) == (2 if status is Status.FAILED else 0)  # type: ignore[union-attr]


def test_a_picture_that_we_do_not_take_was_made_all_the_same(lab: Lab) -> None:
    lab.provider("comfyui").answer = Succeeded(outputs=[{}])
    lab.provider("comfyui").plan("fetch", ProviderRejected("a private address", reason=Reason.NO_OUTPUTS))
    task = lab.order()
    lab.start("comfyui")
    assert (lab.now(task).status, lab.now(task).pool) == (Status.FAILED, "comfyui")


def test_a_job_that_was_moderated_away_stays_where_it_is(lab: Lab) -> None:
    task = lab.order(fallback_on=["failed"])
    lab.start("comfyui")
    moderated = Failed(reason=Reason.CONTENT_REJECTED, why="unsafe", retryable=False)
    lab.provider("comfyui").finish(lab.now(task), moderated)
    lab.check.handle([a_check(lab.now(task))])
    assert (lab.now(task).status, lab.now(task).pool) == (Status.FAILED, "comfyui")


# --- while the first pool takes no work


def shut(lab: Lab, name: str = "gpu-1", *, ago: float = 2 * AFTER) -> None:
    lab.slots.set_health(name, "down", "no connection")
    lab.sql(
        "update backends set health_changed_at = now() - :ago * interval '1 second' where name = :name",
        ago=ago,
        name=name,
    )


def waited(lab: Lab, task: Task, seconds: float = 2 * AFTER) -> Task:
    return lab.age(task, changed_at=seconds)


def test_orders_that_wait_for_a_pool_that_takes_no_work_go_on(lab: Lab) -> None:
    shut(lab)
    old, young, plain = waited(lab, lab.order()), lab.order(), waited(lab, lab.pending())

    gone = fall_back(lab.engine, AFTER, 500)

    assert [(row.id, row.pool, pool) for row, pool in gone] == [(old.id, "comfyui", "other-pool")]
    assert [lab.now(task).pool for task in (old, young, plain)] == ["other-pool", "comfyui", "comfyui"]
    assert lab.now(old).version == old.version, "that is no move"
    lab.start("other-pool")
    assert lab.now(old).status is Status.PROCESSING


def test_a_pool_that_was_shut_a_moment_ago_or_opens_soon_keeps_its_orders(lab: Lab) -> None:
    task = waited(lab, lab.order())
    shut(lab, ago=AFTER / 2)
    assert fall_back(lab.engine, AFTER, 500) == []
    lab.slots.set_health("gpu-1", "up")
    lab.slots.pause("gpu-1", None, "too fast", AFTER / 2)
    assert fall_back(lab.engine, AFTER, 500) == []
    lab.slots.pause("gpu-1", "ana", "maintenance", None)
    assert len(fall_back(lab.engine, AFTER, 500)) == 1
    assert lab.now(task).pool == "other-pool"


def test_one_backend_that_works_keeps_its_pool_open(lab: Lab) -> None:
    names = [("gpu-1", "comfyui"), ("gpu-2", "other-pool"), ("gpu-3", "comfyui")]
    lab.slots.sync([(name, pool, "comfyui", "http://127.0.0.1:1", 5, 60.0) for name, pool in names])
    waited(lab, lab.order())
    shut(lab)
    assert fall_back(lab.engine, AFTER, 500) == []


def test_orders_in_their_last_pool_do_not_stand_in_the_way_of_others(lab: Lab) -> None:
    last = [waited(lab, lab.order(pool="other-pool", pools=["other-pool", "comfyui"])) for _ in range(3)]
    lab.sql("update tasks set pool = 'comfyui'")
    task = waited(lab, lab.order())
    shut(lab)

    assert [row.id for row, _ in fall_back(lab.engine, AFTER, 2)] == [task.id]
    assert {lab.now(row).pool for row in last} == {"comfyui"}


def test_an_order_that_is_started_and_sent_on_at_the_same_moment_goes_one_way(lab: Lab) -> None:
    """A refused account's pool is shut, and one of its orders is taken to try it."""
    tasks = [waited(lab, lab.order()) for _ in range(10)]
    lab.slots.refuse("gpu-1", "no credit")
    lab.sql("update backends set health_changed_at = now() - interval '1 hour', probe_at = now() where name = 'gpu-1'")

    def take(pool: str) -> int:
        return len(lab.slots.take(pool, at_most=5, lease_seconds=60).tasks)

    takers = [lambda: take("comfyui"), lambda: take("comfyui"), lambda: take("other-pool")]
    at_once([lambda: len(fall_back(lab.engine, AFTER, 500)), *takers])

    for row in map(lab.now, tasks):
        assert row.backend in (None, POOLS[row.pool])


# --- what the backends file says


def intake(lab: Lab, taken_by: dict[str, list[str]]) -> Intake:
    """taken_by -- pool -> the inputs that it takes"""
    return Intake(
        lab.tasks,
        pools=list(POOLS),
        pools_now=lab.slots.pools,
        problems=lambda said: [name for name in said.inputs if name not in taken_by[said.pool]],
        default_deadline_seconds=3600,
        metrics=MEASURED,
        fallbacks={"comfyui": ["other-pool"]},
    )


@pytest.mark.parametrize(("takes", "pools"), [(["width"], ["comfyui", "other-pool"]), ([], [])])
def test_an_order_that_names_one_pool_has_those_after_it_that_take_what_it_says(
    lab: Lab, takes: list[str], pools: list[str]
) -> None:
    order = an_order(inputs={"width": 1})
    intake(lab, {"comfyui": ["width"], "other-pool": takes}).handle([delivered(order_placed(order))])

    row = lab.tasks.get([order.task_id])[order.task_id]
    assert (row.status, row.pool, row.pools) == (Status.PENDING, "comfyui", pools)
    assert row.fingerprint == order.fingerprint


def test_an_order_s_own_choice_counts_and_must_be_right_everywhere(lab: Lab) -> None:
    ours = intake(lab, {"comfyui": ["width"], "other-pool": []})
    alone = an_order(pools=["comfyui"], inputs={"width": 1})
    wrong = an_order(pools=["comfyui", "other-pool"], inputs={"width": 1})
    lost = an_order(pools=["comfyui", "nowhere"])
    ours.handle([delivered(order_placed(order)) for order in (alone, wrong, lost)])

    rows = lab.tasks.get([order.task_id for order in (alone, wrong, lost)])
    assert rows[alone.task_id].pools == ["comfyui"]
    assert (rows[wrong.task_id].reason, rows[wrong.task_id].detail) == ("invalid_workflow", "pool other-pool: width")
    assert rows[lost.task_id].reason == "invalid_message"
