"""A rolling upgrade: a newer release migrates under load, its workers come, the older ones go, messages mix."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from shared.broker.topology import check_queue, submit_queue
from shared.database.revision import newest_revision
from shared.domain.messages import TASK_CHECK, TASK_SUBMIT
from tests.e2e.conftest import Build
from tests.e2e.outage import SETTINGS, assert_all_made_once, nobody_dies, under_way
from tests.e2e.system import System, an_order
from tests.e2e.worker import ROOT, Worker
from tests.waiting import eventually

REVISION = "9999"
MIGRATION = f'''
from alembic import op

revision = "{REVISION}"
down_revision = "{{before}}"


def upgrade() -> None:
    op.execute("alter table tasks add column gift_note text")
    op.execute("alter table attempts add column cost_cents int not null default 0")
    op.execute("create index tasks_gift_note on tasks (gift_note) where gift_note is not null")
    op.execute("create table gift_notes (task_id uuid primary key references tasks (id), text text not null)")
'''
NEW_FIELD = '    hint: str = "of a newer release"\n'


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release after this one: its migration only adds, and messages between workers have a new optional field."""
    release = tmp_path_factory.mktemp("newer")
    for package in ("services", "shared"):
        shutil.copytree(ROOT / package, release / package, ignore=shutil.ignore_patterns("__pycache__"))
    versions = release / "shared" / "database" / "migrations" / "versions"
    (versions / f"{REVISION}_gift_notes.py").write_text(MIGRATION.format(before=newest_revision()))
    messages = release / "shared" / "domain" / "messages.py"
    text = messages.read_text()
    for line in ("    pool: Name\n\n\nclass TaskRef", "    backend: str | None = None\n    via:"):
        assert text.count(line) == 1
        first, rest = line.split("\n", 1)
        text = text.replace(line, f"{first}\n{NEW_FIELD}{rest}")
    messages.write_text(text)
    return release


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    system = build(gpus=2, settings=SETTINGS)
    system.start(submitters=2, pollers=2)
    return system


@contextmanager
def orders_all_the_time(system: System) -> Iterator[list[object]]:
    """One every 50 ms, by an upstream system that knows of no upgrade."""
    orders, over = [], threading.Event()

    def place() -> None:
        while not over.wait(0.05):
            order = an_order()
            system.place(order)
            orders.append(order)

    placing = threading.Thread(target=place)
    placing.start()
    try:
        yield orders
    finally:
        over.set()
        placing.join()


def schema_of(worker: Worker) -> str:
    answer = requests.get(f"http://127.0.0.1:{worker.port}/readyz", timeout=10).json()
    return str(answer["checks"]["database"]["detail"])


def migrate(system: System, release: Path) -> None:
    settings = {**system.settings, "PYTHONPATH": str(release)}
    command = Worker("migrate", ["services.cli", "migrate"], system.folder, settings)
    assert command.ended(60) == 0, command.tail()


def test_a_newer_release_replaces_an_older_one_under_load_and_no_order_fails(system: System, newer: Path) -> None:
    old = system.living("")
    with nobody_dies(system), orders_all_the_time(system) as orders:
        eventually(lambda: len(system.rows(orders)) >= 20, within=30, what="load")
        migrate(system, newer)
        for worker in old:
            eventually(lambda w=worker: w.is_ready() and f"schema {REVISION}" in schema_of(w), within=30)  # type: ignore[misc]

        new = [
            system.add(service, environment={"PYTHONPATH": str(newer)}, wait=False)
            for service in ("submitter", "submitter", "poller", "poller", "ops")
        ]
        system.wait_ready(new)
        assert {schema_of(worker) for worker in new} == {f"schema {REVISION}, this code needs {REVISION}"}
        so_far = len(orders)
        eventually(lambda: len(orders) >= so_far + 40, within=30, what="orders for both")
    with orders_all_the_time(system) as late:
        for worker in old:
            worker.terminate()
            assert worker.ended() == 0
        so_far = len(late)
        eventually(lambda: len(late) >= so_far + 10, within=30, what="orders for the new ones")
    assert_all_made_once(system, [*orders, *late], within=120)
    assert system.sql("select * from dead_letters") == []
    movers = {row.actor.rpartition("@")[2] for row in system.sql("select distinct actor from task_moves")}
    assert movers >= {worker.name for worker in [*old, *new] if not worker.name.startswith("ops")}


def test_messages_of_other_releases_are_read_and_an_order_with_an_unknown_field_is_sent_to_a_person(
    system: System,
) -> None:
    """Between workers unknown fields are ignored and missing ones have defaults. Of an order none may be overlooked."""
    if not system.living("submitter"):
        system.start()
    orders = under_way(system)
    [row, *_] = system.rows(orders)
    system.mail.send(b'{"pool": "comfyui", "hint": "of a newer release"}', TASK_SUBMIT, submit_queue("comfyui"))
    newer_check = {
        "pool": "comfyui",
        "hint": "of a newer release",
        "tasks": [{"task_id": str(row.id), "attempt": row.attempt, "why": "new"}],
    }
    system.mail.send(json.dumps(newer_check).encode(), TASK_CHECK, check_queue("comfyui"))
    older = {"idempotency_key": an_order().idempotency_key, "pool": "comfyui", "workflow": "solid-invert"}
    system.mail.send(json.dumps(older).encode())
    newer_order = an_order()
    system.mail.send(json.dumps({**newer_order.model_dump(mode="json"), "gift_note": "with love"}).encode())

    assert_all_made_once(system, orders)
    system.await_status("failed", newer_order)
    [letter] = eventually(lambda: system.letters(newer_order), within=20)
    assert letter.reason == "invalid_message"
    assert "gift_note" in letter.detail
    eventually(
        lambda: system.sql(
            "select 1 from tasks where idempotency_key = :k and status = 'completed'", k=older["idempotency_key"]
        ),
        within=30,
        what="the older order is made",
    )
    assert len(system.letters()) == 0
