"""Orders or backend, in sentences for people; the same for CLI and console. Pure."""

from collections.abc import Sequence

from shared.domain.attribution import Attribution, BackendMark, OrderMark

#: Ids named in one sentence.
_NAMED = 3


def sentences(found: Attribution) -> list[str]:
    """What is marked and why, the backends first; empty when nothing is."""
    return [*map(_of_backend, found.backends), *([_of_orders(found.orders)] if found.orders else [])]


def _of_backend(mark: BackendMark) -> str:
    others = ", ".join(mark.others)
    return (
        f"it is the backend {mark.backend}: {mark.failed} of {mark.tried} orders failed there,"
        f" {mark.others_failed} of {mark.others_tried} on {others} ({_some(list(map(str, mark.task_ids)))})"
    )


def _of_orders(marks: Sequence[OrderMark]) -> str:
    places = sorted({backend for mark in marks for backend in mark.outcomes})
    noun = "1 order failed" if len(marks) == 1 else f"{len(marks)} orders failed"
    return (
        f"it is the orders: {noun} on two or more of {', '.join(places)} and worked on none"
        f" ({_some([str(mark.task_id) for mark in marks])})"
    )


def _some(ids: Sequence[str]) -> str:
    more = len(ids) - _NAMED
    return "tasks " + ", ".join(ids[:_NAMED]) + (f" and {more} more" if more > 0 else "")
