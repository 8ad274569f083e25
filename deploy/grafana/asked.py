"""A private Prometheus that has scraped an afternoon, to be asked what the dashboards ask."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import requests

from deploy.prometheus import without_rules
from deploy.prometheus.story.blocks import served
from deploy.prometheus.story.world import AFTERNOON, AFTERNOON_MINUTES, AFTERNOON_STEP_SECONDS, BEGIN, World

_RATE_SECONDS: Final = 4 * AFTERNOON_STEP_SECONDS
_END: Final = BEGIN + AFTERNOON_MINUTES * 60


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a panel. points -- (Unix time, value), one point for a panel that shows one moment."""

    labels: dict[str, str]
    points: list[tuple[float, float]]


class Asked:
    """Answers of the Prometheus at this address."""

    def __init__(self, url: str) -> None:
        self._url = url

    def series(self, query: str, *, instant: bool) -> list[Series]:
        """In the order of their labels; without NaN. Raises requests.HTTPError for a query that is refused."""
        text = without_rules(at_this_moment(query))
        if instant:
            found = self._get("query", query=text, time=_END)
        else:
            found = self._get("query_range", query=text, start=BEGIN + 600, end=_END, step=AFTERNOON_STEP_SECONDS)
        series = [
            Series(one["metric"], [(at, float(v)) for at, v in one.get("values", [one.get("value")]) if v != "NaN"])
            for one in found
        ]
        return sorted((one for one in series if one.points), key=lambda one: sorted(one.labels.items()))

    def _get(self, what: str, **parameters: str | int) -> Any:
        answer = requests.get(f"{self._url}/api/v1/{what}", params=parameters, timeout=60)
        answer.raise_for_status()
        return answer.json()["data"]["result"]


@contextmanager
def scraped() -> Iterator[Asked]:
    """Writes the afternoon into blocks and serves them on loopback meanwhile. Raises StackProblem."""
    with served(World(AFTERNOON, AFTERNOON_MINUTES, AFTERNOON_STEP_SECONDS).text()) as url:
        yield Asked(url)


def at_this_moment(query: str) -> str:
    """The query as the browser sends it for everything, at the story's pace of scrapes. Pure."""
    return re.sub(r"\$(job|instance|backend)\b", ".*", query.replace("$__rate_interval", f"{_RATE_SECONDS}s"))
