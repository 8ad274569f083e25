"""The Prometheus of docker-compose.yml, and the same configuration for servers on loopback."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml

CONFIG: Final = Path(__file__).with_name("prometheus.yml")

RECORDING: Final = Path(__file__).parent / "rules" / "recording.yml"

_BY_NAME: Final = re.compile(r"dns_sd_configs: \[\{names: \[([\w-]+)\].*")
_FIXED: Final = re.compile(r'static_configs: \[\{targets: \["([\w-]+):\d+"\]\}\]')
_NOBODY: Final = "static_configs: [{targets: []}]"
_INTERVALS: Final = re.compile(r"^(  (?:scrape|evaluation)_interval): .*$", re.MULTILINE)
_RECORDED: Final = re.compile(r"\b(?P<name>darkroom:[\w:]+)(?P<matchers>\{[^}]*\})?")
_SERIES: Final = re.compile(r"\bdarkroom_\w+")


def on_loopback(targets: Mapping[str, Sequence[str]], interval_seconds: int, alertmanagers: Sequence[str] = ()) -> str:
    """The text of prometheus.yml with these addresses, host:port, in place of each container's name.

    Raises KeyError for a container that `targets` leaves out.
    """

    def addresses(name: re.Match[str]) -> str:
        quoted = ", ".join(f'"{address}"' for address in targets[name[1]])
        return f"static_configs: [{{targets: [{quoted}]}}]"

    quoted = ", ".join(f'"{address}"' for address in alertmanagers)
    text = CONFIG.read_text(encoding="utf-8").replace(_NOBODY, f"static_configs: [{{targets: [{quoted}]}}]")
    text = _FIXED.sub(addresses, text)
    text = _BY_NAME.sub(addresses, text)
    return _INTERVALS.sub(rf"\1: {interval_seconds}s", text)


def recorded() -> dict[str, str]:
    """Name and expression of each recording rule."""
    groups = yaml.safe_load(RECORDING.read_text(encoding="utf-8"))["groups"]
    return {rule["record"]: rule["expr"] for group in groups for rule in group["rules"]}


def without_rules(query: str) -> str:
    """The query for a Prometheus that evaluates no rules: each recorded series written out as its expression.

    Raises KeyError for one that no rule records, ValueError for matchers on one that has matchers itself.
    """
    rules = recorded()

    def expression(found: re.Match[str]) -> str:
        written = without_rules(rules[found["name"]])
        if found["matchers"]:
            if "{" in written:
                raise ValueError(f"{found[0]}: its rule has matchers of its own")
            written = _SERIES.sub(rf"\g<0>{found['matchers']}", written)
        return f"({written})"

    return _RECORDED.sub(expression, query)
