"""Letters before rows, letters by their ids: whoever takes them in another order ends as one half of a deadlock."""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from services.ops.collector import Collector
from shared.database.adopt import Refused, adopt
from shared.domain.task import Task
from tests.integration.plans_lab import PlansLab
from tests.integration.rows_lab import WAITING, letter_about
from tests.waiting import eventually


@pytest.fixture
def lab(database_url: str) -> Iterator[PlansLab]:
    lab = PlansLab(database_url)
    yield lab
    lab.close()


def while_held(lab: PlansLab, letter: int, work: Callable[[], object], then: str, id_: int | uuid.UUID) -> None:
    """Somebody replays: holds this letter, `work` waits for it, and what is locked next must be free."""
    with ThreadPoolExecutor(1) as threads, lab.engine.connect() as replay:
        replay.execute(sa.text(LETTER), {"id": letter})
        working = threads.submit(work)
        eventually(lambda: lab.sql(WAITING), within=10, what="the other waits")
        replay.execute(sa.text(f"{then} nowait"), {"id": id_})
        replay.rollback()
        working.result(10)


ROW = "select 1 from tasks where id = :id for no key update"
LETTER = "select 1 from dead_letters where id = :id for update"


def while_its_new_letter_is_held(lab: PlansLab, task: Task, work: Callable[[], object], before: str) -> None:
    """As `while_held`, with a letter that is recorded just before the statement of `work` in which this stands."""
    with ThreadPoolExecutor(1) as threads, lab.engine.connect() as replay:
        is_there = False

        def come_first(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            nonlocal is_there
            if before in statement and not is_there:
                is_there = True
                (letter,) = lab.bury(letter_about(task))
                replay.execute(sa.text(LETTER), {"id": letter})

        sa.event.listen(lab.engine, "before_cursor_execute", come_first)
        working = threads.submit(work)
        eventually(lambda: lab.sql(WAITING), within=10, what="the other waits")
        replay.execute(sa.text(f"{ROW} nowait"), {"id": task.id})
        replay.rollback()
        working.result(10)


def test_who_adopts_a_job_holds_no_row_while_it_waits_for_its_letter(lab):
    task = lab.failed()
    (letter,) = lab.bury(letter_about(task))

    def bob() -> None:
        adopted = adopt(lab.engine, task, "job-1", "bob", "found it", default_deadline=60, tries=5)
        assert not isinstance(adopted, Refused)

    while_held(lab, letter, bob, ROW, task.id)


def test_who_adopts_a_job_holds_no_row_while_it_waits_for_a_letter_that_came_meanwhile(lab):
    task = lab.failed()

    def bob() -> None:
        adopted = adopt(lab.engine, task, "job-1", "bob", "found it", default_deadline=60, tries=5)
        assert not isinstance(adopted, Refused)

    while_its_new_letter_is_held(lab, task, bob, before="t.id = %(id)s for no key update")
    assert [row.state for row in lab.sql("select state from dead_letters")] == ["replayed"]


def test_the_collector_takes_letters_in_the_order_of_their_ids(lab):
    tasks = sorted([lab.failed(), lab.failed()], key=lambda task: str(task.id), reverse=True)
    low, high = [lab.bury(letter_about(task))[0] for task in tasks]
    copies = [letter_about(task) for task in tasks]
    while_held(lab, low, lambda: Collector(lab.letters, lab.metrics).handle(copies), LETTER, high)


def test_the_collector_holds_no_row_while_it_waits_for_a_letter(lab):
    task, new = lab.failed(), lab.failed()
    (letter,) = lab.bury(letter_about(task))
    both = [letter_about(new), letter_about(task)]
    while_held(lab, letter, lambda: Collector(lab.letters, lab.metrics).handle(both), ROW, new.id)


def test_the_collector_holds_no_row_while_it_waits_for_a_letter_that_another_one_recorded_meanwhile(lab):
    task = lab.failed()
    collector = Collector(lab.letters, lab.metrics)
    while_its_new_letter_is_held(
        lab, task, lambda: collector.handle([letter_about(task)]), before="insert into dead_letters"
    )
    assert [row.repeats for row in lab.sql("select repeats from dead_letters")] == [0]
