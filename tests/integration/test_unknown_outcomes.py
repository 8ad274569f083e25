"""An order of unknown outcome: one person decides, once, and it is kept."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from services.ops import unknown
from services.ops.closing import Closed
from services.ops.collector import Collector
from services.ops.replay import Item, Replayer
from shared.database.dead_letters import DeadLetters
from shared.database.replays import Replays
from shared.domain.messages import Message
from shared.domain.task import Reason, Stage, Status, Task
from shared.terminal import Quiet
from tests.factories import at_once
from tests.integration.rows_lab import Lab, letter_about

COMMAND = [sys.executable, "-m", "services.cli", "order", "give-up"]
ROOT = Path(__file__).parents[2]


class Desk:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.published: list[Message] = []
        self.letters = DeadLetters(lab.engine, "ana")
        self.replayer = Replayer(
            Replays(lab.engine, 3600.0),
            publish=self.published.extend,
            pools=["comfyui"],
            metrics=Quiet(),
        )

    def doubted(self, *, recorded: bool = True) -> Task:
        """An order that died of an unknown outcome while it was submitted."""
        task = self.lab.submitting()
        task = self.lab.paid(
            self.lab.end(
                task,
                Status.FAILED,
                reason=Reason.OUTCOME_UNKNOWN,
                detail="api: sent 1 time",
                stage=Stage.SUBMIT,
                charge=True,
                attempt_outcome=Reason.OUTCOME_UNKNOWN,
            )
        )
        if recorded:
            Collector(self.letters, self.lab.metrics).handle([letter_about(task)])
        return task

    def submit_again(self, task: Task, by: str = "ana") -> Item | str:
        return unknown.submit_again(self.letters, self.replayer, self.lab.row(task), by, "not in the console")

    def give_up(self, task: Task, by: str = "ana") -> Closed | str:
        return unknown.give_up(self.letters, self.lab.row(task), by, "the customer has left")

    def deeds(self) -> Sequence[tuple[str, str, str]]:
        rows = self.lab.sql("select by_whom, action, detail from operator_actions order by id")
        return [(row.by_whom, row.action, row.detail["why"]) for row in rows]


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    lab = Lab(database_url)
    yield Desk(lab)
    lab.close()


def test_submit_again_makes_a_new_attempt_and_keeps_who_and_why(desk: Desk) -> None:
    task = desk.doubted()

    assert isinstance(desk.submit_again(task), Item)

    row = desk.lab.row(task)
    assert (row.status, row.charged, row.attempt) == (Status.PENDING, 0, 1)
    assert [message.routing_key for message in desk.published] == ["submit.comfyui"]
    assert desk.deeds() == [("ana", "dead letter replay", "not in the console")]


def test_give_up_leaves_it_failed_and_closes_its_letter(desk: Desk) -> None:
    task = desk.doubted()

    assert isinstance(desk.give_up(task), Closed)

    assert desk.lab.row(task).status is Status.FAILED
    assert [row.state for row in desk.lab.sql("select state from dead_letters")] == ["discarded"]
    assert desk.deeds() == [("ana", "dead letter discard", "the customer has left")]


def test_of_several_people_at_the_same_moment_one_decides(desk: Desk) -> None:
    task = desk.doubted()

    answers = at_once(
        [lambda who=who: desk.submit_again(task, who) for who in ("a", "b")]  # type: ignore[misc]
        + [lambda who=who: desk.give_up(task, who) for who in ("c", "d")]  # type: ignore[misc]
    )

    assert sum(not isinstance(answer, str) for answer in answers) == 1
    assert len(desk.deeds()) == 1


def test_what_is_in_no_doubt_or_not_recorded_yet_cannot_be_decided(desk: Desk) -> None:
    sure = desk.lab.failed()
    assert "not in doubt" in str(desk.submit_again(sure))
    early = desk.doubted(recorded=False)
    assert "not recorded yet" in str(desk.give_up(early))
    assert desk.deeds() == []


def test_the_commands_decide_once_and_say_so(desk: Desk) -> None:
    task = desk.doubted()

    def give_up() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "services.cli",
                "order",
                "give-up",
                str(task.id),
                "--why",
                "x",
                "--by",
                "a",
                "--json",
            ],
            env=os.environ | {"DARKROOM_DATABASE_URL": desk.lab.url},
            cwd=ROOT,
            text=True,
            capture_output=True,
            check=False,
        )

    first, second = give_up(), give_up()

    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["result"] == "discarded"
    assert second.returncode == 1
    assert "already discarded by a" in second.stderr
