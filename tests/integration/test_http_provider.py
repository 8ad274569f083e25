"""An API provider by its table, against a scripted server: what is sent, how often, and what each ending means."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.domain.errors import AccountRefused, OutcomeUnknown, ProviderAway, ProviderBusy, ProviderRejected
from shared.domain.task import Cost, Reason, Sent
from shared.providers.base import Accepted, Failed, Gone, Repeat, Running, Succeeded, Unclear
from shared.providers.recovery import seed_of
from tests.integration.api_lab import SHIPPED, a_job, a_picture, body_of, in_base64, plain, provider
from tests.integration.scripted_server import Request, Server, answer, scripted_server

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
LIST = """
[provider.plain.list]
request = "GET /jobs?after={after}&before={before}"
rows = "/rows"
job_id = "/id"
"""


def sent(posts: int = 1, looks: int = 0, age: float = 100.0, job_id: str | None = None) -> Sent:
    first = NOW - timedelta(seconds=age)
    return Sent(posts=posts, looks=looks, first_at=first if posts else None, now=NOW, provider_job_id=job_id)


def silent(_: Request) -> bytes:
    time.sleep(1.5)
    return b""


# --- what is sent


def test_the_request_is_the_documented_one(server: Server) -> None:
    server.on("POST /services/aigc/text2image/image-synthesis", answer(200, {"output": {"task_id": "t1"}}))
    api = provider(SHIPPED["dashscope"], server.url)
    job = a_job({"model": "wan2.2-t2i-flash", "prompt": "花店，水彩", "size": "1024*1024"})

    assert api.submit(api.prepare(job)) == Accepted("t1", {}, Cost(1, "images"))

    (request,) = server.requests
    assert request.headers["Authorization"] == "Bearer sk-secret-2"
    assert request.headers["X-Dashscope-Async"] == "enable"
    assert body_of(request) == {
        "model": "wan2.2-t2i-flash",
        "input": {"prompt": "花店，水彩"},
        "parameters": {"size": "1024*1024", "n": 1, "seed": seed_of(job), "watermark": False},
    }


def test_an_order_with_pictures_goes_as_files_of_a_multipart_body(server: Server) -> None:
    server.on("GET /in.png", answer(200, a_picture()))
    server.on("POST /images/edits", answer(200, {"data": [{"b64_json": in_base64(a_picture())}]}))
    api = provider(SHIPPED["openai_images"], server.url)
    job = a_job({"model": "gpt-image-1", "prompt": "warm", "images": [f"{server.url}/in.png"], "extra": {"user": "u"}})

    prepared = api.prepare(job)
    made = api.submit(prepared)

    assert isinstance(made, Succeeded)
    assert api.prepare(job).body_hash == prepared.body_hash, "the same bytes each time"
    request = server.requests[1]
    assert request.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    for part in (b'name="image[]"; filename="1.png"', b"\x89PNG", b'name="n"\r\n\r\n1\r\n', b'name="user"\r\n\r\nu'):
        assert part in request.body


def test_a_workflow_goes_as_its_graph_to_an_endpoint_that_runs_comfyui() -> None:
    table = SHIPPED["runpod_comfyui"]
    assert table.workflow
    assert provider(table).table.base_url == "https://api.runpod.ai/v2/abc123"
    assert provider(table).problems(None, {}) == ["the order names no workflow"]


# --- one POST, and what its ending means


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (silent, OutcomeUnknown),
        (lambda _: b"", OutcomeUnknown),
        (lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", OutcomeUnknown),
        (lambda _: b"nonsense\r\n\r\n", OutcomeUnknown),
        (answer(200, b"<html>"), OutcomeUnknown),
        (answer(200, {"no": "id"}), OutcomeUnknown),
        (answer(500, {}), OutcomeUnknown),
        (answer(524, b"<html>"), OutcomeUnknown),
        (answer(408, {}), OutcomeUnknown),
        (answer(409, {}), OutcomeUnknown),
        (answer(429, {}), ProviderBusy),
        (answer(401, {}), AccountRefused),
        (answer(402, {}), AccountRefused),
        (answer(403, {}), AccountRefused),
        (answer(302, b"", headers={"Location": "/elsewhere"}), AccountRefused),
        (answer(400, {}), ProviderRejected),
        (answer(422, {}), ProviderRejected),
        (answer(451, {}), ProviderRejected),
    ],
)
def test_a_post_is_sent_once_and_its_ending_sorted(server: Server, script: Any, error: type[Exception]) -> None:
    server.on("POST /jobs", script)
    api = provider(plain(), server.url)
    prepared = api.prepare(a_job())

    with pytest.raises(error):
        api.submit(prepared)

    assert server.calls == ["POST /jobs"]


def test_an_answer_that_trickles_does_not_outlive_the_lease(server: Server) -> None:
    def trickle(request: Request) -> bytes:
        for sign in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"." * 100:
            request.connection.sendall(bytes([sign]))
            time.sleep(0.1)
        return b""

    server.on("POST /jobs", trickle)
    api = provider(plain(), server.url)
    prepared = api.prepare(a_job())
    began = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        api.submit(prepared)
    assert time.monotonic() - began < api.submit_limit_seconds


def test_a_refused_connection_sent_nothing_and_keeps_everybody_away_for_a_while() -> None:
    api = provider(plain(), "http://127.0.0.1:1")
    with pytest.raises(ProviderBusy) as caught:
        api.submit(api.prepare(a_job()))
    assert not caught.value.is_down, "nobody would ever call it up again"
    assert 5 <= (caught.value.retry_after_seconds or 0) <= 15


def test_an_answer_says_how_long_to_stay_away_in_its_header_or_its_text(server: Server) -> None:
    server.on(
        "POST /models/a/b/predictions",
        answer(429, {"detail": "x"}, headers={"Retry-After": "7"}),
        answer(429, {"detail": "Your rate limit resets in ~30s."}),
        answer(429, {}),
    )
    api = provider(SHIPPED["replicate"], server.url)
    waits = []
    for _ in range(3):
        with pytest.raises(ProviderBusy) as caught:
            api.submit(api.prepare(a_job({"model": "a/b", "input": {}})))
        waits.append(caught.value.retry_after_seconds)

    assert waits[:2] == [7, 30]
    assert 4 <= waits[2] <= 6


def test_content_is_rejected_by_its_own_name(server: Server) -> None:
    server.on("POST /images/generations", answer(400, {"error": {"code": "moderation_blocked", "message": "no"}}))
    api = provider(SHIPPED["openai_images"], server.url)
    with pytest.raises(ProviderRejected, match="moderation_blocked: no") as caught:
        api.submit(api.prepare(a_job({"model": "m", "prompt": "p"})))
    assert caught.value.reason is Reason.CONTENT_REJECTED


def test_a_success_without_a_picture_is_a_failed_job(server: Server) -> None:
    server.on("POST /images/generations", answer(200, {"data": []}))
    api = provider(SHIPPED["openai_images"], server.url)
    made = api.submit(api.prepare(a_job({"model": "m", "prompt": "p"})))
    assert isinstance(made, Failed)
    assert (made.retryable, made.reason) == (True, Reason.NO_OUTPUTS)


def test_no_error_shows_the_key_that_an_answer_quotes(server: Server) -> None:
    def quoted(request: Request) -> bytes:
        key = request.headers["Authorization"].removeprefix("Bearer ")
        return answer(400, {"error": {"code": "bad", "message": f"this key is no good: {key}"}})

    server.on("POST /images/generations", quoted)
    api = provider(SHIPPED["openai_images"], server.url)
    prepared = api.prepare(a_job({"model": "m", "prompt": "p"}))
    with pytest.raises(ProviderRejected) as caught:
        api.submit(prepared)
    assert "this key is no good: ***" in str(caught.value)
    assert "sk-secret" not in f"{caught.value!r} {prepared!r} {api.table!r}"


# --- looking at jobs


def test_many_jobs_are_asked_about_and_one_silent_answer_hides_only_its_own(server: Server) -> None:
    api = provider(plain(), server.url)
    jobs = [a_job(provider_job_id=f"j{number}") for number in range(4)]
    server.on("GET /jobs/j0", answer(200, {"status": "done", "images": ["QUJD"], "charged": 4}))
    server.on("GET /jobs/j1", answer(200, {"status": "never heard of"}))
    server.on("GET /jobs/j2", answer(503, b"<html>"))
    server.on("GET /jobs/j3", answer(200, {"status": "broken"}))

    states = api.check(jobs)

    assert states[jobs[0].job_key] == Succeeded(({"kind": "base64", "value": "QUJD"},), cost=Cost(4, "cents"))
    assert states[jobs[1].job_key] == Running(unknown=True)
    assert jobs[2].job_key not in states
    assert isinstance(states[jobs[3].job_key], Failed)


def test_a_job_that_was_just_accepted_may_not_be_known_yet(server: Server) -> None:
    api = provider(plain(), server.url)
    young, old = a_job(provider_job_id="j", age_seconds=10), a_job(provider_job_id="j", age_seconds=61)
    assert api.check([young]) == {young.job_key: Running(waiting=True)}
    assert api.check([old]) == {old.job_key: Gone()}


def test_the_addresses_that_came_with_a_job_are_used_and_built_only_without_them(server: Server) -> None:
    server.on("GET /owner/app/requests/r1/status", answer(202, {"status": "IN_PROGRESS"}))
    server.on("GET /status-of/r1", answer(202, {"status": "IN_QUEUE"}))
    api = provider(SHIPPED["fal"], server.url)
    inputs = {"model": "owner/app/deep/model", "arguments": {}}
    kept = a_job(inputs, provider_job_id="r1", handle={"status_url": f"{server.url}/status-of/r1"})
    adopted = a_job(inputs, provider_job_id="r1")

    assert api.check([kept]) == {kept.job_key: Running(waiting=True)}
    assert api.check([adopted]) == {adopted.job_key: Running()}


@pytest.mark.parametrize(
    "url", ["http://queue.fal.run/x", "https://queue.fal.run.evil.example/x", "https://evil.example/x", "file:///etc"]
)
def test_our_key_goes_to_no_other_host(server: Server, url: str) -> None:
    api = provider(SHIPPED["fal"], server.url)
    with pytest.raises(ProviderAway, match="gets no key"):
        api.check([a_job({"model": "a/b", "arguments": {}}, provider_job_id="r1", handle={"status_url": url})])
    assert server.calls == []


def test_a_finished_job_is_only_a_success_when_its_result_says_so(server: Server) -> None:
    server.on("GET /a/b/requests/r/status", answer(200, {"status": "COMPLETED"}))
    server.on(
        "GET /a/b/requests/r",
        answer(422, {"detail": [{"type": "content_policy_violation", "msg": "flagged"}]}),
        answer(200, {"images": [{"url": "https://x.example/1.png"}], "has_nsfw_concepts": [True]}),
        answer(200, {"images": [{"url": "https://x.example/1.png"}], "has_nsfw_concepts": [False]}),
    )
    api = provider(SHIPPED["fal"], server.url)
    job = a_job({"model": "a/b", "arguments": {}}, provider_job_id="r")

    states = [api.check([job])[job.job_key] for _ in range(3)]

    assert [getattr(state, "reason", None) for state in states] == [Reason.CONTENT_REJECTED] * 2 + [None]
    assert isinstance(states[2], Succeeded)


# --- pictures


def test_pictures_come_without_our_key_and_webp_is_kept_as_png(server: Server) -> None:
    server.on("GET /1.webp", answer(200, a_picture("WEBP")))
    api = provider(plain(), server.url)
    outputs = [
        {"kind": "url", "value": f"{server.url}/1.webp"},
        {"kind": "base64", "value": "data:image/png;base64," + in_base64(a_picture())},
    ]

    pictures = [file.read() for file in api.fetch(a_job(), outputs)]

    assert [picture[:4] for picture in pictures] == [b"\x89PNG"] * 2
    assert "X-Key" not in server.requests[0].headers


def test_a_picture_at_a_private_address_is_never_fetched(server: Server) -> None:
    with scripted_server() as private:
        api = provider(plain(), server.url)
        with pytest.raises(ProviderRejected, match="not on the public internet"):
            list(api.fetch(a_job(), [{"kind": "url", "value": f"{private.url}/1.png"}]))
        assert private.calls == []


def test_a_redirect_to_a_private_address_is_not_followed(server: Server) -> None:
    with scripted_server() as private:
        server.on("GET /1.png", answer(302, b"", headers={"Location": f"{private.url}/1.png"}))
        api = provider(plain(), server.url)
        with pytest.raises(ProviderRejected, match="not on the public internet"):
            list(api.fetch(a_job(), [{"kind": "url", "value": f"{server.url}/1.png"}]))
        assert private.calls == []


@pytest.mark.parametrize(
    ("script", "error"),
    [(answer(404, b""), FileNotFoundError), (answer(403, b""), FileNotFoundError), (answer(503, b""), ProviderAway)],
)
def test_a_picture_that_is_gone_is_told_from_one_that_is_late(server: Server, script: bytes, error: Any) -> None:
    server.on("GET /1.png", script)
    api = provider(plain(), server.url)
    with pytest.raises(error):
        list(api.fetch(a_job(), [{"kind": "url", "value": f"{server.url}/1.png?sig=secret"}]))


# --- after a lost answer


def test_what_was_never_sent_is_sent_without_a_question(server: Server) -> None:
    for table in (plain(), plain('recovery = "own_id"'), plain('recovery = "list_weak"', LIST)):
        assert provider(table, server.url).recover(a_job(sent=sent(posts=0))) == Gone()
    assert server.calls == []


def test_an_id_learned_meanwhile_is_the_job(server: Server) -> None:
    job = a_job(sent=sent(job_id="j7"), provider_job_id="j7")
    assert provider(plain(), server.url).recover(job) == Accepted("j7")


def test_a_blind_provider_leaves_it_to_a_person_with_all_that_is_known(server: Server) -> None:
    found = provider(plain(), server.url, name="blind").recover(a_job(sent=sent()))
    assert found == Unclear(
        "blind: sent 1 time from 2026-11-25 11:58:20 UTC on, looked for until 12:00:00; this provider cannot be asked"
    )


def test_a_table_may_pay_once_more_and_not_twice(server: Server) -> None:
    api = provider(plain('on_unknown = "resubmit_once"'), server.url)
    once, twice = api.recover(a_job(sent=sent(posts=1))), api.recover(a_job(sent=sent(posts=2)))
    assert isinstance(once, Repeat)
    assert once.may_double
    assert isinstance(twice, Unclear)
    assert not twice.resend


def test_our_own_id_is_asked_for_and_absent_only_when_it_stays_absent(server: Server) -> None:
    api = provider(plain('recovery = "own_id"'), server.url)
    job = a_job(sent=sent())
    first = api.recover(job)
    second = api.recover(a_job(sent=sent(looks=1)))
    server.on(f"GET /jobs/{job.job_key}", answer(200, {"status": "busy"}))

    assert isinstance(first, Unclear)
    assert first.ask_in == 60
    assert second == Gone()
    assert api.recover(job) == Accepted(str(job.job_key))


def test_a_replaying_key_is_used_again_until_the_provider_forgets_it(server: Server) -> None:
    table = plain('recovery = "key_replays"', '[provider.plain.key]\nheader = "Idempotency-Key"\nttl_s = 50\n')
    api = provider(table, server.url)
    assert isinstance(api.recover(a_job(sent=sent(age=49))), Repeat)
    assert isinstance(api.recover(a_job(sent=sent(age=51))), Unclear)

    server.on("POST /jobs", answer(200, {"id": "j", "price": 3}))
    job = a_job()
    assert api.submit(api.prepare(job)) == Accepted("j", {}, Cost(3, "cents"))
    assert server.requests[0].headers["Idempotency-Key"] == str(job.job_key)


def test_a_rejecting_key_is_sent_once_more_and_then_left_to_a_person(server: Server) -> None:
    table = plain('recovery = "key_rejects"', '[provider.plain.key]\nheader = "Idempotency-Key"\n')
    api = provider(table, server.url)
    assert isinstance(api.recover(a_job(sent=sent(posts=1))), Repeat)
    assert isinstance(api.recover(a_job(sent=sent(posts=2))), Unclear)


@pytest.mark.parametrize("proves", [True, False])
def test_a_list_with_our_seed_finds_the_job_or_after_two_looks_proves_it_absent(server: Server, proves: bool) -> None:
    more = f'seed = "/input/seed"\nnext = "/next"\nproves = {str(proves).lower()}\n'
    api = provider(plain('recovery = "list_payload"', LIST + more), server.url)
    job = a_job(sent=sent())
    others = [{"id": "o1", "input": {"seed": 1}}, {"id": "o2", "input": {"seed": 2}}]
    page2 = {"rows": [{"id": "j9", "input": {"seed": seed_of(job)}}]}
    server.on("GET /page2", answer(200, page2))
    server.on("GET /jobs", answer(200, {"rows": others, "next": f"{server.url}/page2"}))

    assert api.recover(job) == Accepted("j9")
    path = server.requests[0].path
    assert path == "/jobs?after=2026-11-25T11%3A57%3A50Z&before=2026-11-25T12%3A00%3A30Z"

    server.on("GET /page2", answer(200, {"rows": []}))
    first, second = api.recover(job), api.recover(a_job(sent=sent(looks=1)))
    assert isinstance(first, Unclear)
    assert first.ask_in == 60
    assert second == Gone() if proves else isinstance(second, Unclear)

    server.on("GET /jobs", answer(200, {"rows": others, "next": "a cursor"}))
    assert isinstance(api.recover(a_job(sent=sent(looks=1))), Unclear), "a list that was not read to its end"


def test_a_listed_job_without_its_seed_may_be_ours_and_is_named(server: Server) -> None:
    table = plain('recovery = "list_payload"', LIST + 'seed = "/input/seed"\nproves = true\n')
    removed = {"id": "o2", "input": {}, "data_removed": True}
    server.on("GET /jobs", answer(200, {"rows": [{"id": "o1", "input": {"seed": 1}}, removed]}))

    found = provider(table, server.url).recover(a_job(sent=sent(looks=1)))

    assert isinstance(found, Unclear)
    assert found.ask_in is None
    assert found.searched.endswith("; these show no seed: o2")


def test_a_list_without_payload_names_the_candidates(server: Server) -> None:
    api = provider(plain('recovery = "list_weak"', LIST), server.url)
    server.on("GET /jobs", answer(200, {"rows": [{"id": "j1"}, {"id": "j2"}]}))
    found = api.recover(a_job(sent=sent()))
    assert isinstance(found, Unclear)
    assert found.searched.endswith("2 jobs of that time were listed; it may be one of: j1, j2")
    assert found.ask_in is None


def test_a_list_that_does_not_answer_says_nothing(server: Server) -> None:
    api = provider(plain('recovery = "list_weak"', LIST), server.url)
    server.on("GET /jobs", answer(500, {}))
    with pytest.raises(ProviderAway):
        api.recover(a_job(sent=sent()))


# --- cancelling


def test_a_cancel_is_asked_for_once_and_repeated_only_when_it_was_not_heard(server: Server) -> None:
    api = provider(plain("", '[provider.plain.cancel]\nrequest = "POST /jobs/{job_id}/cancel"\n'), server.url)
    job = a_job(provider_job_id="j1")
    server.on("POST /jobs/j1/cancel", answer(503, {}), answer(400, {"status": "ALREADY_COMPLETED"}))

    with pytest.raises(ProviderAway):
        api.cancel(job)
    assert api.cancel(job)
    assert api.cancel(a_job()), "a job without an id cannot be cancelled, and holds no slot for that"
    assert server.calls == ["POST /jobs/j1/cancel"] * 2


def test_the_pictures_bytes_are_what_the_body_held(server: Server) -> None:
    content = a_picture()
    (file,) = provider(plain(), server.url).fetch(a_job(), [{"kind": "base64", "value": in_base64(content)}])
    assert file.read() == content
