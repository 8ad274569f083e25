"""The protocol of tests/model as far as a few minutes go: more tries, replays and adopted jobs at once."""

import pytest

from tests.model.explore import explore
from tests.model.protocol import Protocol


@pytest.mark.parametrize(
    ("protocol", "states"),
    [
        pytest.param(Protocol(pollers=1, busy=1, tries=2), 20_000, id="several attempts"),
        pytest.param(
            Protocol(submitters=1, pollers=1, tries=2, busy=1, replays=1, adopts=1, permits=True), 200_000, id="people"
        ),
        pytest.param(Protocol(orders=2, submitters=1, pollers=1, deadlines=False), 5_000, id="two orders"),
        pytest.param(Protocol(submitters=1, replays=1), 20_000, id="two pollers and a replay"),
    ],
)
def test_no_way_leads_to_a_second_job_a_lost_word_a_stuck_row_or_one_slot_too_many(
    protocol: Protocol, states: int
) -> None:
    found = explore(protocol.start(), protocol.steps, protocol.wrong, protocol.is_settled)

    print(f"{found.states} states, {found.steps} steps")
    assert found.broken is None, found.trace()
    assert found.states > states
