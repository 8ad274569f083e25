"""An ack covers what is done and nothing else, in as few frames as that takes."""

from hypothesis import given
from hypothesis import strategies as st

from shared.broker.tags import Tags


def test_what_is_done_in_a_row_takes_one_ack() -> None:
    tags = Tags()

    assert tags.ack([2, 1, 3]) == [(3, True)]
    assert tags.ack([4]) == [(4, False)]
    assert tags.ack([5, 6]) == [(6, True)]


def test_no_ack_reaches_over_a_delivery_that_is_still_in_hand() -> None:
    tags = Tags()

    assert tags.ack([1, 3, 4]) == [(1, False), (3, False), (4, False)]
    assert tags.ack([6]) == [(6, False)]
    assert tags.ack([2]) == [(2, False)], "the broker knows 4 no more, and refuses an ack for what it does not know"
    assert tags.ack([5, 7]) == [(7, True)]


@given(st.permutations(range(1, 13)), st.lists(st.integers(1, 5), min_size=12))
def test_in_any_order_and_any_sets_each_delivery_is_acked_once_and_not_before_it_is_done(
    order: list[int], sizes: list[int]
) -> None:
    tags, done, unacked = Tags(), set[int](), set(range(1, 14))  # 13 never came to us
    for size in sizes:
        together, order = order[:size], order[size:]
        done |= set(together)
        for tag, multiple in tags.ack(together):
            assert tag in unacked, "the broker closes the channel for an ack of what it does not know"
            unacked -= {each for each in unacked if each <= tag} if multiple else {tag}
        assert unacked == set(range(1, 14)) - done
