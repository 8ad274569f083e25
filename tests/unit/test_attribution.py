"""Orders or backends: who is marked for what failed where."""

import uuid

from shared.domain.attribution import Attribution, Seen, attribute
from shared.domain.task import Reason

ORDERS = [uuid.UUID(int=number) for number in range(1, 100)]


def seen(
    backend: str,
    failed: list[uuid.UUID],
    tried: int,
    *,
    pool: str = "comfyui",
    outcome: str = "lost",
    recovered: tuple[uuid.UUID, ...] = (),
) -> Seen:
    return Seen(backend=backend, pool=pool, tried=tried, failed=dict.fromkeys(failed, outcome), recovered=recovered)


def backends(found: Attribution) -> list[str]:
    return [mark.backend for mark in found.backends]


def test_an_order_that_fails_on_two_backends_is_marked_and_neither_backend_is() -> None:
    found = attribute([seen("gpu-1", ORDERS[:1], 50), seen("gpu-2", ORDERS[:1], 50)])
    (mark,) = found.orders
    assert (mark.task_id, mark.outcomes) == (ORDERS[0], {"gpu-1": "lost", "gpu-2": "lost"})
    assert found.backends == []


def test_an_order_that_was_made_elsewhere_in_the_end_is_not_marked() -> None:
    found = attribute([seen("gpu-1", ORDERS[:1], 50), seen("gpu-2", ORDERS[:1], 50, recovered=(ORDERS[0],))])
    assert found.orders == []


def test_many_orders_that_fail_on_one_backend_and_not_on_others_mark_it_with_evidence() -> None:
    found = attribute([seen("gpu-2", ORDERS[:20], 25), seen("gpu-1", ORDERS[50:51], 30), seen("gpu-3", [], 30)])
    (mark,) = found.backends
    assert (mark.backend, mark.failed, mark.tried) == ("gpu-2", 20, 25)
    assert (mark.others, mark.others_failed, mark.others_tried) == (["gpu-1", "gpu-3"], 1, 60)
    assert mark.task_ids == ORDERS[:20]


def test_when_everything_fails_everywhere_no_backend_is_marked() -> None:
    assert backends(attribute([seen("gpu-1", ORDERS[:20], 20), seen("gpu-2", ORDERS[20:40], 20)])) == []


def test_a_few_failures_or_a_small_share_of_many_mark_nobody() -> None:
    assert backends(attribute([seen("gpu-1", ORDERS[:4], 4), seen("gpu-2", [], 50)])) == []
    assert backends(attribute([seen("gpu-1", ORDERS[:20], 60), seen("gpu-2", [], 50)])) == []


def test_poison_orders_are_not_held_against_the_backends_they_failed_on() -> None:
    found = attribute([seen("gpu-1", ORDERS[:10], 12), seen("gpu-2", ORDERS[:10], 100), seen("gpu-3", [], 50)])
    assert len(found.orders) == 10
    assert found.backends == []


def test_what_is_the_orders_own_fault_or_ours_is_not_held_against_a_backend() -> None:
    for outcome in (Reason.CONTENT_REJECTED, Reason.BUG):
        found = attribute([seen("fal", ORDERS[:20], 20, pool="fal", outcome=outcome), seen("gpu-1", [], 50)])
        assert found.backends == []


def test_the_only_backend_of_a_pool_is_compared_with_all_others_and_alone_with_nothing() -> None:
    fal = seen("fal", ORDERS[:20], 20, pool="fal", outcome="rejected")
    assert backends(attribute([fal, seen("gpu-1", [], 50), seen("gpu-2", [], 0)])) == ["fal"]
    assert backends(attribute([fal])) == []
