"""What becomes of the orders of a large data set: each fate as its moves, seconds from the moment its slot is free."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from shared.domain.letters import failure_fingerprint
from shared.domain.task import Reason, Stage, Status

#: A slot is one order's for so long; every fate is over by then, or goes on in this very moment.
TURN_SECONDS: Final = 60.0
_ACCEPTED_AFTER: Final = 0.3
_MADE_IN: Final = 9.0


@dataclass(frozen=True, slots=True)
class Step:
    """One move. at -- None: when the order came, before its turn"""

    at: float | None
    to: Status
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to die. tries -- attempts that it took; 0: none began. NUMBER stands for the order's."""

    reason: Reason
    stage: Stage
    weight: int
    tries: int
    detail: str

    def fingerprint(self, pool: str | None) -> str:
        return failure_fingerprint(self.reason, pool, self.detail.replace("NUMBER", "1"))


KINDS: Final = (
    Kind(Reason.REJECTED, Stage.SUBMIT, 30, 1, "400: node 4: not in list: ckpt_name: 'photo-NUMBER.safetensors'"),
    Kind(Reason.ATTEMPTS_EXHAUSTED, Stage.CHECK, 25, 5, "out of memory: tried to allocate NUMBER MiB"),
    Kind(Reason.EXECUTION_FAILED, Stage.CHECK, 14, 2, "node 7 (KSampler): expected 4 channels, got NUMBER"),
    Kind(Reason.INPUT_UNAVAILABLE, Stage.SUBMIT, 12, 1, "photo: https://shop.example/photos/NUMBER.jpg answers 404"),
    Kind(Reason.CONTENT_REJECTED, Stage.CHECK, 9, 1, "refused by the safety filter, request NUMBER"),
    Kind(Reason.DEADLINE, Stage.CHECK, 5, 0, "waited past its deadline, NUMBER seconds"),
    Kind(Reason.NO_OUTPUTS, Stage.CHECK, 3, 1, "job NUMBER ended without a picture"),
    Kind(Reason.OUTCOME_UNKNOWN, Stage.SUBMIT, 2, 1, "no answer within NUMBER ms, and the provider cannot be asked"),
)
#: Letters of messages that made no row.
ROWLESS: Final = (
    Kind(Reason.INVALID_MESSAGE, Stage.ORDERS, 1, 0, "order NUMBER: priority: Input should be 'normal' or 'high'"),
    Kind(Reason.CONFLICT, Stage.ORDERS, 1, 0, "the key of order NUMBER belongs to another order"),
)


@dataclass(frozen=True, slots=True)
class Attempt:
    started: float
    accepted: float | None
    ended: float | None
    outcome: str | None


@dataclass(frozen=True, slots=True)
class Fate:
    """kind -- of its dead letter; letter -- the state that is in"""

    name: str
    steps: tuple[Step, ...]
    kind: Kind | None = None
    letter: str | None = None

    @property
    def status(self) -> Status:
        return self.steps[-1].to

    @property
    def died_at(self) -> float | None:
        """When its letter was written; None: it came and went without a turn."""
        return next((step.at for step in self.steps if step.to is Status.FAILED), None)

    def attempts(self) -> list[Attempt]:
        found: list[Attempt] = []
        for step in self.steps:
            match step.to:
                case Status.SUBMITTING:
                    found.append(Attempt(step.at or 0.0, None, None, None))
                case Status.PROCESSING:
                    found[-1] = Attempt(found[-1].started, step.at, None, None)
                case _ if found and found[-1].ended is None:
                    last = found[-1]
                    found[-1] = Attempt(last.started, last.accepted, step.at, step.reason or str(step.to))
                case _:
                    pass
        return found


def _began(at: float) -> list[Step]:
    return [Step(at, Status.SUBMITTING), Step(at + _ACCEPTED_AFTER, Status.PROCESSING)]


def _died(kind: Kind) -> Iterator[Step]:
    yield Step(None, Status.PENDING)
    if kind.stage is Stage.SUBMIT:
        yield Step(0.0, Status.SUBMITTING)
        yield Step(2.0, Status.FAILED, kind.reason)
        return
    for number in range(kind.tries):
        yield from _began(10.0 * number)
        if number + 1 < kind.tries:
            yield Step(10.0 * number + 6, Status.PENDING, Reason.LOST)
    yield Step(10.0 * max(0, kind.tries - 1) + 6, Status.FAILED, kind.reason)


def _dead(kind: Kind) -> Iterator[Fate]:
    steps = tuple(_died(kind))
    yield Fate(f"{kind.reason}, open", steps, kind, "open")
    yield Fate(f"{kind.reason}, discarded", steps, kind, "discarded")
    again = (Step(48.0, Status.PENDING, "replay"), *_began(49.0), Step(49.0 + _MADE_IN, Status.COMPLETED))
    yield Fate(f"{kind.reason}, replayed", (*steps, *again), kind, "replayed")


_CAME: Final = Step(None, Status.PENDING)
MADE: Final = Fate("made", (_CAME, *_began(0), Step(_MADE_IN, Status.COMPLETED)))
RETRIED: Final = Fate(
    "made at the second try",
    (_CAME, *_began(0), Step(8.0, Status.PENDING, Reason.LOST), *_began(20), Step(20 + _MADE_IN, Status.COMPLETED)),
)
CANCELLED: Final = Fate("cancelled", (_CAME, *_began(0), Step(5.0, Status.CANCELLED, "requested")))
UNWANTED: Final = Fate("cancelled before its turn", (_CAME, Step(1.0, Status.CANCELLED, "requested")))
WAITING: Final = Fate("waiting", (_CAME,))
LEASED: Final = Fate("submitting", (_CAME, Step(0.0, Status.SUBMITTING)))
RUNNING: Final = Fate("processing", (_CAME, *_began(0)))
DEAD: Final[Sequence[Fate]] = [fate for kind in KINDS for fate in _dead(kind)]
FATES: Final[Sequence[Fate]] = [MADE, RETRIED, CANCELLED, UNWANTED, WAITING, LEASED, RUNNING, *DEAD]
