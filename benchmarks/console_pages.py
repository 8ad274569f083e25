"""Every page of the console as addresses that are measured, by route: a route without one fails the benchmark."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

from fastapi.routing import APIRoute

#: Not pages: what they send is as long as what they are asked for.
NOT_PAGES: Final = frozenset({"/letters/export", "/orders/{task_id}/pictures/{attempt}/{index}"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What stands in addresses: of rows that exist, the ones that ask most of a page.

    deep_order, deep_letter, deep_group, deep_action -- places half way down a list
    group        -- fingerprint of the largest
    story        -- the task with the longest story; order_id -- of one with a task
    planned, running, done -- plans of all letters
    half         -- a place in the middle of a plan's letters
    """

    deep_order: str
    deep_letter: int
    deep_group: int
    deep_action: int
    group: str
    reason: str
    backend: str
    workflow: str
    moment: str
    open_letter: int
    rowless_letter: int
    replayed_letter: int
    story: str
    waiting: str
    running_order: str
    completed: str
    failed: str
    cancelled: str
    order_id: str
    planned: int
    running: int
    done: int
    half: int


Named = Sequence[tuple[str, str]]


def _with(path: str, **query: object) -> str:
    return f"{path}?{urlencode({name: str(value) for name, value in query.items()})}"


def _plan(s: Samples) -> Named:
    found = []
    for name, plan in (("planned", s.planned), ("running", s.running), ("done", s.done)):
        path = f"/plans/{plan}"
        found += [
            (name, path),
            (f"{name}, half way down its letters", _with(path, after=s.half)),
            (f"{name}, letters that wait", _with(path, state="waiting")),
            (f"{name}, letters on their way", _with(path, state="sent")),
            (f"{name}, letters that completed, half way down", _with(path, result="completed", after=s.half)),
            (f"{name}, letters that failed", _with(path, result="failed")),
            (f"{name}, letters of no such end", _with(path, result="cancelled")),
        ]
    return found


def _letters(s: Samples) -> Named:
    path = "/letters/list"
    return [
        ("open", path),
        ("open, half way down", _with(path, before=s.deep_letter)),
        ("of any state", _with(path, state="any")),
        ("of any state, half way down", _with(path, state="any", before=s.deep_letter)),
        ("archived: none", _with(path, state="archived")),
        ("of one reason, half way down", _with(path, reason=s.reason, before=s.deep_letter)),
        ("of a step nothing died in", _with(path, state="any", stage="orders", reason=s.reason)),
        ("of a pool nobody has", _with(path, state="any", pool="nobodys")),
        ("of one backend and workflow", _with(path, state="any", backend=s.backend, workflow=s.workflow)),
        ("of two things that never met", _with(path, state="any", backend=s.backend, pool="nobodys")),
        ("since a moment half way", _with(path, state="any", since=s.moment)),
        ("until a moment half way, one reason", _with(path, state="any", until=s.moment, reason=s.reason)),
        ("of one order", _with(path, state="any", order=s.order_id)),
        ("of an order that is not there", _with(path, state="any", order="nothing-like-this")),
        ("of one task", _with(path, state="any", task=s.failed)),
        ("of one kind, half way down", _with(path, state="any", group=s.group, before=s.deep_group)),
        ("text with hits", _with(path, state="any", text="the")),
        ("text with hits, half way down", _with(path, state="any", text="the", before=s.deep_letter)),
        ("text without a hit", _with(path, state="any", text="nothing-like-this")),
        ("text without a hit among the open", _with(path, text="nothing-like-this")),
        ("text without a hit, half way down", _with(path, text="nothing-like-this", before=s.deep_letter)),
    ]


def _orders(s: Samples) -> Named:
    return [
        ("the newest", "/orders"),
        ("half way down", _with("/orders", before=s.deep_order)),
        ("completed, half way down", _with("/orders", status="completed", before=s.deep_order)),
        ("failed, of one pool, half way down", _with("/orders", status="failed", pool="comfyui", before=s.deep_order)),
        ("of one pool", _with("/orders", pool="fal")),
        ("of a pool nobody has", _with("/orders", status="failed", pool="nobodys")),
        ("found by the order's id", _with("/orders", q=s.order_id)),
        ("found by the task's id", _with("/orders", q=s.completed)),
        ("not found", _with("/orders", q="nothing-like-this")),
    ]


def _audit(s: Samples) -> Named:
    return [
        ("the newest", "/audit"),
        ("half way down", _with("/audit", before=s.deep_action)),
        ("of one action, half way down", _with("/audit", action="dead letter replay", before=s.deep_action)),
        ("of one person and action", _with("/audit", by="benchmark", action="plan make")),
        ("of a person and an action that never met", _with("/audit", by="benchmark", action="order cancel")),
        ("of nobody", _with("/audit", by="nobody")),
        ("of one subject", _with("/audit", subject=s.failed)),
        ("until a moment half way", _with("/audit", until=s.moment)),
        ("of one action in a window", _with("/audit", action="plan make", since=s.moment, until=s.moment)),
    ]


#: The path of each route, as the application has it -> what is measured of it.
PAGES: Final[Mapping[str, Callable[[Samples], Named]]] = {
    "/": lambda _: [("", "/")],
    "/login": lambda _: [("", "/login")],
    "/orders": _orders,
    "/orders/{task_id}": lambda s: [
        ("waiting", f"/orders/{s.waiting}"),
        ("running", f"/orders/{s.running_order}"),
        ("completed", f"/orders/{s.completed}"),
        ("failed", f"/orders/{s.failed}"),
        ("cancelled", f"/orders/{s.cancelled}"),
        ("a story of 1,000 attempts", f"/orders/{s.story}"),
    ],
    "/letters": lambda s: [
        ("with open letters", "/letters"),
        ("all ever", _with("/letters", show="all")),
        ("of one backend", _with("/letters", backend=s.backend)),
        ("of one reason, none", _with("/letters", reason=s.reason, pool="nobodys")),
    ],
    "/letters/list": _letters,
    "/letters/groups/{fingerprint}": lambda s: [
        ("the largest", f"/letters/groups/{quote(s.group)}"),
        ("the largest, any state", _with(f"/letters/groups/{quote(s.group)}", state="any")),
        ("the largest, half way down", _with(f"/letters/groups/{quote(s.group)}", before=s.deep_group)),
        ("the largest, archived: none", _with(f"/letters/groups/{quote(s.group)}", state="archived")),
    ],
    "/letters/{letter_id}": lambda s: [
        ("open", f"/letters/{s.open_letter}"),
        ("of a message without a row", f"/letters/{s.rowless_letter}"),
        ("replayed", f"/letters/{s.replayed_letter}"),
    ],
    "/letters/{letter_id}/edit": lambda s: [("", f"/letters/{s.open_letter}/edit")],
    "/plans": lambda s: [("the newest", "/plans"), ("further down", _with("/plans", before=s.done + 1))],
    "/plans/{plan_id}": _plan,
    "/backends": lambda _: [("", "/backends")],
    "/audit": _audit,
}


def routes_of(app: Any) -> Iterator[APIRoute]:
    """Every route, those of included routers too."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from routes_of(route.original_router)


def unmeasured(app: Any) -> set[str]:
    """Pages that the application has and nobody measures, and the other way round."""
    return {route.path for route in routes_of(app) if "GET" in route.methods} ^ (set(PAGES) | NOT_PAGES)
