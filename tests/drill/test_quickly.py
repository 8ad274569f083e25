"""Death at one crash point of each kind of process; tests/slow/test_drill.py dies at every point there is."""

from collections.abc import Iterator

import pytest

from deploy.local import Stack
from shared.observe.crash import CrashPoint
from tests.drill.lane import Lane
from tests.drill.matrix import MATRIX, Drill, Victim

#: One of each service and the command: killed with the work done and not told, or made and not written down. What a
#: submitter leaves that dies after its POST is in tests/e2e/test_killed.py.
QUICKLY = (
    (CrashPoint.CLAIM_COMMITTED, Victim.SUBMITTER),
    (CrashPoint.PICTURE_STORED, Victim.POLLER),
    (CrashPoint.LETTER_RECORDED, Victim.OPS),
    (CrashPoint.REPLAY_COMMITTED, Victim.COMMAND),
)
DRILLS = [drill for drill in MATRIX if (drill.point, drill.victim) in QUICKLY]


@pytest.fixture(scope="module")
def lane(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    lane = Lane(stack, tmp_path_factory.mktemp("lane"))
    yield lane
    lane.close()


@pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: drill.name.replace(" ", "-"))
def test_a_process_that_dies_there_loses_nothing_and_doubles_nothing(lane: Lane, drill: Drill) -> None:
    assert lane.run(drill).verdict == "kept"


def test_the_quick_drills_are_drills_of_the_matrix() -> None:
    assert len(DRILLS) == len(QUICKLY)
