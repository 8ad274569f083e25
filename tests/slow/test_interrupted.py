"""A drill and a soak that are interrupted stop every server they started."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.worker import ROOT
from tests.servers import _folders
from tests.waiting import eventually

DRILL = ["-m", "services.cli", "drill", "--only", "claim_committed"]
SOAK = ["-m", "tests.soak", "--minutes", "5"]


def processes(*folders: Path) -> dict[int, str]:
    """What runs in one of these folders or names it: workers, simulators, RabbitMQ, PostgreSQL."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text().replace("\0", " ")
            where = str((process / "cwd").readlink())
        except OSError:
            continue
        if any(str(folder) in f"{where} {command}" for folder in folders):
            found[int(process.name)] = command
    return found


def servers_of(run: int) -> list[Path]:
    """The folders of the private servers that this process or a child of it has started."""
    owners = {run} | {
        int(child) for task in Path(f"/proc/{run}/task").iterdir() for child in (task / "children").read_text().split()
    }
    found = [owner for where in _folders(room=0) for owner in where.glob("darkroom-tests-*/owner")]
    return [owner.parent for owner in found if json.loads(owner.read_text())["pid"] in owners]


@pytest.mark.parametrize(
    ("command", "number"),
    [(DRILL, signal.SIGTERM), (DRILL, signal.SIGINT), (SOAK, signal.SIGTERM), (SOAK, signal.SIGINT)],
    ids=["drill SIGTERM", "drill Ctrl-C", "soak SIGTERM", "soak Ctrl-C"],
)
def test_a_run_that_is_interrupted_leaves_nothing_running(
    tmp_path: Path, command: list[str], number: signal.Signals
) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    folders = [tmp_path]
    run = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        eventually(
            lambda: sum("services.submitter" in line for line in processes(*folders).values()) >= 2,
            within=120,
            what="the run is under way",
        )
        folders += servers_of(run.pid)
        assert len(folders) == 2
        assert len(processes(folders[1])) >= 2, "a broker and a database"
        if number is signal.SIGINT:
            os.killpg(run.pid, number)  # as a terminal does it, impatiently
            os.killpg(run.pid, number)
        else:
            run.send_signal(number)

        assert run.wait(90) == 130
        assert processes(*folders) == {}
        assert not folders[1].exists()
    finally:
        for pid in [run.pid, *processes(*folders)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        run.wait()
