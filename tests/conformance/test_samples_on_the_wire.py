"""Every documented answer once more, over a socket: what the provider's adapter makes of it, and what it has sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from shared.domain.errors import AccountRefused, OutcomeUnknown, ProviderBusy, ProviderRejected
from shared.domain.task import Reason, Sent
from shared.providers.base import Accepted, Failed, Gone, Job, Running, Succeeded, Unclear
from shared.providers.http_api import HttpApi
from shared.providers.samples import sample_file
from shared.providers.table_files import read_tables
from tests.conformance.simulated_apis import SimulatedApis
from tests.conformance.table_lab import ORDERS, PLACES, quick_provider
from tests.conformance.test_provider_samples import GATEWAY, OURS
from tests.integration.api_lab import a_job, provider

Case = Mapping[str, Any]
NOW: Final = datetime(2026, 11, 25, 12, tzinfo=UTC)
FILES: Final = {name: sample_file(name) for name in PLACES} | {"gateway": OURS / "gateway_async.json"}
CASES: Final[list[tuple[str, Case]]] = [
    (name, case) for name, file in FILES.items() if file for case in json.loads(file.read_text())["cases"]
]
ASKED: Final = [(name, case) for name, case in CASES if case["kind"] != "webhook"]
#: The seed of the job in the samples of lists.
SEED: Final = 1203984411
DONE: Final = next(case for name, case in CASES if (name, case["name"]) == ("fal", "completed"))
FETCHED: Final = next(case for name, case in CASES if (name, case["name"]) == ("fal", "fetch_ok"))


def test_all_99_are_tried_but_the_callbacks_which_nobody_asks_for() -> None:
    assert (len(CASES), len(ASKED)) == (99, 96)


def api_of(name: str, apis: SimulatedApis) -> tuple[HttpApi, Job]:
    if name == "gateway":
        table = read_tables(GATEWAY, "gateway.toml")["gateway"]
        return provider(table, f"{apis.url}/gateway"), a_job({"model": "m", "prompt": "p"})
    order = ORDERS[name]
    return quick_provider(name, apis), a_job(order["inputs"], workflow=order.get("workflow"))


def say(case: Case, *paths: str) -> dict[str, Any]:
    """The fault that puts the case's answer into the simulator's mouth."""
    response = case["response"]
    return {"paths": list(paths) or ["/*"], **{name: response[name] for name in ("status", "headers", "body")}}


def submitted(apis: SimulatedApis, api: HttpApi, job: Job, case: Case) -> Any:
    if case["response"]["status"]:
        apis.faults(say=say(case))
    else:  # the samples' way to write that no answer came in time
        apis.faults(slow={"seconds": 3.0})
    try:
        return api.submit(api.prepare(job))
    except (ProviderBusy, AccountRefused, ProviderRejected, OutcomeUnknown) as error:
        return error


def polled(apis: SimulatedApis, api: HttpApi, job: Job, case: Case) -> Any:
    answers = [say(case)]
    if case["expect"].get("state") == "fetch":
        answers = [say(case, "/fal/fal-ai/flux/requests/j1/status"), say(FETCHED)]
    apis.faults(say=answers)
    return api.state_of(replace(job, provider_job_id="j1"))


def fetched(apis: SimulatedApis, api: HttpApi, job: Job, case: Case) -> Any:
    path = "/fal/fal-ai/flux/requests/j1"
    apis.faults(say=[say(DONE, path + "/status"), say(case, path)])
    return api.state_of(replace(job, provider_job_id="j1"))


def cancelled(apis: SimulatedApis, api: HttpApi, job: Job, case: Case) -> Any:
    apis.faults(say=say(case))
    return api.cancel(replace(job, provider_job_id="j1"))


def listed(apis: SimulatedApis, api: HttpApi, job: Job, case: Case) -> Any:
    apis.faults(say=say(case))
    sent = Sent(posts=1, looks=0, first_at=NOW, now=NOW)
    return api.recover(replace(job, seed=SEED, sent=sent))


TRY: Final = {"submit": submitted, "poll": polled, "fetch": fetched, "cancel": cancelled, "list": listed}


@pytest.mark.parametrize(("name", "case"), ASKED, ids=[f"{name}-{case['name']}" for name, case in ASKED])
def test_the_adapter_makes_of_it_what_the_sample_says_and_sends_one_post_at_most(
    apis: SimulatedApis, name: str, case: Case
) -> None:
    api, job = api_of(name, apis)
    before = apis.posts()

    made = TRY[case["kind"]](apis, api, job, case)

    assert word_of(made) == expected_of(name, case)
    expect = case["expect"]
    if isinstance(made, Succeeded) and "images" in expect:
        assert len(made.outputs) == expect["images"]
    if isinstance(made, Accepted) and "task_id" in expect:
        assert made.provider_job_id == expect["task_id"]
    if isinstance(made, ProviderBusy) and "retry_after_s" in expect:
        assert made.retry_after_seconds == expect["retry_after_s"]
    assert apis.posts() - before == (case["kind"] == "submit")


def word_of(made: Any) -> str:
    """What the adapter made of it, in the samples' words."""
    match made:
        case Accepted() | Running(waiting=True):
            return "queued"
        case Running():
            return "running"
        case Succeeded():
            return "succeeded"
        case Gone():
            return "lost"
        case Failed(reason=Reason.CONTENT_REJECTED) | ProviderRejected(reason=Reason.CONTENT_REJECTED):
            return "content_rejected"
        case Failed(reason=Reason.LOST):
            return "cancelled"
        case Failed(retryable=True):
            return "retryable"
        case Failed() | ProviderRejected():
            return "permanent"
        case ProviderBusy():
            return "rate_limited"
        case AccountRefused():
            return "account"
        case OutcomeUnknown():
            return "ambiguous"
        case Unclear():
            return made.searched.rpartition("; ")[2]
    return str(made)


def expected_of(name: str, case: Case) -> str:
    expect = case["expect"]
    match case["kind"]:
        case "cancel":
            return "True"
        case "list":
            return "queued" if name != "dashscope" else "it may be one of: 86ecf553-d340-4e21-af6e-a0c6a421c010"
        case "submit" if expect.get("state") in ("queued", "running"):
            return "queued"  # accepted, whatever the job does by then
        case "poll" if expect.get("error_class") == "rate_limited":
            return "None"  # says nothing about the job
    return "succeeded" if expect.get("state") == "fetch" else str(expect.get("error_class") or expect["state"])
