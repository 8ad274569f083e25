"""Everything that moves rows, from several connections at once, chosen by hypothesis; the promises after every step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from services.ops.collector import letter_of
from shared.database.adopt import adopt
from shared.database.audit import Check, count_violations
from shared.database.dead_letters import DeadLetters
from shared.database.failures import after_failure
from shared.database.moves import Change
from shared.database.replays import Replays
from shared.database.slots import Slots
from shared.database.tasks import Tasks
from shared.domain.messages import Artifact, dead_letter
from shared.domain.outcome import FollowUp
from shared.domain.retry import RetryPolicy
from shared.domain.task import Accepted, Reason, Stage, Status, Task
from tests.factories import MEASURED, POOL, Rows, a_claim, delivered
from tests.interleaved import Died, Lane, interleaved

_LANES = 3
_RETRY = RetryPolicy(max_charged=2, first_seconds=0.0)
_OPERATIONS = (
    "claim", "take", "take", "may_post", "record", "record", "give_back", "fail", "read", "complete", "complete",
    "lose", "end", "cancel", "replay", "adopt", "take_due", "pay",
)  # fmt: skip
_Work = Callable[[sa.Engine], Any]

#: (what, which row or hand, a second choice, the statement it dies before, whether its answer is lost)
operations = st.tuples(
    st.sampled_from(_OPERATIONS),
    st.integers(0, 7),
    st.integers(0, 3),
    st.sampled_from([None, None, None, None, None, 0, 1, 2, 3, 4]),
    st.sampled_from([False, False, False, False, True]),
)


class Orders(RuleBasedStateMachine):
    """Workers' hands are rows as they were read, however long ago. `url` is set by whoever runs it."""

    url: ClassVar[str] = ""
    lanes: ClassVar[list[Lane[Any]]] = []
    steps: ClassVar[int] = 0
    moves: ClassVar[set[tuple[str, str]]] = set()

    @initialize()
    def begin(self) -> None:
        self.rows = Rows(self.url, threads=2)
        self.rows.sql(
            "truncate tasks, backends, duplicate_keys, task_moves, attempts, artifacts, dead_letters, replays,"
            " operator_actions cascade"
        )
        self.rows.backends(gpu_1=1, gpu_2=2)
        failed = self.rows.failed(self.rows.submitting(idempotency_key="k-0", order_id="o-1"))
        self.rows.tasks.clear_due([FollowUp(failed.id, failed.version)])
        self.hands: list[Task] = [
            self.rows.now(failed),
            self.rows.processing(idempotency_key="k-1", order_id="o-2"),
            self.rows.submitting(idempotency_key="k-2", order_id="o-3"),
            self.rows.pending(idempotency_key="k-3"),
        ]
        self.seen: dict[Any, sa.Row[Any]] = {}

    def teardown(self) -> None:
        if hasattr(self, "rows"):
            made = self.rows.sql("select distinct from_status, to_status from task_moves where from_status is not null")
            self.moves.update((row.from_status, row.to_status) for row in made)
            self.rows.close()

    @rule(
        chosen=st.lists(operations, min_size=1, max_size=_LANES),
        turns=st.lists(st.integers(0, _LANES - 1), max_size=14),
    )
    def at_once(self, chosen: list[tuple[str, int, int, int | None, bool]], turns: list[int]) -> None:
        """One to three transactions, statement by statement; some die, of some the answer is lost after the commit."""
        works = [self._work(what, which, other) for what, which, other, _, _ in chosen]
        deaths = [death for *_, death, _ in chosen]
        answers = interleaved(self.lanes, works, turns, deaths)
        for (what, *_, is_lost), answer in zip(chosen, answers, strict=True):
            if isinstance(answer, BaseException):
                assert isinstance(answer, Died), f"{what} raised {answer!r}"
            elif not is_lost:
                self.hands += [task for task in answer if isinstance(task, Task)] if isinstance(answer, list) else []
        del self.hands[:-12]
        type(self).steps += len(chosen)

    @rule(which=st.integers(0, 7), column=st.sampled_from(["free_at", "due_at", "deadline_at"]))
    def a_moment_comes(self, which: int, column: str) -> None:
        """The lease or a backoff ends, a row comes due, a deadline passes."""
        ids = [row.id for row in self._all()]
        if ids:
            self.rows.sql(
                f"update tasks set {column} = now() - interval '1 second' where id = :id and {column} is not null",  # noqa: S608
                id=ids[which % len(ids)],
            )
        type(self).steps += 1

    # --- what a worker or person does with the row it thinks it knows ---------------------------------------------

    def _work(self, what: str, which: int, other: int) -> _Work:
        hand = self.hands[-1 - which % len(self.hands)] if self.hands else None
        ids = [row.id for row in self._all()]
        some = ids[which % len(ids)] if ids else None

        def work(engine: sa.Engine) -> Any:
            tasks = Tasks(engine, "worker", MEASURED)
            match what:
                case "claim":
                    fields = {"idempotency_key": f"k-{which}", "order_id": [None, "o-1", "o-2", "o-3"][other]}
                    return [found.task for found in tasks.claim([a_claim(**fields)])]
                case "take":
                    return list(Slots(engine, "taker", MEASURED).take(POOL, at_most=1 + other, lease_seconds=60).tasks)
                case "take_due":
                    return tasks.take_due(5, 60)
                case _ if some is None:
                    return []
                case "read":
                    return list(tasks.get([some]).values())
                case "cancel":
                    return [tasks.cancel(some, "on request")]
                case "replay":
                    return self._replay(engine, tasks.get([some])[some])
                case "adopt":
                    row = tasks.get([some])[some]
                    return [adopt(engine, row, f"job-{other}", "ann", "seen", default_deadline=60, tries=2)]
                case _ if hand is None:
                    return []
                case _:
                    return _by_hand(tasks, what, hand, other)

        return work

    def _replay(self, engine: sa.Engine, row: Task) -> list[Task]:
        if row.status is not Status.FAILED:
            return []
        message = dead_letter(row)
        letters = DeadLetters(engine, "collector")
        letters.record([letter_of(delivered(message, queue=message.routing_key))])
        (found,) = self._letters(row) or [None]
        replay = Replays(engine, 3600.0).replay([found], "ann", {row.id: row.version}) if found is not None else None
        return [] if replay is None else list(Tasks(engine, "ann", MEASURED).get([row.id]).values())

    def _letters(self, row: Task) -> list[int]:
        statement = "select id from dead_letters where task_id = :id and attempt = :attempt order by id desc limit 1"
        return [found.id for found in self.rows.sql(statement, id=row.id, attempt=row.attempt)]

    # --- the promises ---------------------------------------------------------------------------------------------

    def _all(self) -> list[Any]:
        return list(self.rows.sql("select * from tasks order by created_at, id"))

    @invariant()
    def nothing_is_broken(self) -> None:
        if not hasattr(self, "rows"):
            return
        counts = count_violations(self.rows.engine, 3600)
        counts.pop(Check.ZOMBIE)  # moments are moved about here, so a debt looks older than it is
        assert not any(counts.values()), {str(check): count for check, count in counts.items() if count}
        for row in self._all():
            before = self.seen.get(row.id)
            if before is not None:
                _assert_follows(before, row)
            self.seen[row.id] = row
            assert row.told_at is None or row.status in {"completed", "failed", "cancelled"}
            assert row.due_at is not None or (row.told_at is not None and not row.cancel_owed), "owes, and is not due"
        sets = self.rows.sql("select t.attempt, count(distinct a.attempt) as sets, min(a.attempt) as first from tasks t"
                             " join artifacts a on a.task_id = t.id group by t.id, t.attempt")  # fmt: skip
        assert all((found.sets, found.first) == (1, found.attempt) for found in sets), "pictures of two attempts"


def _by_hand(tasks: Tasks, what: str, hand: Task, other: int) -> Any:
    """What a handler does with a row it read, maybe long ago. A move that no handler makes is not tried."""
    match what:
        case "may_post":
            tasks.may_post([(hand, "hash")], 60)
        case "record":
            if hand.status is Status.SUBMITTING:
                return tasks.record([(hand, Accepted(str(hand.job_key)))], 60)
        case "give_back":
            return _moved(tasks, Change(task=hand, to=Status.PENDING, attempt_outcome="not_created"), Status.SUBMITTING)
        case "fail":
            change = Change(task=hand, to=Status.FAILED, reason=Reason.BUG, stage=Stage.SUBMIT, cancel_owed=other == 1)
            return _moved(tasks, change, Status.PENDING if other == 2 else Status.SUBMITTING)
        case "complete":
            return _moved(
                tasks, Change(task=hand, to=Status.COMPLETED, artifacts=[_PICTURE], attempt_outcome="completed")
            )
        case "lose":
            return _moved(tasks, after_failure(hand, Reason.LOST, "gone", retry=_RETRY))
        case "end":
            late = Change(task=hand, to=Status.FAILED, reason=Reason.DEADLINE, stage=Stage.CHECK, cancel_owed=True)
            return _moved(tasks, late)
        case "pay":
            if hand.status.is_final:
                tasks.clear_due([FollowUp(hand.id, hand.version, still_owed=other == 1)])
    return []


_PICTURE = Artifact(index=0, key="a", sha256="0", bytes=1, media_type="image/png", width=1, height=1)


def _moved(tasks: Tasks, change: Change, expected: Status = Status.PROCESSING) -> list[Task]:
    return list(tasks.move([change]).values()) if change.task.status is expected else []


def _assert_follows(before: Any, row: Any) -> None:
    assert row.version >= before.version, "a version went back"
    assert row.attempt >= before.attempt, "an attempt went back"
    if row.version == before.version:
        assert row.status == before.status, "a status without a version"
        assert before.told_at is None or row.told_at == before.told_at, "what was told is told again"
    if before.status in {"completed", "cancelled"}:
        assert (row.status, row.version) == (before.status, before.version), "it had ended"


@dataclass(frozen=True)
class Driven:
    """operations -- how many; moves -- the legal moves that happened"""

    operations: int
    moves: frozenset[tuple[str, str]]


def drive(url: str, *, examples: int, rules: int) -> Driven:
    """Run the machine on the database at `url`, which it empties: so many runs of at most so many rules."""

    class Here(Orders):
        pass

    Here.url, Here.steps, Here.moves = url, 0, set()
    Here.lanes = [Lane(url) for _ in range(_LANES)]
    try:
        run_state_machine_as_test(
            Here,
            settings=settings(
                max_examples=examples,
                stateful_step_count=rules,
                deadline=None,
                phases=(Phase.generate,),  # shrinking takes minutes, and a failure prints its steps
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        for lane in Here.lanes:
            lane.close()
    return Driven(Here.steps, frozenset(Here.moves))
