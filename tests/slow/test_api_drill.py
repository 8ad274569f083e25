"""Death at every crash point that orders of image APIs come by."""

from collections.abc import Iterator

import pytest

from deploy.local import Stack
from tests.conformance.simulated_apis import simulated_apis
from tests.drill.apis import MATRIX, ApiLane
from tests.drill.matrix import Drill


@pytest.fixture(scope="module")
def lane(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLane]:
    with simulated_apis("--seconds-per-image", "0.5") as apis:
        lane = ApiLane(stack, tmp_path_factory.mktemp("lane"), apis)
        try:
            yield lane
        finally:
            lane.close()


@pytest.mark.parametrize("drill", MATRIX, ids=lambda drill: drill.name.replace(" ", "-"))
def test_no_order_has_two_jobs_and_none_is_lost(lane: ApiLane, drill: Drill) -> None:
    found = lane.run(drill)
    print(f"| `{drill.point}` | {drill.victim} | {found.orders} | {found.jobs} | {found.completed} | {found.unknown} |")
