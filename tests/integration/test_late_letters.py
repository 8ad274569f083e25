"""A letter that is recorded only after a person has named the job of its order: nothing is left to decide about it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from services.ops.collector import Collector
from shared.database.adopt import adopt
from shared.database.dead_letters import DeadLetters
from shared.database.letter_states import Deed, do
from shared.database.letters import LetterFilter
from shared.domain.task import Reason, Stage, Status, Task
from tests.integration.rows_lab import WAITING, Lab, a_delivery, letter_about
from tests.waiting import eventually


@pytest.fixture
def lab(database_url: str) -> Iterator[Lab]:
    lab = Lab(database_url)
    yield lab
    lab.close()


@pytest.fixture
def letters(lab: Lab) -> DeadLetters:
    return DeadLetters(lab.engine, "ops@test")


def test_the_letter_of_a_failure_that_was_adopted_before_it_came_is_closed_in_the_name_of_that_person(
    lab: Lab, letters: DeadLetters
) -> None:
    task = lab.failed()
    adopted = adopt(lab.engine, task, "job-1", "ann", "found it", default_deadline=60, tries=5)
    assert isinstance(adopted, Task)

    late = Collector(letters, lab.metrics)
    late.handle([letter_about(task)])
    late.handle([letter_about(task)])

    (letter,) = letters.page(LetterFilter(state=None))
    assert (letter.state, letter.closed_by) == ("replayed", "ann")
    assert letter.closed_at is not None


def test_an_adopted_order_that_fails_again_has_an_open_letter(lab: Lab, letters: DeadLetters) -> None:
    task = lab.failed()
    adopted = adopt(lab.engine, task, "job-1", "ann", "found it", default_deadline=60, tries=5)
    assert isinstance(adopted, Task)
    collector = Collector(letters, lab.metrics)
    collector.handle([letter_about(task)])
    again = lab.end(adopted, Status.FAILED, reason=Reason.LOST, detail="gone", stage=Stage(task.stage))

    collector.handle([letter_about(again)])

    (letter,) = letters.page(LetterFilter(state=None))
    assert (letter.state, letter.closed_by) == ("open", None)


def test_of_two_failures_of_one_attempt_only_the_letter_of_the_last_is_open(lab: Lab, letters: DeadLetters) -> None:
    """The first one came too late to be closed by whoever adopted, and nobody could ever decide about it."""
    task = lab.paid(
        lab.end(lab.submitting(), Status.FAILED, reason=Reason.OUTCOME_UNKNOWN, detail="lost", stage=Stage.SUBMIT)
    )
    adopted = adopt(lab.engine, task, "job-1", "ann", "found it", default_deadline=60, tries=5)
    assert isinstance(adopted, Task)
    again = lab.end(adopted, Status.FAILED, reason=Reason.LOST, detail="gone", stage=Stage.CHECK)

    Collector(letters, lab.metrics).handle([letter_about(task), letter_about(again)])

    first, second = sorted(letters.page(LetterFilter(state=None)), key=lambda letter: letter.stage, reverse=True)
    assert (first.stage, first.state, first.closed_by) == ("submit", "replayed", "ann")
    assert (second.stage, second.state) == ("check", "open")


def test_a_letter_recorded_while_a_person_adopts_waits_for_what_they_do(lab: Lab, letters: DeadLetters) -> None:
    """Each would miss what the other has not committed yet, and the letter would stay open."""
    task = lab.failed()
    with ThreadPoolExecutor(1) as threads, lab.engine.connect() as ann:
        ann.execute(sa.text("select 1 from tasks where id = :id for no key update"), {"id": task.id})
        recorded = threads.submit(Collector(letters, lab.metrics).handle, [letter_about(task)])
        eventually(lambda: lab.sql(WAITING), within=10, what="the collector waits")
        assert not recorded.done()
        ann.rollback()
        recorded.result(10)
    assert len(letters.page(LetterFilter())) == 1


def test_an_order_without_a_row_that_dies_once_more_is_open_again(lab: Lab, letters: DeadLetters) -> None:
    """Its sender was told, and placed the very same message again; nothing else would say that it died."""
    buried = {"x-death": [{"queue": "orders", "reason": "delivery_limit"}]}
    order = a_delivery(body=b'{"idempotency_key": "k"}', message_id="m-1", headers=buried)
    collector = Collector(letters, lab.metrics)
    collector.handle([order])
    collector.handle([order])
    (letter,) = letters.page(LetterFilter())
    assert letter.repeats == 0
    do(lab.engine, Deed.DISCARD, [letter.id], "ann", "told the shop")

    collector.handle([order])

    (again,) = letters.page(LetterFilter())
    assert (again.id, again.repeats, again.closed_by) == (letter.id, 1, None)
    assert again.at > letter.at
    (noted,) = lab.sql("select * from operator_actions where action = 'dead letter reopened'")
    assert (noted.by_whom, noted.detail["was"]) == ("ops@test", "discarded")
