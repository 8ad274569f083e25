"""One write for many threads: nobody waits without need, nobody suffers for another."""

import threading
from collections.abc import Sequence

import pytest

from shared.gathered import Gathered
from tests.factories import at_once
from tests.waiting import eventually


class Away(Exception):
    """The whole write did not happen."""


class Written:
    """Doubles numbers; the first write waits to be let go."""

    def __init__(self, *, waits: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.go_on = threading.Event()
        if not waits:
            self.go_on.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        assert self.go_on.wait(10)
        if 13 in items:
            raise ValueError("13")
        if 99 in items:
            raise Away
        return [2 * item for item in items]


def gathered(written: Written) -> Gathered[int, int]:
    return Gathered(written, passes=(Away,))


def all_at_once(written: Written, items: Sequence[int]) -> list[int | Exception]:
    """The first item's write is under way while the others arrive."""
    double = gathered(written)

    def ask(item: int) -> int | Exception:
        try:
            return double(item)
        except (ValueError, Away) as error:
            return error

    answers: list[int | Exception] = []
    first = threading.Thread(target=lambda: answers.append(ask(items[0])))
    first.start()
    eventually(lambda: written.batches, within=10)
    others = threading.Thread(target=lambda: answers.extend(at_once([lambda i=i: ask(i) for i in items[1:]])))  # type: ignore[misc]  # mypy cannot type a lambda with a default
    others.start()
    eventually(lambda: len(double._waiting) == len(items) - 1, within=10)
    written.go_on.set()
    first.join(10)
    others.join(10)
    return answers


def test_a_lone_caller_waits_for_nobody() -> None:
    written = Written()

    assert gathered(written)(4) == 8
    assert written.batches == [[4]]


def test_what_comes_during_a_write_goes_into_the_next_one_together() -> None:
    written = Written(waits=True)

    assert all_at_once(written, [1, 2, 3, 4]) == [2, 4, 6, 8]

    assert written.batches[0] == [1]
    assert sorted(written.batches[1]) == [2, 3, 4]
    assert len(written.batches) == 2


def test_a_poisoned_item_fails_alone() -> None:
    answers = all_at_once(Written(waits=True), [1, 13, 3])

    assert (answers[0], answers[2]) == (2, 6)
    assert isinstance(answers[1], ValueError)


def test_an_error_that_says_nothing_of_the_item_is_everybodys_and_not_tried_again() -> None:
    written = Written(waits=True)

    answers = all_at_once(written, [1, 99, 3])

    assert [type(answer) for answer in answers] == [int, Away, Away]
    assert len(written.batches) == 2


def test_an_answer_too_few_is_an_error_and_not_a_wrong_answer() -> None:
    with pytest.raises(RuntimeError, match="0 answers for 1 items"):
        Gathered[int, int](lambda _: [], passes=())(1)


def test_who_is_on_the_way_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.gathered.PATIENCE_SECONDS", 10.0)
    written = Written()
    double = gathered(written)
    began = threading.Event()

    def late() -> int:
        with double.on_the_way():
            began.set()
            eventually(lambda: double._waiting, within=10)
            return double(2)

    def early() -> int:
        assert began.wait(10)
        with double.on_the_way():
            return double(1)

    assert at_once([late, early]) == [4, 2]
    assert [sorted(batch) for batch in written.batches] == [[1, 2]]


def test_who_does_not_come_is_not_waited_for_long() -> None:
    written = Written()
    double = gathered(written)

    with double.on_the_way(), double.on_the_way():
        assert double(1) == 2

    assert written.batches == [[1]]
