"""What Ctrl-C and SIGTERM do to a long run of real servers: it ends once, in order, and leaves nothing running."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def interruptible() -> Iterator[None]:
    """The first SIGINT or SIGTERM raises KeyboardInterrupt here; later ones come while that ends everything."""
    seen = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        if not seen:
            seen = True
            raise KeyboardInterrupt

    # No SIG_IGN after the first: what is started to stop a server would inherit it.
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with(main: Callable[[], int], *problems: type[Exception]) -> NoReturn:
    """Run `main` and end this process with its status; 130 when interrupted.

    problems -- what ends it with one sentence, the exception's, and status 1
    """
    try:
        with interruptible():
            sys.exit(main())
    except problems as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit(130)
