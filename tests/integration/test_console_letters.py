"""Dead letters in the console: found by kind, by filter and one by one; what is said about them, and decided."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.database.users import Role
from shared.domain.task import Reason, Status
from tests.integration.console_pages import read
from tests.integration.letters_lab import LettersLab

_HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


@pytest.fixture
def lab(database_url: str, tmp_path: Path) -> Iterator[LettersLab]:
    lab = LettersLab(database_url, tmp_path)
    yield lab
    lab.close()


def test_letters_are_shown_by_kind_the_most_first(lab: LettersLab) -> None:
    lab.unreadable()
    for number in range(3):
        lab.dead(detail=f"node {number} broke")

    page = lab.console.as_(Role.VIEWER).get("/letters").text

    assert "4 wait for a decision, of 2 kinds" in " ".join(page.split())
    first, second = (page.index(f">{words}") for words in ("node 2 broke", "published straight into"))
    assert first < second
    assert "gpu-1" in page


def test_tasks_that_speak_for_a_verdict_are_links(lab: LettersLab, monkeypatch: pytest.MonkeyPatch) -> None:
    task = lab.dead()
    monkeypatch.setattr("services.ops.console.letters.sentences", lambda _: [f"it is the orders: tasks {task.id}"])

    page = read(lab.console.as_(Role.VIEWER).get("/letters").text)

    assert f"It is the orders: tasks {task.id}." in page.text
    assert f"/orders/{task.id}" in page.links


def test_kinds_are_narrowed_by_the_address(lab: LettersLab) -> None:
    lab.dead(Reason.LOST, "vanished")
    lab.unreadable()
    browser = lab.console.as_(Role.VIEWER)

    assert "vanished" not in browser.get("/letters?reason=invalid_message").text
    assert "vanished" in browser.get("/letters?backend=gpu-1").text
    assert "No dead letter waits here" in browser.get("/letters?pool=other").text


def test_a_window_of_time_is_frozen_in_the_address(lab: LettersLab) -> None:
    lab.dead()
    browser = lab.console.as_(Role.VIEWER)

    sent = browser.get("/letters/list?since=2h&reason=execution_failed")

    assert sent.status_code == 303
    frozen = sent.headers["Location"]
    assert re.search(r"reason=execution_failed.*since=20\d\d-.*until=20\d\d-", frozen)
    lab.dead(detail="later")
    page = browser.get(frozen)
    assert page.status_code == 200
    assert "node 7 broke" in page.text
    assert ">later<" not in page.text
    assert browser.get("/letters/list?since=soon").status_code == 422


def test_a_list_is_turned_over_without_repeating_a_letter(lab: LettersLab) -> None:
    for number in range(60):
        lab.unreadable(f"{number}".encode())
    browser = lab.console.as_(Role.VIEWER)

    first = browser.get("/letters/list").text
    older = re.search(r'href="(/letters/list\?before=\d+)"', first)
    assert older
    second = browser.get(older[1]).text

    numbers = [int(n) for n in re.findall(r'scope="row"[^>]*><a href="/letters/(\d+)"', first + second)]
    assert numbers == sorted(lab.ids(), reverse=True)


def test_a_list_is_exported_as_a_line_of_json_for_each_letter(lab: LettersLab) -> None:
    lab.dead(detail="node 7 broke")
    lab.unreadable(_HOSTILE.encode())
    browser = lab.console.as_(Role.VIEWER)

    page = browser.get("/letters/list?reason=invalid_message").text
    (address,) = re.findall(r'href="(/letters/export[^"]*)" download', page)
    answer = browser.get(address)

    assert answer.headers["Content-Type"].startswith("application/x-ndjson")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="letters.ndjson"'
    (letter,) = map(json.loads, answer.text.splitlines())
    assert (letter["reason"], letter["body"]) == ("invalid_message", _HOSTILE)


def test_a_letter_is_shown_with_its_body_headers_and_neighbours(lab: LettersLab) -> None:
    task = lab.dead(detail='Traceback (most recent call last):\n  File "x.py", line 1\nValueError: no colour')
    lab.dead(Reason.LOST, "vanished")
    (first, second) = lab.ids()

    page = lab.console.as_(Role.VIEWER).get(f"/letters/{first}").text

    assert f"/orders/{task.id}" in page
    assert "ValueError: no colour" in page
    assert "pending again after attempt 1" in page
    assert f'"task_id": "{task.id}"'.replace('"', "&#34;") in page
    assert "Headers" in page
    assert f'href="/letters/{second}"' in page
    assert "2 of any kind" in page
    assert "<button" not in page.split("<main")[1]  # a viewer has nothing to press


def test_foreign_text_stays_text_on_every_page(lab: LettersLab) -> None:
    lab.dead(detail=_HOSTILE, order_id=_HOSTILE, inputs={_HOSTILE: _HOSTILE})
    lab.unreadable(_HOSTILE.encode())
    browser = lab.console.as_(Role.EDITOR)
    groups = [row.fingerprint for row in lab.sql("select fingerprint from letter_groups")]
    for fingerprint in groups:
        for what in ("note", "owner", "fixed"):
            browser.post(f"/letters/groups/{fingerprint}/{what}", value=_HOSTILE)
    pages = ["/letters", "/letters/list", *(f"/letters/groups/{one}" for one in groups)]
    pages += [f"/letters/{letter_id}" for letter_id in lab.ids()]

    for path in pages:
        text = browser.get(path).text
        assert "script&gt;" in text, path
        assert "<script>alert" not in text, path
        assert "<img src=x" not in text, path


def test_a_body_with_half_a_character_is_shown_and_exported(lab: LettersLab) -> None:
    lab.unreadable(rb'{"prompt": "\ud83d cat"}')
    (letter,) = lab.ids()
    browser = lab.console.as_(Role.VIEWER)

    assert r"\ud83d cat" in browser.get(f"/letters/{letter}").text
    assert json.loads(json.loads(browser.get("/letters/export").text)["body"])["prompt"] == "\ud83d cat"


def test_the_ticked_letters_are_discarded_and_no_others(lab: LettersLab) -> None:
    for _ in range(3):
        lab.dead()
    first, second, third = lab.ids()
    browser = lab.console.as_(Role.OPERATOR, "ann")

    fields = {"deed": "discard", "id": [first, third], "why": "no longer wanted", "back": "/letters/list"}
    asked = browser.post("/letters/close", **fields)
    assert "Discard 2 letters for good?" in asked.text
    assert (asked.status_code, lab.ids(), lab.console.actions()) == (200, [first, second, third], [])

    answer = browser.post("/letters/close", **_confirmed(asked.text))

    assert (answer.status_code, answer.headers["Location"]) == (303, "/letters/list")
    assert lab.said(browser, "/letters/list") == "2 discarded"
    assert lab.ids() == [second]
    assert lab.console.actions() == [
        ("ann", "dead letter discard", str(first)),
        ("ann", "dead letter discard", str(third)),
    ]


def test_who_discards_a_whole_list_is_asked_about_the_letters_that_were_there_then(lab: LettersLab) -> None:
    lab.dead()
    lab.dead()
    there = lab.ids()
    browser = lab.console.as_(Role.OPERATOR, "ann")

    asked = browser.post("/letters/close", deed="discard", which="all", reason="execution_failed", why="x").text
    lab.dead()
    (later,) = set(lab.ids()) - set(there)
    browser.post("/letters/close", **_confirmed(asked))

    assert "Discard 2 letters for good?" in asked
    assert lab.ids() == [later]


def _confirmed(page: str) -> dict[str, list[str]]:
    """What the form on this page posts when its button is pressed."""
    fields: dict[str, list[str]] = {"deed": ["discard"]}
    for one in read(page).all("input"):
        if one.get("type") == "hidden" and one["name"] != "csrf":
            fields.setdefault(one["name"], []).append(one["value"])
    return fields


def test_a_text_is_looked_for_no_longer_than_a_page_may_take(lab: LettersLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.ops.console.letters._SEARCH_SECONDS", 0.0)
    monkeypatch.setattr("services.ops.console.letters._STRETCH", 2)
    lab.dead(detail="the needle")
    for number in range(4):
        lab.dead(detail=f"hay {number}")
    browser = lab.console.as_(Role.OPERATOR)

    pages, path = [], "/letters/list?text=needle"
    while path and len(pages) < 5:
        pages.append(page := browser.get(path).text)
        further = re.search(r'href="([^"]*)" rel="next">Look further', page)
        path = html.unescape(further[1]) if further else ""

    assert len(pages) == 3
    assert all("Looked from the newest down to letter" in page for page in pages[:2])
    assert ["the needle" in page for page in pages] == [False, False, True]
    assert "Looked from" not in pages[2]


def test_all_of_a_list_are_those_that_were_there_when_it_was_shown(lab: LettersLab) -> None:
    lab.dead()
    lab.unreadable()
    browser = lab.console.as_(Role.OPERATOR)
    page = browser.get("/letters/list?reason=execution_failed").text
    fields = dict(re.findall(r'<input type="hidden" name="(reason|until)" value="([^"]*)">', page))
    lab.dead(detail="after the page")

    browser.post("/letters/close", deed="archive", which="all", why="later", **fields)

    assert len(lab.ids(state="archived")) == 1
    assert len(lab.ids()) == 2


def test_a_letter_goes_round_again_at_a_press(lab: LettersLab) -> None:
    task = lab.dead()
    (letter,) = lab.ids()
    browser = lab.console.as_(Role.OPERATOR, "ann")

    browser.post("/letters/replay", id=letter, back=f"/letters/{letter}")

    assert lab.row(task).status is Status.PENDING
    assert lab.said(browser, f"/letters/{letter}") == "1 replayed"
    page = browser.get(f"/letters/{letter}").text
    assert "<td>ann</td>" in page
    assert "Would be refused: already replayed by ann" in page


def test_enter_after_a_reason_does_not_send_the_letter(lab: LettersLab) -> None:
    """A browser then presses the first button of the form that the reason stands in."""
    lab.dead()
    (letter,) = lab.ids()

    page = lab.console.as_(Role.EDITOR).get(f"/letters/{letter}").text
    (form,) = [form for form in re.findall("<form.*?</form>", page, re.DOTALL) if 'name="why"' in form]

    assert re.findall(r"<button[^>]*>([^<]*)", form)[0] == "Archive"
    assert "replay" not in form.lower()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"deed": "discard", "why": "x"}, "No letter is chosen"),
        ({"deed": "discard", "id": "1"}, "Say why"),
        ({"deed": "burn", "id": "1", "why": "x"}, "discarded, archived or restored"),
        ({"deed": "discard", "id": "1 or 1=1", "why": "x"}, "is a number"),
    ],
)
def test_a_form_that_says_too_little_changes_nothing(lab: LettersLab, fields: dict[str, str], why: str) -> None:
    lab.dead()

    answer = lab.console.as_(Role.OPERATOR).post("/letters/close", **fields)

    assert answer.status_code == 422
    assert why in answer.text
    assert len(lab.ids()) == 1


def test_what_is_refused_is_said_with_its_reason(lab: LettersLab) -> None:
    lab.dead()
    (letter,) = lab.ids()
    browser = lab.console.as_(Role.OPERATOR, "ann")
    browser.post("/letters/close", deed="discard", id=letter, why="x")

    fields = {"deed": "discard", "id": [letter, 999], "why": "x", "back": "//evil.example"}
    assert "evil" not in browser.post("/letters/close", **fields).text
    browser.post("/letters/close", sure="yes", **fields)

    assert lab.said(browser, "/letters") == "2 refused (already discarded by ann; no such letter)"


def test_a_viewer_changes_nothing(lab: LettersLab) -> None:
    lab.dead()
    (letter,) = lab.ids()
    (group,) = lab.sql("select fingerprint from letter_groups")
    browser = lab.console.as_(Role.VIEWER)

    answers = [
        browser.post("/letters/close", deed="discard", id=letter, why="x"),
        browser.post("/letters/replay", id=letter),
        *(
            browser.post(f"/letters/groups/{group.fingerprint}/{what}", value="x")
            for what in ("note", "owner", "fixed")
        ),
    ]

    assert {answer.status_code for answer in answers} == {403}
    assert lab.ids() == [letter]
    assert lab.console.actions() == []


@pytest.mark.parametrize("path", ["/letters/99", "/letters/groups/none", "/letters/x", f"/letters/{10**22}"])
def test_what_is_not_there_is_said_so(lab: LettersLab, path: str) -> None:
    assert lab.console.as_(Role.VIEWER).get(path).status_code == 404


def test_an_editor_changes_an_input_and_sends_the_order_round(lab: LettersLab) -> None:
    task = lab.dead(workflow="solid-invert", inputs={"color": 5, "width": 64, "note": "gone"})
    (letter,) = lab.ids()
    browser = lab.console.as_(Role.EDITOR, "ann")

    page = browser.get(f"/letters/{letter}/edit").text
    assert 'name="input.color" value="5"' in page
    assert "0 to 16777215, 3368601 when empty" in page
    typed = {"input.color": "x", "input.width": "64", "input.height": "", "input.note": ""}
    refused = browser.post(f"/letters/{letter}/edit", **typed)
    assert refused.status_code == 422
    assert "Nothing was changed: " in refused.text
    assert 'name="input.color" value="x"' in refused.text  # what was typed is not lost
    assert lab.row(task).status is Status.FAILED
    done = browser.post(f"/letters/{letter}/edit", **typed | {"input.color": "7", "why": "no such colour"})

    assert done.headers["Location"] == f"/orders/{task.id}"
    row = lab.row(task)
    assert (row.status, row.idempotency_key) == (Status.PENDING, task.idempotency_key)
    assert row.body is not None
    assert row.body["inputs"] == {"color": 7, "width": 64}
    (revision,) = lab.sql("select by_whom, diff from task_revisions")
    assert revision.by_whom == "ann"
    assert revision.diff == {"color": {"before": 5, "after": 7}, "note": {"before": "gone"}}


def test_only_an_editor_edits_and_only_what_has_inputs(lab: LettersLab) -> None:
    lab.dead(workflow="solid-invert", inputs={"color": 5})
    lab.unreadable()
    first, second = lab.ids()
    operator, editor = lab.console.as_(Role.OPERATOR), lab.console.as_(Role.EDITOR)

    assert operator.get(f"/letters/{first}/edit").status_code == 403
    assert operator.post(f"/letters/{first}/edit", **{"input.color": "7"}).status_code == 403
    assert "Edit and replay" not in operator.get(f"/letters/{first}").text
    assert "Edit and replay" in editor.get(f"/letters/{first}").text
    assert editor.get(f"/letters/{second}/edit").status_code == 404
