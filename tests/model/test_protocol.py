"""Every state of the protocol within bounds: nothing is done twice, nothing is stuck, and each guard is needed for it.

tests/slow looks further. A failure prints a shortest way to what is wrong.
"""

import pytest

from tests.model.explore import Explored, explore
from tests.model.protocol import Protocol, World


def explored(protocol: Protocol) -> Explored[World]:
    return explore(protocol.start(), protocol.steps, protocol.wrong, protocol.is_settled, note=protocol.possible_double)


@pytest.mark.parametrize(
    ("protocol", "states"),
    [
        pytest.param(Protocol(), 15_000, id="two submitters and two pollers"),
        pytest.param(Protocol(submitters=1, pollers=1, permits=True, tries=2, cancels=False), 1_000, id="permits"),
        pytest.param(Protocol(submitters=1, pollers=1, replays=1, deadlines=False), 1_000, id="replay"),
        pytest.param(Protocol(submitters=1, pollers=1, adopts=1, deadlines=False), 1_000, id="adopt"),
        pytest.param(
            Protocol(pollers=1, tries=2, busy=1, cancels=False, deadlines=False), 1_000, id="several attempts"
        ),
        pytest.param(
            Protocol(orders=2, submitters=1, pollers=1, cancels=False, deadlines=False),
            500,
            id="orders for one slot",
        ),
    ],
)
def test_no_way_leads_to_a_second_job_a_lost_word_a_stuck_row_or_one_slot_too_many(
    protocol: Protocol, states: int
) -> None:
    found = explored(protocol)

    assert found.broken is None, found.trace()
    assert found.states > states


@pytest.mark.parametrize(
    ("protocol", "what"),
    [
        pytest.param(Protocol(without="the look at the lease", pollers=1), "two provider jobs", id="lease"),
        pytest.param(Protocol(without="due_at on final rows"), "nobody will ever say so", id="due_at"),
        pytest.param(Protocol(without="the version", busy=1, pollers=1), "a live job", id="version"),
        pytest.param(
            Protocol(without="asking first", pollers=1, cancels=False, deadlines=False), "two provider jobs", id="ask"
        ),
        pytest.param(
            Protocol(without="leaving silence to the lease", submitters=1, pollers=1, cancels=False, deadlines=False),
            "two provider jobs",
            id="silence",
        ),
        pytest.param(Protocol(without="cancel waits for the lease", pollers=1), "a live job", id="cancel"),
        pytest.param(Protocol(without="only the last owner settles", pollers=1), "a live job", id="settled"),
        pytest.param(Protocol(without="owed cancels count", orders=2), "more in flight", id="capacity"),
    ],
)
def test_without_this_guard_the_promise_breaks(protocol: Protocol, what: str) -> None:
    found = explored(protocol)

    assert found.broken is not None
    assert what in found.broken[0], found.trace()
    assert found.trace().count("\n") > 2 * len(found.broken[1])


@pytest.mark.parametrize("exception", ["slow_posts", "stalls"])
def test_a_post_past_its_lease_is_the_only_way_to_two_jobs_and_is_counted(exception: str) -> None:
    bounds = {"pollers": 1, "cancels": False, "deadlines": False}

    without, within = explored(Protocol(**bounds)), explored(Protocol(**bounds, **{exception: True}))

    assert without.broken is None, without.trace()
    assert within.broken is None, within.trace()
    assert without.seen == {}
    assert within.seen["possible_double"] > 0
