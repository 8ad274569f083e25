"""The audit outside of the database: what the backends run for us, and where the keys of published orders are."""

import json
from collections.abc import Callable, Iterator

import pika
import pytest

from services.ops import audit_command
from services.ops.collector import letter_of
from shared.broker import peek
from shared.broker.peek import NotLookedAt
from shared.broker.topology import DELIVERY_LIMIT
from shared.config import Settings, load_settings
from shared.database.audit import Check, Finding
from shared.database.dead_letters import DeadLetters
from shared.domain.errors import ProviderAway
from shared.domain.messages import Order
from shared.domain.task import Status
from shared.providers.base import KnownJob
from shared.providers.comfyui_jobs import known_jobs
from tests.e2e.mail import Mail
from tests.integration.comfyui_lab import a_job, running_lab
from tests.integration.rows_lab import POOL, Lab, a_delivery
from tests.waiting import eventually

Servers = dict[str, list[KnownJob]]


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    lab.slots.sync([(f"gpu-{n}", POOL, "comfyui", f"http://127.0.0.1:{n}", 100, 60.0) for n in (1, 2)])
    yield lab
    lab.close()


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    """What each server answers; one that is not here is silent."""
    answers: Servers = {"http://127.0.0.1:1": [], "http://127.0.0.1:2": []}

    def ask(url: str) -> list[KnownJob]:
        if url not in answers:
            raise ProviderAway("no answer")
        return answers[url]

    monkeypatch.setattr(audit_command, "LISTS", {"comfyui": ask})
    return answers


@pytest.fixture
def findings(lab: Lab) -> Callable[[], list[Finding]]:
    return lambda: audit_command.jobs_found(lab.engine)[0]


def at(servers: Servers, backend: str | None, *jobs: KnownJob) -> None:
    servers[f"http://127.0.0.1:{str(backend)[-1]}"] += jobs


def other(backend: str | None) -> str:
    return "gpu-2" if backend == "gpu-1" else "gpu-1"


def caught(found: list[Finding], check: Check, subject: object) -> None:
    assert [(f.check, f.subject) for f in found] == [(check, str(subject))], found


def test_servers_that_run_what_they_should_break_no_promise(lab, servers, findings):
    running, done, owed = lab.processing(), lab.completed(), lab.processing()
    lab.tasks.cancel(owed.id)
    at(servers, running.backend, KnownJob(str(running.job_key), is_over=False))
    at(servers, done.backend, KnownJob(str(done.job_key), is_over=True))
    at(servers, owed.backend, KnownJob(str(owed.job_key), is_over=False))
    at(servers, "gpu-1", *[KnownJob("a stranger's", is_over=False)] * 2)
    assert findings() == []


def test_a_job_that_its_server_has_twice_is_found(lab, servers, findings):
    task = lab.processing()
    at(servers, task.backend, KnownJob(str(task.job_key), is_over=True), KnownJob(str(task.job_key), is_over=False))
    caught(findings(), Check.DOUBLE_JOB, task.id)


def test_a_job_at_a_server_it_was_not_made_for_is_found(lab, servers, findings):
    task = lab.processing()
    at(servers, other(task.backend), KnownJob(str(task.job_key), is_over=True))
    caught(findings(), Check.DOUBLE_JOB, task.id)


@pytest.mark.parametrize("end", [Status.COMPLETED, Status.PENDING])
def test_a_job_that_runs_for_an_attempt_that_is_over_is_found(lab, servers, findings, end):
    task = lab.completed() if end is Status.COMPLETED else lab.processing()
    if end is Status.PENDING:
        lab.end(task, end, charge=True, attempt_outcome="lost")
    at(servers, task.backend, KnownJob(str(task.job_key), is_over=False))
    caught(findings(), Check.STRAY_JOB, task.id)


def test_a_job_that_ends_while_it_is_looked_for_is_no_stray(lab, servers, findings, monkeypatch):
    task = lab.completed()
    answers = [[KnownJob(str(task.job_key), is_over=False)], [KnownJob(str(task.job_key), is_over=True)]]
    mine = f"http://127.0.0.1:{str(task.backend)[-1]}"
    monkeypatch.setattr(audit_command, "LISTS", {"comfyui": lambda url: answers.pop(0) if url == mine else []})
    assert findings() == []
    assert answers == []


def test_a_backend_that_is_silent_or_cannot_list_is_named_and_no_finding(lab, servers):
    del servers["http://127.0.0.1:2"]
    lab.slots.sync([(f"gpu-{n}", POOL, "comfyui", f"http://127.0.0.1:{n}", 100, 60.0) for n in (1, 2)])
    assert audit_command.jobs_found(lab.engine) == ([], ["gpu-2"])


def test_a_server_is_asked_for_its_history_and_its_queue():
    with running_lab("modern") as simulator:
        simulator.begin()
        done, waits = a_job(), a_job()
        simulator.adapter.submit(simulator.adapter.prepare(done))
        eventually(lambda: simulator.outcomes(done) == ["success"], within=20, what="a picture")
        simulator.faults(seconds_per_image=600)
        simulator.adapter.submit(simulator.adapter.prepare(waits))
        wanted = [KnownJob(str(done.job_key), is_over=True), KnownJob(str(waits.job_key), is_over=False)]
        eventually(lambda: known_jobs(simulator.url) == wanted, within=20, what="one over, one not")


# --- keys


@pytest.fixture
def lost(lab: Lab, amqp_url: str) -> Callable[[list[str]], list[Finding]]:
    chosen: Settings = load_settings({"DARKROOM_DATABASE_URL": lab.url, "DARKROOM_AMQP_URL": amqp_url}, dotenv=None)
    return lambda keys: audit_command.keys_lost(lab.engine, chosen, keys)


def test_a_key_of_which_nobody_knows_is_found(lab, lost, amqp_url):
    Mail(amqp_url)
    known = lab.pending().idempotency_key
    caught(lost([known, "vanished"]), Check.UNACCOUNTED, "vanished")


def test_a_key_with_a_row_a_kept_key_a_letter_or_a_message_is_accounted_for(lab, lost, amqp_url):
    mail = Mail(amqp_url)
    first = lab.pending(order_id="o-1")
    lab.tasks.claim([])  # nothing
    kept = "kept-key"
    lab.pending(order_id="o-1", idempotency_key=kept)
    unreadable = json.dumps({"idempotency_key": "in-a-letter", "pool": 7}).encode()
    DeadLetters(lab.engine, "lab").record([letter_of(a_delivery(body=unreadable, message_id="m-1"))])
    waits = Order(idempotency_key="in-the-queue", pool=POOL, workflow="demo")
    mail.place([waits])
    mail.send(json.dumps({"idempotency_key": "in-the-dead-queue"}).encode(), None, "orders.dead")
    keys = [first.idempotency_key, kept, "in-a-letter", "in-the-queue", "in-the-dead-queue"]
    assert lost(keys) == []
    eventually(lambda: mail.depths()["orders"] == 1, within=10, what="what was looked at is back")


def test_what_was_looked_at_stays_in_its_queue_as_it_was(lab, lost, amqp_url):
    mail = Mail(amqp_url)
    mail.place([Order(idempotency_key=f"k-{n}", pool=POOL, workflow="demo") for n in range(5)])
    assert lost([f"k-{n}" for n in range(6)])[0].subject == "k-5"
    eventually(lambda: mail.depths()["orders"] == 5, within=10, what="all are back")
    with mail.channel() as channel:
        method, properties, body = channel.basic_get("orders")
        assert json.loads(body)["idempotency_key"] == "k-0"
        assert method.redelivered
        assert isinstance(properties, pika.BasicProperties)


def test_keys_are_looked_for_until_looking_itself_would_bury_what_waits(lab, lost, amqp_url):
    mail = Mail(amqp_url)
    mail.place([Order(idempotency_key=f"k-{n}", pool=POOL, workflow="demo") for n in range(3)])
    for _ in range(DELIVERY_LIMIT // 2):
        assert lost(["k-0", "k-1", "k-2"]) == []
        eventually(lambda: mail.depths()["orders"] == 3, within=10, what="all are back")

    with pytest.raises(NotLookedAt, match="a message in orders was handed out 10 times"):
        lost(["k-0", "k-1", "k-2"])

    eventually(lambda: mail.depths()["orders"] == 3, within=10, what="all are back")
    assert mail.depths()["orders.dead"] == 0


def test_of_more_messages_than_can_be_looked_at_none_is_touched_and_none_called_lost(lab, lost, amqp_url, monkeypatch):
    monkeypatch.setattr(peek, "_MOST", 2)
    mail = Mail(amqp_url)
    mail.place([Order(idempotency_key=f"k-{n}", pool=POOL, workflow="demo") for n in range(3)])

    with pytest.raises(NotLookedAt, match="more than 2 messages wait in orders"):
        lost(["k-0", "k-1", "k-2"])

    with mail.channel() as channel:
        method, _, _ = channel.basic_get("orders")
        assert not method.redelivered


def test_a_finding_is_one_line_of_the_command_and_status_1(lab, amqp_url, tmp_path, monkeypatch):
    import typer
    from typer.testing import CliRunner

    app = typer.Typer()
    app.command("audit")(audit_command.audit)
    app.command("other")(lambda: None)
    Mail(amqp_url)
    (tmp_path / "keys").write_text("vanished\n\nvanished\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DARKROOM_DATABASE_URL", lab.url)
    monkeypatch.setenv("DARKROOM_AMQP_URL", amqp_url)
    answer = CliRunner().invoke(app, ["audit", "--keys", str(tmp_path / "keys")])
    assert answer.exit_code == 1
    assert "unaccounted: vanished: no task, no kept key, no dead letter, in no queue" in answer.stdout
    from_stdin = CliRunner().invoke(app, ["audit", "--keys", "-", "--json"], input="vanished\n")
    assert json.loads(from_stdin.stdout)["checks"]["unaccounted"]["findings"] == 1
    assert CliRunner().invoke(app, ["audit", "--keys", "no-such-file"]).exit_code == 2
