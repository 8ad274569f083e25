"""The audit outside of the database, of API providers: what their lists say of our attempts."""

from collections.abc import Iterator
from typing import Any

import pytest

from services.ops.audit_apis import api_jobs_found
from shared.database.audit import Check, Finding
from shared.domain.task import Accepted, Task, seed_for
from shared.providers.recovery import provider_seed
from tests.factories import POOL, Rows
from tests.integration.api_lab import KEYS, SHIPPED
from tests.integration.scripted_server import Server, answer

LISTS = {"replicate": "GET /predictions", "fal": "GET /v1/models/requests/by-endpoint"}


class Lab(Rows):
    def __init__(self, url: str, provider: str, server: Server) -> None:
        super().__init__(url)
        self.provider = provider
        self.server = server
        self.slots.sync([("account", POOL, f"http:{provider}", server.url, 5, 60.0)])
        self.lists()

    def lists(self, *jobs: tuple[str, Task]) -> None:
        """The provider names these jobs, each with the seed of an order's attempt."""
        rows = [(id_, provider_seed(seed_for(task.job_key))) for id_, task in jobs if task.job_key is not None]
        body: dict[str, Any] = {
            "replicate": {"results": [{"id": id_, "input": {"seed": seed}} for id_, seed in rows]},
            "fal": {"items": [{"request_id": id_, "json_input": {"seed": seed}} for id_, seed in rows]},
        }[self.provider]
        self.server.on(LISTS[self.provider], answer(200, body))

    def posted(self, job_id: str | None, *, model: str = "a/b") -> Task:
        """An order whose POST has left, and was answered with this id."""
        task = self.submitting(inputs={"model": model, "input": {}, "arguments": {}})
        assert self.may_post(task)
        if job_id is not None:
            assert self.tasks.record([(task, Accepted(job_id))], 60)[0] is not None
        return self.now(task)

    def found(self, environ: dict[str, str] = KEYS) -> tuple[list[Finding], list[str]]:
        return api_jobs_found(self.engine, SHIPPED, environ)


@pytest.fixture(params=sorted(LISTS))
def lab(request: pytest.FixtureRequest, database_url: str, server: Server) -> Iterator[Lab]:
    lab = Lab(database_url, request.param, server)
    yield lab
    lab.close()


def test_one_job_for_each_attempt_is_what_was_promised(lab: Lab) -> None:
    first, second, unknown = lab.posted("j1"), lab.posted("j2"), lab.posted(None)
    lab.lists(("j1", first), ("j2", second), ("j3", unknown))
    assert lab.found() == ([], [])


def test_two_jobs_of_one_post_are_found(lab: Lab) -> None:
    task = lab.posted("j1")
    lab.lists(("j1", task), ("j9", task))

    ((finding,), silent) = lab.found()

    assert (finding.check, finding.subject, silent) == (Check.DOUBLE_JOB, str(task.id), [])
    assert finding.detail == "attempt 1: account has 2 jobs of its 1 POSTs: j1, j9"


def test_a_job_that_is_not_the_recorded_one_is_found(lab: Lab) -> None:
    task = lab.posted("j1")
    lab.lists(("j9", task))
    assert [finding.detail for finding in lab.found()[0]] == ["attempt 1 has job j1, and account made j9 for it"]


def test_a_repeat_that_the_table_asks_for_is_no_finding(lab: Lab) -> None:
    task = lab.posted(None)
    assert lab.may_post(task)
    lab.lists(("j1", task), ("j2", task))
    assert lab.found() == ([], [])


def test_who_does_not_answer_or_lacks_its_key_is_named(lab: Lab, server: Server) -> None:
    lab.posted("j1")
    server.on(LISTS[lab.provider], answer(503, {}))
    assert lab.found() == ([], ["account"])
    assert lab.found({}) == ([], ["account (its key is not given)"])


def test_a_list_of_a_model_is_asked_for_each_model_once(database_url: str, server: Server) -> None:
    lab = Lab(database_url, "fal", server)
    for number, model in enumerate(("a/b", "a/b", "c/d")):
        lab.posted(f"j{number}", model=model)
    assert lab.found() == ([], [])
    asked = [call.split("endpoint_id=")[1].split("&")[0] for call in server.calls]
    assert sorted(asked) == ["a/b", "c/d"]
    lab.close()


def test_what_was_not_sent_lately_is_not_asked_for(lab: Lab, server: Server) -> None:
    lab.posted("j1")
    lab.sql("update attempts set posted_at = now() - interval '2 hours'")
    assert lab.found() == ([], [])
    assert server.calls == []
