"""What `make demo DEAD=1` leaves behind is cleared as docs/runbooks.md says it, command by command."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from rich.console import Console

from deploy.demo import dead
from deploy.demo.system import System
from deploy.local import Stack
from deploy.local.stack import ROOT
from shared.database.engine import connect
from shared.database.migrate import upgrade
from shared.database.tasks import Tasks
from shared.domain.task import Status
from shared.observe import metrics
from tests.servers import temporary_stack
from tests.waiting import eventually

_COUNTS = dead.Counts(memory=14, broken=3, missing=3, unreadable=2, again=2, fine=3, fine_portraits=2)


@pytest.fixture
def stack() -> Iterator[Stack]:
    with temporary_stack() as servers:
        upgrade(servers.database_url)
        yield servers


@pytest.fixture
def system(stack: Stack, tmp_path: Path) -> Iterator[System]:
    system = dead.system(stack, tmp_path / "logs", tmp_path / "pictures")
    try:
        system.start(simulated_seconds=0.05)
        yield system
    finally:
        system.stop()


def test_the_steps_of_the_runbook_bring_what_can_be_made_to_completed_and_make_nothing_twice(
    stack: Stack, system: System
) -> None:
    engine = connect(stack.database_url)
    tasks = Tasks(engine, "test", metrics.build("producer"))
    orders = dead.kill(system, stack, tasks, _COUNTS, Console(file=io.StringIO()))
    letters = sum(_COUNTS.letters.values())
    groups = eventually(lambda: _all_groups(system, letters), within=30, what="all letters are recorded")
    assert sorted(group["open"] for group in groups) == [2, 3, 3, 14]
    _, said = _darkroom(system, "dead", "groups")
    assert "it is the backend gpu-3: 14 of 16 orders failed there" in said
    assert "it is the orders: 3 orders failed on two or more of gpu-1, gpu-2" in said

    # Mend the cause, then send the right ones round.
    requests.post(f"{system.simulators[2]}/_sim/faults", json={"clear": True}, timeout=10).raise_for_status()
    memory = next(group["fingerprint"] for group in groups if group["open"] == 14)
    made = json.loads(_darkroom(system, "dead", "plan", "--all", "--group", memory, "--json")[1].splitlines()[0])
    assert made["preview"]["outcomes"] == {"will_run": 12, "superseded": 2}
    _darkroom(system, "dead", "apply", str(made["id"]), "--rate", "20")
    status, said = _darkroom(system, "dead", "status", str(made["id"]), "--watch", timeout=120)
    assert status == 0, said

    # Orders that must change; then what nobody wants any more.
    for number in _letters(system, "--reason", "execution_failed", "--pool", "comfyui"):
        status, said = _darkroom(system, "dead", "edit", str(number), "--input", "color=255")
        assert status == 0, said
    for reason in ("input_unavailable", "invalid_message", "execution_failed"):
        status, said = _darkroom(system, "dead", "discard", "--all", "--reason", reason, "--why", "told the shop")
        assert status == 0, said

    replayed = [o for o in orders if "-portrait-" in o.idempotency_key or "-poster-" in o.idempotency_key]

    def ended() -> bool:
        rows = tasks.get([order.task_id for order in replayed])
        return all(row.status.is_final and row.due_at is None for row in rows.values())

    eventually(ended, within=60, what="every replayed order has ended")
    rows = tasks.get([order.task_id for order in replayed])
    completed = [row.id for row in rows.values() if row.status is Status.COMPLETED]
    assert len(completed) == 12 + 3 + 2  # replayed, edited, and those that the shop had ordered again
    assert _all_groups(system, 0) == []
    assert _paid_more_than_once(engine, system) == []
    status, said = _darkroom(system, "audit", timeout=120)
    assert status == 0, said
    engine.dispose()


def _all_groups(system: System, letters: int) -> list[dict[str, Any]] | None:
    """The groups, once so many letters are open; None before."""
    groups = [
        json.loads(line) for line in _darkroom(system, "dead", "groups", "--json")[1].splitlines() if line[:1] == "{"
    ]
    return groups if sum(group["open"] for group in groups) == letters else None


def _letters(system: System, *words: str) -> list[int]:
    lines = _darkroom(system, "dead", "list", "--json", *words)[1].splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return [letter["id"] for letter in found if "ValueError" in letter["detail"]]


def _darkroom(system: System, *words: str, timeout: float = 60) -> tuple[int, str]:
    """One command of the runbook, with the settings that the demo prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    command = [sys.executable, "-m", "services.cli", *words]
    answer = subprocess.run(
        command, cwd=ROOT, env=clean | system.settings, capture_output=True, text=True, timeout=timeout, check=False
    )
    return answer.returncode, answer.stdout + answer.stderr


def _paid_more_than_once(engine: Any, system: System) -> list[str]:
    """Orders for which the servers made pictures twice, by the servers' own records."""
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("select cast(job_key as text) as job_key, task_id from attempts").all()
    task_of = {row.job_key: str(row.task_id) for row in rows}
    made: dict[str, int] = {}
    for url in system.simulators:
        for run in requests.get(f"{url}/_sim/stats?log=0", timeout=10).json()["executions"]:
            if run["outcome"] in {"success", "cached"}:
                task = task_of[run["prompt_id"]]
                made[task] = made.get(task, 0) + 1
    assert made
    return [task for task, count in made.items() if count > 1]
