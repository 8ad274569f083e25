"""`darkroom doctor`: each thing that is made wrong is named in plain words, and hides nothing else."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest

from deploy.local.stack import ROOT, Stack
from shared.broker.topology import topology
from tests.integration.comfyui_lab import Lab, running_lab
from tests.servers import free_port

Findings = dict[str, list[tuple[str, str]]]


@pytest.fixture(scope="module")
def gpu() -> Iterator[Lab]:
    with running_lab("modern") as lab:
        yield lab


class Installation:
    """Settings of one installation; `doctor` looks at it in a process of its own."""

    def __init__(self, folder: Path, database_url: str, amqp_url: str) -> None:
        self.folder = folder
        self.settings = {
            "DARKROOM_DATABASE_URL": database_url,
            "DARKROOM_AMQP_URL": amqp_url,
            "DARKROOM_ARTIFACTS_URL": str(folder / "pictures"),
            "DARKROOM_WORKFLOWS_DIR": str(folder / "workflows"),
            "PYTHONPATH": str(ROOT),
        }
        for name in ("solid-invert", "photo-invert"):
            shutil.copytree(ROOT / "deploy" / "workflows" / name, folder / "workflows" / name)

    def backends(self, capacity: int = 2, **urls: str) -> None:
        file = self.folder / "backends.toml"
        tables = [
            f'[[backend]]\nname = "{name}"\nadapter = "comfyui"\nurl = "{url}"\ncapacity = {capacity}\n'
            for name, url in urls.items()
        ]
        file.write_text("\n".join(tables))
        self.settings["DARKROOM_BACKENDS_FILE"] = str(file)

    def declare(self) -> None:
        """What a service does at its start."""
        with pika.BlockingConnection(pika.URLParameters(self.settings["DARKROOM_AMQP_URL"])) as connection:
            channel = connection.channel()
            for queue in topology(["comfyui"]).queues:
                channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))

    def doctor(self) -> tuple[int, Findings]:
        answer = subprocess.run(
            [sys.executable, "-m", "services.cli", "doctor", "--json"],
            env=os.environ | self.settings,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert "Traceback" not in answer.stderr
        found: Findings = {}
        for line in answer.stdout.splitlines():
            finding = json.loads(line)
            found.setdefault(finding["about"], []).append((finding["verdict"], finding["found"]))
        return answer.returncode, found


@pytest.fixture
def installation(tmp_path: Path, database_url: str, amqp_url: str) -> Installation:
    return Installation(tmp_path, database_url, amqp_url)


def verdicts(found: Findings, *but: str) -> set[str]:
    return {verdict for about, all_of_it in found.items() if about not in but for verdict, _ in all_of_it}


def test_a_sound_installation_is_called_sound_and_nothing_is_left_of_the_look(
    installation: Installation, gpu: Lab, stack: Stack, vhost: str
) -> None:
    installation.backends(gpu_1=gpu.url)
    installation.declare()

    status, found = installation.doctor()

    assert status == 0
    assert verdicts(found, "ack timeout") == {"ok"}
    assert found["dead letters"] == [("ok", "a rejected message reached its dead queue")]
    assert [text for _, text in found["backend gpu_1"]][1:] == [
        "has the nodes and files of photo-invert",
        "has the nodes and files of solid-invert",
    ]
    left = {queue["name"] for queue in stack.broker.queues(vhost=vhost)}
    assert left == {queue.name for queue in topology(["comfyui"]).queues}
    assert list((installation.folder / "pictures").iterdir()) == []


def test_a_new_installation_is_told_what_it_has_yet_to_do(
    tmp_path: Path, empty_database_url: str, amqp_url: str
) -> None:
    status, found = Installation(tmp_path, empty_database_url, amqp_url).doctor()

    assert status == 0
    warned = {about for about, all_of_it in found.items() if all_of_it[0][0] == "warn"}
    assert warned == {"backends file", "queues", "schema"}


def test_a_queue_that_was_declared_otherwise_is_named_with_its_difference(installation: Installation) -> None:
    with pika.BlockingConnection(pika.URLParameters(installation.settings["DARKROOM_AMQP_URL"])) as connection:
        arguments = {**topology([]).queues[0].arguments, "x-delivery-limit": 3}
        connection.channel().queue_declare("orders.dead", durable=True, arguments=arguments)

    status, found = installation.doctor()

    assert status == 1
    [(verdict, text)] = found["queue orders.dead"]
    assert verdict == "fail"
    assert "x-delivery-limit" in text
    assert found["dead letters"][0][0] == "ok"


def test_a_broker_that_is_away_hides_nothing_else(installation: Installation, gpu: Lab) -> None:
    installation.settings["DARKROOM_AMQP_URL"] = f"amqp://127.0.0.1:{free_port()}"
    installation.backends(gpu_1=gpu.url)

    status, found = installation.doctor()

    assert status == 1
    assert found["broker"][0][0] == "fail"
    assert verdicts(found, "broker", "ack timeout") == {"ok"}


def test_a_database_that_is_away_or_behind_is_a_failure(installation: Installation, stack: Stack) -> None:
    database = installation.settings["DARKROOM_DATABASE_URL"].rpartition("/")[2]
    stack.database.sql("update alembic_version set version_num = '0000_older'", database=database)
    status, found = installation.doctor()
    assert status == 1
    assert found["schema"][0][0] == "fail"
    assert "0000_older" in found["schema"][0][1]

    installation.settings["DARKROOM_DATABASE_URL"] = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    status, found = installation.doctor()
    assert status == 1
    assert found["database"][0][0] == "fail"
    assert found["broker"][0][0] == "ok"


def test_a_server_that_is_away_fails_and_one_that_lacks_something_is_named(
    installation: Installation, gpu: Lab
) -> None:
    installation.backends(gpu_1=gpu.url, gpu_2=f"http://127.0.0.1:{free_port()}")
    graph = installation.folder / "workflows" / "solid-invert" / "graph.json"
    graph.write_text(graph.read_text().replace("ImageInvert", "ImageInvertTwice"))

    status, found = installation.doctor()

    assert status == 1
    assert found["backend gpu_2"][0][0] == "fail"
    assert ("warn", "cannot run solid-invert: it lacks node type ImageInvertTwice") in found["backend gpu_1"]
    assert ("ok", "has the nodes and files of photo-invert") in found["backend gpu_1"]


def test_a_model_file_that_a_server_lacks_is_named(installation: Installation, gpu: Lab) -> None:
    shutil.copytree(ROOT / "deploy/workflows/sdxl-txt2img", installation.folder / "workflows/sdxl-txt2img")
    installation.backends(gpu_1=gpu.url)

    status, found = installation.doctor()

    assert status == 0
    assert any(
        verdict == "warn" and text.startswith("cannot run sdxl-txt2img: it lacks ckpt_name ")
        for verdict, text in found["backend gpu_1"]
    )


def test_more_slots_than_permits_are_said_in_numbers(installation: Installation, gpu: Lab) -> None:
    installation.backends(capacity=25, gpu_1=gpu.url)

    status, found = installation.doctor()

    assert status == 0
    assert found["prefetch"] == [("warn", "pool comfyui has 25 slots, one submitter holds 10 permits")]


def test_a_store_that_cannot_be_written_is_a_failure(installation: Installation) -> None:
    (installation.folder / "pictures").write_text("a file stands where the folder should be")

    status, found = installation.doctor()

    assert status == 1
    assert found["artifact store"][0][0] == "fail"


def test_a_server_that_takes_connections_and_says_nothing_does_not_hold_the_doctor_up(
    installation: Installation,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        installation.backends(gpu_1=f"http://127.0.0.1:{port}")
        installation.settings["DARKROOM_AMQP_URL"] = f"amqp://127.0.0.1:{port}"
        status, found = installation.doctor()

    assert status == 1
    assert found["broker"][0][0] == found["backend gpu_1"][0][0] == "fail"
    assert found["database"][0][0] == "ok"
