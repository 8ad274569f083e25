"""What two transactions may do between each other's statements breaks nothing."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from shared.database.adopt import Refused, adopt
from shared.database.audit import Check, count_violations
from shared.database.claims import Claimed, ClaimResult, claim
from shared.database.slots import Slots, Taken
from shared.domain.outcome import FollowUp
from shared.domain.task import Reason, Status, Task
from tests.factories import MEASURED, POOL, Rows, a_claim
from tests.interleaved import Lane, interleaved


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    rows = Rows(database_url)
    rows.backends(gpu_1=1)
    yield rows
    rows.close()


@pytest.fixture
def lanes(database_url: str) -> Iterator[list[Lane[object]]]:
    lanes: list[Lane[object]] = [Lane(database_url) for _ in range(2)]
    yield lanes
    for lane in lanes:
        lane.close()


def test_a_slot_taken_while_adopt_waits_for_its_backend_is_counted(rows: Rows, lanes: list[Lane[object]]) -> None:
    failed = rows.moved(rows.submitting(), Status.FAILED, reason=Reason.OUTCOME_UNKNOWN)
    rows.tasks.clear_due([FollowUp(failed.id, failed.version)])
    rows.pending()

    def take(engine: sa.Engine) -> Taken:
        return Slots(engine, "taker", MEASURED).take(POOL, at_most=1, lease_seconds=60)

    def adopts(engine: sa.Engine) -> Task | Refused:
        return adopt(engine, failed, "job-7", "ann", "seen", default_deadline=60, tries=5)

    taken, adopted = interleaved(lanes, [take, adopts], [0, 1, 1])

    assert isinstance(taken, Taken)
    assert len(taken.tasks) == 1
    assert isinstance(adopted, Refused)
    assert rows.slots.backends()[0].in_flight == 1


@pytest.mark.parametrize("turns", [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0], [0, 1] * 6])
@pytest.mark.parametrize("order_id", [None, "o-2"])
def test_a_key_that_is_just_being_kept_with_another_task_makes_none_of_its_own(
    rows: Rows, lanes: list[Lane[object]], turns: list[int], order_id: str | None
) -> None:
    rows.pending(order_id="o-1")
    kept, other = a_claim(idempotency_key="k", order_id="o-1"), a_claim(idempotency_key="k", order_id=order_id)

    answers = interleaved(
        lanes, [lambda engine: claim(engine, [kept], "one"), lambda engine: claim(engine, [other], "two")], turns
    )

    results = {found.result for answer in answers for found in answer if isinstance(found, Claimed)}  # type: ignore[attr-defined]
    assert results in ({ClaimResult.ACTIVE_ORDER, ClaimResult.CONFLICT}, {ClaimResult.WON, ClaimResult.CONFLICT})
    assert count_violations(rows.engine, 3600)[Check.DUPLICATE_TASK] == 0
