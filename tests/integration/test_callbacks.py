"""Callbacks at the producer: a true one has its row looked at now, a false one does nothing, none moves anything."""

import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.database.callbacks import Callbacks
from shared.domain.task import Accepted, Status, Task
from shared.providers.base import Job
from shared.providers.signatures import Signatures
from tests.factories import Rows
from tests.integration.api_lab import SHIPPED, a_job, body_of, provider
from tests.integration.scripted_server import Server, answer, scripted_server
from tests.unit.api_lab import Api, problem_of

SECRET = "whsec_" + base64.b64encode(b"a key of thirty-two bytes or so.").decode()
KEY = Ed25519PrivateKey.generate()
PROVIDERS = ("fal", "replicate", "runpod_comfyui")


def of(name: str, url: str = "") -> Signatures:
    callback = SHIPPED[name].callback
    assert callback is not None
    return Signatures(callback.for_use({"REPLICATE_WEBHOOK_SECRET": SECRET}, url=url))


class Producer(Rows):
    """The HTTP interface before a database with one backend per provider, each in a pool of its own."""

    def __init__(self, url: str, keys: str) -> None:
        super().__init__(url)
        self.slots.sync([(name, name, f"http:{name}", "http://127.0.0.1:1", 5, 60.0) for name in PROVIDERS])
        self.api = Api()
        self.api.tokens = ["a-token-that-no-provider-has"]
        self.api.callbacks = ({name: of(name, keys) for name in PROVIDERS}, Callbacks(self.engine))

    def taken(self, pool: str) -> Task:
        self.pending(pool=pool)
        (task,) = self.slots.take(pool, at_most=1, lease_seconds=60).tasks
        return task

    def waiting(self, pool: str) -> Task:
        """At work there, and due in an hour."""
        recorded = self.tasks.record([(self.taken(pool), Accepted("j1"))], 3600)[0]
        assert recorded is not None
        return recorded

    def call(self, name: str, job_key: object, body: bytes = b'{"id": "j1"}', **headers: str) -> httpx.Response:
        return self.api.ask("POST", f"/callbacks/{name}/{job_key}", content=body, headers=headers)

    def signed(self, name: str, job_key: object, body: bytes) -> httpx.Response:
        sign = {"fal": fal_signed, "replicate": replicate_signed}.get(name, lambda _: {})
        return self.call(name, job_key, body, **sign(body))

    def is_due(self, task: Task) -> bool:
        now = self.now(task)
        return now.due_at is not None and now.due_at <= now.now

    def counted(self, result: str) -> float:
        return self.api.metrics.value("callbacks_total", result=result)


def replicate_signed(body: bytes) -> dict[str, str]:
    moment = str(int(time.time()))
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.digest(key, f"msg_1.{moment}.".encode() + body, "sha256")).decode()
    return {"webhook-id": "msg_1", "webhook-timestamp": moment, "webhook-signature": f"v1,{signature}"}


def fal_signed(body: bytes, key: Ed25519PrivateKey = KEY) -> dict[str, str]:
    moment = str(int(time.time()))
    message = "\n".join(("r1", "u1", moment, hashlib.sha256(body).hexdigest()))
    headers = {"request-id": "r1", "user-id": "u1", "timestamp": moment, "signature": key.sign(message.encode()).hex()}
    return {f"X-Fal-Webhook-{name}": value for name, value in headers.items()}


def jwks(*keys: Ed25519PrivateKey) -> bytes:
    shown = [key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw) for key in keys]
    x = [base64.urlsafe_b64encode(raw).decode().rstrip("=") for raw in shown]
    return answer(200, {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": each} for each in x]})


@pytest.fixture
def server() -> Iterator[Server]:
    with scripted_server() as server:
        server.on("GET /.well-known/jwks.json", jwks(KEY))
        yield server


@pytest.fixture
def producer(database_url: str, server: Server) -> Iterator[Producer]:
    producer = Producer(database_url, server.url)
    yield producer
    producer.close()


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_call_has_its_row_looked_at_now_and_moves_nothing(producer: Producer, name: str) -> None:
    task, other = producer.waiting(name), producer.waiting(name)

    assert producer.signed(name, task.job_key, b'{"status": "COMPLETED"}').status_code == 204
    assert producer.signed(name, task.job_key, b'{"status": "COMPLETED"}').status_code == 204, "they call again"

    now = producer.now(task)
    assert producer.is_due(task)
    assert not producer.is_due(other)
    assert (now.status, now.version, now.provider_job_id) == (Status.PROCESSING, task.version, "j1")
    assert producer.counted("taken") == 2


@pytest.mark.parametrize("name", ["fal", "replicate"])
def test_a_call_that_its_provider_did_not_sign_does_nothing(producer: Producer, name: str) -> None:
    task = producer.waiting(name)
    forged = fal_signed(b"{}", Ed25519PrivateKey.generate()) | replicate_signed(b"another body")

    problem_of(producer.call(name, task.job_key, b"{}"), 401, "bad_signature")
    problem_of(producer.call(name, task.job_key, b"{}", **forged), 401, "bad_signature")

    assert not producer.is_due(task)
    assert producer.counted("forged") == 2


def test_a_signed_call_names_the_job_of_a_lost_answer(producer: Producer) -> None:
    task = producer.taken("fal")
    assert producer.may_post(task)
    before = producer.now(task)

    assert producer.signed("fal", task.job_key, b'{"request_id": "r7"}').status_code == 204

    now = producer.now(task)
    assert (now.status, now.version, now.free_at) == (Status.SUBMITTING, before.version, before.free_at)
    api = provider(SHIPPED["fal"], name="fal")
    assert api.recover(Job.of(now, producer.tasks.sent(now))) == Accepted("r7")


def test_an_unsigned_call_names_no_job(producer: Producer) -> None:
    task = producer.taken("runpod_comfyui")
    assert producer.may_post(task)

    assert producer.signed("runpod_comfyui", task.job_key, b'{"id": "somebody-elses"}').status_code == 204

    assert producer.tasks.sent(task).provider_job_id is None


def test_what_somebody_recorded_stays(producer: Producer) -> None:
    task = producer.waiting("replicate")
    producer.signed("replicate", task.job_key, b'{"id": "another"}')
    assert producer.attempts(task)[0].provider_job_id == "j1"


def test_a_final_row_and_a_later_attempt_are_left_alone(producer: Producer) -> None:
    done = producer.moved(producer.waiting("replicate"), Status.FAILED)
    again = producer.waiting("replicate")
    first_key = again.job_key
    producer.moved(again, Status.PENDING, attempt_outcome="lost")
    producer.slots.take("replicate", at_most=1, lease_seconds=60)
    before = [producer.now(task).due_at for task in (done, again)]

    for key in (done.job_key, first_key):
        assert producer.signed("replicate", key, b"{}").status_code == 204

    assert [producer.now(task).due_at for task in (done, again)] == before


def test_nobody_is_told_of_jobs_that_are_none(producer: Producer) -> None:
    task = producer.waiting("replicate")
    for name, key in (("replicate", uuid.uuid4()), ("fal", task.job_key), ("replicate", "x"), ("nobody", uuid.uuid4())):
        assert producer.signed(name, key, b"{}").status_code in (401, 404)
    assert not producer.is_due(task)
    assert producer.counted("unknown") == 4


def test_a_body_too_large_is_refused(producer: Producer) -> None:
    task = producer.waiting("replicate")
    body = b"x" * (1024 * 1024 + 1)
    problem_of(producer.signed("replicate", task.job_key, body), 413, "too_large")
    assert producer.signed("runpod_comfyui", producer.waiting("runpod_comfyui").job_key, body).status_code == 204


def test_without_keys_a_call_is_asked_to_come_again(producer: Producer, server: Server) -> None:
    server.on("GET /.well-known/jwks.json", answer(503, {}))
    task = producer.waiting("fal")
    problem_of(producer.signed("fal", task.job_key, b"{}"), 503, "signature_unchecked")
    assert not producer.is_due(task)


def test_keys_are_asked_for_once_and_again_when_none_of_them_fits(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    fal, newer = of("fal", server.url), Ed25519PrivateKey.generate()
    server.on("GET /.well-known/jwks.json", jwks(KEY), jwks(KEY, newer))

    def fits(key: Ed25519PrivateKey) -> bool:
        return fal.fits({name.lower(): value for name, value in fal_signed(b"{}", key).items()}, b"{}")

    assert [fits(KEY), fits(KEY), fits(newer)] == [True, True, False]
    assert len(server.calls) == 1, "a minute has to pass before they are asked for again"
    later = time.monotonic() + 61
    monkeypatch.setattr("shared.providers.signatures.time.monotonic", lambda: later)
    assert fits(newer)
    assert len(server.calls) == 2


def test_without_callbacks_there_is_no_such_address(producer: Producer) -> None:
    producer.api.callbacks = None
    problem_of(producer.call("replicate", uuid.uuid4()), 404, "not_found")


# --- what is sent


def called_back(name: str, server: Server, inputs: dict[str, Any], path: str) -> tuple[Job, Any]:
    server.on(f"POST {path}", answer(200, {"id": "j1", "request_id": "j1"}))
    job = a_job(inputs)
    api = provider(SHIPPED[name], server.url, callback_url="https://shop.example/callbacks/x")
    api.submit(api.prepare(job))
    return job, server.requests[-1]


def test_fal_is_told_in_the_address(server: Server) -> None:
    job, request = called_back("fal", server, {"model": "a/b", "arguments": {}}, "/a/b")
    assert request.path.endswith(f"?fal_webhook=https%3A%2F%2Fshop.example%2Fcallbacks%2Fx%2F{job.job_key}")


def test_replicate_is_told_in_the_body_to_call_once(server: Server) -> None:
    inputs = {"model": "a/b", "input": {"prompt": "p"}}
    job, request = called_back("replicate", server, inputs, "/models/a/b/predictions")
    told = body_of(request)
    assert told["webhook"] == f"https://shop.example/callbacks/x/{job.job_key}"
    assert told["webhook_events_filter"] == ["completed"]


def test_nobody_is_told_where_it_is_switched_off(server: Server) -> None:
    server.on("POST /models/a/b/predictions", answer(200, {"id": "j1"}))
    api = provider(SHIPPED["replicate"], server.url)
    api.submit(api.prepare(a_job({"model": "a/b", "input": {}})))
    assert json.loads(server.requests[-1].body).keys() == {"input"}
