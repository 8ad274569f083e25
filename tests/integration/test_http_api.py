"""The HTTP interface as upstream systems use it: lists, cancelling, pictures, events, tokens, against real servers."""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from deploy.local import Stack
from shared.domain.task import Accepted, Status, Task, task_id_for
from shared.storage import Artifacts
from tests.integration.producer_lab import START_SECONDS, Running, Start, an_order, producers
from tests.integration.rows_lab import Lab, a_picture
from tests.servers import VhostPool, new_database
from tests.waiting import eventually

TOKEN, OTHER = "first-token-of-this-test", "second-token-of-this-test"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("http")


@pytest.fixture(scope="module")
def _lab(stack: Stack, folder: Path) -> Iterator[Lab]:
    lab = Lab(new_database(stack))
    lab.artifacts = Artifacts(str(folder / "pictures"))
    yield lab
    lab.close()


@pytest.fixture
def lab(_lab: Lab) -> Lab:
    """Without any row."""
    _lab.empty()
    return _lab


@pytest.fixture(scope="module")
def start(_lab: Lab, stack: Stack, _vhosts: VhostPool, folder: Path) -> Iterator[Start]:
    """Starts a producer with these settings beside the usual ones; a start takes a second of CPU time."""
    amqp_url = stack.broker.url_of(_vhosts.take())
    with producers(folder) as start:
        yield partial(start, _lab.url, amqp_url, DARKROOM_ARTIFACTS_URL=str(folder / "pictures"))


@pytest.fixture(scope="module")
def producer(start: Start) -> Running:
    """One for all tests that neither end it nor ask for settings of their own."""
    return start()


@pytest.fixture
def api(producer: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=producer.url, timeout=10) as client:
        yield client


def code_of(answer: httpx.Response, status: int) -> str:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    return str(answer.json()["code"])


def keys_in(page: Any) -> list[str]:
    return [order["idempotency_key"] for order in page["orders"]]


def test_lists_are_paged_to_their_end(lab: Lab, api: httpx.Client) -> None:
    for key in ("a", "b", "c"):
        lab.pending(idempotency_key=key)
    first = api.get("/v1/orders", params={"limit": 2}).json()
    second = api.get("/v1/orders", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert (keys_in(first), keys_in(second), second["next_cursor"]) == (["c", "b"], ["a"], None)


def test_a_list_may_be_of_a_key_an_order_id_or_statuses(lab: Lab, api: httpx.Client) -> None:
    done = lab.completed(idempotency_key="a", order_id="o-1")
    lab.pending(idempotency_key="b", order_id="o-1")
    lab.pending(idempotency_key="kept", order_id="o-1")
    lab.failed(idempotency_key="c")
    assert keys_in(api.get("/v1/orders", params={"order_id": "o-1"}).json()) == ["b", "a"]
    assert keys_in(api.get("/v1/orders", params={"idempotency_key": "kept"}).json()) == ["b"]
    both = api.get("/v1/orders", params=[("status", "failed"), ("status", "completed")]).json()
    assert keys_in(both) == ["c", "a"]
    assert [picture["url"] for picture in both["orders"][1]["artifacts"]] == [f"/v1/orders/{done.id}/artifacts/0"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("stauts=failed", "stauts"),
        ("status=done", "status.0"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("cursor=nonsense", "cursor"),
        ("cursor=MjAyNi0wMS0wMlQwMzowNDowNSBubw", "cursor"),
        ("order_id=a%00b", "order_id"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(api: httpx.Client, query: str, field: str) -> None:
    answer = api.get(f"/v1/orders?{query}")
    assert code_of(answer, 422) == "invalid_request"
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_a_waiting_order_knows_its_place(lab: Lab, api: httpx.Client) -> None:
    tasks = [lab.pending() for _ in range(3)]
    lab.pending(priority="high")
    assert [api.get(f"/v1/orders/{task.id}").json()["queue_position"] for task in tasks] == [2, 3, 4]
    lab.take()
    assert api.get(f"/v1/orders/{tasks[0].id}").json()["queue_position"] is None


def test_cancelling_ends_an_order_once_and_says_who_asked(lab: Lab, api: httpx.Client) -> None:
    running, submitting, waiting = lab.processing(), lab.submitting(), lab.pending()
    for task in (waiting, running, submitting):
        first = api.post(f"/v1/orders/{task.id}/cancel", json={"reason": "refunded"})
        assert (first.status_code, first.json()["status"], first.json()["reason"]) == (200, "cancelled", "refunded")
        again = api.post(f"/v1/orders/{task.id}/cancel")
        assert (again.status_code, again.json()) == (200, first.json())
    assert (lab.row(running).cancel_owed, lab.row(waiting).cancel_owed) == (True, False)
    noted = lab.sql("select by_whom, action, subject, detail from operator_actions order by id")
    assert [(row.by_whom, row.action, row.subject) for row in noted] == [
        ("http", "order cancel", str(task.id)) for task in (waiting, running, submitting)
    ]
    assert noted[0].detail == {"reason": "refunded"}


def test_what_has_ended_otherwise_cannot_be_cancelled(lab: Lab, api: httpx.Client) -> None:
    for task in (lab.completed(), lab.failed()):
        answer = api.post(f"/v1/orders/{task.id}/cancel")
        assert code_of(answer, 409) == "already_final"
        assert lab.row(task).version == task.version
    assert code_of(api.post(f"/v1/orders/{uuid.uuid4()}/cancel"), 404) == "not_claimed_yet"
    assert code_of(api.post(f"/v1/orders/{uuid.uuid4()}/cancel", json={"why": "x"}), 422) == "invalid_request"
    assert code_of(api.post(f"/v1/orders/{uuid.uuid4()}/cancel", content=b"{"), 400) == "malformed_json"
    assert lab.sql("select * from operator_actions") == []


def test_a_picture_comes_whole_in_parts_or_not_again(lab: Lab, api: httpx.Client) -> None:
    task = lab.completed()
    (artifact,) = lab.tasks.artifacts([task.id])[task.id]
    data = lab.artifacts.read(artifact.key)
    url = f"/v1/orders/{task.id}/artifacts/0"
    whole = api.get(url)
    assert (whole.status_code, whole.content) == (200, data)
    etag = f'"{artifact.sha256}"'
    expected = {
        "etag": etag,
        "content-type": "image/png",
        "content-length": str(len(data)),
        "content-disposition": f'inline; filename="{task.id}-0.png"',
        "x-content-type-options": "nosniff",
        "accept-ranges": "bytes",
    }
    assert {name: whole.headers[name] for name in expected} == expected
    head = api.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert {name: head.headers[name] for name in expected} == expected

    part = api.get(url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, data[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(data)}"
    assert api.get(url, headers={"Range": "bytes=-7"}).content == data[-7:]
    assert api.get(url, headers={"Range": "bytes=10-19", "If-Range": etag}).status_code == 206
    assert api.get(url, headers={"Range": "bytes=10-19", "If-Range": '"old"'}).content == data
    beyond = api.get(url, headers={"Range": f"bytes={len(data)}-"})
    assert code_of(beyond, 416) == "range_not_satisfiable"
    assert beyond.headers["content-range"] == f"bytes */{len(data)}"

    for known in (etag, f'"other", W/{etag}', "*"):
        unchanged = api.get(url, headers={"If-None-Match": known})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    assert api.head(url, headers={"If-None-Match": etag}).status_code == 304
    assert api.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_picture_that_is_not_there_is_a_problem(lab: Lab, producer: Running, api: httpx.Client) -> None:
    waiting, done = lab.pending(), lab.completed()
    assert code_of(api.get(f"/v1/orders/{uuid.uuid4()}/artifacts/0"), 404) == "not_claimed_yet"
    assert code_of(api.get(f"/v1/orders/{waiting.id}/artifacts/0"), 404) == "no_picture"
    assert code_of(api.get(f"/v1/orders/{done.id}/artifacts/1"), 404) == "no_picture"
    assert code_of(api.get(f"/v1/orders/{done.id}/artifacts/-1"), 422) == "invalid_request"
    (artifact,) = lab.tasks.artifacts([done.id])[done.id]
    stored = producer.log.parents[1] / "pictures" / artifact.key
    stored.write_bytes(stored.read_bytes() + b"more")
    assert code_of(api.get(f"/v1/orders/{done.id}/artifacts/0"), 404) == "picture_missing"
    stored.unlink()
    assert code_of(api.get(f"/v1/orders/{done.id}/artifacts/0"), 404) == "picture_missing"
    assert len(producer.lines("picture missing")) == 2


class Stream(threading.Thread):
    """Reads the events of one order until the stream ends. `events` are (id, name, data)."""

    def __init__(self, url: str, task_id: uuid.UUID) -> None:
        super().__init__(daemon=True)
        self._url = f"{url}/v1/orders/{task_id}/events"
        self.events: list[tuple[int, str, Any]] = []
        self.has_ended = False
        self.start()

    def run(self) -> None:
        with httpx.stream("GET", self._url, timeout=30) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if name:
                    fields[name] = value
                elif "data" in fields:
                    self.events.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
                    fields = {}
        self.has_ended = True

    def wait_for(self, *names: str) -> None:
        eventually(lambda: [event for _, event, _ in self.events] == list(names), within=10, what=f"{names}")


def test_events_follow_an_order_to_its_end(lab: Lab, producer: Running, api: httpx.Client) -> None:
    task = lab.pending()
    first, second = Stream(producer.url, task.id), Stream(producer.url, task.id)
    first.wait_for("pending")
    (taken,) = lab.take()
    first.wait_for("pending", "submitting")
    recorded = lab.tasks.record([(taken, Accepted("job"))], due_in=60)[0]
    assert recorded is not None
    first.wait_for("pending", "submitting", "processing")
    picture = lab.artifacts.put(task.id, 1, 0, a_picture())
    lab.end(recorded, Status.COMPLETED, artifacts=[picture])
    for stream in (first, second):
        stream.wait_for("pending", "submitting", "processing", "completed")
        eventually(lambda stream=stream: stream.has_ended, within=5, what="the end")
        assert [id_ for id_, _, _ in stream.events] == [1, 2, 3, 4]
    last = first.events[-1][2]
    assert last == api.get(f"/v1/orders/{task.id}").json()
    assert len(last["artifacts"]) == 1


def test_a_stream_goes_on_where_it_was_left_and_is_over_when_the_end_was_seen(lab: Lab, api: httpx.Client) -> None:
    task = lab.failed()
    url = f"/v1/orders/{task.id}/events"
    assert f"id: {task.version}\nevent: failed\n" in api.get(url, headers={"Last-Event-ID": "2"}).text
    over = api.get(url, headers={"Last-Event-ID": str(task.version)})
    assert (over.status_code, over.content) == (204, b"")
    assert code_of(api.get(url, headers={"Last-Event-ID": "x"}), 422) == "invalid_request"


def test_a_stream_waits_a_moment_for_an_order_just_placed(lab: Lab, producer: Running, api: httpx.Client) -> None:
    stream = Stream(producer.url, task_id_for("k-1"))
    task = lab.pending(idempotency_key="k-1")
    stream.wait_for("pending")
    lab.failed_at_once(task)
    stream.wait_for("pending", "failed")
    assert code_of(api.get(f"/v1/orders/{uuid.uuid4()}/events"), 404) == "not_claimed_yet"


def test_sigterm_ends_open_streams_and_then_the_process(lab: Lab, start: Start) -> None:
    producer = start()
    task = lab.pending()
    streams = [Stream(producer.url, task.id) for _ in range(5)]
    for stream in streams:
        stream.wait_for("pending")
    began = time.monotonic()
    assert producer.end() == 0
    assert time.monotonic() - began < 10
    for stream in streams:
        eventually(lambda stream=stream: stream.has_ended, within=5, what="the end")
    assert "Traceback" not in producer.log.read_text()


def test_only_who_has_a_token_gets_in(start: Start, lab: Lab) -> None:
    producer = start(DARKROOM_HTTP_TOKENS=f"{TOKEN}, {OTHER}", DARKROOM_HTTP_HOST="0.0.0.0")
    task = lab.pending()
    for headers in ({}, {"Authorization": "Bearer nothing"}, {"Authorization": f"Basic {TOKEN}"}):
        answer = httpx.get(f"{producer.url}/v1/orders", headers=headers)
        assert code_of(answer, 401) == "unauthorized"
        assert answer.headers["www-authenticate"].startswith("Bearer")
    for token in (TOKEN, OTHER):
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{producer.url}/v1/orders", headers=headers).status_code == 200
        httpx.post(f"{producer.url}/v1/orders/{task.id}/cancel", headers=headers)
    (noted,) = lab.sql("select by_whom from operator_actions")
    assert noted.by_whom.startswith("http token ")
    assert httpx.get(f"{producer.health_url}/livez").status_code == 200
    assert not any(token in producer.log.read_text() for token in (TOKEN, OTHER))


def test_without_tokens_only_this_machine_may_be_served(start: Start) -> None:
    producer = start(DARKROOM_HTTP_HOST="0.0.0.0")
    assert producer.process.wait(START_SECONDS) == 2
    said = producer.log.read_text()
    assert "DARKROOM_HTTP_TOKENS" in said
    assert "DARKROOM_HTTP_HOST" in said
    assert "Traceback" not in said


def test_a_database_that_hangs_stops_neither_health_nor_other_answers(
    lab: Lab, producer: Running, api: httpx.Client
) -> None:
    task: Task = lab.pending()
    assert api.get(f"/v1/orders/{task.id}").status_code == 200
    with lab.engine.begin() as connection:
        connection.execute(sa.text("lock table tasks in access exclusive mode"))
        url, asked = f"{producer.url}/v1/orders", {"timeout": 20}
        waiting = [threading.Thread(target=httpx.get, args=[url], kwargs=asked) for _ in range(20)]
        for thread in waiting:
            thread.start()
        began = time.monotonic()
        assert httpx.get(f"{producer.health_url}/livez").status_code == 200
        assert api.get("/v1/workflows").status_code == 200
        assert time.monotonic() - began < 3
        assert code_of(api.get(f"/v1/orders/{task.id}"), 503) == "database_away"
        for thread in waiting:
            thread.join()
    eventually(lambda: api.get(f"/v1/orders/{task.id}").status_code == 200, within=30, what="an answer again")


def test_the_key_may_come_in_the_header(lab: Lab, api: httpx.Client) -> None:
    order = an_order()
    del order["idempotency_key"]
    placed = api.post("/v1/orders", json=order, headers={"Idempotency-Key": "k-header"})
    assert (placed.status_code, placed.json()["task_id"]) == (202, str(task_id_for("k-header")))
    assert api.post("/v1/orders", json=an_order("k"), headers={"Idempotency-Key": "k"}).status_code == 202
    differs = api.post("/v1/orders", json=an_order("k"), headers={"Idempotency-Key": "other"})
    assert code_of(differs, 400) == "keys_differ"


def test_workflows_say_what_an_order_may_give(api: httpx.Client) -> None:
    found = api.get("/v1/workflows").json()
    assert found["pools"] == [{"name": "comfyui", "needs_workflow": True}]
    colour = next(flow for flow in found["workflows"] if flow["name"] == "solid-invert")["inputs"]["color"]
    assert (colour["type"], colour["min"], colour["max"]) == ("int", 0, 16777215)
