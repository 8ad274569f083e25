"""Replay plans in the console: seen before anything is sent, then applied, paused, resumed, aborted."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.database.users import Role
from shared.domain.task import Status
from tests.integration.console_lab import Browser
from tests.integration.letters_lab import LettersLab


@pytest.fixture
def lab(database_url: str, tmp_path: Path) -> Iterator[LettersLab]:
    lab = LettersLab(database_url, tmp_path)
    yield lab
    lab.close()


def _plan(browser: Browser, **fields: object) -> str:
    answer = browser.post("/plans", **fields)
    assert answer.status_code == 303, answer.text
    return str(answer.headers["Location"])


def test_a_plan_says_what_would_happen_and_sends_nothing(lab: LettersLab) -> None:
    tasks = [lab.dead(order_id=f"order-{n}") for n in range(3)]
    lab.completed(order_id="order-1")
    browser = lab.console.as_(Role.OPERATOR, "ann")

    plan = _plan(browser, which="all")

    page = browser.get(plan).text
    assert "Plan 1: 2 of 3 letters would go round" in page
    assert re.search(r"superseded</span></th><td class=\"n\">1</td>", page)
    assert re.search(r"will run</span></th><td class=\"n\">2</td>", page)
    assert "about 2</dd>" in page
    assert {lab.row(task).status for task in tasks} == {Status.FAILED}
    assert lab.console.published == []
    assert [(by, what) for by, what, _ in lab.console.actions()] == [("ann", "plan make")]


def test_a_plan_is_applied_at_the_pace_that_was_typed_and_stopped_by_people(lab: LettersLab) -> None:
    lab.dead()
    browser = lab.console.as_(Role.OPERATOR, "ann")
    plan = _plan(browser, id=lab.ids()[0])

    browser.post(f"{plan}/apply", rate="7.5", ramp="2, 4", stop_at="30 %", stop_window="10")

    (row,) = lab.sql("select state, rate, ramp, stop_at, stop_window from plans")
    assert tuple(row) == ("running", 7.5, [2, 4], 0.3, 10)
    for what, state in (("pause", "paused"), ("resume", "running"), ("abort", "aborted")):
        assert f'formaction="{plan}/{what}"' in browser.get(plan).text or what == "pause"
        browser.post(f"{plan}/{what}")
        assert lab.sql("select state from plans")[0].state == state
    assert [what for _, what, _ in lab.console.actions()] == [
        "plan make",
        "plan apply",
        "plan pause",
        "plan resume",
        "plan abort",
    ]
    assert f'href="{plan}">plan 1</a>' in browser.get("/audit?action=plan+abort").text


def test_what_a_plan_refuses_is_said(lab: LettersLab) -> None:
    lab.dead()
    browser = lab.console.as_(Role.OPERATOR)
    letter = lab.ids()[0]

    browser.post("/plans", id=letter, to_pool="nowhere", back="/letters/list")
    assert "no backend serves pool &#39;nowhere&#39;" in lab.said(browser, "/letters/list")
    plan = _plan(browser, id=letter)
    for fields in ({"rate": "fast"}, {"rate": "1", "ramp": "one"}, {"rate": "1", "stop_at": "half"}):
        assert browser.post(f"{plan}/apply", **fields).status_code == 422
    browser.post(f"{plan}/apply", rate="0")
    assert "must be" in lab.said(browser, plan)
    browser.post(f"{plan}/resume")
    assert "plan 1 is planned" in lab.said(browser, plan)
    assert lab.sql("select state from plans")[0].state == "planned"


def test_only_an_editor_pays_for_an_order_again(lab: LettersLab) -> None:
    lab.dead(order_id="order-1")
    lab.completed(order_id="order-1")
    operator, editor = lab.console.as_(Role.OPERATOR), lab.console.as_(Role.EDITOR)
    letter = lab.ids()[0]

    assert 'name="force"' not in operator.get("/letters/list").text
    assert operator.post("/plans", id=letter, force="yes").status_code == 403
    assert lab.sql("select count(*) as n from plans")[0].n == 0
    assert "1 of 1 letters would go round" in editor.get(_plan(editor, id=letter, force="yes")).text


def test_what_an_editor_forced_an_operator_does_not_send(lab: LettersLab) -> None:
    lab.dead(order_id="order-1")
    lab.completed(order_id="order-1")
    operator, editor = lab.console.as_(Role.OPERATOR), lab.console.as_(Role.EDITOR)
    plan = _plan(editor, id=lab.ids()[0], force="yes")

    assert 'class="main" disabled>Apply' in operator.get(plan).text
    operator.post(f"{plan}/apply", rate="1")
    assert "an editor sends it" in lab.said(operator, plan)
    assert lab.sql("select state from plans")[0].state == "planned"
    editor.post(f"{plan}/apply", rate="1")
    operator.post(f"{plan}/pause")
    assert 'id="resume" formaction="/plans/1/resume" disabled' in operator.get(plan).text
    operator.post(f"{plan}/resume")
    assert lab.sql("select state from plans")[0].state == "paused"
    editor.post(f"{plan}/resume")
    assert lab.sql("select state from plans")[0].state == "running"


def test_a_page_shows_what_was_seen_last_and_looks_again_when_asked(lab: LettersLab) -> None:
    lab.dead()
    operator = lab.console.as_(Role.OPERATOR)
    plan = _plan(operator, id=lab.ids()[0])
    lab.sql("update dead_letters set state = 'discarded', closed_by = 'bob'")
    lab.sql("update plans set previewed_at = previewed_at - interval '3 hours'")

    seen = operator.get(plan).text
    operator.post(f"{plan}/preview")
    again = operator.get(plan).text

    assert "1 of 1 letters would go round" in seen
    assert re.search(r"Looked at <time [^>]*>3 h ago</time>", seen)
    assert "0 of 1 letters would go round" in again
    assert not re.search(r"Looked at <time [^>]*>3 h ago</time>", again)
    lab.sql("update plans set preview = null, previewed_at = null")
    assert "Nobody has looked at what it would do" in operator.get(plan).text


def test_a_viewer_makes_and_changes_no_plan(lab: LettersLab) -> None:
    lab.dead()
    plan = _plan(lab.console.as_(Role.OPERATOR), which="all")
    viewer = lab.console.as_(Role.VIEWER)

    assert viewer.post("/plans", which="all").status_code == 403
    for what in ("apply", "pause", "resume", "abort", "preview"):
        assert viewer.post(f"{plan}/{what}", rate="1").status_code == 403
    assert "<button" not in viewer.get(plan).text.split("<main")[1]
    assert lab.sql("select state from plans")[0].state == "planned"


def test_plans_are_listed_and_one_that_is_not_there_is_said_so(lab: LettersLab) -> None:
    viewer = lab.console.as_(Role.VIEWER)
    assert "Nobody has made a plan yet" in viewer.get("/plans").text
    assert viewer.get("/plans/7").status_code == 404
    lab.dead()
    _plan(lab.console.as_(Role.OPERATOR, "ann"), which="all", plan_note="gpu-1 has memory again")

    page = viewer.get("/plans").text

    assert '<a href="/plans/1">Plan 1</a>' in page
    assert "gpu-1 has memory again" in page
