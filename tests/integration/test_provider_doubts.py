"""Orders at an API provider: paid for once, parked when nobody can tell, never failed for want of money."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from shared.domain.task import Reason, Stage, Status, Task
from shared.providers.base import Job
from shared.providers.recovery import seed_of
from tests.factories import POOL, permits
from tests.integration.api_lab import SHIPPED, a_picture, plain
from tests.integration.doubts_lab import INPUTS, ApiLab, hung_up, openai
from tests.integration.scripted_server import Request, Server, answer
from tests.integration.submit_lab import names
from tests.waiting import eventually

LIST = '[provider.plain.list]\nrequest = "GET /jobs?after={after}&before={before}"\nrows = "/rows"\njob_id = "/id"\n'


@pytest.fixture
def lab(database_url: str, server: Server) -> Iterator[ApiLab]:
    lab = ApiLab(database_url, server)
    yield lab
    lab.close()


def silence(_: Request) -> bytes:
    time.sleep(1.5)
    return b""


# --- an answer is lost


def test_a_blind_provider_s_lost_answer_is_parked_at_once_with_what_is_known(lab: ApiLab, server: Server) -> None:
    server.on("POST /jobs", hung_up)
    task = lab.order()
    lab.handle()
    lab.handle()  # no lease is waited for: nothing of ours is on its way

    row = lab.now(task)
    assert (row.status, row.reason, row.stage) == (Status.FAILED, Reason.OUTCOME_UNKNOWN, Stage.SUBMIT)
    assert "gpu-1: sent 1 time from" in (row.detail or "")
    assert "cannot be asked" in (row.detail or "")
    assert lab.posts() == 1
    assert lab.attempt(task).outcome == "outcome_unknown"


def test_a_worker_killed_in_a_blind_call_leaves_its_order_to_a_person(lab: ApiLab, server: Server) -> None:
    task = lab.submitting(inputs=INPUTS)
    assert lab.may_post(task), "from here on the POST may have left"
    lab.let_lease_end(task)

    verdict, row = lab.ended(task)

    assert names(verdict) == ["submit.dead", "order.failed"]
    assert row.reason == Reason.OUTCOME_UNKNOWN
    assert server.calls == []


def test_a_worker_killed_before_its_post_costs_nothing(lab: ApiLab, server: Server) -> None:
    server.on("POST /jobs", answer(200, {"id": "j1"}))
    task = lab.submitting(inputs=INPUTS)
    lab.let_lease_end(task)

    _, row = lab.ended(task)

    assert (row.status, row.attempt, row.provider_job_id) == (Status.PROCESSING, 1, "j1")
    assert lab.posts() == 1


def test_a_table_that_pays_once_more_sends_again_once_and_then_parks(lab: ApiLab, server: Server) -> None:
    lab.serve(plain('on_unknown = "resubmit_once"'))
    server.on("POST /jobs", hung_up)
    task = lab.order()
    for _ in range(3):
        lab.handle()

    row = lab.now(task)
    assert (row.reason, lab.posts(), lab.attempt(task).posts) == (Reason.OUTCOME_UNKNOWN, 2, 2)
    assert "sent 2 times" in (row.detail or "")


@pytest.mark.parametrize("refusal", [answer(422, {}), answer(402, {}), answer(429, {})])
def test_what_was_sent_once_more_and_refused_is_still_in_doubt_and_stays_in_its_pool(
    lab: ApiLab, server: Server, refusal: bytes
) -> None:
    lab.serve(plain('on_unknown = "resubmit_once"'))
    server.on("POST /jobs", hung_up, refusal)
    task = lab.order(pools=[POOL, "another"])
    lab.handle()
    lab.handle()
    lab.slots.resume("gpu-1", "ann")
    if lab.now(task).status is Status.SUBMITTING:
        lab.let_lease_end(task)
        lab.handle()

    row = lab.now(task)
    assert (row.reason, row.pool, row.attempt) == (Reason.OUTCOME_UNKNOWN, POOL, 1)
    assert lab.posts() == 2


def test_a_list_that_proves_finds_the_job_whose_answer_was_lost(lab: ApiLab, server: Server) -> None:
    table = plain('recovery = "list_payload"', LIST + 'seed = "/seed"\nproves = true\n', settle=0)
    lab.serve(table)
    server.on("POST /jobs", hung_up)
    task = lab.order()
    lab.handle()
    seed = seed_of(Job.of(lab.now(task)))
    server.on("GET /jobs", answer(200, {"rows": [{"id": "j7", "seed": seed}]}))

    _, row = lab.ended(task)

    assert (row.status, row.provider_job_id, lab.posts()) == (Status.PROCESSING, "j7", 1)


def test_only_a_proven_absence_allows_a_second_post_and_the_same_attempt_goes_on(lab: ApiLab, server: Server) -> None:
    table = plain('recovery = "list_payload"', LIST + 'seed = "/seed"\nproves = true\n', settle=0)
    lab.serve(table)
    server.on("POST /jobs", hung_up, answer(200, {"id": "j2"}))
    server.on("GET /jobs", answer(200, {"rows": []}))
    task = lab.order()
    lab.handle()
    lab.handle()
    assert lab.attempt(task).looks == 1, "one look proves nothing"
    assert lab.posts() == 1

    _, row = lab.ended(task)

    assert (row.status, row.attempt, row.provider_job_id, lab.posts()) == (Status.PROCESSING, 1, "j2", 2)


@pytest.mark.parametrize("held", [silence, answer(504, b"<html>"), answer(524, b"<html>")])
def test_while_the_post_may_yet_be_delivered_an_absence_proves_nothing(lab: ApiLab, server: Server, held: Any) -> None:
    lab.serve(plain('recovery = "list_payload"', LIST + 'seed = "/seed"\nproves = true\n', settle=0))
    server.on("POST /jobs", held)
    server.on("GET /jobs", answer(200, {"rows": []}))
    task = lab.order()
    lab.handle()
    lab.handle()
    assert server.calls == ["POST /jobs"], "nobody looks before the lease is over"

    lab.let_lease_end(task)
    lab.handle()
    assert (lab.posts(), lab.attempt(task).looks) == (1, 1)


def test_a_list_that_does_not_answer_keeps_the_row_until_it_does(lab: ApiLab, server: Server) -> None:
    lab.serve(plain('recovery = "list_weak"', LIST))
    server.on("POST /jobs", hung_up)
    server.on("GET /jobs", answer(503, {}), answer(200, {"rows": [{"id": "j1"}]}))
    task = lab.order()
    lab.handle()
    lab.handle()
    assert lab.now(task).status is Status.SUBMITTING
    lab.let_lease_end(task)

    _, row = lab.ended(task)

    assert (row.reason, lab.posts()) == (Reason.OUTCOME_UNKNOWN, 1)
    assert "it may be one of: j1" in (row.detail or "")


# --- no money


def test_an_account_without_money_fails_no_order_and_charges_none(lab: ApiLab, server: Server) -> None:
    server.on("POST /jobs", answer(402, {"message": "no credit"}))
    tasks = [lab.order() for _ in range(3)]
    lab.handle(3)

    assert {lab.now(task).status for task in tasks} == {Status.PENDING}
    assert {lab.now(task).charged for task in tasks} == {0}
    assert (lab.backend().health, lab.backend().takes_work) == ("refused", False)
    posts = lab.posts()
    lab.handle(3)
    assert lab.posts() == posts, "nobody is sent to a closed account"


def test_one_order_at_a_time_tries_whether_the_account_is_good_again(lab: ApiLab, server: Server) -> None:
    server.on("POST /jobs", answer(402, {}))
    for _ in range(4):
        lab.order()
    lab.handle()
    waits = []
    for _ in range(5):
        lab.sql("update backends set probe_at = now()")
        assert lab.backend().wants_permits
        before = lab.posts()
        lab.handle(4)
        assert lab.posts() == before + 1
        (row,) = lab.sql("select extract(epoch from probe_at - now())::int as wait from backends where name = 'gpu-1'")
        waits.append(row.wait)
    assert waits == sorted(waits)
    assert 55 <= waits[0] <= 60
    assert 850 <= waits[4] <= 900, "the waits double up to a quarter of an hour"

    server.on("POST /jobs", answer(200, {"id": "j1"}), answer(200, {"id": "j2"}), answer(200, {"id": "j3"}))
    lab.sql("update backends set probe_at = now()")
    lab.handle(4)
    assert lab.backend().health == "up", "the probe was accepted, so everybody goes on"
    lab.handle(2)
    assert sum(row.status == "processing" for row in lab.sql("select status from tasks")) == 3


def test_a_probe_that_is_rejected_for_its_content_shows_that_the_account_is_good(lab: ApiLab, server: Server) -> None:
    lab.slots.refuse("gpu-1", "no credit")
    lab.sql("update backends set probe_at = now()")
    server.on("POST /jobs", answer(451, {}))

    _, row = lab.ended(lab.order())

    assert row.reason == Reason.CONTENT_REJECTED
    assert lab.backend().health == "up"


def test_an_operator_can_lift_the_refusal(lab: ApiLab) -> None:
    lab.slots.refuse("gpu-1", "no credit")
    assert lab.slots.resume("gpu-1", "ana")
    assert lab.backend().takes_work


# --- other endings


def test_a_rate_limit_closes_the_provider_for_everybody_and_charges_nobody(lab: ApiLab, server: Server) -> None:
    server.on("POST /jobs", answer(429, {}, headers={"Retry-After": "40"}))
    _, row = lab.ended(lab.order())

    assert (row.status, row.charged, lab.attempt(row).outcome) == (Status.PENDING, 0, "not_created")
    (closed,) = lab.sql("select extract(epoch from paused_until - now()) as left from backends where name = 'gpu-1'")
    assert 30 <= closed.left <= 40


def test_content_that_is_rejected_ends_at_once(lab: ApiLab, server: Server) -> None:
    server.on("POST /jobs", answer(451, {}))
    verdict, row = lab.ended(lab.order())

    assert names(verdict) == ["submit.dead", "order.failed"]
    assert (row.status, row.reason, lab.posts()) == (Status.FAILED, Reason.CONTENT_REJECTED, 1)


def test_what_a_provider_says_of_the_cost_is_kept_with_the_attempt(lab: ApiLab, server: Server) -> None:
    server.on("POST /jobs", answer(200, {"id": "j1", "price": 4}))
    task = lab.order()
    lab.handle()

    kept = lab.attempt(task)
    assert (kept.cost_estimated, kept.cost_actual, kept.cost_unit) == (4, None, "cents")


def test_the_addresses_of_a_job_stand_with_its_row(lab: ApiLab, server: Server) -> None:
    lab.serve(SHIPPED["fal"])
    links = {"status_url": "https://queue.fal.run/s", "response_url": "https://queue.fal.run/r"}
    server.on("POST /a/b", answer(200, {"request_id": "r1", "status": "IN_QUEUE", **links}))
    task = lab.pending(inputs={"model": "a/b", "arguments": {"prompt": "x"}})
    lab.handle()

    assert lab.now(task).job_handle == links


# --- providers that answer with the pictures


def a_synchronous_order(lab: ApiLab) -> Task:
    return lab.pending(inputs={"model": "m", "prompt": "p"})


def test_a_synchronous_answer_completes_the_order_with_its_picture_and_its_cost(lab: ApiLab, server: Server) -> None:
    lab.serve(SHIPPED["openai_images"])
    server.on("POST /images/generations", openai())
    task = a_synchronous_order(lab)

    verdict, row = lab.ended(task)

    assert names(verdict) == ["order.completed"]
    assert row.status is Status.COMPLETED
    assert len(lab.tasks.artifacts([task.id])[task.id]) == 1
    kept = lab.attempt(task)
    assert (kept.outcome, kept.cost_actual, kept.cost_unit, kept.posts) == ("completed", 9, "tokens", 1)
    assert lab.history(task)[-1] == ("submitting", "completed")


def test_a_long_call_holds_its_own_permit_alone(lab: ApiLab, server: Server) -> None:
    lab.serve(SHIPPED["openai_images"])
    let_go = threading.Event()

    def slow(_: Request) -> bytes:
        let_go.wait(30)
        return openai()

    server.on("POST /images/generations", slow, openai())
    first = a_synchronous_order(lab)
    (held,) = lab.submit.handle(permits(1))
    eventually(lambda: lab.posts() == 1, within=10)
    second = a_synchronous_order(lab)
    lab.handle()

    assert lab.now(second).status is Status.COMPLETED
    assert lab.now(first).status is Status.SUBMITTING
    let_go.set()
    held.result(20)  # type: ignore[union-attr]
    assert lab.now(first).status is Status.COMPLETED


def test_a_success_without_a_picture_is_tried_again_as_often_as_tries_are_left(lab: ApiLab, server: Server) -> None:
    lab.serve(SHIPPED["openai_images"])
    server.on("POST /images/generations", answer(200, {"data": []}))
    task = a_synchronous_order(lab)
    for _ in range(4):
        lab.handle()

    row = lab.now(task)
    assert (row.status, row.reason, row.charged, row.stage) == (Status.FAILED, Reason.NO_OUTPUTS, 3, Stage.SUBMIT)
    assert lab.posts() == 3


def test_a_picture_by_address_is_fetched_in_the_same_breath_and_again_when_it_is_late(
    lab: ApiLab, server: Server
) -> None:
    lab.serve(SHIPPED["openai_images"])
    server.on("POST /images/generations", answer(200, {"data": [{"url": f"{server.url}/1.png"}]}))
    server.on("GET /1.png", answer(503, b""), answer(200, a_picture()))
    _, row = lab.ended(a_synchronous_order(lab))

    assert row.status is Status.COMPLETED
    assert lab.posts() == 1


def test_an_order_cancelled_during_the_call_ends_cancelled_and_holds_no_slot(lab: ApiLab, server: Server) -> None:
    lab.serve(SHIPPED["openai_images"])
    task = a_synchronous_order(lab)

    def cancelled_meanwhile(_: Request) -> bytes:
        lab.tasks.cancel(task.id)
        return openai()

    server.on("POST /images/generations", cancelled_meanwhile)
    verdict, row = lab.ended(task)

    assert row.status is Status.CANCELLED
    assert names(verdict) == ["order.cancelled"]
