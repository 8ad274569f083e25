"""`make setup` in one checkout: one at a time, whoever else is at it and whoever has died at it."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from deploy.local.stack import ROOT
from tests.waiting import eventually

#: Notes what it is asked for, and makes no environment before it may.
PYTHON = """#!/bin/sh
case "$*" in
-c*) exit 0 ;;
*venv*)
    echo venv >>log
    until [ -e go ]; do sleep 0.1; done
    mkdir -p .venv/bin && cp "$0" .venv/bin/python
    ;;
*) echo pip >>log ;;
esac
"""


class Checkout:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("deploy/local/setup.sh", "requirements/dev.txt", "pyproject.toml"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        self.lock = folder / ".venv.lock"
        self._python = folder / "bin" / "python3.11"
        self._python.parent.mkdir()
        self._python.write_text(PYTHON)
        self._python.chmod(0o755)

    def setup(self, output: Path) -> "subprocess.Popen[bytes]":
        path = os.pathsep.join([str(self._python.parent), os.environ["PATH"]])
        with output.open("wb") as file:
            return subprocess.Popen(
                ["sh", "deploy/local/setup.sh"],
                cwd=self.folder,
                env={"PATH": path},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def log(self) -> list[str]:
        log = self.folder / "log"
        return log.read_text().split() if log.exists() else []

    def go_on(self) -> None:
        (self.folder / "go").touch()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_second_of_two_waits_and_takes_what_the_first_has_made(checkout: Checkout, tmp_path: Path) -> None:
    first = checkout.setup(tmp_path / "first")
    eventually(lambda: checkout.log() == ["venv"], within=20)
    second = checkout.setup(tmp_path / "second")
    eventually(lambda: f"waiting for process {first.pid}," in (tmp_path / "second").read_text(), within=20)
    checkout.go_on()

    assert (first.wait(20), second.wait(20)) == (0, 0)
    assert checkout.log() == ["venv", "pip", "pip"]
    assert list(tmp_path.glob(".venv.lock*")) == []


def test_the_lock_of_one_that_was_killed_stops_nobody(checkout: Checkout, tmp_path: Path) -> None:
    killed = checkout.setup(tmp_path / "killed")
    eventually(lambda: checkout.log() == ["venv"], within=20)
    os.killpg(killed.pid, signal.SIGKILL)  # with what it had started
    killed.wait()
    checkout.go_on()
    assert checkout.lock.read_text() == f"{killed.pid}\n"

    assert checkout.setup(tmp_path / "next").wait(20) == 0
    assert checkout.log() == ["venv", "venv", "pip", "pip"]
    assert list(tmp_path.glob(".venv.lock*")) == []
