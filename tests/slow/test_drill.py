"""Death at every crash point: `darkroom drill` as a test, and its table in docs/drill.md."""

import pytest

from tests.drill.matrix import MATRIX
from tests.drill.run import run


@pytest.mark.timeout(1800)
def test_a_death_at_any_crash_point_loses_nothing_and_doubles_nothing() -> None:
    reports, folder = run(MATRIX, told=lambda _: None)
    broken = [f"{report.drill.name}: {report.verdict}" for report in reports if not report.is_kept]
    assert not broken, f"{broken}; the logs are in {folder}"
    assert [report.deaths >= 1 for report in reports] == [True] * len(MATRIX)
