"""Secrets planted in everything that is given to a running system: none shows where anybody reads."""

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
import requests
import sqlalchemy as sa

from shared.domain.messages import Order
from tests.e2e.conftest import Build
from tests.e2e.internet import OUTSIDE
from tests.e2e.system import System, an_order
from tests.integration.scripted_server import Request, Server, answer, scripted_server
from tests.servers import free_port
from tests.waiting import eventually

#: Where each was planted, and the word that would show it. All of them are in use while the system runs; the password
#: of the database is added, which has one already.
PLANTED: Final = {
    "broker password": "pl4nted-broker",
    "token of the HTTP interface": "pl4nted-token-for-writing-orders",
    "token that only reads": "pl4nted-token-for-reading-orders",
    "a token that is none of ours": "pl4nted-token-of-a-stranger",
    "key of a provider": "sk-pl4nted-provider",
    "signature of an address": "pl4nted-signature",
    "password in an address": "pl4nted-userinfo",
    "key in the query of a request": "pl4nted-query",
}


@pytest.fixture(scope="module")
def outside() -> Iterator[Server]:
    """Keeps input pictures to itself, and tells everybody why with the whole address that was asked for."""
    with scripted_server(OUTSIDE) as server:
        server.on("GET /photo.png", _refused)
        yield server


@pytest.fixture(scope="module")
def provider() -> Iterator[Server]:
    """An image API that quotes the request it refuses, the key in its head included."""
    with scripted_server() as server:
        server.on("POST /images/generations", _refused)
        yield server


def _refused(request: Request) -> bytes:
    quoted = f"{request.path} {dict(request.headers)} {request.body.decode()[:500]}"
    return answer(400, {"error": {"code": "bad", "message": f"cannot do this: {quoted}"}})


@pytest.fixture(scope="module")
def system(build: Build, provider: Server) -> System:
    settings = {
        "INPUT_TIMEOUT_SECONDS": 3,
        "LEASE_SECONDS": 15,
        "LOG_LEVEL": "DEBUG",
        "HTTP_TOKENS": PLANTED["token of the HTTP interface"],
        "HTTP_READ_TOKENS": PLANTED["token that only reads"],
    }
    system = build(workflows=("solid-invert", "photo-invert"), settings=settings)
    with (system.folder / "backends.toml").open("a") as file:
        file.write('[[backend]]\nname = "openai_images"\nadapter = "http"\nprovider = "openai_images"\n')
        file.write(f'url = "{provider.url}"\n')
    PLANTED["database password"] = sa.make_url(system.settings["DARKROOM_DATABASE_URL"]).password or ""
    system.settings["OPENAI_API_KEY"] = PLANTED["key of a provider"]
    # Of two brokers the first is never there.
    away = f"amqp://ann:{PLANTED['broker password']}@127.0.0.1:{free_port()}/"
    system.settings["DARKROOM_AMQP_URL"] = f"{away},{system.settings['DARKROOM_AMQP_URL']}"
    system.add("submitter", via="tests.e2e.internet")
    system.start(submitters=0)
    return system


@pytest.fixture(scope="module")
def url(system: System) -> str:
    producer = system.add("producer", HTTP_PORT=0)
    [line] = eventually(lambda: producer.said("listening"), within=20, what="the producer's port")
    return f"http://127.0.0.1:{line['port']}"


def signed(outside: Server) -> str:
    """An address that opens a bucket to whoever reads it."""
    address = outside.url.replace("://", f"://ann:{PLANTED['password in an address']}@")
    return f"{address}/photo.png?X-Amz-Signature={PLANTED['signature of an address']}"


def assert_clean(text: str, where: str) -> None:
    shown = [name for name, secret in PLANTED.items() if secret in text]
    assert not shown, f"{where} shows the {', the '.join(shown)}: {_around(text, PLANTED[shown[0]])}"


def _around(text: str, secret: str) -> str:
    at = text.index(secret)
    return text[max(0, at - 300) : at + 100]


@pytest.fixture(scope="module")
def failed(system: System, outside: Server, provider: Server) -> list[Order]:
    """Orders that die for their picture, at the provider, unreadable, and in conflict with one that is good."""
    good = an_order()
    picture = an_order(workflow="photo-invert", inputs={"photo": signed(outside)})
    image = an_order(pool="openai_images", workflow=None, inputs={"model": "m", "prompt": "p"})
    unknown = an_order(workflow="no-such", inputs={"photo": signed(outside)})
    system.place(good, picture, image, unknown)
    system.await_status("completed", good)
    system.await_status("failed", picture, image, unknown)
    wrong = picture.model_dump(mode="json") | {"idempotency_key": "wrong-field", "colour": signed(outside)}
    for body in (
        good.model_copy(update={"inputs": {"photo": signed(outside)}}).model_dump_json().encode(),
        json.dumps({"photo": signed(outside)}).encode(),
        json.dumps(wrong).encode(),
        json.dumps(wrong).encode()[:-2],
    ):
        system.mail.send(body)
    eventually(lambda: len(system.sql("select 1 from dead_letters")) == 7, within=30, what="all letters are recorded")
    assert PLANTED["signature of an address"] in outside.requests[0].path
    assert PLANTED["key of a provider"] in provider.requests[0].headers["Authorization"]
    return [picture, image, unknown]


def test_no_letter_shows_a_secret_to_whoever_lists_or_reads_it(system: System, failed: list[Order]) -> None:
    letters = system.sql("select id, task_id, body, detail from dead_letters")
    status, listed = system.darkroom("dead", "list", "--json")
    assert (status, len(listed.splitlines())) == (0, len(letters))
    assert_clean(listed, "dead list")
    for letter in letters:
        for words in (("dead", "show", str(letter.id)), ("dead", "show", str(letter.id), "--json")):
            assert_clean(system.darkroom(*words)[1], " ".join(words))
        assert_clean(letter.detail, "the text of a letter")
        if letter.task_id is not None:
            assert_clean(letter.body, "the body of a letter that has a row")
    assert sum(PLANTED["signature of an address"] in letter.body for letter in letters) == 3, "a replay needs those"


def test_no_row_event_or_command_shows_a_secret(system: System, failed: list[Order]) -> None:
    for row in system.rows(failed):
        assert row.detail
        assert_clean(row.detail, "tasks.detail")
    for attempt in system.sql("select detail from attempts where detail is not null"):
        assert_clean(attempt.detail, "attempts.detail")
    for told in system.mail.events():
        assert_clean(json.dumps(told), "an event")
    for order in failed:
        for words in (("order", "show"), ("order", "trace"), ("order", "trace", "--json")):
            assert_clean(system.darkroom(*words[:2], order.idempotency_key, *words[2:])[1], " ".join(words))
    assert_clean(system.darkroom("audit")[1], "audit")


def test_no_answer_of_the_http_interface_shows_a_secret(
    system: System, failed: list[Order], url: str, outside: Server
) -> None:
    ours = {"Authorization": f"Bearer {PLANTED['token of the HTTP interface']}"}
    reads = {"Authorization": f"Bearer {PLANTED['token that only reads']}"}
    foreign = {"Authorization": f"Bearer {PLANTED['a token that is none of ours']}"}
    query = f"key={PLANTED['key in the query of a request']}"
    order = an_order(workflow="photo-invert", inputs={"photo": signed(outside)}).model_dump(mode="json")
    body = json.dumps(order | {"colour": signed(outside), "pool": signed(outside), "priority": signed(outside)})

    def ask(method: str, path: str, **more: Any) -> int:
        found = requests.request(method, f"{url}{path}", timeout=10, **more)
        assert_clean(found.text + str(found.headers), f"{method} {path}")
        return found.status_code

    assert ask("GET", "/v1/orders", headers=foreign) == 401
    assert ask("POST", "/v1/orders", headers=reads, data=body) == 403
    assert ask("POST", "/v1/orders", headers=ours, data=body) == 422
    assert ask("POST", "/v1/orders", headers=ours, data=body[:-1]) == 400
    assert ask("POST", "/v1/orders", headers=ours | {"Idempotency-Key": "another"}, data=json.dumps(order)) >= 400
    assert ask("GET", f"/v1/orders?{query}", headers=reads) == 422
    assert ask("GET", f"/nowhere?{query}", headers=reads) == 404
    for each in failed:
        assert ask("GET", f"/v1/orders/{each.task_id}", headers=reads) == 200


def test_the_doctor_shows_no_secret_of_what_works_and_of_what_does_not(system: System, failed: list[Order]) -> None:
    assert_clean(system.darkroom("doctor")[1], "doctor")
    nowhere = sa.make_url(system.settings["DARKROOM_DATABASE_URL"]).set(port=free_port())
    refused = system.settings["DARKROOM_AMQP_URL"].partition(",")[2].replace("guest:guest", "guest:pl4nted-broker")
    broken = {"DATABASE_URL": nowhere.render_as_string(hide_password=False), "AMQP_URL": refused}
    for words in (("doctor",), ("doctor", "--json"), ("dead", "list"), ("audit",)):
        status, said = system.darkroom(*words, **broken)
        assert status != 0
        assert_clean(said, f"{' '.join(words)} without a database")


def test_no_log_line_and_no_metric_shows_a_secret_at_any_level(system: System, failed: list[Order], url: str) -> None:
    """Last, after everything above was done to the system."""
    for worker in system.workers:
        assert worker.lines()
        assert_clean(worker.log.read_text(), f"the log of {worker.name}")
        assert_clean(requests.get(f"http://127.0.0.1:{worker.port}/metrics", timeout=10).text, "/metrics")
        assert_clean(requests.get(f"http://127.0.0.1:{worker.port}/readyz", timeout=10).text, "/readyz")
