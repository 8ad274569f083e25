"""Every state a protocol can reach, breadth first: what must never be, what must stay possible, and the way to it."""

from array import array
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)

#: One step from a state: what happens in words, whether nobody need be unlucky or act for it, and the state after.
Step = tuple[str, bool, S]


@dataclass
class Explored(Generic[S]):
    """What was found. broken -- what is wrong, the steps that lead there, and the state after each; None: nothing."""

    states: int = 0
    steps: int = 0
    broken: tuple[str, list[tuple[str, S]]] | None = None
    seen: dict[str, int] = field(default_factory=dict)

    def trace(self) -> str:
        """The counterexample for a person: one line per step with what the world looks like after it."""
        if self.broken is None:
            return "nothing is wrong"
        what, steps = self.broken
        lines = [f"{number:3}. {label}\n       {state}" for number, (label, state) in enumerate(steps)]
        return "\n".join(["", f"{what}, after {len(steps) - 1} steps:", *lines])


def explore(
    start: S,
    steps: Callable[[S], Iterable[Step[S]]],
    wrong: Callable[[S], str | None],
    is_settled: Callable[[S], bool],
    *,
    note: Callable[[S], str | None] = lambda _: None,
    at_most: int = 5_000_000,
) -> Explored[S]:
    """Stops at the first broken promise, whose way is then a shortest one.

    wrong      -- what is wrong with a state; nothing follows a wrong one
    is_settled -- states that every other one must be able to reach, by steps for which nobody need be unlucky
    note       -- a name for states worth counting; nothing follows them either
    at_most    -- more states than this mean that a bound is missing
    """
    number = {start: 0}
    ways = _Ways(start)
    states = ways.states
    sources, targets = array("l"), array("l")  # the steps for which nobody need be unlucky
    found: Explored[S] = Explored()
    todo = deque([0])
    while todo:
        here = todo.popleft()
        state = states[here]
        if what := wrong(state):
            found.states, found.broken = len(states), (what, ways.to(here))
            return found
        if name := note(state):
            found.seen[name] = found.seen.get(name, 0) + 1
            continue
        for label, is_own, after in steps(state):
            found.steps += 1
            there = number.get(after)
            if there is None:
                there = number[after] = ways.add(after, here, label)
                todo.append(there)
            if is_own:
                sources.append(here)
                targets.append(there)
        if len(states) > at_most:
            raise RuntimeError(f"more than {at_most} states: a bound is missing")
    found.states = len(states)
    stuck = next(_cannot_settle(states, sources, targets, is_settled, note), None)
    if stuck is not None:
        found.broken = "nothing can finish this any more", ways.to(stuck)
    return found


def _cannot_settle(
    states: list[S],
    sources: array,
    targets: array,
    is_settled: Callable[[S], bool],
    note: Callable[[S], str | None],
) -> Iterator[int]:
    """States from which no settled one can be reached, found backwards; those nearest to the start come first."""
    before: list[list[int]] = [[] for _ in states]
    for source, target in zip(sources, targets, strict=True):
        before[target].append(source)
    good = bytearray(len(states))
    todo = deque(here for here, state in enumerate(states) if is_settled(state) or note(state))
    for here in todo:
        good[here] = 1
    while todo:
        for there in before[todo.popleft()]:
            if not good[there]:
                good[there] = 1
                todo.append(there)
    return (here for here, is_good in enumerate(good) if not is_good)


class _Ways(Generic[S]):
    """Every state found, in the order of finding, and how it was come to first."""

    def __init__(self, start: S) -> None:
        self.states = [start]
        self._parents = array("l", [-1])
        self._labels = ["the start"]

    def add(self, state: S, parent: int, label: str) -> int:
        self.states.append(state)
        self._parents.append(parent)
        self._labels.append(label)
        return len(self.states) - 1

    def to(self, here: int) -> list[tuple[str, S]]:
        way = []
        while here >= 0:
            way.append((self._labels[here], self.states[here]))
            here = self._parents[here]
        return way[::-1]
