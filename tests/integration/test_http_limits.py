"""A client that sends too much, too slowly or too often, over a real socket: refused, and nobody else notices."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from services.producer.bodies import BODY_SECONDS
from services.producer.turnstile import MAX_PER_CLIENT
from shared import http_connections
from shared.domain.messages import MAX_ORDER_BYTES
from shared.http_connections import MAX_HEAD_BYTES, http_server
from tests.unit.api_lab import RED, Api
from tests.waiting import eventually

#: Instead of 10, for a head.
HEAD_SECONDS = 4.0
FIRST, SECOND, READER = "first-token-of-this-test", "second-token-of-this-test", "reading-token-of-this-test"


class Producer:
    """The interface on a socket, with the limits of the real process, before rows and a publisher that are slow."""

    def __init__(self, port: int, server: uvicorn.Server) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._server = server

    @property
    def connections(self) -> list[Any]:
        return list(self._server.server_state.connections)


@pytest.fixture(scope="module")
def producer() -> Iterator[Producer]:
    patience = pytest.MonkeyPatch()
    patience.setattr(http_connections, "HEAD_SECONDS", HEAD_SECONDS)
    api = Api()
    api.tokens, api.read_tokens = [FIRST, SECOND], [READER]
    server = http_server(api.app(), drain_seconds=1)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            eventually(lambda: server.started, within=20)
            yield Producer(listener.getsockname()[1], server)
        finally:
            server.should_exit = True
            thread.join(20)
            patience.undo()


@contextmanager
def connection(producer: Producer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", producer.port), timeout=30) as found:
        yield found


def head(token: str, *, length: int = 100, path: str = "/v1/orders") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def answer_on(found: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in lower case, body, as far as they come before the connection is closed or the body is whole."""
    reader = found.makefile("rb")
    status = int(reader.readline().split()[1])
    headers = {}
    while line := reader.readline().strip():
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    return status, headers, reader.read(int(headers.get("content-length", -1)))


def is_closed(found: socket.socket) -> bool:
    try:
        return found.recv(1) == b""
    except ConnectionResetError:
        return True


def place(producer: Producer, token: str) -> httpx.Response:
    order = RED | {"idempotency_key": f"limits {time.monotonic_ns()}"}
    return httpx.post(f"{producer.url}/v1/orders", json=order, headers={"Authorization": f"Bearer {token}"}, timeout=30)


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "in chunks"])
def test_a_body_too_large_is_refused_before_all_of_it_is_there(producer: Producer, announced: bool) -> None:
    with connection(producer) as found:
        if announced:
            found.sendall(head(FIRST, length=10**12) + b" " * (MAX_ORDER_BYTES + 1))
        else:
            found.sendall(head(FIRST).replace(b"Content-Length: 100", b"Transfer-Encoding: chunked"))
            found.sendall(b"%x\r\n" % (MAX_ORDER_BYTES + 1) + b" " * (MAX_ORDER_BYTES + 1) + b"\r\n")
        status, _, body = answer_on(found)
    assert (status, json.loads(body)["code"]) == (413, "too_large")


def test_a_head_too_large_is_refused(producer: Producer) -> None:
    for line in (b"GET /v1/orders?" + b"x" * MAX_HEAD_BYTES, b"GET / HTTP/1.1\r\nx: " + b"x" * MAX_HEAD_BYTES):
        with connection(producer) as found:
            found.sendall(line + b"x" * 1000)
            assert answer_on(found)[0] == 400
            assert is_closed(found)


def test_a_head_too_large_that_comes_as_a_whole_is_refused_too(producer: Producer) -> None:
    long_one = (
        f"GET /v1/orders HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {READER}\r\nx: {'x' * 2 * MAX_HEAD_BYTES}"
    )
    with connection(producer) as found:
        found.sendall(long_one.encode() + b"\r\n\r\n")
        assert answer_on(found)[0] == 400
        assert is_closed(found)


def test_a_page_too_large_is_refused(producer: Producer) -> None:
    for limit, status in ((100, 200), (101, 422), (10**30, 422), (0, 422), (-1, 422)):
        headers = {"Authorization": f"Bearer {READER}"}
        assert httpx.get(f"{producer.url}/v1/orders?limit={limit}", headers=headers).status_code == status


def test_a_body_that_drips_is_given_up(producer: Producer) -> None:
    with connection(producer) as found:
        began = time.monotonic()
        found.sendall(head(FIRST))
        found.settimeout(0.5)
        status = None
        while status is None:
            assert time.monotonic() - began < BODY_SECONDS + 20
            found.sendall(b" ")
            try:
                status, headers, body = answer_on(found)
            except TimeoutError:
                continue
        assert time.monotonic() - began > BODY_SECONDS - 1
        assert (status, json.loads(body)["code"], headers["connection"]) == (408, "too_slow", "close")


@pytest.mark.parametrize("begun", [b"", b"GET /v1/orders HTTP/1.1\r\nx: "], ids=["silent", "dripping"])
def test_a_head_that_is_never_finished_is_given_up(producer: Producer, begun: bytes) -> None:
    with connection(producer) as found:
        began = time.monotonic()
        found.settimeout(0.5)
        found.sendall(begun)
        while True:
            assert time.monotonic() - began < HEAD_SECONDS + 20
            try:
                if begun:
                    found.sendall(b"x")
                if is_closed(found):
                    break
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                break
        assert time.monotonic() - began > HEAD_SECONDS - 1


def test_a_connection_may_carry_one_request_after_the_other(producer: Producer) -> None:
    with httpx.Client(headers={"Authorization": f"Bearer {READER}"}) as client:
        end = time.monotonic() + HEAD_SECONDS + 2
        while time.monotonic() < end:
            assert client.get(f"{producer.url}/v1/orders").status_code == 200
            time.sleep(0.5)


def test_who_has_too_many_requests_under_way_is_told_to_wait_and_nobody_else_is(producer: Producer) -> None:
    with ExitStack() as held:
        for _ in range(MAX_PER_CLIENT):
            held.enter_context(connection(producer)).sendall(head(FIRST))
        eventually(lambda: place(producer, FIRST).status_code == 429, within=20, what="too many")
        refused = place(producer, FIRST)
        assert (refused.json()["code"], int(refused.headers["retry-after"])) == ("too_many_requests", 5)
        assert refused.headers["content-type"] == "application/problem+json"
        assert place(producer, SECOND).status_code == 202
        assert place(producer, "made-up-by-nobody-we-know").status_code == 401
    eventually(lambda: place(producer, FIRST).status_code == 202, within=30, what="served again")


def test_connections_without_a_token_hold_up_nobody(producer: Producer) -> None:
    with ExitStack() as held:
        for number in range(2 * MAX_PER_CLIENT):
            found = held.enter_context(connection(producer))
            found.sendall(head(f"made-up-{number:08}"))
            assert answer_on(found)[0] == 401
        assert place(producer, FIRST).status_code == 202


def test_a_wrong_a_missing_and_another_role_s_token(producer: Producer) -> None:
    url = f"{producer.url}/v1/orders"
    assert httpx.post(url, json=RED).status_code == 401
    assert place(producer, "made-up-by-nobody-we-know").status_code == 401
    refused = place(producer, READER)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert httpx.get(url, headers={"Authorization": f"Bearer {READER}"}).status_code == 200


def test_a_body_does_not_wait_for_the_acknowledgement_of_its_head(producer: Producer) -> None:
    """Which clients delay by 40 ms, and without the option every short answer on an open connection with it."""
    with connection(producer):
        eventually(lambda: producer.connections, within=5)
        options = [
            found.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            for found in producer.connections
        ]

    assert options
    assert all(options)
