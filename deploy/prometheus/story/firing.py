"""Which alerts fire over a story, from when to when: promtool writes none into blocks, so each is asked for."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import requests
import yaml

from shared.terminal import seconds_of

ALERTS: Final = Path(__file__).parents[1] / "rules" / "alerts.yml"
#: Labels that every alert has, or that its name says already.
_SAID: Final = frozenset({"__name__", "severity", "team", "source", "instance"})


@dataclass(frozen=True, slots=True, order=True)
class Firing:
    """One alert from its first to its last minute. about -- its labels that tell it from others of its name"""

    first: int
    last: int
    alert: str
    about: str


def firings(url: str, begin: int, end: int, step_seconds: int) -> list[Firing]:
    """Every alert but Watchdog, as the rules that ship would have fired; minutes count from `begin`.

    Raises requests.HTTPError for an expression that is refused.
    """
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"] if rule["alert"] != "Watchdog"]

    def of(rule: Mapping[str, Any]) -> list[Firing]:
        span = {"start": begin, "end": end, "step": step_seconds}
        answer = requests.get(f"{url}/api/v1/query_range", params={"query": rule["expr"], **span}, timeout=120)
        answer.raise_for_status()
        wait, keep = (int(seconds_of(rule[name])) if name in rule else 0 for name in ("for", "keep_firing_for"))
        return [
            Firing((first - begin) // 60, (last - begin) // 60, rule["alert"], _about(series["metric"]))
            for series in answer.json()["data"]["result"]
            for first, last in spans([int(at) for at, _ in series["values"]], step_seconds, wait, keep)
        ]

    with ThreadPoolExecutor(4) as threads:
        return sorted(firing for found in threads.map(of, rules) for firing in found)


def spans(moments: Sequence[int], step: int, wait: int, keep: int) -> Iterator[tuple[int, int]]:
    """When an alert fires whose expression is true at these moments: after `wait`, and for `keep` after the last. Pure.

    It is pending again, and not firing, when it comes back after more than `keep`.
    """
    since: int | None = None
    last: int | None = None
    for at in moments:
        if last is not None and since is not None and at - last > step + (keep if last - since >= wait else 0):
            if last - since >= wait:
                yield since + wait, last + keep
            since = None
        since = at if since is None else since
        last = at
    if since is not None and last is not None and last - since >= wait:
        yield since + wait, last + keep


def _about(labels: Mapping[str, str]) -> str:
    return " ".join(value for name, value in sorted(labels.items()) if name not in _SAID)
