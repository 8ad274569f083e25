"""Input pictures over HTTP, from servers that redirect, stall, trickle, lie and change their address."""

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.domain.errors import InputLater, InputUnavailable
from shared.providers.inputs import Pictures
from tests.integration.hostile_answers import Everywhere, Large, Script, drip_redirect, hostile_answers
from tests.integration.scripted_server import Request, Server, answer, scripted_server

HOSTILE = hostile_answers("a key")
PHOTO = (Path(__file__).parents[2] / "deploy" / "photos" / "cat.jpg").read_bytes()


@pytest.fixture
def server() -> Iterator[Server]:
    with scripted_server() as server:
        server.on("GET /cat.jpg", answer(200, PHOTO))
        yield server


@pytest.fixture
def pictures() -> Pictures:
    return Pictures(allow_private=True, connect_seconds=0.5, read_seconds=0.5, limit_seconds=1.5)


def test_a_photo_is_fetched_and_written_anew(server: Server, pictures: Pictures) -> None:
    picture = pictures.get(f"{server.url}/cat.jpg?signature=1")
    assert picture.png.startswith(b"\x89PNG")
    assert server.calls == ["GET /cat.jpg?signature=1"]


def test_loopback_is_not_called_unless_allowed(server: Server) -> None:
    with pytest.raises(InputUnavailable):
        Pictures().get(f"{server.url}/cat.jpg")
    assert server.calls == []


def test_the_connection_goes_to_the_checked_address_under_the_given_name(server: Server) -> None:
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    port = server.url.rpartition(":")[2]
    pictures = Pictures(allow_private=True, resolve=resolve)
    pictures.get(f"http://pictures.example:{port}/cat.jpg")
    assert asked == ["pictures.example"], "resolved once: a second answer could be another"
    assert server.requests[0].headers["Host"] == f"pictures.example:{port}"


def test_the_next_address_is_tried_when_one_refuses(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    pictures = Pictures(allow_private=True, resolve=lambda host, port: ["::1", "127.0.0.1"])
    assert pictures.get(f"http://pictures.example:{port}/cat.jpg")


def test_redirects_are_followed_up_to_five(server: Server, pictures: Pictures) -> None:
    for number in range(6):
        server.on(f"GET /{number}", answer(302, b"", headers={"Location": f"/{number + 1}"}))
    server.on("GET /5", answer(307, b"", headers={"Location": "cat.jpg"}))
    assert pictures.get(f"{server.url}/1")
    with pytest.raises(InputUnavailable, match="more than 5 redirects"):
        pictures.get(f"{server.url}/0")


def test_each_redirect_is_checked_anew(server: Server) -> None:
    names = {"public.example": ["127.0.0.1"]}
    port = server.url.rpartition(":")[2]
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return names.get(host, [host])

    pictures = Pictures(resolve=resolve)
    pictures._checked = _lenient_for("public.example", pictures._checked)  # type: ignore[method-assign]
    for target in (f"http://10.0.0.1:{port}/", f"http://127.0.0.1:{port}/cat.jpg", "file:///etc/passwd", "ftp://x/y"):
        server.on("GET /go", answer(302, b"", headers={"Location": target}))
        with pytest.raises(InputUnavailable, match=r"not on the public internet|only http and https|not a usable"):
            pictures.get(f"http://public.example:{port}/go")
    assert set(server.calls) == {"GET /go"}


def test_a_redirect_is_known_by_its_head_however_its_body_trickles(server: Server, pictures: Pictures) -> None:
    server.on("GET /go", drip_redirect)
    server.on("GET /there", answer(404, b""))
    began = time.monotonic()
    with pytest.raises(InputUnavailable, match="HTTP 404"):
        pictures.get(f"{server.url}/go")
    assert time.monotonic() - began < 2.5


@pytest.mark.parametrize("target", [b"http://[/", b"//[", b"http://a:b/", b"\xff\xfe"])
def test_a_redirect_to_nothing_is_no_bug_of_ours(server: Server, pictures: Pictures, target: bytes) -> None:
    server.on("GET /go", b"HTTP/1.1 302 X\r\nContent-Length: 0\r\nLocation: " + target + b"\r\n\r\n")
    with pytest.raises(InputUnavailable):
        pictures.get(f"{server.url}/go")


@pytest.mark.parametrize("script", HOSTILE.values(), ids=HOSTILE.keys())
def test_whatever_a_server_answers_is_no_picture_soon_and_no_bug_of_ours(server: Server, script: Script) -> None:
    pictures = Pictures(allow_private=True, read_seconds=0.3, limit_seconds=0.6)
    server.routes = Everywhere(script.make() if isinstance(script, Large) else script)
    began = time.monotonic()
    with pytest.raises((InputUnavailable, InputLater)):
        pictures.get(f"{server.url}/x.png")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 204, 304])
def test_a_refusal_is_for_good(server: Server, pictures: Pictures, status: int) -> None:
    server.on("GET /x.png", answer(status, b""))
    with pytest.raises(InputUnavailable, match=f"HTTP {status}"):
        pictures.get(f"{server.url}/x.png?token=hush")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_broken_server_may_work_later(server: Server, pictures: Pictures, status: int) -> None:
    server.on("GET /x.png", answer(status, b""))
    with pytest.raises(InputLater, match=f"HTTP {status}") as caught:
        pictures.get(f"{server.url}/x.png?token=hush")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\nabc"],
    ids=["closed", "garbage", "cut off"],
)
def test_an_answer_that_breaks_off_may_be_whole_later(server: Server, pictures: Pictures, raw: bytes) -> None:
    server.on("GET /x.png", raw)
    with pytest.raises(InputLater):
        pictures.get(f"{server.url}/x.png")


def test_a_closed_port_may_open_later(pictures: Pictures) -> None:
    with scripted_server() as server:
        url = server.url
    with pytest.raises(InputLater):
        pictures.get(f"{url}/x.png")


def test_a_server_that_says_nothing_is_left_soon(server: Server, pictures: Pictures) -> None:
    def stall(request: Request) -> bytes:
        time.sleep(1)
        return b""

    server.on("GET /x.png", stall)
    began = time.monotonic()
    with pytest.raises(InputLater):
        pictures.get(f"{server.url}/x.png")
    assert time.monotonic() - began < 0.9


def test_a_server_that_trickles_is_left_at_the_limit(server: Server, pictures: Pictures) -> None:
    def trickle(request: Request) -> bytes:
        request.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            request.connection.sendall(b"x")
            time.sleep(0.05)

    server.on("GET /x.png", trickle)
    began = time.monotonic()
    with pytest.raises(InputLater):
        pictures.get(f"{server.url}/x.png")
    assert time.monotonic() - began < 2.5


def test_a_server_whose_head_trickles_is_left_soon(server: Server, pictures: Pictures) -> None:
    def trickle(request: Request) -> bytes:
        request.connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
        while True:
            request.connection.sendall(b"y")
            time.sleep(0.05)

    server.on("GET /x.png", trickle)
    began = time.monotonic()
    with pytest.raises(InputLater):
        pictures.get(f"{server.url}/x.png")
    assert time.monotonic() - began < 2.5


def test_fifty_megabytes_are_not_read_to_the_end(server: Server, pictures: Pictures) -> None:
    sent = 0

    def endless(request: Request) -> bytes:
        nonlocal sent
        request.connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(800):
            request.connection.sendall(bytes(64 * 1024))
            sent += 64 * 1024
        return b""

    server.on("GET /endless", endless)
    server.on("GET /announced", b"HTTP/1.1 200 OK\r\nContent-Length: 52428800\r\n\r\n")
    for path in ("endless", "announced"):
        with pytest.raises(InputUnavailable, match="larger than 41943040 bytes"):
            Pictures(allow_private=True).get(f"{server.url}/{path}")
    assert sent < 50 * 2**20


def test_a_web_page_is_no_picture(server: Server, pictures: Pictures) -> None:
    server.on("GET /x.png", answer(200, b"<html>please log in</html>"))
    with pytest.raises(InputUnavailable, match="not a PNG, JPEG or WebP"):
        pictures.get(f"{server.url}/x.png")


def test_a_proxy_of_the_environment_is_not_used(
    server: Server, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert io.BytesIO(pictures.get(f"{server.url}/cat.jpg").png)


def _lenient_for(name: str, checked):  # type: ignore[no-untyped-def]
    """Lets one name through to loopback, where the test's server is; everything else is checked as always."""
    return lambda host, port: ["127.0.0.1"] if host == name else checked(host, port)
