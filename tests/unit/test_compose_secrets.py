"""Secrets of the containers are made once, together, and whatever a run left that was killed in between."""

from pathlib import Path

import pytest

from deploy.compose.make_secrets import make

VOLUMES = ["broker", "database", "grafana", "http"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in VOLUMES:
        (tmp_path / name).mkdir()
    return tmp_path


def test_what_is_there_already_stays(folder: Path) -> None:
    assert make(folder) == VOLUMES
    before = {file: file.read_text() for file in folder.rglob("*") if file.is_file()}

    assert make(folder) == []
    assert {file: file.read_text() for file in folder.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("left", [".amqp_url", "amqp_url"])
def test_a_run_that_was_killed_in_between_is_made_up_for(folder: Path, left: str) -> None:
    (folder / "broker" / left).write_text("amqp://darkroom:half@rabbitmq")

    assert make(folder) == VOLUMES
    password = (folder / "broker" / "rabbitmq.conf").read_text().split()[-1]
    assert f":{password}@" in (folder / "broker" / "amqp_url").read_text()
