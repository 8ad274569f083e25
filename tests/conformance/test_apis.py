"""The simulated image APIs: what they take, how a job goes, and what a test can have them do wrong."""

from __future__ import annotations

import io
from typing import Any

import pytest
import requests
from PIL import Image

from tests.conformance.simulated_apis import SimulatedApis, simulated_apis
from tests.waiting import eventually

SUBMITS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("/openai/v1/images/generations", {"model": "m", "prompt": "a lighthouse"}),
    "dashscope": (
        "/dashscope/api/v1/services/aigc/text2image/image-synthesis",
        {"model": "wan", "input": {"prompt": "a lighthouse"}, "parameters": {"seed": 7}},
    ),
    "fal": ("/fal/fal-ai/flux/dev", {"prompt": "a lighthouse", "seed": 7}),
    "replicate": ("/replicate/v1/models/bfl/flux/predictions", {"input": {"prompt": "a lighthouse", "seed": 7}}),
    "runpod": ("/runpod/v2/endpoint/run", {"input": {"workflow": {"1": {"prompt": "a lighthouse", "seed": 7}}}}),
}
#: How each says that it is too fast, that the account is empty, and that the words are refused.
REFUSALS = {
    "openai": (429, 429, 400),
    "dashscope": (429, 400, 400),
    "fal": (429, 403, 422),
    "replicate": (429, 402, 422),
    "runpod": (429, 402, 400),
}


def submit(apis: SimulatedApis, name: str) -> requests.Response:
    path, body = SUBMITS[name]
    return apis.call("POST", path, json=body, headers={"X-DashScope-Async": "enable"})


@pytest.mark.parametrize("name", SUBMITS)
def test_a_call_without_a_key_starts_nothing(apis: SimulatedApis, name: str) -> None:
    before = apis.stats(name)["jobs"]
    path, body = SUBMITS[name]
    assert requests.post(apis.url + path, json=body, timeout=10).status_code == 401
    assert apis.stats(name)["jobs"] == before


@pytest.mark.parametrize("name", SUBMITS)
def test_refusals_are_in_the_words_of_each_api_and_start_nothing(apis: SimulatedApis, name: str) -> None:
    before = apis.stats(name)["jobs"]
    faults = ({"rate_limited": {"times": 1}}, {"no_money": {"times": 1}}, {"moderated": {"match": "lighthouse"}})
    seen = []
    for fault in faults:
        apis.faults(clear=True, **fault)
        seen.append(submit(apis, name).status_code)
    assert tuple(seen) == REFUSALS[name]
    assert apis.stats(name)["jobs"] == before


@pytest.mark.parametrize("name", SUBMITS)
def test_an_answer_that_is_lost_leaves_a_job_behind(apis: SimulatedApis, name: str) -> None:
    before = apis.stats(name)["jobs"]
    apis.faults(drop_after_accept={"paths": [f"/{name}/*"], "methods": ["POST"], "times": 1})
    with pytest.raises(requests.ConnectionError):
        submit(apis, name)
    assert apis.stats(name)["jobs"] == before + 1


def test_a_synchronous_call_is_held_until_the_picture_is_ready(apis: SimulatedApis) -> None:
    answer = submit(apis, "openai")
    assert answer.elapsed.total_seconds() >= 0.1
    assert answer.json()["data"][0]["b64_json"]


def test_a_picture_is_at_its_address_without_a_key_until_it_is_expired(apis: SimulatedApis) -> None:
    job = submit(apis, "fal").json()

    def result() -> Any:
        answer = apis.call("GET", job["response_url"].removeprefix(apis.url))
        return answer.json() if answer.status_code == 200 else None

    address = eventually(result, within=10, what="the result")["images"][0]["url"]
    assert Image.open(io.BytesIO(requests.get(address, timeout=10).content)).format == "PNG"
    apis.faults(expired={"paths": ["/fal/files/*"]})
    assert requests.get(address, timeout=10).status_code == 403


def test_a_job_that_was_cancelled_ends_as_that(apis: SimulatedApis) -> None:
    apis.faults(slow_job={"match": "lighthouse", "seconds": 60})
    job = submit(apis, "replicate").json()["id"]
    assert apis.call("POST", f"/replicate/v1/predictions/{job}/cancel").json()["status"] == "canceled"
    assert apis.call("GET", f"/replicate/v1/predictions/{job}").json()["status"] == "canceled"


def test_the_limits_of_a_provider_are_kept_and_what_went_over_them_is_counted() -> None:
    with simulated_apis("--seconds-per-image", "60", "--max-in-flight", "2") as strict:
        assert [submit(strict, "dashscope").status_code for _ in range(3)] == [200, 200, 429]
        told = strict.stats("dashscope")
        assert (told["most_in_flight"], told["over_in_flight"]) == (2, 1)


def test_an_answer_can_be_put_into_its_mouth(apis: SimulatedApis) -> None:
    apis.faults(say={"paths": ["/runpod/*"], "status": 504, "body": "<html>", "headers": {"Content-Type": "text/html"}})
    answer = submit(apis, "runpod")
    assert (answer.status_code, answer.text, answer.headers["Content-Type"]) == (504, "<html>", "text/html")
