"""The rules and routes that ship, made quick: what they wait for is divided, what they mean stays."""

from pathlib import Path
from typing import Any, Final

import yaml

from shared.terminal import seconds_of

_DEPLOY: Final = Path(__file__).parents[1]
RULES: Final = _DEPLOY / "prometheus" / "rules"
ROUTES: Final = _DEPLOY / "alertmanager" / "alertmanager.yml"
#: So much shorter does an alert wait until it fires, and Alertmanager until it sends.
FACTOR: Final = 12
EVALUATION_SECONDS: Final = 1


def write_rules(folder: Path) -> None:
    """Copies of all rule files into the folder, in which every `for` and `keep_firing_for` is a twelfth."""
    folder.mkdir(parents=True)
    for file in sorted(RULES.glob("*.yml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for group in content["groups"]:
            for rule in group["rules"]:
                for name in ("for", "keep_firing_for"):
                    if name in rule:
                        rule[name] = _shorter(rule[name])
        (folder / file.name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def routes(receivers: str) -> str:
    """alertmanager.yml, its waits a twelfth, and each receiver a webhook at this address, under its own name."""
    content = yaml.safe_load(ROUTES.read_text(encoding="utf-8"))
    _shorten(content["route"])
    for receiver in content["receivers"]:
        hook = {"url": f"{receivers}/{receiver['name']}", "send_resolved": receiver["name"] != "watchdog"}
        receiver["webhook_configs"] = [hook]
    text: str = yaml.safe_dump(content, sort_keys=False)
    return text


def _shorten(route: dict[str, Any]) -> None:
    for name in ("group_wait", "group_interval"):  # repetitions stay rare: nobody waits for one here
        if name in route:
            route[name] = _shorter(route[name])
    for child in route.get("routes", ()):
        _shorten(child)


def _shorter(duration: str) -> str:
    seconds = 0.0 if duration == "0s" else seconds_of(duration)
    return f"{round(seconds * 1000 / FACTOR)}ms"
