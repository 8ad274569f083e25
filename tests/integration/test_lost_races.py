"""Moves that came too late: nobody's way on depends on their record, and the story of the order tells them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from services.cli import app
from services.ops.trace import events_of
from shared.database import audit, races
from shared.database.engine import connect
from shared.database.history import History, Story
from shared.database.purge import Purge
from shared.database.tasks import Tasks
from shared.database.users import Role
from shared.domain.task import Accepted, Reason, Status, Task
from tests.factories import MEASURED, Rows, a_change, at_once
from tests.integration.console_lab import ConsoleLab


class Lab(Rows):
    """Rows, and workers with connections of their own."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.backends(gpu_1=100)
        self._engines: list[sa.Engine] = []

    def worker(self, name: str) -> Tasks:
        self._engines.append(connect(self.url, pool_size=1))
        return Tasks(self._engines[-1], name, MEASURED)

    def story(self, task: Task) -> Story:
        story = History(self.engine).story(task.id)
        assert story is not None
        return story

    def close(self) -> None:
        for engine in self._engines:
            engine.dispose()
        super().close()


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


def test_of_two_connections_that_race_the_story_tells_who_won_and_who_came_too_late(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task = lab.processing(order_id="order-1")
    ways = {"one@a": a_change(task, Status.COMPLETED), "two@b": a_change(task, Status.FAILED)}
    workers = {name: lab.worker(name) for name in ways}

    moved = at_once([lambda n=name: (n, workers[n].move([ways[n]])) for name in ways])  # type: ignore[misc]

    (winner,) = [name for name, rows in moved if rows]
    (loser,) = ways.keys() - {winner}
    now, wanted = lab.now(task), ways[loser].to
    assert now.status is ways[winner].to
    story = lab.story(task)
    assert [(move.to_status, move.actor) for move in story.moves][-1] == (now.status, winner)
    (race,) = story.lost_races
    assert (race.actor, race.attempt) == (loser, 1)
    assert (race.expected_status, race.expected_version, race.wanted_status) == ("processing", task.version, wanted)
    assert (race.found_status, race.found_version) == (now.status, now.version)
    told = [(event.what, event.by) for event in events_of(story)]
    assert told[-2:] == [("move", winner), ("lost race", loser)], "in the order it happened"
    assert [finding for finding in audit.run_audit(lab.engine, _Nothing()) if "history" in finding.check] == []

    monkeypatch.setenv("DARKROOM_DATABASE_URL", lab.url)
    text = f"wanted processing → {wanted}"
    assert text in CliRunner().invoke(app, ["order", "trace", str(task.id)]).output
    (line,) = CliRunner().invoke(app, ["order", "trace", str(task.id), "--json"]).output.splitlines()
    fields = json.loads(line)
    assert [one["found_status"] for one in fields["lost_races"]] == [now.status]
    assert [event["by"] for event in fields["events"] if event["what"] == "lost race"] == [loser]
    console = ConsoleLab(lab.url, tmp_path)
    page = console.as_(Role.VIEWER).get(f"/orders/{task.id}").text
    console.close()
    assert re.search(rf'class="w-lost-race">.*?{text}.*?<small>by {loser}</small>', page, re.DOTALL)


class _Nothing:
    """A store without pictures."""

    def digest(self, key: str) -> str:
        raise FileNotFoundError(key)


def test_those_of_a_batch_that_came_in_time_are_moved_and_the_late_ones_kept(lab: Lab) -> None:
    first, second, third = (lab.pending() for _ in range(3))
    lab.take(1)

    moved = lab.tasks.move([a_change(task, Status.FAILED) for task in (first, second, third)])

    assert set(moved) == {second.id, third.id}
    (race,) = lab.story(first).lost_races
    assert (race.expected_status, race.found_status, race.reason) == ("pending", "submitting", Reason.BUG)
    assert (race.attempt, race.found_attempt) == (0, 1)
    assert lab.story(second).lost_races == []


def test_a_job_that_is_recorded_too_late_and_a_cancel_that_is_are_kept(lab: Lab) -> None:
    task = lab.submitting()
    lab.tasks.cancel(task.id)
    assert lab.tasks.record([(task, Accepted("job-1"))], 60.0) == [None]
    (race,) = lab.story(task).lost_races
    assert (race.wanted_status, race.found_status, race.reason) == ("processing", "cancelled", None)


def test_a_row_that_nobody_fights_about_costs_no_statement_more(lab: Lab) -> None:
    task = lab.processing()
    seen: list[str] = []
    sa.event.listen(lab.engine, "before_cursor_execute", lambda *given: seen.append(given[2]))
    lab.moved(task, Status.PENDING)
    assert len(seen) == 1
    seen.clear()
    assert lab.tasks.move([a_change(task, Status.PENDING)]) == {}
    assert len([statement for statement in seen if "savepoint" not in statement.lower()]) == 2


def test_a_record_that_cannot_be_written_is_lost_alone(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    late, other = lab.pending(), lab.pending()
    lab.take(1)
    lab.sql("alter table lost_races add constraint nothing_fits check (attempt > 99)")

    moved = lab.tasks.move([a_change(task, Status.FAILED) for task in (late, other)])

    assert set(moved) == {other.id}
    assert lab.now(other).status is Status.FAILED
    assert lab.sql("select 1 from lost_races") == []
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["lost race not kept"]


def test_of_each_task_the_last_few_are_kept(lab: Lab) -> None:
    task, other = lab.processing(), lab.processing()
    lab.moved(task, Status.PENDING)
    lab.moved(other, Status.PENDING)
    lab.tasks.move([a_change(other, Status.COMPLETED)])
    for number in range(races.KEPT + 5):
        lab.tasks.move([a_change(task, Status.CANCELLED, reason=f"reason {number}")])
    kept = lab.story(task).lost_races
    assert [race.reason for race in kept] == [f"reason {number}" for number in range(5, races.KEPT + 5)]
    assert len(lab.story(other).lost_races) == 1


def test_what_a_person_typed_is_kept_without_secrets(lab: Lab) -> None:
    task = lab.processing()
    lab.moved(task, Status.PENDING)
    lab.tasks.move([a_change(task, Status.CANCELLED, reason="see https://ann:hunter2@host/x?token=abc " + "x" * 999)])
    (race,) = lab.story(task).lost_races
    assert race.reason is not None
    assert "hunter2" not in race.reason
    assert "abc" not in race.reason
    assert len(race.reason) <= 201


def test_they_go_with_their_task(lab: Lab) -> None:
    task = lab.pending()
    lab.tasks.cancel(task.id)
    lab.tasks.move([a_change(task, Status.FAILED)])
    assert len(lab.story(task).lost_races) == 1
    lab.sql("update tasks set due_at = null, created_at = now() - interval '9 days'")
    lab.sql("update tasks set finished_at = now() - interval '8 days'")
    purge = Purge(lab.engine, 86_400.0)
    assert purge.tasks("ann", None)[0] == 1
    assert lab.sql("select (select count(*) from tasks) + (select count(*) from lost_races) as left")[0].left == 0
