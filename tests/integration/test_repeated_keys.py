"""A lost answer of an API with keys: sent again under the same key, and under no other one while it is in doubt."""

from collections.abc import Iterator
from typing import Any

import pytest

from shared.domain.task import Reason, Status, Task
from shared.providers.table import Table
from tests.integration.api_lab import plain
from tests.integration.doubts_lab import ApiLab, hung_up
from tests.integration.scripted_server import Server, answer

KEY = '[provider.plain.key]\nheader = "Idempotency-Key"\nttl_s = 3600\n'


@pytest.fixture
def lab(database_url: str, server: Server) -> Iterator[ApiLab]:
    lab = ApiLab(database_url, server)
    yield lab
    lab.close()


def keyed(recovery: str) -> Table:
    return plain(f'recovery = "{recovery}"', KEY, settle=0)


def keys(server: Server) -> list[str]:
    return [request.headers["Idempotency-Key"] for request in server.requests]


def in_doubt(lab: ApiLab, server: Server, recovery: str, then: Any) -> Task:
    """An order whose first answer was lost, after the second POST was answered with `then`."""
    lab.serve(keyed(recovery))
    server.on("POST /jobs", hung_up, then, answer(200, {"id": "j1"}))
    task = lab.order()
    lab.handle()
    lab.handle()
    assert len(server.requests) == 2
    return task


@pytest.mark.parametrize("refusal", [answer(429, {}, headers={"Retry-After": "5"}), answer(402, {})])
def test_a_provider_that_takes_nothing_now_is_asked_later_under_the_same_key(
    lab: ApiLab, server: Server, refusal: bytes
) -> None:
    task = in_doubt(lab, server, "key_replays", refusal)
    row = lab.now(task)
    assert (row.status, row.attempt) == (Status.SUBMITTING, 1)
    assert not lab.backend().takes_work

    lab.let_lease_end(task)
    lab.handle()
    assert (lab.now(task).attempt, len(server.requests)) == (1, 2), "it takes no work, and the doubt stays"

    lab.slots.resume("gpu-1", "ann")
    lab.let_lease_end(task)
    lab.handle()

    row = lab.now(task)
    assert (row.status, row.attempt, row.provider_job_id) == (Status.PROCESSING, 1, "j1")
    assert len(keys(server)) == 3
    assert len(set(keys(server))) == 1


@pytest.mark.parametrize("recovery", ["key_rejects", "key_replays"])
def test_a_repeat_that_is_refused_is_left_to_a_person(lab: ApiLab, server: Server, recovery: str) -> None:
    task = in_doubt(lab, server, recovery, answer(422, {"error": "used"}))
    row = lab.now(task)
    assert (row.status, row.reason) == (Status.FAILED, Reason.OUTCOME_UNKNOWN)
    assert "gpu-1: sent 1 time from" in (row.detail or "")
    assert "under the same key; sent again: HTTP 422" in (row.detail or "")
    assert len(set(keys(server))) == 1


def test_a_rejecting_key_is_used_twice_at_most(lab: ApiLab, server: Server) -> None:
    task = in_doubt(lab, server, "key_rejects", answer(429, {}))
    lab.slots.resume("gpu-1", "ann")
    lab.let_lease_end(task)
    lab.handle()
    assert (lab.now(task).reason, len(server.requests)) == (Reason.OUTCOME_UNKNOWN, 2)
