"""`darkroom dead plan` and what is done with plans: what a person types, and what comes of it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from services.ops import commands
from shared.database.letter_states import Deed, do
from shared.database.letters import LetterFilter
from shared.database.plans import Pace
from shared.domain.task import Reason, Status
from tests.integration.plans_lab import PlansLab
from tests.integration.rows_lab import letter_about

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def lab(database_url: str) -> Iterator[PlansLab]:
    lab = PlansLab(database_url)
    yield lab
    lab.close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str, amqp_url: str) -> Run:
    """`darkroom dead …`: the exit status and all that it printed."""
    app = typer.Typer()
    app.add_typer(commands.dead_app, name="dead")
    backends = tmp_path / "backends.toml"
    backends.write_text('[[backend]]\nname = "gpu-1"\nadapter = "comfyui"\nurl = "http://127.0.0.1:1"\n')
    monkeypatch.setenv("DARKROOM_DATABASE_URL", database_url)
    monkeypatch.setenv("DARKROOM_AMQP_URL", amqp_url)
    monkeypatch.setenv("DARKROOM_BACKENDS_FILE", str(backends))

    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["dead", *words])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return run


def test_a_plan_is_shown_before_it_does_anything_and_applied_by_its_number(run, lab):
    lab.dead(3)
    lab.dead(1, reason=Reason.OUTCOME_UNKNOWN)
    status, out = run("plan", "--all", "--stage", "check", "--by", "ann", "--why", "the disk was full")
    assert status == 0
    assert "3        will run" in out
    assert "1        refused: `darkroom order adopt`" in out
    assert "nothing is sent yet: `darkroom dead apply 1`" in out
    assert lab.replayed() == []
    do(lab.engine, Deed.DISCARD, lab.letters.ids(LetterFilter(reason=Reason.EXECUTION_FAILED))[:1], "cy", "no use")
    status, out = run("status", "1")
    assert status == 0
    assert "2        will run" in out
    assert "1        refused: somebody has decided already" in out
    assert json.loads(run("status", "1", "--json")[1].splitlines()[0])["preview"]["going"] == 2
    status, out = run("apply", "1", "--by", "bob", "--rate", "1000", "--ramp", "none", "--stop-at", "50%", "--json")
    plan = json.loads(out.splitlines()[0])
    assert (status, plan["state"], plan["changed_by"]) == (0, "running", "bob")
    assert plan["pace"] == {"rate": 1000, "ramp": [], "stop_at": 0.5, "stop_window": 20}
    lab.until_over(1)
    status, out = run("status", "1", "--watch")
    assert status == 0
    assert "plan 1 is done: 2 completed, 2 refused" in out
    assert "submit-again" in out
    lines = [json.loads(line) for line in run("status", "1", "--json")[1].splitlines()]
    assert [line["result"] for line in lines[1:]] == ["refused", "completed", "completed", "refused"]
    assert json.loads(run("status", "--json")[1])["progress"]["completed"] == 2
    assert "done" in run("status")[1]


def test_pause_resume_and_abort_say_what_the_plan_is_now_and_refuse_what_cannot_be(run, lab):
    plan_id = str(lab.applied(lab.dead(2)))
    for word, state in (("pause", "paused"), ("resume", "running"), ("abort", "aborted")):
        status, out = run(word, plan_id, "--by", "bob")
        assert (status, f"plan 1 is {state}" in out) == (0, True)
    assert run("resume", plan_id) == (1, "plan 1 is aborted\n")
    assert run("apply", "99") == (1, "there is no plan 99\n")
    assert run("status", "99") == (1, "there is no plan 99\n")


def test_a_forced_plan_is_sent_by_whoever_says_so_again(run, lab):
    lab.dead(1, order_id="order-7")
    lab.completed(order_id="order-7")
    assert "by force" in run("plan", "--all", "--stage", "check", "--force-superseded")[1]
    assert run("apply", "1") == (1, "plan 1 pays once more for orders that are completed: an editor sends it\n")
    assert run("apply", "1", "--force-superseded", "--by", "eve")[0] == 0
    assert run("pause", "1")[0] == 0
    assert run("resume", "1")[0] == 1
    assert run("resume", "1", "--force-superseded")[0] == 0


def test_a_plan_that_stopped_itself_ends_the_watch_with_1_and_its_reason(run, lab):
    plan_id = lab.applied(lab.dead(3), Pace(rate=1000))
    lab.turn(plan_id)
    lab.work(Status.FAILED)
    lab.turn(plan_id)
    status, out = run("status", str(plan_id), "--watch")
    assert status == 1
    assert "1 of the last 1 failed" in out


def test_nobody_plans_everything_by_accident(run, lab):
    lab.dead(1)
    assert run("plan")[0] == 2
    assert run("plan", "--all", "--reason", "bug") == (1, "no letter matches\n")
    assert run("plan", "--all", "--redirect-to", "moon")[0] == 1
    assert lab.sql("select * from plans") == []


@pytest.mark.parametrize("words", [("--ramp", "1,x"), ("--stop-at", "often"), ("--rate", "0"), ("--stop-at", "200%")])
def test_a_pace_nobody_understands_is_a_mistake(run, lab, words):
    lab.dead(1)
    assert run("plan", "--all", *words)[0] in (1, 2)
    assert lab.sql("select * from plans") == []


def test_edit_sends_a_letter_round_with_other_inputs_and_refuses_what_its_workflow_does_not_take(run, lab):
    task = lab.failed(workflow="solid-invert", inputs={"width": 64, "color": 7})
    (letter,) = lab.bury(letter_about(task))
    status, out = run("edit", str(letter), "--input", "width=wide", "--input", "colour=8")
    assert status == 1
    assert "input width" in out
    assert "input colour is unknown" in out
    status, out = run("edit", str(letter), "--input", "width=32", "--input", "color=null", "--by", "ann", "--json")
    assert status == 0
    done = json.loads(out)
    assert (done["task_id"], done["revision"]) == (str(task.id), 1)
    assert done["diff"] == {"color": {"before": 7}, "width": {"before": 64, "after": 32}}
    assert lab.row(task).inputs == {"width": 32}
    assert "revision 1:      by ann at" in (shown := run("show", str(letter))[1])
    assert "width: 64 -> 32" in shown
    assert "color: 7 -> -" in shown
    assert json.loads(run("show", str(letter), "--json")[1])["revisions"][0]["diff"] == done["diff"]


def test_edit_without_anything_to_change_is_a_mistake(run, lab):
    (letter,) = lab.dead(1)
    assert run("edit", str(letter))[0] == 2
    assert run("edit", str(letter), "--input", "width")[0] == 2
    assert run("edit", str(letter), "--redirect-to", "moon")[0] == 1
