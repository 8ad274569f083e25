"""The proxy that hurts connections does to them what it says, so the tests that use it prove something."""

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.proxy import FaultProxy
from tests.waiting import eventually


class Echo:
    """Answers every line with itself; remembers the lines and counts the connections that ended."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.ended = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1024):
                    self.heard.append(data)
                    connection.sendall(data)
            except OSError:
                pass
        self.ended += 1


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    proxy = FaultProxy(echo.port)
    yield proxy
    proxy.close()


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    with connected(proxy) as client:
        yield client


def connected(proxy: FaultProxy) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", proxy.port), 5)
    client.settimeout(5)
    return client


def says(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    return client.recv(1024)


def hears_nothing(client: socket.socket) -> bool:
    client.settimeout(0.2)
    try:
        client.recv(1024)
    except TimeoutError:
        client.settimeout(5)
        return True
    return False


def test_bytes_pass_in_both_directions_and_an_end_is_passed_on(
    proxy: FaultProxy, echo: Echo, client: socket.socket
) -> None:
    assert says(client, b"one") == b"one"
    client.shutdown(socket.SHUT_WR)
    assert client.recv(10) == b""
    eventually(lambda: echo.ended == 1 and proxy.open == 0, within=5)


def test_a_reset_ends_both_sides_and_new_connections_pass(proxy: FaultProxy, echo: Echo, client: socket.socket) -> None:
    assert says(client, b"one") == b"one"
    assert proxy.reset() == 1
    with pytest.raises(ConnectionResetError):
        client.recv(10)
    eventually(lambda: echo.ended == 1, within=5)
    with connected(proxy) as second:
        assert says(second, b"two") == b"two"


def test_a_refusing_proxy_lets_nobody_in_before_it_is_healed(proxy: FaultProxy, echo: Echo) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionError), connected(proxy) as client:  # sometimes while it connects
        says(client, b"one")
    assert echo.heard == []
    proxy.heal()
    with connected(proxy) as client:
        assert says(client, b"two") == b"two"


def test_a_stall_holds_every_byte_until_it_is_healed(proxy: FaultProxy, echo: Echo, client: socket.socket) -> None:
    assert says(client, b"one") == b"one"
    proxy.stall()
    client.sendall(b"two")
    with connected(proxy) as second:
        second.sendall(b"three")
        assert hears_nothing(client)
        assert hears_nothing(second)
        assert echo.heard == [b"one"]
        proxy.heal()
        assert client.recv(10) == b"two"
        assert second.recv(10) == b"three"


def test_half_open_the_client_is_never_told(proxy: FaultProxy, echo: Echo, client: socket.socket) -> None:
    assert says(client, b"one") == b"one"
    assert proxy.half_open(only=b"other") == 0
    assert says(client, b"two") == b"two"
    assert proxy.half_open(only=b"on") == 1
    eventually(lambda: echo.ended == 1, within=5)
    client.sendall(b"three")
    proxy.heal()
    client.sendall(b"four")
    assert hears_nothing(client)
    assert echo.heard == [b"one", b"two"]
    with connected(proxy) as second:
        assert says(second, b"five") == b"five"


def test_of_a_request_whose_answer_is_lost_the_target_knows(proxy: FaultProxy, echo: Echo) -> None:
    proxy.lose_answers(b"COMMIT", every=2)
    with connected(proxy) as client:
        assert says(client, b"BEGIN") == b"BEGIN"
        assert says(client, b"COMMIT 1") == b"COMMIT 1"
        client.sendall(b"COMMIT 2")
        with pytest.raises(ConnectionResetError):
            client.recv(10)
    assert echo.heard == [b"BEGIN", b"COMMIT 1", b"COMMIT 2"]
    assert proxy.lost_answers == 1
