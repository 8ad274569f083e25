"""`python -m services.ops`: collects, exports, finishes replays, and ends on SIGTERM with nothing in hand."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.broker.broker import Broker
from shared.broker.topology import topology
from shared.database.dead_letters import DeadLetters
from shared.database.letters import LetterFilter
from shared.database.replays import Replays
from shared.domain.messages import dead_letter
from shared.terminal import Quiet
from tests.integration.rows_lab import POOL, Lab
from tests.servers import free_port
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
BACKENDS = """
[[backend]]
name = "gpu-1"
pool = "comfyui"
adapter = "comfyui"
url = "http://127.0.0.1:1"
capacity = 1
"""


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


@pytest.fixture
def environment(tmp_path: Path, database_url: str, amqp_url: str) -> dict[str, str]:
    backends = tmp_path / "backends.toml"
    backends.write_text(BACKENDS)
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "DARKROOM_DATABASE_URL": database_url,
        "DARKROOM_AMQP_URL": amqp_url,
        "DARKROOM_BACKENDS_FILE": str(backends),
        "DARKROOM_METRICS_PORT": str(free_port()),
        "DARKROOM_CONSOLE_PORT": str(free_port()),
        "DARKROOM_WORKFLOWS_DIR": str(tmp_path / "none"),  # letters are collected whatever is wrong with templates
    }


@pytest.fixture
def ops(environment: dict[str, str], tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "services.ops"], env=environment, cwd=tmp_path, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(10)


def page(environment: dict[str, str], path: str) -> str:
    """What the process answers; empty while it does not, or is not ready."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{environment['DARKROOM_METRICS_PORT']}{path}", timeout=5
        ) as answer:
            return answer.read().decode()
    except OSError as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        return ""


def test_it_collects_exports_finishes_replays_and_drains(lab, ops, environment, amqp_url, tmp_path):
    letters = DeadLetters(lab.engine, "test")
    eventually(lambda: page(environment, "/readyz"), within=20, what="ready")
    broker = Broker([amqp_url], topology([POOL]), name="test", metrics=Quiet())
    broker.start()
    task = lab.failed()
    broker.publish([dead_letter(task), dead_letter(task)]).result(20)
    eventually(lambda: letters.ids(LetterFilter()), within=10, what="recorded")
    eventually(
        lambda: (
            'darkroom_dead_letters_total{reason="execution_failed",stage="check"} 1.0' in page(environment, "/metrics")
        ),
        within=10,
    )
    assert 'darkroom_invariant_violations{check="over_capacity"} 0.0' in page(environment, "/metrics")
    assert Replays(lab.engine, 60).replay(letters.ids(LetterFilter()), "ann")

    ops.send_signal(signal.SIGTERM)
    assert ops.wait(20) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert not [line for line in lines if line["level"] in {"error", "critical"}]
    broker.stop()


def test_a_replay_left_behind_by_a_dead_replayer_is_published(lab, ops, environment, amqp_url):
    letter_id = lab.sql(
        "insert into dead_letters (identity, stage, reason, detail, fingerprint, body, state)"
        " values ('x', 'orders', 'invalid_message', 'd', 'f', '{}', 'replayed') returning id"
    )[0].id
    lab.sql(
        "insert into replays (dead_letter_id, by_whom, at) values (:id, 'ann', now() - interval '1 minute')",
        id=letter_id,
    )
    letters = DeadLetters(lab.engine, "test")
    eventually(lambda: letters.replays(letter_id)[0].result == "published", within=20)


def test_it_serves_the_console_on_a_port_of_its_own(ops, environment):
    url = f"http://127.0.0.1:{environment['DARKROOM_CONSOLE_PORT']}/login"

    def login() -> str:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            return ""

    assert "darkroom user add NAME --role editor" in eventually(login, within=30)


def test_a_taken_console_port_is_a_sentence(environment, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "services.ops"],
            env=environment | {"DARKROOM_CONSOLE_PORT": port},
            cwd=tmp_path,
            capture_output=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 2
    assert b"DARKROOM_CONSOLE_PORT" in done.stderr
    assert b"Traceback" not in done.stderr


def test_on_a_database_without_tables_it_says_what_to_do(environment, empty_database_url, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "services.ops"],
        env=environment | {"DARKROOM_DATABASE_URL": empty_database_url},
        cwd=tmp_path,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert b"darkroom migrate" in done.stderr
    assert b"Traceback" not in done.stderr


def test_the_darkroom_command_audits_and_lists_without_a_traceback(environment, tmp_path):
    def darkroom(*words: str, **more: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "services.cli", *words],
            env=environment | more,
            cwd=tmp_path,
            capture_output=True,
            timeout=30,
            check=False,
        )
        return done.returncode, (done.stdout + done.stderr).decode()

    assert darkroom("audit")[0] == 0
    assert darkroom("dead", "list") == (0, "no dead letters that are open\n")
    status, out = darkroom("audit", DARKROOM_DATABASE_URL="postgresql://nobody:hidden@127.0.0.1:1/x")
    assert status == 2
    assert "Traceback" not in out
    assert "hidden" not in out
