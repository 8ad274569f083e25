"""What docs/examples does, done by the files themselves against the real system."""

import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pika
import pytest
import requests

from deploy.local import Stack
from shared.domain.messages import Order, event
from tests.e2e.conftest import Build
from tests.e2e.system import System, an_order
from tests.e2e.worker import ROOT
from tests.programs import npm_install, programs
from tests.servers import free_port
from tests.waiting import eventually

EXAMPLES = ROOT / "docs" / "examples"
TOKEN = "a-token-of-the-shop-" + "x" * 32
TOO_LARGE = 16777216  # one more than the colours that the workflow takes

Known = dict[str, tuple[str, int]]  # task id -> status and number of pictures, as a follower has it


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    system = build()
    system.start()
    return system


@dataclass(frozen=True)
class Language:
    """publish, follow -- the commands; known -- what the follower has written to its place"""

    publish: Sequence[str]
    follow: Sequence[str]
    known: Callable[[Path], Known]


@pytest.fixture(scope="module")
def node_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the Node files with their packages beside them."""
    folder = tmp_path_factory.mktemp("node") / "examples"
    shutil.copytree(EXAMPLES, folder)
    npm_install(folder)
    return folder


@pytest.fixture(params=["python", "node"])
def language(request: pytest.FixtureRequest) -> Language:
    if request.param == "python":
        python = [sys.executable]
        return Language(
            [*python, str(EXAMPLES / "publish.py")], [*python, str(EXAMPLES / "follow.py")], known_to_python
        )
    folder: Path = request.getfixturevalue("node_examples")
    (node,) = programs("node")
    return Language([node, str(folder / "publish.mjs")], [node, str(folder / "follow.mjs")], known_to_node)


def known_to_python(place: Path) -> Known:
    with closing(sqlite3.connect(place / "shop.db")) as database:
        rows = database.execute("select task_id, status, pictures from pictures").fetchall()
    return {task_id: (status, len(json.loads(pictures))) for task_id, status, pictures in rows}


def known_to_node(place: Path) -> Known:
    events = [json.loads(path.read_text()) for path in place.glob("*.json")]
    return {event["task_id"]: (event["status"], len(event["artifacts"])) for event in events}


def target(language: Language, folder: Path) -> str:
    """What the follower takes as its argument."""
    return str(folder / "shop.db") if language.known is known_to_python else str(folder)


# --- publish and follow, in Python and in Node


def test_a_published_order_is_followed_to_its_picture(system: System, language: Language, tmp_path: Path) -> None:
    order = a_plain_order()
    with running([*language.follow, target(language, tmp_path)], tmp_path, environment(system), says="listening"):
        for _ in range(2):  # twice is once
            assert finished(language.publish, order, environment(system)).returncode == 0
        await_known(language, tmp_path, order, ("completed", 1))
    assert len(system.runs_of(order)) == 1
    assert_pictures_are_stored(system, order)


def test_a_follower_that_was_killed_learns_what_happened_meanwhile(
    system: System, language: Language, tmp_path: Path
) -> None:
    command = [*language.follow, target(language, tmp_path)]
    with running(command, tmp_path, environment(system), says="listening") as follower:
        follower.kill()
        follower.wait(10)
    order, refused = a_plain_order(), a_plain_order(color=TOO_LARGE)
    for each in (order, refused):
        assert finished(language.publish, each, environment(system)).returncode == 0
    system.await_status("completed", order)
    system.await_status("failed", refused)

    with running(command, tmp_path, environment(system), says="listening"):
        await_known(language, tmp_path, order, ("completed", 1))
        await_known(language, tmp_path, refused, ("failed", 0))


def test_a_late_event_of_an_earlier_state_changes_nothing(system: System, language: Language, tmp_path: Path) -> None:
    first, second = a_plain_order(), a_plain_order()
    with running([*language.follow, target(language, tmp_path)], tmp_path, environment(system), says="listening"):
        finished(language.publish, first, environment(system))
        await_known(language, tmp_path, first, ("completed", 1))
        send_stale_event(system, first)
        finished(language.publish, second, environment(system))  # its events come behind the stale one
        await_known(language, tmp_path, second, ("completed", 1))
        assert language.known(tmp_path)[str(first.task_id)] == ("completed", 1)


def test_an_order_that_no_queue_takes_is_no_success(language: Language, amqp_url: str) -> None:
    with closing(pika.BlockingConnection(pika.URLParameters(amqp_url))) as connection:
        connection.channel().exchange_declare("orders", "topic", durable=True)

    answer = finished(language.publish, a_plain_order(), {"AMQP_URL": amqp_url})

    assert answer.returncode != 0
    assert "confirmed" not in answer.stdout


# --- the shop


def test_an_order_of_the_shop_becomes_a_picture(system: System, tmp_path: Path) -> None:
    with shop(system, tmp_path) as url:
        key = place_at(url, 123456)
        refused = place_at(url, TOO_LARGE)
        eventually(lambda: read_at(url, key)["status"] == "completed", within=45, what="the shop knows the picture")
        eventually(lambda: read_at(url, refused)["status"] == "failed", within=45, what="the shop knows the failure")
        assert read_at(url, refused)["reason"] == "invalid_workflow"
        (picture,) = read_at(url, key)["pictures"]
    assert (system.folder / "pictures" / picture).is_file()
    assert len(system.sql("select 1 from tasks where idempotency_key = :key", key=key)) == 1


def test_the_sweep_publishes_what_a_dying_shop_left_and_nothing_is_made_twice(system: System, tmp_path: Path) -> None:
    """It died between its commit and the publish of one order, and between publish and mark of another."""
    with shop(system, tmp_path):
        pass  # makes the tables, and the queue of events
    unpublished, unmarked = a_plain_order(), a_plain_order()
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database, database:
        for order in (unpublished, unmarked):
            body = order.model_dump_json(exclude_defaults=True)
            database.execute("insert into orders (key, body) values (?, ?)", (order.idempotency_key, body))
    system.place(unmarked)
    system.await_status("completed", unmarked)

    with shop(system, tmp_path) as url:
        for order in (unpublished, unmarked):
            eventually(lambda order=order: read_at(url, order.idempotency_key)["status"] == "completed", within=45)
    for order in (unpublished, unmarked):
        assert len(system.runs_of(order)) == 1
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database:
        assert database.execute("select count(*) from orders where confirmed = 0").fetchone() == (0,)


def test_the_shop_takes_orders_while_the_broker_is_away(system: System, tmp_path: Path) -> None:
    with shop(system, tmp_path, AMQP_URL=f"amqp://guest:guest@127.0.0.1:{free_port()}/") as url:
        key = place_at(url, 654321)
        assert read_at(url, key)["status"] == "placed"

    with shop(system, tmp_path) as url:
        eventually(lambda: read_at(url, key)["status"] == "completed", within=45, what="placed after the outage")


def test_the_shop_needs_no_more_permissions_than_the_page_names(system: System, stack: Stack, tmp_path: Path) -> None:
    url = urlsplit(system.settings["DARKROOM_AMQP_URL"])
    page = (EXAMPLES.parent / "upstream.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith("rabbitmqctl set_permissions"))
    values = {"VHOST": unquote(url.path[1:]), "USER": "shop"}
    stack.broker.ctl("add_user", "shop", "secret")
    stack.broker.ctl(*(values.get(word, word) for word in shlex.split(line)[1:]))
    restricted = url._replace(netloc=f"shop:secret@{url.hostname}:{url.port}").geturl()

    with shop(system, tmp_path, AMQP_URL=restricted) as address:
        key = place_at(address, 42)
        eventually(lambda: read_at(address, key)["status"] == "completed", within=45, what="the shop knows the picture")


@contextmanager
def shop(system: System, folder: Path, **settings: str) -> Iterator[str]:
    """The address of a running shop whose database is in `folder`."""
    port = free_port()
    values = {"SHOP_DATABASE": str(folder / "shop.db"), "SHOP_PORT": str(port), "SHOP_SWEEP_SECONDS": "0.5"}
    command = [sys.executable, str(EXAMPLES / "shop.py")]
    with running(command, folder, environment(system) | values | settings, says="Running on"):
        yield f"http://127.0.0.1:{port}"


def place_at(url: str, color: int) -> str:
    answer = requests.post(f"{url}/orders", json={"color": color}, timeout=10)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["key"])


def read_at(url: str, key: str) -> dict[str, Any]:
    answer = requests.get(f"{url}/orders/{key}", timeout=10)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


# --- curl


@pytest.fixture(scope="module")
def producer_url(system: System) -> str:
    port = free_port()
    system.add("producer", HTTP_PORT=port, HTTP_TOKENS=TOKEN)
    return f"http://127.0.0.1:{port}"


def test_an_order_over_http_is_waited_for(system: System, producer_url: str) -> None:
    programs("curl")
    order = a_plain_order()
    answer = finished([str(EXAMPLES / "order.sh")], order, {"DARKROOM_URL": producer_url, "DARKROOM_TOKEN": TOKEN})
    assert answer.returncode == 0, answer.stderr
    status = json.loads(answer.stdout)
    assert (status["task_id"], status["status"]) == (str(order.task_id), "completed")
    assert len(status["artifacts"]) == 1


def test_an_order_that_is_refused_over_http_is_shown_with_its_mistake(system: System, producer_url: str) -> None:
    programs("curl")
    answer = finished(
        [str(EXAMPLES / "order.sh")],
        a_plain_order(color=TOO_LARGE),
        {"DARKROOM_URL": producer_url, "DARKROOM_TOKEN": TOKEN},
    )
    assert (answer.returncode, answer.stdout) == (2, "")
    assert '"field":"inputs.color"' in answer.stderr


# --- helpers


def a_plain_order(color: int | None = None) -> Order:
    """The order that the examples make of a key and a colour."""
    return an_order(idempotency_key=f"example-{uuid.uuid4()}", inputs={"color": color or uuid.uuid4().int % TOO_LARGE})


def environment(system: System) -> dict[str, str]:
    return {"AMQP_URL": system.settings["DARKROOM_AMQP_URL"]}


def finished(command: Sequence[str], order: Order, settings: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """The command has run to its end with the order's key and colour."""
    arguments = [order.idempotency_key, str(order.inputs["color"])]
    return subprocess.run(
        [*command, *arguments], env=_around(settings), capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def running(
    command: Sequence[str], folder: Path, settings: Mapping[str, str], *, says: str
) -> "Iterator[subprocess.Popen[bytes]]":
    """The process, from the moment it has said so."""
    log = folder / f"{uuid.uuid4()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=_around(settings), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )

    def has_said_so() -> bool:
        assert process.poll() is None, log.read_text()
        return says in log.read_text()

    try:
        eventually(has_said_so, within=30, what=f"{command[-1]} says {says}")
        yield process
    finally:
        process.terminate()
        process.wait(10)


def _around(settings: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **settings}


def await_known(language: Language, place: Path, order: Order, expected: tuple[str, int]) -> None:
    eventually(
        lambda: language.known(place).get(str(order.task_id)) == expected,
        within=45,
        what=f"the follower knows {expected}",
    )


def assert_pictures_are_stored(system: System, order: Order) -> None:
    pictures = system.tasks.artifacts([order.task_id])[order.task_id]
    assert [(system.folder / "pictures" / picture.key).stat().st_size for picture in pictures] == [
        picture.bytes for picture in pictures
    ]


def send_stale_event(system: System, order: Order) -> None:
    """`processing` once more, as it was before the order was completed."""
    task = system.tasks.find(order.task_id)
    assert task is not None
    message = event(task, "processing")
    body = json.loads(message.body) | {"status": "processing", "version": task.version - 1}
    with system.mail.channel() as channel:
        properties = pika.BasicProperties(type=message.type, delivery_mode=2)
        channel.basic_publish(message.exchange, message.routing_key, json.dumps(body).encode(), properties)
