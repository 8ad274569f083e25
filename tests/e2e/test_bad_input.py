"""Wrong orders among good ones on a running system: each wrong one ends alone and says why, each good one is made."""

import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import pytest
import requests
from PIL import Image

from shared.domain.messages import MAX_ORDER_BYTES, Order
from tests.e2e.conftest import Build
from tests.e2e.internet import OUTSIDE
from tests.e2e.system import System, an_order, some_orders
from tests.e2e.worker import ROOT
from tests.integration.scripted_server import Request, Server, answer, scripted_server
from tests.waiting import eventually

PHOTO: Final = (ROOT / "deploy" / "photos" / "cat.jpg").read_bytes()
#: Waits for so many letters that belong to no row and came in this test.
Letters = Callable[[int], list[Any]]


class Door:
    """The HTTP interface, as an upstream system calls it. No answer may show a traceback."""

    def __init__(self, url: str) -> None:
        self._url = url

    def post(self, body: dict[str, Any] | bytes) -> requests.Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._looked_at(requests.post(f"{self._url}/v1/orders", data=raw, timeout=10))

    def get(self, path: str) -> requests.Response:
        return self._looked_at(requests.get(f"{self._url}{path}", timeout=10))

    def wrong_fields(self, body: dict[str, Any]) -> dict[str, str]:
        """What a 422 says of each field."""
        refused = self.post(body)
        assert refused.status_code == 422, refused.text
        return {error["field"]: error["message"] for error in refused.json()["errors"]}

    @staticmethod
    def _looked_at(found: requests.Response) -> requests.Response:
        assert "Traceback" not in found.text
        kind = "application/json" if found.ok else "application/problem+json"
        assert found.headers["Content-Type"] == kind
        return found


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    # The lease is longer than a submission with a picture may last, see _check_lease in services/submitter/__main__.py.
    settings = {"INPUT_TIMEOUT_SECONDS": 3, "LEASE_SECONDS": 15}
    system = build(workflows=("solid-invert", "photo-invert"), settings=settings)
    system.add("submitter", via="tests.e2e.internet")
    system.start(submitters=0)
    return system


@pytest.fixture(scope="module")
def door(system: System) -> Door:
    producer = system.add("producer", HTTP_PORT=0)
    [line] = eventually(lambda: producer.said("listening"), within=10, what="the producer's port")
    return Door(f"http://127.0.0.1:{line['port']}")


@pytest.fixture(autouse=True)
def _good_orders_go_on(system: System) -> Iterator[None]:
    """Good orders before and after what is wrong: all are made, by the workers that were there before."""
    good = some_orders(2)
    system.place(good[0])
    yield
    system.place(good[1])
    system.await_status("completed", *good)
    assert all(worker.is_ready() for worker in system.workers)


@pytest.fixture
def letters(system: System) -> Letters:
    before = len(system.letters())

    def wait(count: int) -> list[Any]:
        arrived = eventually(
            lambda: found if len(found := system.letters()[before:]) >= count else [],
            within=20,
            what=f"{count} letters without a row",
        )
        assert len(arrived) == count
        return arrived

    return wait


@pytest.fixture
def outside() -> Iterator[Server]:
    """A picture server on the internet."""
    with scripted_server(OUTSIDE) as server:
        server.on("GET /cat.jpg", answer(200, PHOTO))
        yield server


def a_photo_order(photo: str) -> Order:
    return an_order(workflow="photo-invert", inputs={"photo": photo, "width": 32, "height": 32})


def assert_failed_alone(system: System, reason: str, *orders: Order) -> list[Any]:
    """Every row failed for this reason with one letter and one event, and no server heard of it. The rows."""
    rows = system.await_status("failed", *orders)
    assert {row.reason for row in rows} == {reason}, [(row.reason, row.detail) for row in rows]
    for order in orders:
        [letter] = eventually(partial(system.letters, order), within=20, what="a letter")
        assert letter.reason == reason
        assert system.events(order) == ["failed"]
        assert system.runs_of(order) == []
    return rows


# --- over the broker


def test_messages_that_cannot_be_read_are_dead_letters_and_make_no_row(system: System, letters: Letters) -> None:
    messages = [
        b"",
        b"not JSON",
        b'{"idempotency_key": "cut',
        b"\xff\xfe\x00",
        b"[1, 2]",
        b"[" * 100_000,
        b'{"pool": "comfyui", "workflow": "solid-invert"}',
        b'{"idempotency_key": 7, "pool": "comfyui"}',
        b'{"idempotency_key": "a\\u0000b", "pool": "comfyui"}',
    ]
    without_body = "select count(*) from tasks where body is null"  # what the row of an unreadable order looks like
    before = system.sql(without_body)
    for message in messages:
        system.mail.send(message)

    found = letters(len(messages))
    assert {(letter.reason, letter.stage, letter.state) for letter in found} == {("invalid_message", "orders", "open")}
    assert {letter.body for letter in found} >= {"", "not JSON", "[1, 2]"}
    assert system.sql(without_body) == before


def test_messages_of_an_unknown_type_are_dead_letters_of_their_step(system: System, letters: Letters) -> None:
    newer, untyped = some_orders(2)
    system.mail.send(newer.model_dump_json().encode(), "order.placed.v2")
    system.mail.send(untyped.model_dump_json().encode(), None)
    # Without a message id, the same bytes would be the same letter.
    system.mail.send(b"{}", "task.paint.v1", "submit.comfyui")
    system.mail.send(b"{} ", "task.paint.v1", "check.comfyui")
    system.mail.send(b"{}  ", "task.check.v1", "check.comfyui")

    found = letters(3)
    assert {letter.reason for letter in found} == {"invalid_message"}
    assert sorted((letter.stage, letter.body) for letter in found) == [
        ("check", "{} "),
        ("check", "{}  "),
        ("submit", "{}"),
    ]
    rows = assert_failed_alone(system, "invalid_message", newer, untyped)
    assert sorted(row.detail for row in rows) == [
        "message type 'order.placed.v2' is not order.placed.v1",
        "message type None is not order.placed.v1",
    ]


def test_an_order_that_is_wrong_but_has_a_key_is_a_failed_row_with_its_letter(system: System) -> None:
    wrong = {
        "invalid_message": [
            '"colour": "red"',
            '"priority": "urgent"',
            '"inputs": {"width": NaN}',
            '"inputs": {"width": "\\ud800"}',
            f'"metadata": {{"note": "{"x" * MAX_ORDER_BYTES}"}}',
            '"pool": "painters"',
        ],
        "invalid_workflow": [
            '"workflow": "no-such-workflow"',
            '"inputs": {"width": 100000}',
            '"inputs": {"colour": 1}',
            '"workflow": "photo-invert", "inputs": {"photo": "gopher://somewhere/x"}',
        ],
    }
    placed: dict[str, list[Order]] = {}
    for reason, fields in wrong.items():
        for field in fields:
            order = an_order()
            good = {"idempotency_key": order.idempotency_key, "pool": order.pool, "workflow": order.workflow}
            # The later of two equal names counts.
            system.mail.send(f"{json.dumps(good)[:-1]}, {field}}}".encode())
            placed.setdefault(reason, []).append(order)

    for reason, orders in placed.items():
        rows = assert_failed_alone(system, reason, *orders)
        assert {(row.attempt, row.charged) for row in rows} == {(0, 0)}
        assert all(len(row.detail) < 2000 for row in rows)


def test_a_known_key_with_other_content_is_a_conflict_and_the_first_order_is_untouched(
    system: System, letters: Letters
) -> None:
    first = an_order()
    system.place(first)
    [row] = system.await_status("completed", first)
    system.place(an_order(idempotency_key=first.idempotency_key), first)

    [letter] = letters(1)
    assert (letter.reason, letter.stage) == ("conflict", "orders")
    assert str(first.task_id) in letter.detail
    assert system.row(first) == row
    assert len(system.runs_of(first)) == 1
    assert system.events(first) == ["completed"]


def test_a_second_order_for_an_active_order_id_gets_the_active_task_and_no_job(system: System, door: Door) -> None:
    [gpu] = system.gpus
    gpu.faults(seconds_per_image=5)
    first, second = some_orders(2, order_id="A-1")
    system.place(first)
    system.await_status("processing", first)
    eventually(lambda: system.runs_of(first)[0]["started_at"], within=10, what="it runs")
    gpu.heal()  # only what runs already takes so long
    accepted = door.post(second.model_dump(mode="json"))
    assert accepted.status_code == 202
    assert accepted.json()["task_id"] == str(second.task_id)

    def duplicates() -> list[dict[str, Any]]:
        return [event for event in system.mail.events() if event["idempotency_key"] == second.idempotency_key]

    [event] = eventually(duplicates, within=20, what="the event")
    assert (event["event"], event["task_id"], event["order_id"]) == ("duplicate", str(first.task_id), "A-1")
    system.await_status("completed", first)
    status = door.get(accepted.json()["status_url"]).json()
    assert (status["task_id"], status["status"]) == (str(first.task_id), "completed")
    assert system.row(second) is None
    assert len(system.runs_of(first)) == 1
    assert len(duplicates()) == 1


# --- pictures


def test_a_picture_that_is_no_picture_fails_its_order_at_once(system: System, outside: Server) -> None:
    png = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(png, "PNG")
    bomb = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(bomb, "PNG")
    contents = {
        "/page": answer(200, b"<html>please log in</html>"),
        "/nothing": answer(200, b""),
        "/cut": answer(200, png.getvalue()[:60]),
        "/bomb": answer(200, bomb.getvalue()),
        "/gone": answer(404, b"gone"),
        "/moved": answer(302, b"", headers={"Location": "ftp://somewhere/else"}),
    }
    for path, content in contents.items():
        outside.on(f"GET {path}", content)
    bad = [a_photo_order(f"{outside.url}{path}?signature=secret") for path in contents]
    bad.append(a_photo_order("file:///etc/hostname"))
    good = a_photo_order(f"{outside.url}/cat.jpg")
    system.place(*bad, good)

    rows = assert_failed_alone(system, "input_unavailable", *bad)
    assert {(row.stage, row.attempt) for row in rows} == {("submit", 1)}
    assert not any("secret" in row.detail for row in rows)
    system.await_status("completed", good)
    assert sorted(outside.calls) == sorted(["GET /cat.jpg", *(f"GET {path}?signature=secret" for path in contents)])


def test_a_picture_whose_server_is_broken_is_waited_for(system: System, outside: Server) -> None:
    outside.on("GET /late.jpg", answer(503, b""), answer(500, b""), answer(200, PHOTO))
    order = a_photo_order(f"{outside.url}/late.jpg")
    system.place(order)

    [row] = system.await_status("completed", order)
    assert (row.attempt, row.charged) == (3, 0)
    assert len(system.runs_of(order)) == 1


def test_a_picture_of_fifty_megabytes_is_not_taken(system: System, outside: Server) -> None:
    sent = 0

    def fifty_megabytes(request: Request) -> bytes:
        nonlocal sent
        request.connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(800):
            request.connection.sendall(bytes(64 * 1024))
            sent += 64 * 1024
        return b""

    outside.on("GET /unannounced", fifty_megabytes)
    outside.on("GET /announced", b"HTTP/1.1 200 OK\r\nContent-Length: 52428800\r\n\r\n")
    orders = [a_photo_order(f"{outside.url}/{path}") for path in ("unannounced", "announced")]
    system.place(*orders)

    rows = assert_failed_alone(system, "input_unavailable", *orders)
    assert all("larger than 41943040 bytes" in row.detail for row in rows)
    assert sent < 50 * 2**20


def test_private_addresses_are_never_called_also_not_after_a_redirect(system: System, outside: Server) -> None:
    with scripted_server() as inside:
        inside.on("GET /cat.jpg", answer(200, PHOTO))
        port = inside.url.rpartition(":")[2]
        outside.on("GET /go", answer(302, b"", headers={"Location": f"{inside.url}/cat.jpg"}))
        hosts = ["127.0.0.1", "localhost", "2130706433", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"]
        urls = [f"http://{host}:{port}/cat.jpg" for host in hosts]
        urls += ["http://169.254.169.254/latest/meta-data", f"{outside.url}/go"]
        orders = [a_photo_order(url) for url in urls]
        system.place(*orders)

        rows = assert_failed_alone(system, "input_unavailable", *orders)
        assert inside.calls == []
    assert all("not on the public internet" in row.detail for row in rows)
    assert {row.attempt for row in rows} == {1}
    assert outside.calls == ["GET /go"]


# --- over HTTP


def test_http_names_every_wrong_field_at_once(door: Door) -> None:
    order = {
        "idempotency_key": "",
        "order_id": 7,
        "pool": "Not a name",
        "inputs": ["width"],
        "priority": "urgent",
        "deadline_seconds": -1,
        "colour": "red",
    }
    assert door.wrong_fields(order).keys() == order.keys()
    assert door.wrong_fields({}) == {"idempotency_key": "is missing", "pool": "is missing"}


@pytest.mark.parametrize(
    ("fields", "wrong", "says"),
    [
        ({"pool": "painters"}, "pool", "is unknown; there are: comfyui"),
        ({"workflow": "nude"}, "workflow", "is unknown; there are: photo-invert, solid-invert"),
        ({"workflow": None}, "workflow", "is missing; there are: photo-invert, solid-invert"),
        ({"inputs": {"width": 15}}, "inputs.width", "must be within 16 and 4096"),
        ({"inputs": {"colour": 1}}, "inputs.colour", "is unknown"),
        ({"workflow": "photo-invert", "inputs": {}}, "inputs.photo", "is missing"),
    ],
)
def test_http_refuses_at_once_what_nobody_could_make(
    system: System, door: Door, fields: dict[str, Any], wrong: str, says: str
) -> None:
    order = an_order()
    found = door.wrong_fields(order.model_dump(mode="json") | fields)
    assert found.keys() == {wrong}
    assert says in found[wrong]
    assert system.row(order) is None


def test_http_answers_409_for_a_key_that_has_other_content(system: System, door: Door) -> None:
    first = an_order()
    assert door.post(first.model_dump(mode="json")).status_code == 202
    [row] = system.await_status("completed", first)

    other = an_order(idempotency_key=first.idempotency_key)
    refused = door.post(other.model_dump(mode="json"))
    assert (refused.status_code, refused.json()["code"]) == (409, "key_reused")
    assert refused.json()["task_id"] == str(first.task_id)
    again = door.post(first.model_dump(mode="json"))
    assert (again.status_code, again.json()["task_id"]) == (202, str(first.task_id))
    assert system.row(first) == row
    assert len(system.runs_of(first)) == 1


def test_http_takes_no_body_over_64_kib_and_none_that_is_not_json(system: System, door: Door) -> None:
    order = an_order()
    large = order.model_dump(mode="json") | {"metadata": {"note": "x" * MAX_ORDER_BYTES}}
    refused = door.post(large)
    assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
    for body in (b"", b"{", b"\xff\xfe", b"[" * 60_000):
        refused = door.post(body)
        assert (refused.status_code, refused.json()["code"]) == (400, "malformed_json")
    assert door.get("/v1/orders/no-id").status_code == 422
    assert door.get("/v2/orders").status_code == 404
    assert system.row(order) is None


# --- on the command line


def test_a_file_with_a_bad_line_is_refused_as_a_whole_and_goes_through_when_it_is_mended(system: System) -> None:
    orders = some_orders(2)
    lines = [order.model_dump_json() for order in orders]
    file = system.folder / "orders.jsonl"
    file.write_text("\n".join([lines[0], '{"idempotency_key": "k", "pool": "comfyui", "colour": 1}', "{", lines[1]]))

    status, told = system.darkroom("submit", str(file))
    assert status == 2
    assert "Traceback" not in told
    assert "line 2: colour: is unknown" in told
    assert "line 3: order: is not JSON" in told
    assert "2 of 4 orders cannot be placed; nothing was published" in told

    later = an_order()
    system.place(later)
    system.await_status("completed", later)
    assert system.rows(orders) == []
    file.write_text("\n".join(lines))
    status, told = system.darkroom("submit", str(file), "--wait", "--timeout", "45s")
    assert (status, told.splitlines()[-1]) == (0, "2 orders: 2 completed")


def test_the_audit_finds_every_promise_kept_after_all_this(system: System) -> None:
    eventually(lambda: not system.sql("select 1 from tasks where due_at is not null"), within=20, what="nothing owed")
    status, told = system.darkroom("audit")
    assert status == 0, told
    assert "Traceback" not in told
    status, told = system.darkroom("order", "show", "no such key")
    assert status == 1
    assert "Traceback" not in told
