"""At least 10,000 operations on rows from several connections at once, the promises asked after each step."""

import pytest

from shared.domain.task import LEGAL_MOVES
from tests.model.machine import drive

_OPERATIONS = 10_000


@pytest.mark.timeout(1800)
def test_no_mixture_of_transactions_breaks_a_promise_in_ten_thousand_steps(database_url: str) -> None:
    driven = drive(database_url, examples=300, rules=50)

    print(f"{driven.operations} operations, {len(driven.moves)} kinds of moves")
    assert driven.operations >= _OPERATIONS
    assert driven.moves <= {(str(before), str(after)) for before, after in LEGAL_MOVES}
    assert len(driven.moves) >= 10
