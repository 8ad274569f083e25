"""Which bytes of a picture a request means."""

import pytest

from services.producer.ranges import NotSatisfiable, names, wanted_bytes

SIZE = 100


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("bytes=0-0", range(1)),
        ("bytes=0-", range(SIZE)),
        ("bytes=10-19", range(10, 20)),
        ("bytes=99-99", range(99, 100)),
        ("bytes=90-1000", range(90, 100)),
        ("bytes=-1", range(99, 100)),
        ("bytes=-1000", range(SIZE)),
        ("Bytes= 1 - 2", range(1, 3)),
    ],
)
def test_one_range_is_cut_to_the_picture(header: str, wanted: range) -> None:
    assert wanted_bytes(header, SIZE) == wanted


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=--1",
        "bytes=2-1",
        "bytes=0-1,3-4",
        "lines=0-1",
        "bytes=a-b",
        "bytes=٣-٤",
        f"bytes={'9' * 5000}-",
    ],
)
def test_what_is_no_single_range_means_the_whole(header: str | None) -> None:
    assert wanted_bytes(header, SIZE) is None


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_a_range_without_any_byte_cannot_be_satisfied(header: str) -> None:
    with pytest.raises(NotSatisfiable):
        wanted_bytes(header, SIZE)


@pytest.mark.parametrize(
    ("header", "is_named"),
    [
        (None, False),
        ("", False),
        ('"a"', True),
        ('W/"a"', True),
        ('"b", "a"', True),
        ("*", True),
        ("a", False),
        ('"b"', False),
    ],
)
def test_a_tag_is_named_alone_in_a_list_or_by_a_star(header: str | None, is_named: bool) -> None:
    assert names(header, '"a"') is is_named
