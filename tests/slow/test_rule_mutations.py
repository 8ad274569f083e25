"""Each alert with a changed threshold, aggregation, guard or wait fails its unit tests: none could be lost unnoticed.

All mutants of an alert run in one promtool, under names of their own, in the stories whose name begins with the
alert's. One that no story tells from the rule stands in ALIKE with the reason why it cannot.
"""

import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from deploy.local.install import prometheus
from tests.observability.test_rules import ALERTS, RULES, STORIES
from tests.slow.rule_mutants import mutants

_ZERO: Final = "values are never below 0, so their sum is above 0, or 0, exactly when the largest is"
_ONE: Final = "there is one series for each of these labels: one process, one node or one stage writes it"
_SUM, _MAX, _SECOND_SUM = "aggregation 1 is sum", "aggregation 1 is max", "aggregation 2 is sum"
_THIRD_SUM, _FOURTH_SUM, _SECOND_MAX = "aggregation 3 is sum", "aggregation 4 is sum", "aggregation 2 is max"
#: Alert -> change -> why nobody could tell the difference.
ALIKE: Final[dict[str, dict[str, str]]] = {
    "BackendDown": {_SUM: _ZERO},
    "BrokerAlarm": {_SUM: _ONE, _SECOND_SUM: _ONE},
    "BrokerAway": {_SUM: _ONE},
    "BrokerBlocked": {_SUM: _ONE},
    "CasForbidden": {_MAX: _ZERO},
    "DbDeadlocks": {_MAX: _ZERO},
    "DeadLettersOpen": {_MAX: _ONE, _SECOND_SUM: _ZERO},
    "DeadQueueNotDraining": {_SUM: _ZERO},
    "FollowUpsLate": {_SUM: _ZERO},
    "InvariantViolated": {_SUM: _ZERO},
    "LoopHung": {_SUM: _ONE},
    "OutcomeUnknown": {_MAX: _ZERO, _SECOND_SUM: _ZERO, "grouping 1, `max by (stage)`, is gone": _ZERO},
    "PossibleDouble": {_MAX: _ZERO},
    "QueueWithoutConsumer": {_MAX: _ONE, _SECOND_MAX: _ONE, _THIRD_SUM: _ZERO},
    "ResultsAtRisk": {_SUM: _ZERO},
    "RowsOverdue": {_SUM: _ZERO},
    "Stalled": {_MAX: _ZERO, _SECOND_MAX: _ZERO, _THIRD_SUM: _ZERO, _FOURTH_SUM: _ZERO},
    "UnknownStates": {_MAX: _ZERO},
}
_VALUES: Final = re.compile(r"values: ([^'}\n]+)")


def stories(alert: str) -> list[tuple[str, dict[str, Any]]]:
    """Evaluation interval and content of each story of the alert."""
    # `0x20` is twenty zeros to promtool, and 32 to YAML
    texts = [_VALUES.sub(r"values: '\1'", file.read_text()) for file in sorted(STORIES.glob("*.yml"))]
    files = [yaml.safe_load(text) for text in texts]
    return [
        (file["evaluation_interval"], story)
        for file in files
        for story in file["tests"]
        if re.match(rf"{alert} (fires|stays)\b", story["name"])
    ]


def asked_of(story: dict[str, Any], alert: str, names: list[str]) -> dict[str, Any]:
    """The story with its questions asked of each of these alerts."""
    quoted = f'alertname="{alert}"'
    questions = [
        {**question, "expr": question["expr"].replace(quoted, f'alertname="{name}"')}
        for question in story.get("promql_expr_test", ())
        for name in names
    ]
    alerts = [{**one, "alertname": name} for one in story.get("alert_rule_test", ()) for name in names]
    return {**story, "promql_expr_test": questions, "alert_rule_test": alerts}


@pytest.mark.parametrize("alert", sorted(set(ALERTS) - {"Watchdog"}))
def test_no_change_of_a_rule_goes_unnoticed(alert: str, tmp_path: Path) -> None:
    changed = [("nothing", dict(ALERTS[alert])), *mutants(ALERTS[alert])]
    names = {f"{alert}_{number:03}": what for number, (what, _) in enumerate(changed)}
    rules = [{**rule, "alert": name} for name, (_, rule) in zip(names, changed, strict=True)]
    recording = yaml.safe_load((RULES / "recording.yml").read_text())["groups"]
    groups = [*recording, {"name": "mutants", "rules": rules}]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": groups}))
    said = ""
    for number, interval in enumerate(dict.fromkeys(interval for interval, _ in stories(alert))):
        told = {
            "rule_files": ["rules.yml"],
            "evaluation_interval": interval,
            "group_eval_order": [group["name"] for group in groups],
            "tests": [asked_of(story, alert, list(names)) for its, story in stories(alert) if its == interval],
        }
        file = tmp_path / f"stories-{number}.yml"
        file.write_text(yaml.safe_dump(told))
        program = prometheus(print).with_name("promtool")
        answer = subprocess.run(
            [program, "test", "rules", file], capture_output=True, text=True, timeout=300, check=False
        )
        said += answer.stdout + answer.stderr
    noticed = set(re.findall(rf"\b{alert}_\d{{3}}\b", said))
    assert f"{alert}_000" not in noticed, f"the rule itself fails its stories: {said[:3000]}"
    unnoticed = {what for name, what in names.items() if name not in noticed and what != "nothing"}
    excused = set(ALIKE.get(alert, {}))
    assert unnoticed == excused, f"nobody notices these, or they are noticed now: {sorted(unnoticed ^ excused)}"
