"""The console's pages: what they say, how they are found, and foreign text that stays text."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.database.tasks import Tasks
from shared.database.users import Role
from shared.domain.task import Reason, Stage, Status, Task
from tests.factories import MEASURED, POOL, a_picture
from tests.integration.console_lab import ConsoleLab
from tests.integration.console_pages import read

#: Ends attributes and elements, is a template, a format and a link, turns the direction of reading.
HOSTILE = "\"'><x-evil onx=1></td></main>{{7*7}}%s<!--javascript:x\u202e\u0007"
#: The same as a person reads it.
SHOWN = HOSTILE.replace("\u202e", "\\u202e").replace("\u0007", "\\u0007")


@pytest.fixture
def lab(database_url: str, tmp_path: Path) -> Iterator[ConsoleLab]:
    lab = ConsoleLab(database_url, tmp_path)
    yield lab
    lab.close()


def a_hostile_order(lab: ConsoleLab) -> Task:
    """A failed order with HOSTILE wherever somebody else's words end up, with a picture, a letter and deeds."""
    lab.slots.sync([(HOSTILE, POOL, HOSTILE, HOSTILE, 2, 1800.0)])
    lab.tasks = Tasks(lab.engine, HOSTILE, MEASURED)
    task = lab.moved(lab.processing(), Status.FAILED, reason=Reason.BUG, detail=HOSTILE, stage=Stage.CHECK)
    picture = lab.store.put(task.id, 1, 0, a_picture())
    for statement in (
        "alter table task_moves disable trigger user",
        "update task_moves set reason = :evil",
        "update tasks set pool = :evil, reason = :evil, trace_id = :evil, provider_job_id = :evil,"
        " idempotency_key = :evil, order_id = :evil, body = jsonb_build_object('workflow', cast(:evil as text),"
        " cast(:evil as text), jsonb_build_array(cast(:evil as text)))",
        "update attempts set provider_job_id = :evil, outcome = :evil, detail = :evil, cost_actual = 1.5,"
        " cost_unit = :evil",
        "insert into duplicate_keys (idempotency_key, task_id, own_task_id, fingerprint, at)"
        " values (:evil, :id, gen_random_uuid(), 'f', now())",
        "insert into operator_actions (by_whom, action, subject, detail) values"
        " (:evil, :evil, cast(:id as text), jsonb_build_object('why', cast(:evil as text))),"
        " (:evil, :evil, :evil, jsonb_build_object(cast(:evil as text), cast(:evil as text)))",
        "insert into dead_letters (identity, task_id, attempt, stage, reason, detail, fingerprint, pool, headers)"
        " values ('i', :id, 1, 'check', :evil, :evil, 'f', :evil, '{}')",
        "insert into replays (dead_letter_id, by_whom, state, result, closed_at)"
        " select id, :evil, 'closed', :evil, now() from dead_letters",
        "insert into artifacts (task_id, attempt, index, key, sha256, bytes, media_type, width, height)"
        " values (:id, 1, 0, :key, 'x', :bytes, 'image/png', 8, 8)",
    ):
        lab.sql(statement, evil=HOSTILE, id=task.id, key=picture.key, bytes=picture.bytes)
    lab.slots.pause(HOSTILE, HOSTILE, HOSTILE, None)
    lab.exporter.turn()
    return lab.now(task)


def test_foreign_text_stays_text_on_every_page(lab: ConsoleLab) -> None:
    task = a_hostile_order(lab)
    browser = lab.as_(Role.EDITOR)

    for path in ("/", "/orders", f"/orders/{task.id}", "/backends", "/audit"):
        answer = browser.get(path)
        page = read(answer.text)
        assert answer.status_code == 200, path
        assert SHOWN in page.text, path
        assert not page.all("x-evil"), path
        assert "onx" not in page.attributes, path
        assert all(link.startswith(("/", "#")) for link in page.links), path
        for link in page.links:
            assert browser.get(link).status_code in (200, 303, 404), (path, link)


def test_whatever_somebody_types_into_a_filter_comes_back_as_text(lab: ConsoleLab) -> None:
    browser = lab.as_(Role.VIEWER)

    for path in ("/orders", "/audit"):
        for name in ("q", "pool", "subject", "by", "action"):
            answer = browser.ask("GET", path, params={name: HOSTILE})
            assert answer.status_code == 200
            assert not read(answer.text).all("x-evil"), (path, name)


def test_a_picture_is_served_as_one_and_as_nothing_else(lab: ConsoleLab) -> None:
    task = a_hostile_order(lab)
    browser = lab.as_(Role.VIEWER)

    answer = browser.get(f"/orders/{task.id}/pictures/1/0")

    assert answer.content == lab.store.read(f"{task.id}/1/0.png")
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert browser.get(f"/orders/{task.id}/pictures/1/1").status_code == 404
    assert browser.get(f"/orders/{task.id}/pictures/1/{2**40}").status_code == 404
