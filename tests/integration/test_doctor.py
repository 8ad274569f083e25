"""`darkroom doctor`: each thing that is made wrong is named in plain words, and hides nothing else."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from shared.broker.topology import topology
from shared.database import examine as database_examine
from shared.providers.comfyui_examine import _version as comfyui_version
from tests.integration.comfyui_lab import Lab, running_lab
from tests.integration.doctor_lab import EXPECTED_WITHOUT_WORKERS, Installation, of_json, verdicts
from tests.servers import free_port


@pytest.fixture(scope="module")
def gpu() -> Iterator[Lab]:
    with running_lab("modern") as lab:
        yield lab


@pytest.fixture
def installation(tmp_path: Path, database_url: str, amqp_url: str) -> Installation:
    return Installation(tmp_path, database_url, amqp_url)


def test_a_sound_installation_is_called_sound_and_nothing_is_left_of_the_look(
    installation: Installation, gpu: Lab, stack: Stack, vhost: str
) -> None:
    installation.backends(gpu_1=gpu.url)
    installation.declare()

    status, said = installation.doctor("--json")

    found = of_json(said)
    assert status == 0
    assert verdicts(found, *EXPECTED_WITHOUT_WORKERS) == {"ok"}
    assert [text for _, text in found["backend gpu_1"]][1:] == [
        "has the nodes and files of photo-invert",
        "has the nodes and files of solid-invert",
    ]
    left = {queue["name"]: queue["messages"] for queue in stack.broker.queues(vhost=vhost)}
    assert left == {queue.name: 0 for queue in topology(["comfyui"]).queues}
    assert list((installation.folder / "pictures").iterdir()) == []


def test_a_new_installation_is_told_what_it_has_yet_to_do(
    tmp_path: Path, empty_database_url: str, amqp_url: str
) -> None:
    found = Installation(tmp_path, empty_database_url, amqp_url).look()

    assert {about for about, all_of_it in found.items() if all_of_it[0][0] == "warn"} == {
        "backends file",
        "queues",
        "schema",
    }
    assert "fail" not in verdicts(found)


def test_everything_away_is_said_in_less_than_fifteen_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        away = f"amqp://127.0.0.1:{free_port()},amqp://127.0.0.1:{port}"
        installation = Installation(tmp_path, f"postgresql://nobody@127.0.0.1:{port}/none", away)
        installation.backends(gpu_1=f"http://127.0.0.1:{port}", gpu_2=f"http://127.0.0.1:{free_port()}")
        began = time.monotonic()
        found = installation.look()
        took = time.monotonic() - began

    assert took < 15
    assert {about: [verdict for verdict, _ in all_of_it] for about, all_of_it in found.items()} == {
        "backends file": ["ok"],
        "workflows": ["ok"],
        "broker": ["fail", "fail"],
        "database": ["fail"],
        "artifact store": ["ok"],
        "backend gpu_1": ["fail"],
        "backend gpu_2": ["fail"],
        "lease": ["ok", "ok"],
        "ack timeout": ["skipped"],
        "drain": ["skipped"],
        "prefetch": ["ok"],
    }


def test_a_failure_is_exit_status_1_and_says_what_to_do(tmp_path: Path) -> None:
    nowhere = free_port()
    installation = Installation(
        tmp_path, f"postgresql://nobody@127.0.0.1:{nowhere}/none", f"amqp://127.0.0.1:{nowhere}"
    )

    status, said = installation.doctor()

    assert status == 1
    failed = [line for line in said.splitlines() if line.startswith("fail ")]
    assert [line.split()[1] for line in failed] == ["broker", "database"]
    assert failed[0].endswith("(start it, or correct DARKROOM_AMQP_URL)")


def test_a_part_that_breaks_hides_neither_the_others_nor_what_it_had_found(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(database_examine, "_clock", broken)

    found = installation.look()

    assert [verdict for verdict, _ in found["database"]] == ["ok", "fail"]
    assert "KeyError" in found["database"][1][1]
    assert found["artifact store"] == [("ok", "written, read and deleted")]
    assert "clock" not in found


# The database


@pytest.mark.parametrize(
    ("revision", "verdict", "said"),
    [("0000_older", "fail", "needs"), ("9999_newer", "warn", "is at revision 9999_newer, this version knows")],
)
def test_an_older_schema_is_a_failure_and_a_newer_one_a_warning(
    installation: Installation, stack: Stack, revision: str, verdict: str, said: str
) -> None:
    database = installation.settings["DARKROOM_DATABASE_URL"].rpartition("/")[2]
    stack.database.sql(f"update alembic_version set version_num = '{revision}'", database=database)  # noqa: S608 - ours

    [(got, text)] = installation.look()["schema"]

    assert got == verdict
    assert said in text


def test_a_database_that_takes_no_writes_is_said_to_be_read_only(installation: Installation, stack: Stack) -> None:
    database = installation.settings["DARKROOM_DATABASE_URL"].rpartition("/")[2]
    stack.database.sql(f"alter database {database} set default_transaction_read_only = on")

    found = installation.look()

    assert found["database"][1] == ("fail", "it is read-only: default_transaction_read_only is on")
    assert found["schema"][0][0] == "ok"


def test_a_database_that_confirms_commits_before_they_are_kept_has_failed(
    installation: Installation, stack: Stack
) -> None:
    database = installation.settings["DARKROOM_DATABASE_URL"].rpartition("/")[2]
    stack.database.sql(f"alter database {database} set synchronous_commit = off")

    found = installation.look()

    assert found["database"][1] == ("fail", "a crash would lose orders that were acked: synchronous_commit is off")


def test_a_clock_that_is_wrong_here_is_a_warning(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    right = time.time
    monkeypatch.setattr(database_examine.time, "time", lambda: right() + 90)

    [(verdict, text)] = installation.look()["clock"]

    assert verdict == "warn"
    assert "differ by 9" in text or "differ by 8" in text


def test_a_database_without_room_for_the_workers_is_a_warning(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert installation.look()["connections"][0][0] == "ok"
    monkeypatch.setattr("shared.domain.fit.CONNECTIONS", {"submitter": 5000})

    [(verdict, text)] = installation.look()["connections"]

    assert verdict == "warn"
    assert text.endswith("1 submitter may open 5003")


@pytest.mark.parametrize(("version", "verdict"), [(139999, "fail"), (140000, "ok")])
def test_a_postgresql_before_14_is_too_old(version: int, verdict: str) -> None:
    assert database_examine._version(version, "x").verdict == verdict


# Servers and workflows


def test_a_server_that_is_away_fails_and_hides_nothing_of_the_others(installation: Installation, gpu: Lab) -> None:
    installation.backends(gpu_1=gpu.url, gpu_2=f"http://127.0.0.1:{free_port()}")

    found = installation.look()

    assert [verdict for verdict, _ in found["backend gpu_2"]] == ["fail"]
    assert verdicts({"": found["backend gpu_1"]}) == {"ok"}


def test_a_server_that_is_no_comfyui_is_named(installation: Installation, stack: Stack) -> None:
    installation.backends(gpu_1=f"http://127.0.0.1:{stack.prometheus_port}")

    [(verdict, text)] = installation.look()["backend gpu_1"]

    assert verdict == "fail"
    assert "is no ComfyUI" in text


@pytest.mark.parametrize(("version", "verdict"), [("0.3.44", "fail"), ("0.3.45", "ok"), ("git", "warn")])
def test_a_comfyui_that_gives_prompts_no_ids_of_ours_is_too_old(version: str, verdict: str) -> None:
    assert comfyui_version("backend gpu-1", version).verdict == verdict


def test_a_node_that_a_server_lacks_is_a_failure_with_server_workflow_and_node(
    installation: Installation, gpu: Lab
) -> None:
    installation.backends(gpu_1=gpu.url)
    graph = installation.folder / "workflows" / "solid-invert" / "graph.json"
    graph.write_text(graph.read_text().replace("ImageInvert", "ImageInvertTwice"))

    found = installation.look()

    assert ("fail", "cannot run solid-invert: it lacks node type ImageInvertTwice") in found["backend gpu_1"]
    assert ("ok", "has the nodes and files of photo-invert") in found["backend gpu_1"]


def test_a_model_and_a_choice_that_a_server_lacks_are_a_failure(installation: Installation, gpu: Lab) -> None:
    binding = installation.add_workflow("sdxl-txt2img") / "binding.toml"
    binding.write_text(binding.read_text().replace('"uni_pc"', '"my_sampler"'))
    graph = json.loads((binding.parent / "graph.json").read_text())
    (model,) = {node["inputs"]["ckpt_name"] for node in graph.values() if "ckpt_name" in node["inputs"]}
    installation.backends(gpu_1=gpu.url)

    (failed,) = [text for verdict, text in installation.look()["backend gpu_1"] if verdict == "fail"]

    assert failed == f"cannot run sdxl-txt2img: it lacks ckpt_name {model}, sampler_name my_sampler"


# Settings, and the store


def test_more_slots_than_permits_are_said_in_numbers(installation: Installation, gpu: Lab) -> None:
    installation.backends(capacity=25, gpu_1=gpu.url)

    found = installation.look()["prefetch"]

    assert found == [("warn", "pool comfyui has 25 slots, one submitter may hold 10 permits")]


def test_the_submitters_that_run_are_counted(installation: Installation, gpu: Lab) -> None:
    installation.backends(capacity=25, gpu_1=gpu.url)
    installation.declare()
    with installation.channel() as channel:
        for _ in range(3):
            for queue in ("orders", "submit.comfyui"):
                channel.basic_consume(queue, lambda *_: None)
        found = installation.look()

    assert found["prefetch"] == [("ok", "pool comfyui has 25 slots, 3 submitters may hold 30 permits")]
    assert "3 submitter, 1 poller, 1 ops" in found["connections"][0][1]
    assert found["workers"] == [("warn", "nobody takes from check.comfyui")]


def test_times_that_do_not_fit_are_failures(installation: Installation, gpu: Lab) -> None:
    installation.backends(gpu_1=gpu.url)
    installation.settings |= {"DARKROOM_LEASE_SECONDS": "20", "DARKROOM_HOLD_SECONDS": "1500"}
    installation.settings |= {"DARKROOM_BACKEND_TIMEOUT_SECONDS": "300"}

    found = installation.look()

    assert found["lease"][0][0] == found["ack timeout"][0][0] == "fail"
    assert "longer than RabbitMQ's 1800 s" in found["ack timeout"][0][1]


def test_a_store_that_cannot_be_written_is_a_failure(installation: Installation) -> None:
    (installation.folder / "pictures").write_text("a file stands where the folder should be")

    found = installation.look()

    assert found["artifact store"][0][0] == "fail"
    assert found["database"][0][0] == "ok"


def test_files_with_mistakes_are_failures_and_hide_nothing(installation: Installation) -> None:
    installation.backends(gpu_1="ftp://nowhere")
    (installation.folder / "workflows" / "solid-invert" / "graph.json").write_text("{")

    found = installation.look()

    assert [found[about][0][0] for about in ("backends file", "workflows", "database")] == ["fail", "fail", "ok"]
