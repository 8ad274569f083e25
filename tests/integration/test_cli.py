"""The `darkroom` command: what a person types, what is printed where, and the exit status."""

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local import Stack
from services import cli
from shared.database.revision import newest_revision
from shared.domain.task import Reason, Stage, Status, task_id_for
from tests.integration.rows_lab import Lab
from tests.integration.test_producer import an_order, messages_in
from tests.servers import free_port

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Answer]


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`darkroom …` in this process, with no settings but those a test gives."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["darkroom", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return Answer(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def database(run: Run, monkeypatch: pytest.MonkeyPatch, database_url: str) -> Run:
    monkeypatch.setenv("DARKROOM_DATABASE_URL", database_url)
    return run


@pytest.fixture
def servers(database: Run, monkeypatch: pytest.MonkeyPatch, amqp_url: str) -> Run:
    monkeypatch.setenv("DARKROOM_AMQP_URL", amqp_url)
    monkeypatch.setenv("DARKROOM_CONFIRM_TIMEOUT_SECONDS", "20")
    return database


def orders_in(folder: Path, *orders: Any) -> str:
    file = folder / "orders.jsonl"
    file.write_text("".join(f"{order if isinstance(order, str) else json.dumps(order)}\n" for order in orders))
    return str(file)


def test_every_line_of_a_file_is_published(servers: Run, tmp_path: Path, amqp_url: str) -> None:
    orders = [an_order(f"k-{n}") for n in range(450)]
    answer = servers("submit", orders_in(tmp_path, *orders))
    assert (answer.status, answer.out) == (0, "450 orders published\n")
    keys = [order["idempotency_key"] for order in orders]
    deliveries = messages_in(amqp_url, *keys)
    assert list(deliveries) == keys, "in the order of the file"
    assert len({d.headers["traceparent"] for d in deliveries.values()}) == 450


def test_json_names_the_task_of_each_line(servers: Run, tmp_path: Path) -> None:
    answer = servers("submit", orders_in(tmp_path, "", an_order("k-1"), an_order("k-2")), "--json")
    assert answer.status == 0
    assert answer.rows == [
        {"line": n + 1, "task_id": str(task_id_for(f"k-{n}")), "idempotency_key": f"k-{n}", "status": "published"}
        for n in (1, 2)
    ]


def test_one_wrong_line_is_enough_and_nothing_is_published(
    servers: Run, tmp_path: Path, stack: Stack, vhost: str
) -> None:
    lines = [an_order("k-1"), "{", an_order("k-2", colour="red", priority="urgent"), an_order("k-1", priority="high")]
    answer = servers("submit", orders_in(tmp_path, *lines))
    assert answer.status == 2
    told = answer.err.splitlines()
    assert told[0].startswith("line 2: order: is not JSON")
    assert {line.split(":")[1].strip() for line in told if line.startswith("line 3:")} == {"colour", "priority"}
    assert "line 4: idempotency_key: belongs to another order in line 1" in told
    assert told[-1] == "3 of 4 orders cannot be placed; nothing was published"
    assert stack.broker.queues(vhost=vhost) == []


def test_pools_and_workflows_are_checked_where_they_are_known(
    servers: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends = tmp_path / "backends.toml"
    backends.write_text('[[backend]]\nname = "gpu-1"\nadapter = "comfyui"\nurl = "http://127.0.0.1:1"\n')
    monkeypatch.setenv("DARKROOM_BACKENDS_FILE", str(backends))
    monkeypatch.setenv("DARKROOM_WORKFLOWS_DIR", str(ROOT / "deploy/workflows"))
    file = orders_in(tmp_path, an_order(inputs={"width": 1}))
    answer = servers("submit", file)
    assert answer.status == 2
    assert "line 1: inputs.width: must be within 16 and 4096" in answer.err
    assert servers("submit", file, "--shape-only").status == 0


@pytest.mark.parametrize(("outcome", "status"), [(Status.COMPLETED, 0), (Status.FAILED, 1), (Status.CANCELLED, 1)])
def test_waiting_ends_with_the_orders_and_their_outcome_is_the_exit_status(
    servers: Run, lab: Lab, tmp_path: Path, outcome: Status, status: int
) -> None:
    file = orders_in(tmp_path, an_order("k-1"), an_order("k-2"))

    def work() -> None:
        lab.completed(**an_order("k-1"))
        task = lab.processing(**an_order("k-2"))
        if outcome is Status.FAILED:
            lab.end(task, outcome, reason=Reason.LOST, detail="gone", stage=Stage.CHECK)
        else:
            lab.end(task, outcome)

    worker = threading.Timer(1.0, work)
    worker.start()
    answer = servers("submit", file, "--wait", "--json")
    worker.join()
    assert answer.status == status
    assert [row["status"] for row in answer.rows] == ["completed", outcome]
    assert [picture["index"] for picture in answer.rows[0]["artifacts"]] == [0]
    assert answer.rows[1]["reason"] == ("lost" if outcome is Status.FAILED else None)


def test_waiting_names_each_order_that_did_not_end_well(servers: Run, lab: Lab, tmp_path: Path) -> None:
    lab.failed(**an_order("k-1"))
    lab.completed(**an_order("k-2", priority="high"))
    active = lab.processing(**an_order("k-3", order_id="o"))
    lab.pending(**an_order("k-4", order_id="o"))
    lab.end(active, Status.COMPLETED)
    file = orders_in(tmp_path, an_order("k-1"), an_order("k-2"), an_order("k-4", order_id="o"), an_order("k-5"))
    answer = servers("submit", file, "--wait", "--timeout", "1s")
    assert answer.status == 1
    assert f"line 1: {task_id_for('k-1')} failed (execution_failed: node 7 broke)" in answer.err
    assert f"line 2: {task_id_for('k-2')} conflict" in answer.err
    assert f"line 4: {task_id_for('k-5')} has no row yet" in answer.err
    assert answer.out == "4 orders: 1 completed, 1 conflict, 1 failed, 1 published\n"


def test_without_a_broker_submit_says_so_and_what_to_do(
    servers: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_AMQP_URL", f"amqp://guest:secret@127.0.0.1:{free_port()}/")
    monkeypatch.setenv("DARKROOM_CONFIRM_TIMEOUT_SECONDS", "0.3")
    answer = servers("submit", orders_in(tmp_path, an_order()))
    assert answer.status == 2
    assert "RabbitMQ at 127.0.0.1:" in answer.err
    assert "0 of 1 orders are confirmed" in answer.err
    assert "secret" not in answer.err


def test_ctrl_c_while_waiting_is_a_sentence_and_130(tmp_path: Path, database_url: str, amqp_url: str) -> None:
    settings = {"DARKROOM_DATABASE_URL": database_url, "DARKROOM_AMQP_URL": amqp_url, "PYTHONPATH": str(ROOT)}
    file = orders_in(tmp_path, an_order())
    command = [sys.executable, "-m", "services.cli", "submit", file, "--wait"]
    with subprocess.Popen(
        command,
        env=os.environ | settings,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # A run in the background ignores SIGINT, and whatever it starts would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no other thread holds a lock
    ) as process:
        messages_in(amqp_url, "k-1")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert told == "not waiting any longer; the orders go on without this command\n"


def test_orders_come_from_standard_input_too(tmp_path: Path, database_url: str, amqp_url: str) -> None:
    settings = {"DARKROOM_AMQP_URL": amqp_url, "PYTHONPATH": str(ROOT)}  # no database is needed to publish
    answer = subprocess.run(
        [sys.executable, "-m", "services.cli", "submit", "-"],
        env=os.environ | settings,
        cwd=tmp_path,
        input=json.dumps(an_order()).encode(),
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert (answer.returncode, answer.stdout) == (0, b"1 order published\n"), answer.stderr
    assert list(messages_in(amqp_url, "k-1")) == ["k-1"]


def test_an_order_is_shown_by_task_id_by_key_and_by_order_id(database: Run, lab: Lab) -> None:
    first = lab.completed(**an_order("k-1", order_id="o-1"))
    second = lab.pending(**an_order("k-2", order_id="o-1"))
    for which in (str(first.id), "k-1"):
        (row,) = database("order", "show", which, "--json").rows
        assert (row["task_id"], row["status"], len(row["artifacts"])) == (str(first.id), "completed", 1)
    both = database("order", "show", "--order-id", "o-1", "--json").rows
    assert [row["task_id"] for row in both] == [str(second.id), str(first.id)]
    card = database("order", "show", "k-1")
    assert card.status == 0
    assert "completed for" in card.out


def test_an_unknown_order_is_a_sentence_and_status_1(database: Run) -> None:
    answer = database("order", "show", "nobody")
    assert (answer.status, answer.out) == (1, "")
    assert "'nobody'" in answer.err


def test_cancelling_is_noted_with_who_and_why_and_never_changes_a_finished_order(database: Run, lab: Lab) -> None:
    task = lab.processing(**an_order("k-1"))
    (row,) = database("order", "cancel", "k-1", "--by", "ada", "--reason", "wrong photo", "--json").rows
    assert (row["status"], row["reason"]) == ("cancelled", "wrong photo")
    after = lab.row(task)
    assert after.cancel_owed
    noted = lab.sql("select by_whom, action, subject, detail from operator_actions")
    assert [tuple(line) for line in noted] == [("ada", "order cancel", str(task.id), {"reason": "wrong photo"})]
    assert database("order", "cancel", "k-1", "--by", "bob").status == 0
    done = lab.completed(**an_order("k-2"))
    refused = database("order", "cancel", "k-2", "--by", "bob")
    assert refused.status == 1
    assert "is completed already" in refused.err
    assert lab.row(done).version == done.version
    assert len(lab.sql("select 1 from operator_actions")) == 1


def test_the_trace_tells_everything_in_the_order_it_happened(database: Run, lab: Lab) -> None:
    task = lab.failed(**an_order("k-1", order_id="o-1"))
    (row,) = database("order", "trace", "k-1", "--json").rows
    moves = [event["text"] for event in row["events"] if event["what"] == "move"]
    assert moves == [
        "→ pending",
        "pending → submitting on gpu-1",
        "submitting → processing on gpu-1",
        "processing → failed on gpu-1 (execution_failed)",
    ]
    times = [event["seconds"] for event in row["events"]]
    assert times == sorted(times)
    assert times[0] >= -0.1
    assert [attempt["outcome"] for attempt in row["attempts"]] == ["execution_failed"]
    told = database("order", "trace", str(task.id)).out
    assert "█" in told
    assert "node 7 broke" in told
    assert told.count("pending → submitting") == 1


def test_a_backend_is_paused_for_a_while_by_a_named_person_and_resumed(database: Run, lab: Lab) -> None:
    answer = database("backend", "pause", "gpu-1", "--by", "ada", "--reason", "new disk", "--for", "10m", "--json")
    assert answer.rows == [{"backend": "gpu-1", "paused": True, "seconds": 600.0, "reason": "new disk", "by": "ada"}]
    (row,) = database("backend", "list", "--json").rows
    assert (row["is_paused"], row["takes_work"], row["pause_reason"]) == (True, False, "new disk")
    (left,) = lab.sql("select extract(epoch from paused_until - now()) as seconds from backends")
    assert 590 < left.seconds <= 600
    assert "paused: new disk" in database("backend", "list").out
    assert database("backend", "resume", "gpu-1", "--by", "bob").status == 0
    assert database("backend", "list", "--json").rows[0]["takes_work"]
    noted = lab.sql("select by_whom, action from operator_actions order by id")
    assert [tuple(line) for line in noted] == [("ada", "backend pause"), ("bob", "backend resume")]


def test_an_unknown_backend_is_answered_with_the_known_ones(database: Run, lab: Lab) -> None:
    answer = database("backend", "pause", "gpu-9", "--reason", "x")
    assert answer.status == 1
    assert "there are: gpu-1" in answer.err
    assert database("backend", "pause", "gpu-1", "--reason", "x", "--for", "soon").status == 2


def test_a_database_without_tables_is_answered_with_darkroom_migrate(
    run: Run, monkeypatch: pytest.MonkeyPatch, empty_database_url: str
) -> None:
    monkeypatch.setenv("DARKROOM_DATABASE_URL", empty_database_url)
    for words in (["order", "show", "k"], ["backend", "list"], ["dead", "list"]):
        answer = run(*words)
        assert answer.status == 2, words
        assert "darkroom migrate" in answer.err, words
    assert run("migrate", "--json").rows == [{"revision": newest_revision()}]
    assert run("backend", "list").status == 0


@pytest.mark.parametrize(
    "words", [["order", "show", "k"], ["order", "trace", "k"], ["backend", "list"], ["migrate"], ["dead", "list"]]
)
def test_a_database_that_is_away_is_one_sentence_with_its_address(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    port = free_port()
    monkeypatch.setenv("DARKROOM_DATABASE_URL", f"postgresql://darkroom:secret@127.0.0.1:{port}/darkroom")
    monkeypatch.setenv("DARKROOM_AMQP_URL", "amqp://127.0.0.1")
    answer = run(*words)
    assert answer.status == 2
    assert f"cannot reach PostgreSQL at 127.0.0.1:{port}" in answer.err
    assert "`make up`" in answer.err
    assert "secret" not in answer.err
    assert len(answer.err.splitlines()) == 1


def test_a_misspelt_setting_is_named_with_the_nearest_right_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_DATABSE_URL", "postgresql://")
    answer = run("order", "show", "k")
    assert answer.status == 2
    assert "DARKROOM_DATABSE_URL is not a setting; did you mean DARKROOM_DATABASE_URL?" in answer.err
    assert "DARKROOM_AMQP_URL" not in answer.err  # this command needs no broker


def test_every_mistake_in_the_workflows_is_named_and_no_server_is_needed(run: Run, tmp_path: Path) -> None:
    assert run("workflow", "check", "--dir", str(ROOT / "deploy/workflows")).status == 0
    for name, text in (("one", "{}"), ("two", "not json")):
        (tmp_path / "flows" / name).mkdir(parents=True)
        (tmp_path / "flows" / name / "graph.json").write_text(text)
    answer = run("workflow", "check", "--dir", str(tmp_path / "flows"))
    assert answer.status == 1
    assert {line.split(":")[0] for line in answer.err.splitlines()} == {"one", "two"}
    (only,) = run("workflow", "check", "two", "--dir", str(tmp_path / "flows"), "--json").rows
    assert not only["ok"]
    assert all(problem.startswith("two: ") for problem in only["problems"])
    assert run("workflow", "check", "three", "--dir", str(tmp_path / "flows")).status == 1


def test_the_command_starts_quickly_and_knows_its_version(run: Run) -> None:
    assert run("--version").out.strip()
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, services.cli; print(*sys.modules)"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout.split()
    assert not {"sqlalchemy", "pika", "alembic", "fastapi", "obstore"} & set(loaded)


def test_a_key_that_looks_like_an_id_is_found_too(database: Run, lab: Lab) -> None:
    key = str(uuid.uuid4())
    task = lab.pending(**an_order(key))
    assert database("order", "show", key, "--json").rows[0]["task_id"] == str(task.id)
