"""`darkroom dead`: what a person types, and what comes of it."""

import json
import uuid
from collections.abc import Callable, Iterator

import pika
import pytest
import typer
from typer.testing import CliRunner

from services.ops import commands
from services.ops.collector import Collector
from shared.database.dead_letters import DeadLetters
from shared.database.letters import LetterFilter
from shared.domain.task import Status
from tests.integration.rows_lab import Lab, a_delivery, letter_about

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


@pytest.fixture
def letters(lab: Lab) -> DeadLetters:
    return DeadLetters(lab.engine, "ops@test")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path, database_url: str, amqp_url: str) -> Run:
    """`darkroom dead …`: the exit status and all that it printed."""
    app = typer.Typer()
    app.add_typer(commands.dead_app, name="dead")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DARKROOM_DATABASE_URL", database_url)
    monkeypatch.setenv("DARKROOM_AMQP_URL", amqp_url)
    monkeypatch.setenv("DARKROOM_CONFIRM_TIMEOUT_SECONDS", "20")

    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["dead", *words])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return run


@pytest.fixture
def two(lab: Lab, letters: DeadLetters) -> tuple[int, int]:
    """A letter about a failed row, and one that nobody can read."""
    collector = Collector(letters, lab.metrics)
    collector.handle([letter_about(lab.failed(detail="node [red]7[/red] broke\x1b[2J"))])
    collector.handle([a_delivery(body=b"no order", message_id=str(uuid.uuid4()))])
    first, second = letters.ids(LetterFilter())
    return first, second


def test_list_shows_the_open_letters_and_foreign_text_as_it_is(run, two):
    status, out = run("list")
    assert status == 0
    assert "execution_failed" in out
    assert "node [red]7[/red] broke [2J" in out
    assert "\x1b[2J" not in out


def test_list_says_that_there_are_none(run):
    assert run("list") == (0, "no dead letters that are open\n")


def test_list_as_json_narrows_by_filter(run, lab, two):
    _, out = run("list", "--json", "--reason", "execution_failed", "--since", "1h", "--pool", "comfyui")
    assert "letters last seen from 20" in out
    (letter,) = (json.loads(line) for line in out.splitlines() if line.startswith("{"))
    assert (letter["id"], letter["stage"], letter["state"], letter["attempt"]) == (two[0], "check", "open", 1)
    assert json.loads(run("list", "--json", "--task", letter["task_id"])[1])["id"] == two[0]
    assert json.loads(run("list", "--json", "--group", letter["fingerprint"])[1])["id"] == two[0]


def test_show_tells_the_story_and_what_a_replay_would_do(run, two):
    status, out = run("show", str(two[0]))
    assert status == 0
    assert "pending again after attempt 1, with all tries and 24 h of time" in out
    run("replay", str(two[0]), "--by", "ann")
    answer = json.loads(run("show", str(two[0]), "--json")[1])
    assert answer["replays"][0]["by_whom"] == "ann"
    assert answer["replay_now"] == {"way": "refused", "why": "already replayed by ann"}
    assert run("show", "999") == (1, "there is no dead letter 999\n")


@pytest.mark.parametrize("words", [("replay",), ("discard", "--why", "x"), ("replay", "--reason", "bug")])
def test_nobody_acts_on_everything_by_accident(run, lab, letters, two, words):
    status, out = run(*words)
    assert status == 2
    assert "--all" in out
    assert len(letters.ids(LetterFilter())) == 2


def test_ids_and_a_filter_together_are_a_mistake(run, two):
    assert run("replay", "1", "--reason", "bug")[0] == 2


def test_a_dry_run_says_what_would_happen_and_changes_nothing(run, lab, letters, two):
    status, out = run("replay", "--dry-run")
    assert status == 0
    assert "would be replayed" in out
    assert "would be published" in out
    assert run("discard", "--why", "x", "--dry-run")[0] == 0
    assert len(letters.ids(LetterFilter())) == 2
    assert lab.sql("select * from operator_actions") == []


def test_replay_all_of_a_filter_replays_these_and_leaves_the_others(run, lab, letters, two):
    status, out = run("replay", "--all", "--stage", "check", "--by", "ann", "--json")
    (item,) = map(json.loads, out.splitlines())
    assert (status, item["id"], item["result"]) == (0, two[0], "replayed")
    assert lab.row(lab.tasks.get([uuid.UUID(item["task_id"])])[uuid.UUID(item["task_id"])]).status is Status.PENDING
    assert letters.ids(LetterFilter()) == [two[1]]


def test_replay_reaches_the_broker(run, two, amqp_url):
    assert run("replay", str(two[0]), str(two[1]))[0] == 0
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    channel = connection.channel()
    assert channel.basic_get("submit.comfyui")[2] == b'{"pool":"comfyui"}'
    assert channel.basic_get("orders")[2] == b"no order"
    connection.close()


def test_a_refused_letter_is_said_and_ends_with_1(run, two):
    assert run("replay", str(two[0]))[0] == 0
    status, out = run("replay", str(two[0]), "999", "--by", "bob")
    assert status == 1
    assert "already replayed by" in out
    assert "no such letter" in out


def test_discard_keeps_the_reason_and_the_name(run, lab, letters, two):
    assert run("discard", str(two[1]), "--why", "not ours", "--by", "ann")[0] == 0
    (noted,) = lab.sql("select * from operator_actions")
    assert (noted.by_whom, noted.subject, noted.detail) == ("ann", str(two[1]), {"why": "not ours"})
    assert letters.ids(LetterFilter(state="discarded")) == [two[1]]


def test_a_span_of_time_nobody_understands_is_a_mistake(run):
    assert run("list", "--since", "soon")[0] == 2


def test_groups_are_listed_described_and_shown(run, two):
    out = run("groups", "--json")[1]
    first, second = map(json.loads, out.splitlines())
    assert {first["reason"], second["reason"]} == {"execution_failed", "invalid_message"}
    group = next(one["fingerprint"] for one in (first, second) if one["reason"] == "execution_failed")
    assert run("group", "note", group, "a bad [b]pack[/b]", "--by", "ann")[0] == 0
    assert run("group", "owner", group, "bob")[0] == 0
    assert run("group", "fixed", group, "1.1")[0] == 0
    assert "fixed (1.1)" in run("groups", "--reason", "execution_failed")[1]
    out = run("group", "show", group)[1]
    assert "a bad [b]pack[/b]" in out
    assert "neither an order nor a backend stands out" in out
    assert run("group", "note", "nothing", "x")[0] == 1


def test_archive_and_restore_by_filter_keep_name_and_reason(run, lab, letters, two):
    assert run("archive", "--all", "--stage", "check", "--why", "later", "--by", "ann")[0] == 0
    assert letters.ids(LetterFilter(state="archived")) == [two[0]]
    assert run("restore", "--all", "--why", "now", "--by", "bob")[0] == 0
    assert letters.ids(LetterFilter()) == list(two)
    deeds = lab.sql("select by_whom, action, detail from operator_actions order by id")
    assert [(deed.by_whom, deed.action, deed.detail["why"]) for deed in deeds] == [
        ("ann", "dead letter archive", "later"),
        ("bob", "dead letter restore", "now"),
    ]


def test_export_writes_each_letter_as_a_line_without_secrets(run, lab, letters, two):
    signed = b'{"inputs": {"photo": "https://h/a.png?sig=s3cret"}}'
    Collector(letters, lab.metrics).handle([a_delivery(body=signed, headers={"reason": "bug", "stage": "orders"})])
    lines = [json.loads(line) for line in run("export", "--state", "any")[1].splitlines()]
    assert [line["id"] for line in lines] == [*two, lines[-1]["id"]]
    assert json.loads(lines[-1]["body"])["inputs"] == {"photo": "https://h/a.png?***"}
    assert json.loads(run("export", "--limit", "1")[1])["id"] == two[0]
