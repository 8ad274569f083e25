"""`darkroom doctor --start`: what keeps services from starting stops the start, and nothing else does."""

import threading
from pathlib import Path

import pika
import pytest

from deploy.local.stack import Stack
from services.ops import doctor
from services.ops.doctor import examine_start
from shared.broker.topology import dead_queue
from shared.config import load_settings
from shared.domain.finding import Finding, Verdict
from shared.domain.task import Stage
from tests.integration.doctor_lab import Installation
from tests.servers import free_port


@pytest.fixture
def installation(tmp_path: Path, database_url: str, amqp_url: str) -> Installation:
    """Its only server is down: that is no reason not to start."""
    installation = Installation(tmp_path, database_url, amqp_url)
    installation.backends(gpu_1=f"http://127.0.0.1:{free_port()}")
    return installation


def failures(installation: Installation) -> list[Finding]:
    found = examine_start(load_settings(installation.settings, dotenv=None))
    return [finding for finding in found if finding.verdict is Verdict.FAIL]


@pytest.mark.parametrize("queues_are_there", [False, True])
def test_a_fresh_installation_without_workers_and_servers_can_start(
    installation: Installation, queues_are_there: bool
) -> None:
    if queues_are_there:
        installation.declare()

    assert installation.doctor("--start") == (0, "the services can start\n")


def test_a_queue_of_another_shape_is_said_in_one_sentence_with_status_1(installation: Installation) -> None:
    installation.declare()
    with installation.channel() as channel:
        channel.queue_delete("orders.dead")
        channel.queue_declare("orders.dead", durable=True, arguments={"x-queue-type": "quorum", "x-max-length": 5})

    status, said = installation.complaint("--start")

    assert status == 1
    (line,) = said.splitlines()
    assert line.startswith("queue orders.dead: it was declared otherwise: ")
    assert "x-max-length is 5, not none" in line


@pytest.mark.parametrize("revision", ["0000_older", None])
def test_an_old_schema_and_none_each_stop_the_start(
    installation: Installation, stack: Stack, revision: str | None
) -> None:
    database = installation.settings["DARKROOM_DATABASE_URL"].rpartition("/")[2]
    change = f"update alembic_version set version_num = '{revision}'" if revision else "delete from alembic_version"  # noqa: S608 - ours
    stack.database.sql(change, database=database)

    status, said = installation.complaint("--start")

    assert status == 1
    (line,) = said.splitlines()
    assert line.startswith("schema: the database is ")
    assert line.endswith("(run `darkroom migrate`)")


def test_a_store_that_cannot_be_written_stops_the_start(installation: Installation) -> None:
    (installation.folder / "pictures").write_text("a file stands where the folder should be")

    status, said = installation.complaint("--start")

    assert status == 1
    (line,) = said.splitlines()
    assert line.startswith("artifact store: ")


def test_without_a_backends_file_nothing_starts(installation: Installation) -> None:
    del installation.settings["DARKROOM_BACKENDS_FILE"]

    assert [finding.about for finding in failures(installation)] == ["backends file"]


def test_a_collector_that_hangs_does_not_keep_its_successor_from_starting(installation: Installation) -> None:
    installation.declare()
    with installation.channel() as hanging:
        for stage in Stage:
            hanging.basic_consume(dead_queue(stage), lambda *_: None)
        found = failures(installation)
        hanging.connection.process_data_events(0)

    assert found == []


def test_a_broker_on_its_way_up_is_waited_for(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    right, away = installation.settings["DARKROOM_AMQP_URL"], f"amqp://127.0.0.1:{free_port()}"
    looked = threading.Event()

    def parameters(_: object) -> list[pika.URLParameters]:
        up = looked.is_set()
        looked.set()
        return [pika.URLParameters(right if up else away)]

    monkeypatch.setattr("shared.broker.examine.parameters_of", parameters)

    assert failures(installation) == []


def test_a_database_and_a_broker_that_stay_away_end_the_wait(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = free_port()
    installation.settings["DARKROOM_AMQP_URL"] = f"amqp://127.0.0.1:{nowhere}"
    installation.settings["DARKROOM_DATABASE_URL"] = f"postgresql://nobody@127.0.0.1:{nowhere}/none"
    monkeypatch.setattr(doctor, "_START_WITHIN_SECONDS", 1.0)

    assert [finding.about for finding in failures(installation)] == ["broker", "database"]
