"""The promises hold after every step of transactions that overlap, die, and lose their answers; tests/slow goes on."""

import pytest

from tests.model.machine import drive


@pytest.mark.timeout(600)  # its transactions wait for each other's locks
def test_no_mixture_of_transactions_breaks_a_promise(database_url: str) -> None:
    driven = drive(database_url, examples=6, rules=25)

    assert driven.operations > 100
    assert len(driven.moves) >= 4
