"""libcurl against sockets that misbehave: what was sent, and which of our words an ending gets."""

import gc
import socket
import threading
import time
import weakref
from contextlib import suppress

import pytest

from shared.providers.curl import Broken, Call, Curl, Head, Limits, NotConnected, Silent
from tests.integration.scripted_server import Request, Server, answer

LIMITS = Limits(connect=0.5, total=1.0)


def nothing(_: Head, piece: bytes) -> None:
    del piece


def test_an_answer_comes_in_pieces_behind_its_head(server: Server) -> None:
    server.on("GET /x", answer(203, b"y" * 100_000, headers={"X-One": "1", "x-two": " 2 "}))
    seen: list[tuple[int, int]] = []

    head = Curl(4).call(
        Call("GET", f"{server.url}/x", LIMITS, lambda head, piece: seen.append((head.status, len(piece))))
    )

    assert {status for status, _ in seen} == {203}
    assert sum(size for _, size in seen) == 100_000
    assert [head.header(name) for name in ("x-one", "x-two", "x-three")] == ["1", "2", None]


def test_an_interim_answer_is_not_the_answer(server: Server) -> None:
    server.on("POST /x", b"HTTP/1.1 100 Continue\r\nA: 1\r\n\r\n" + answer(201, {}))

    assert Curl(4).call(Call("POST", f"{server.url}/x", LIMITS, nothing, body=b"{}")).status == 201


def test_nothing_is_sent_to_a_port_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(NotConnected):
        Curl(4).call(Call("POST", f"http://127.0.0.1:{port}/x", LIMITS, nothing, body=b"{}"))


@pytest.mark.parametrize("url", ["http://no-such-host.invalid/x", "ftp://127.0.0.1/x", "http://127.0.0.1:notaport/"])
def test_an_address_that_leads_nowhere_is_no_connection(url: str) -> None:
    with pytest.raises(NotConnected):
        Curl(4).call(Call("GET", url, LIMITS, nothing))


def test_a_tls_handshake_that_nobody_answers_has_sent_no_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as cut:
        port = cut.getsockname()[1]
        with pytest.raises(NotConnected):
            Curl(4).call(Call("POST", f"https://127.0.0.1:{port}/x", LIMITS, nothing, body=b"{}", once=True))


def test_a_request_that_nobody_answers_is_silence_and_never_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as cut:
        port = cut.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(Silent):
            Curl(4).call(Call("POST", f"http://127.0.0.1:{port}/x", LIMITS, nothing, body=b"{}", once=True))
        assert time.monotonic() - began < 10


def test_an_answer_cut_off_is_broken(server: Server) -> None:
    server.on("GET /x", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")

    with pytest.raises(Broken):
        Curl(4).call(Call("GET", f"{server.url}/x", LIMITS, nothing))


def test_a_head_that_trickles_ends_with_the_silence_it_is_allowed(server: Server) -> None:
    def drip(request: Request) -> bytes:
        request.connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
        while True:
            request.connection.sendall(b"y")
            time.sleep(0.05)

    server.on("GET /x", drip)
    began = time.monotonic()
    with pytest.raises(Silent):
        Curl(4).call(Call("GET", f"{server.url}/x", Limits(connect=0.5, total=60.0, silence=0.5), nothing))
    assert time.monotonic() - began < 30


def test_what_the_taker_raises_ends_the_call(server: Server) -> None:
    server.on("GET /x", answer(200, b"x" * 1_000_000))

    def refuse(_: Head, piece: bytes) -> None:
        raise ValueError(len(piece))

    with pytest.raises(ValueError, match=r"\d+"):
        Curl(4).call(Call("GET", f"{server.url}/x", LIMITS, refuse))


def test_a_kept_connection_is_used_again_and_one_for_once_is_not() -> None:
    ports: list[int] = []

    def serve(listening: socket.socket) -> None:
        while True:
            try:
                connection, (_, port) = listening.accept()
            except OSError:
                return
            ports.append(port)
            threading.Thread(target=answers, args=(connection,), daemon=True).start()

    def answers(connection: socket.socket) -> None:
        with connection, suppress(ConnectionResetError):
            while connection.recv(65536):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/x"
        curl = Curl(4)
        for _ in range(3):
            curl.call(Call("GET", url, LIMITS, nothing))
        assert len(ports) == 1
        for _ in range(2):
            curl.call(Call("POST", url, LIMITS, nothing, body=b"{}", once=True))
        assert len(ports) == 3


def test_a_kept_connection_keeps_nothing_of_the_last_answer(server: Server) -> None:
    server.on("GET /x", answer(200, {}))

    class Taker:
        def __call__(self, _: Head, piece: bytes) -> None:
            del piece

    take, curl = Taker(), Curl(4)
    gone = weakref.ref(take)
    curl.call(Call("GET", f"{server.url}/x", LIMITS, take))
    del take
    gc.collect()

    assert gone() is None


def test_a_large_body_is_sent_without_asking_first(server: Server) -> None:
    server.on("POST /x", answer(200, {}))

    Curl(4).call(Call("POST", f"{server.url}/x", LIMITS, nothing, body=b"x" * 2_000_000))

    assert "Expect" not in server.requests[0].headers
    assert len(server.requests[0].body) == 2_000_000


def test_calls_made_together_end_each_at_its_place_and_as_they_would_alone(server: Server) -> None:
    server.on("POST /good", answer(201, {"a": 1}))
    server.on("POST /cut", answer(200, {"a": 1})[:-3])
    with socket.create_server(("127.0.0.1", 0)) as closed:
        refused = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
    bodies = [bytearray() for _ in range(4)]

    def to(place: int, url: str) -> Call:
        return Call("POST", url, LIMITS, lambda _, piece: bodies[place].extend(piece), body=b"{}", once=True)

    urls = [f"{server.url}/good", f"{server.url}/cut", refused, f"{server.url}/good"]
    ended = list(Curl(4).together([to(place, url) for place, url in enumerate(urls)]))

    found = dict(one for some in ended for one in some)
    seen = [found[place].status if isinstance(found[place], Head) else type(found[place]) for place in range(4)]
    assert seen == [201, Broken, NotConnected, 201]
    assert (bodies[0], bodies[3]) == (b'{"a": 1}', b'{"a": 1}')
