"""Groups of dead letters: counted as letters come, described by people, opened again by the next failure."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from services.ops.closing import Closed, Closing, close, would_close
from services.ops.collector import Collector
from shared.database.attribution import read_attribution
from shared.database.dead_letters import DeadLetters
from shared.database.letter_groups import Group, GroupFilter, Groups, Standing
from shared.database.letter_states import Deed
from shared.database.letters import LetterFilter, Letters, Page
from shared.database.replays import Replays
from shared.domain.task import Reason, Task
from tests.factories import at_once
from tests.integration.rows_lab import Lab, a_delivery, letter_about


class Desk:
    """What comes from the dead queues, and what people see of it."""

    def __init__(self, url: str) -> None:
        self.lab = Lab(url)
        self.letters = DeadLetters(self.lab.engine, "ops@test")
        self.groups = Groups(self.lab.engine)
        self.collector = Collector(self.letters, self.lab.metrics)

    def died(self, *tasks: Task, version: str = "1.0") -> None:
        self.collector.handle([replace(letter_about(task), app_id=f"darkroom/{version}") for task in tasks])

    def group(self) -> Group:
        (group,) = self.groups.find(GroupFilter(only_open=False))
        return group

    def close(self, deed: Deed, *ids: int) -> list[Closing]:
        return results(close(self.letters, deed, ids, "ann", "because"))

    def deeds(self) -> list[tuple[str, str, str]]:
        rows = self.lab.sql("select by_whom, action, subject from operator_actions order by id")
        return [(row.by_whom, row.action, row.subject) for row in rows]


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    desk = Desk(database_url)
    yield desk
    desk.lab.close()


def results(items: Sequence[Closed]) -> list[Closing]:
    return [item.result for item in items]


def test_failures_of_one_kind_are_one_group_whatever_their_ids_and_numbers(desk: Desk) -> None:
    desk.died(desk.lab.failed(detail="node 7 broke"), desk.lab.failed(detail="node 12 broke"))
    desk.died(desk.lab.failed(detail="node 3 broke", workflow="other"))
    desk.died(desk.lab.failed(Reason.LOST, detail="gone"))
    first, second = desk.groups.find()
    assert (first.open, first.total, first.reason, first.pool) == (3, 3, "execution_failed", "comfyui")
    assert (first.backends, first.workflows, first.example) == (["gpu-1"], ["demo", "other"], "node 3 broke")
    assert first.first_at < first.last_at
    assert (second.open, second.reason, second.standing) == (1, "lost", Standing.UNFIXED)
    assert desk.groups.get(first.fingerprint) == first
    assert desk.groups.find(GroupFilter(workflow="other")) == [first]


def test_a_letter_that_comes_twice_counts_once_and_a_closed_one_stays_in_the_total(desk: Desk) -> None:
    task = desk.lab.failed()
    desk.died(task)
    desk.died(task)
    (letter_id,) = desk.letters.ids(LetterFilter())
    assert desk.close(Deed.DISCARD, letter_id) == [Closing.DISCARDED]
    assert desk.groups.find() == []
    assert (desk.group().open, desk.group().total) == (0, 1)


def test_what_people_say_of_a_group_stays_with_their_names(desk: Desk) -> None:
    desk.died(desk.lab.failed())
    name = desk.group().fingerprint
    assert desk.groups.note(name, "a bad node pack", "ann")
    assert desk.groups.own(name, "bob", "ann")
    assert desk.groups.fixed(name, "1.1", "bob")
    assert not desk.groups.note("no such group", "?", "ann")
    group = desk.group()
    assert (group.note, group.owner, group.fixed_in, group.standing) == ("a bad node pack", "bob", "1.1", "fixed")
    assert [action for _, action, _ in desk.deeds()] == [
        "dead letter group note",
        "dead letter group owner",
        "dead letter group fixed",
    ]


def test_a_later_failure_opens_a_fixed_group_again_once_and_says_so(desk: Desk) -> None:
    desk.died(desk.lab.failed())
    name = desk.group().fingerprint
    desk.groups.fixed(name, "1.1", "ann")
    desk.died(desk.lab.failed(Reason.LOST, detail="another kind"))
    assert desk.groups.get(name).standing is Standing.FIXED
    desk.died(desk.lab.failed(), version="1.1")
    desk.died(desk.lab.failed(), version="1.1")
    group = desk.groups.get(name)
    assert (group.standing, group.fixed_in, group.last_version, group.total) == ("reopened", "1.1", "1.1", 3)
    assert desk.deeds()[1:] == [("ops@test", "dead letter group reopened", name)]
    desk.groups.fixed(name, "1.2", "ann")
    assert desk.groups.get(name).standing is Standing.FIXED


def test_an_order_that_fails_again_at_another_attempt_says_how_often_it_came_back(desk: Desk) -> None:
    task = desk.lab.failed()
    desk.died(task)
    (letter_id,) = desk.letters.ids(LetterFilter())
    Replays(desk.lab.engine, 3600).replay([letter_id], "ann")
    (taken,) = desk.lab.take()
    again = desk.lab.paid(
        desk.lab.end(taken, task.status, reason=Reason.EXECUTION_FAILED, detail="node 8 broke", stage=task.stage)
    )
    desk.died(again)
    old, new = desk.letters.page(LetterFilter(state=None))
    assert (old.repeats, new.repeats, new.attempt) == (0, 1, 2)


def test_collectors_that_bring_letters_of_the_same_groups_at_once_lose_no_count(desk: Desk) -> None:
    tasks = [desk.lab.failed(detail=f"{word} broke") for word in ("gpu", "node", "disk") * 8]
    orders = (tasks, tasks[::-1], tasks[12:] + tasks[:12])
    at_once([lambda batch=batch: desk.died(*batch) for batch in orders])
    assert [(group.open, group.total) for group in desk.groups.find()] == [(8, 8)] * 3


def test_an_archived_letter_is_restored_but_not_when_its_order_has_moved_on(desk: Desk) -> None:
    moved, stays = desk.lab.failed(), desk.lab.failed()
    desk.died(moved, stays)
    desk.collector.handle([a_delivery(body=b"no order")])
    one, two, loose = desk.letters.ids(LetterFilter())
    assert desk.close(Deed.ARCHIVE, one, two, loose) == [Closing.ARCHIVED] * 3
    assert desk.close(Deed.DISCARD, two) == [Closing.REFUSED]
    assert desk.letters.ids(LetterFilter()) == []
    desk.lab.sql("update dead_letters set state = 'open' where id = :id", id=one)
    Replays(desk.lab.engine, 3600).replay([one], "ann")
    desk.lab.sql("update dead_letters set state = 'archived' where id = :id", id=one)
    assert desk.close(Deed.RESTORE, one, two, loose, 999) == [
        Closing.REFUSED,
        Closing.RESTORED,
        Closing.RESTORED,
        Closing.REFUSED,
    ]
    assert desk.letters.ids(LetterFilter()) == [two, loose]
    assert desk.deeds()[-2:] == [("ann", "dead letter restore", str(two)), ("ann", "dead letter restore", str(loose))]


def test_a_look_ahead_at_closing_says_what_it_would_do_and_changes_nothing(desk: Desk) -> None:
    desk.died(desk.lab.failed())
    (letter_id,) = desk.letters.ids(LetterFilter())
    assert results(would_close(desk.letters, Deed.ARCHIVE, [letter_id, 999], "why")) == ["archived", "refused"]
    assert results(would_close(desk.letters, Deed.RESTORE, [letter_id], "why")) == ["refused"]
    assert desk.deeds() == []


def test_pages_meet_without_a_gap_in_both_directions_while_letters_come(desk: Desk) -> None:
    letters = Letters(desk.lab.engine)
    desk.died(*(desk.lab.failed() for _ in range(5)))
    ids = letters.ids(LetterFilter())

    def page(**wanted: object) -> list[int]:
        return [letter.id for letter in letters.page(LetterFilter(), Page(limit=2, **wanted))]

    assert (page(), page(after=ids[1]), page(before=ids[3])) == (ids[:2], ids[2:4], ids[1:3])
    desk.died(desk.lab.failed())
    newest = letters.ids(LetterFilter())[::-1]
    assert page(newest_first=True) == newest[:2]
    assert page(newest_first=True, before=newest[1]) == newest[2:4]
    assert page(newest_first=True, after=newest[3]) == newest[1:3]


def test_a_filter_narrows_by_everything_it_names_and_its_window_does_not_move(desk: Desk) -> None:
    letters = Letters(desk.lab.engine)
    task = desk.lab.failed(order_id="o-1", detail="CUDA Out Of Memory")
    desk.died(task)
    desk.died(desk.lab.failed(workflow="other"))
    first, second = letters.ids(LetterFilter())
    assert letters.ids(LetterFilter(order_id="o-1")) == letters.ids(LetterFilter(text="Out Of Mem")) == [first]
    assert letters.ids(LetterFilter(workflow="other", backend="gpu-1")) == [second]
    assert letters.ids(LetterFilter(backend="gpu-2")) == letters.ids(LetterFilter(text="100%")) == []
    frozen = letters.frozen(LetterFilter(), 3600)
    desk.died(desk.lab.failed())
    assert letters.ids(frozen) == [first, second]
    assert letters.count(LetterFilter()) == 3


def test_orders_that_fail_on_one_server_and_not_on_the_other_mark_the_server(desk: Desk) -> None:
    desk.lab.slots.sync([(name, "comfyui", "comfyui", "http://127.0.0.1:1", 100, 60.0) for name in ("gpu-1", "gpu-2")])
    failed = [desk.lab.failed(Reason.LOST, detail="the job vanished") for _ in range(6)]
    desk.died(*failed)
    desk.lab.sql("update attempts set backend = 'gpu-1'")
    desk.lab.completed()
    desk.lab.sql("update attempts set backend = 'gpu-2' where outcome = 'completed'")
    (window,) = desk.lab.sql("select now() - interval '1 hour' as since, now() as until")
    found = read_attribution(desk.lab.engine, window.since, window.until, desk.group().fingerprint)
    (mark,) = found.backends
    assert (mark.backend, mark.failed, mark.tried, mark.others_failed, mark.others_tried) == ("gpu-1", 6, 6, 0, 1)
    assert list(mark.task_ids) == sorted(task.id for task in failed)
    assert read_attribution(desk.lab.engine, window.since, window.until, "another group").backends == []
