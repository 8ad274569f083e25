"""Every shipped table when nobody knows what became of the POST: at most one job is made, whatever is lost where.

replicate's list proves what is there and what is not. fal's proves what is there. The others cannot be asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from shared.domain.task import Reason, Status, Task
from tests.conformance.simulated_apis import SimulatedApis, quick_apis
from tests.conformance.table_lab import PLACES, TableLab
from tests.integration.api_lab import SHIPPED

#: What goes wrong with the POST -> how the simulator is told to, and whether it has made the job then.
DOUBTS: Final[dict[str, tuple[dict[str, Any], bool]]] = {
    "the line breaks before the order is read": ({"drop_before_read": {}}, False),
    "the line breaks when the job is made": ({"drop_after_accept": {}}, True),
    "an error of the server's": ({"answer_500": {}}, False),
    "an error of the server's when the job is made": ({"answer_500": {"queue": True}}, True),
    "the page of a proxy": ({"garbage": {"kind": "html"}}, False),
    "half an answer": ({"garbage": {"kind": "cut_json"}}, True),
    "an answer that comes too late": ({"slow": {"seconds": 3.0}}, True),
}


@pytest.fixture(scope="module")
def _apis() -> Iterator[SimulatedApis]:
    """Of this file alone: a list that shows another's jobs of the same minute, some without a seed, proves nothing."""
    with quick_apis() as running:
        yield running


@pytest.fixture(params=sorted(SHIPPED))
def lab(request: pytest.FixtureRequest, one_database: str, apis: SimulatedApis) -> Iterator[TableLab]:
    lab = TableLab(one_database, request.param, apis)
    yield lab
    lab.close()


def ends_honestly(lab: TableLab, task: Task, *, made: bool, posts: int = 1) -> None:
    """posts -- how many had been sent when the doubt arose"""
    row = lab.until(task, Status.COMPLETED, Status.FAILED)

    proves = lab.name == "replicate"
    if made and lab.name in ("replicate", "fal"):
        assert (row.status, lab.seen("posts"), lab.seen("jobs")) == (Status.COMPLETED, 1, 1)
    elif proves:
        assert (row.status, lab.seen("posts"), lab.seen("jobs")) == (Status.COMPLETED, posts + 1, 1)
    else:
        assert (row.reason, lab.seen("posts"), lab.seen("jobs")) == (Reason.OUTCOME_UNKNOWN, posts, int(made))
        assert "gpu-1: sent 1 time from " in (row.detail or "")
    assert row.attempt == 1, "a doubt never makes another attempt"


@pytest.mark.parametrize("doubt", DOUBTS)
def test_an_answer_that_is_lost_never_makes_a_second_job(lab: TableLab, doubt: str) -> None:
    faults, made = DOUBTS[doubt]
    where = {"paths": [f"/{PLACES[lab.name].split('/')[1]}/*"], "methods": ["POST"], "times": 1}
    lab.apis.faults(**{name: where | more for name, more in faults.items()})

    ends_honestly(lab, lab.order(), made=made)


@pytest.mark.parametrize("made", [False, True], ids=["before the POST", "after the POST"])
def test_a_worker_that_dies_of_the_call_never_makes_a_second_job(lab: TableLab, made: bool) -> None:
    ends_honestly(lab, lab.killed(after_the_post=made), made=made, posts=int(made))
