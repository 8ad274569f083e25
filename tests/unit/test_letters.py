"""What is read out of the words of a failure."""

import pytest

from shared.domain.letters import exception_of, gist

FRAMES = (
    "Traceback (most recent call last):\n"
    '  File "a.py", line 1, in f\n    g()\n  File "b.py", line 2, in g\n    raise x\n'
)


@pytest.mark.parametrize(
    ("detail", "found"),
    [
        (FRAMES + "KeyError: 'images'", "KeyError"),
        (
            FRAMES + "torch.OutOfMemoryError: no memory\n  in the second line of it\nand the third: too",
            "torch.OutOfMemoryError",
        ),
        (FRAMES + "SystemExit", "SystemExit"),
        (FRAMES + "ValueError: one\n\nDuring handling of it:\n\n" + FRAMES + "RuntimeError: two", "RuntimeError"),
        (FRAMES, None),
        ("node 7: KeyError: 'images'", None),
        ("", None),
        (FRAMES + "x" * 300 + ": too long to be a name", None),
    ],
)
def test_the_exception_is_the_one_behind_the_last_frame(detail: str, found: str | None) -> None:
    assert exception_of(detail) == found


@pytest.mark.parametrize(
    ("detail", "found"),
    [
        (FRAMES + "KeyError: 'images'", "KeyError: 'images'"),
        ("node 7\n  broke ", "node 7 broke"),
        ("x" * 41, "x" * 39 + "…"),
        ("", ""),
    ],
)
def test_the_gist_of_a_failure_is_one_short_line(detail: str, found: str) -> None:
    assert gist(detail, 40) == found
