"""Rules and alerts: promtool reads them, each alert fires in one story and is silent in others, and has its runbook."""

import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from deploy.grafana.__main__ import FOLDER as DASHBOARDS
from deploy.local.install import alertmanager, prometheus
from deploy.prometheus import without_rules
from shared.observe.catalog import CATALOGUE, PREFIX, Kind

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
RULES: Final = DEPLOY / "prometheus" / "rules"
STORIES: Final = DEPLOY / "prometheus" / "tests"
ROUTES: Final = DEPLOY / "alertmanager" / "alertmanager.yml"
RUNBOOKS: Final = DEPLOY.parent / "docs" / "runbooks.md"

#: What the broker and Prometheus itself export, of what the rules read.
FOREIGN: Final = {
    "rabbitmq_detailed_queue_messages_ready",
    "rabbitmq_detailed_queue_consumers",
    "rabbitmq_alarms_memory_used_watermark",
    "rabbitmq_alarms_free_disk_space_watermark",
    "process_start_time_seconds",
}
_NAME: Final = re.compile(r"\b(?:darkroom|rabbitmq|process)_\w+")
_SELECTED: Final = re.compile(r"(darkroom_\w+)\{([^}]*)\}")
_MATCHER: Final = re.compile(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"')


@cache
def _read(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def _rules() -> list[dict[str, Any]]:
    return [rule for file in sorted(RULES.glob("*.yml")) for group in _read(file)["groups"] for rule in group["rules"]]


ALERTS: Final = {rule["alert"]: rule for rule in _rules() if "alert" in rule}


def promtool(*arguments: str | Path) -> str:
    """What it prints. AssertionError with that when it refuses."""
    program = prometheus(print).with_name("promtool")
    environment = os.environ | {"GOGC": "400"}  # Go cleans up less often: a fourth of the CPU time
    answer = subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, timeout=170, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def amtool(*arguments: str | Path) -> str:
    """The same for Alertmanager's tool."""
    program = alertmanager(print).with_name("amtool")
    answer = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_prometheus_takes_its_configuration_with_all_rules() -> None:
    told = promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    assert f"{len(_rules())} rules found" in told or all(file.name in told for file in RULES.glob("*.yml"))


@pytest.mark.parametrize("stories", ["alerts.yml", "hours.yml", "days.yml"])
def test_each_alert_fires_in_its_story_and_stays_silent_in_the_others(stories: str) -> None:
    promtool("test", "rules", STORIES / stories)


@pytest.mark.parametrize("stories", sorted(STORIES.glob("*.yml")), ids=lambda path: path.name)
def test_stories_name_all_groups_and_the_recording_ones_first(stories: Path) -> None:
    """promtool puts a group that is not named among the first, in any order, and alerts then read old values."""
    groups = [
        group["name"] for file in (RULES / "recording.yml", RULES / "alerts.yml") for group in _read(file)["groups"]
    ]
    assert _read(stories)["group_eval_order"] == groups


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_story_in_which_it_fires_and_one_in_which_it_does_not(alert: str) -> None:
    names = [story["name"] for file in STORIES.glob("*.yml") for story in _read(file)["tests"]]
    assert any(name.startswith(f"{alert} fires") for name in names)
    assert alert == "Watchdog" or any(name.startswith(f"{alert} stays silent") for name in names)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_is_wrong_and_where_to_look(alert: str) -> None:
    rule = ALERTS[alert]
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url", "dashboard"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{alert.lower()}"
    assert f"### {alert}\n" in RUNBOOKS.read_text()
    assert rule["labels"]["severity"] in {"page", "ticket", "none"}
    assert rule["labels"]["team"] == "darkroom"


@pytest.mark.parametrize("alert", sorted(set(ALERTS) - {"TargetDown", "Watchdog"}))
def test_an_alert_leads_to_a_dashboard_that_shows_what_it_reads(alert: str) -> None:
    uid = ALERTS[alert]["annotations"]["dashboard"].removeprefix("/d/")
    board = json.loads((DASHBOARDS / f"{uid}.json").read_text())
    shown = " ".join(without_rules(t["expr"]) for panel in board["panels"] for t in panel.get("targets", ()))
    assert _NAME.findall(without_rules(ALERTS[alert]["expr"]))[0] in _NAME.findall(shown)


def test_the_runbooks_have_no_section_for_an_alert_that_is_gone() -> None:
    assert set(re.findall(r"^### (\w+)$", RUNBOOKS.read_text(), re.MULTILINE)) == set(ALERTS)


@pytest.mark.parametrize("rule", _rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_reads_series_and_label_values_that_exist(rule: dict[str, Any]) -> None:
    ours = {PREFIX + metric.name: metric for metric in CATALOGUE}
    histograms = {name for name, metric in ours.items() if metric.kind is Kind.HISTOGRAM}
    recorded = {rule["record"] for rule in _rules() if "record" in rule}
    expression = rule["expr"]
    for name in _NAME.findall(expression):
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        assert name in ours or base in histograms or name in FOREIGN, name
    assert set(re.findall(r"\bdarkroom:[\w:]+", expression)) <= recorded
    for name, matchers in _SELECTED.findall(expression):
        metric = ours.get(name) or ours[re.sub(r"_(bucket|count|sum)$", "", name)]
        for label, text in _MATCHER.findall(matchers):
            if label == "le":
                assert float(text) in (metric.buckets or ())
                continue
            if label == "job":
                assert set(text.split("|")) <= set(metric.services)
                continue
            known = metric.labels[label]
            assert not isinstance(known, tuple) or set(text.split("|")) <= set(known)


def test_what_is_read_from_rows_is_marked_so_that_a_stale_exporter_silences_it() -> None:
    gauges = {PREFIX + m.name for m in CATALOGUE if m.kind is Kind.GAUGE and m.services == ("ops",)}
    gauges.discard("darkroom_state_last_success_timestamp_seconds")
    for name, rule in ALERTS.items():
        first = (_NAME.findall(rule["expr"]) or [""])[0]
        is_from_rows = first in gauges or rule["expr"].startswith("sum by (pool) (darkroom:tasks:max)")
        assert (rule["labels"].get("source") == "table") == is_from_rows, name


def test_pages_go_to_the_pager_and_tickets_do_not() -> None:
    amtool("check-config", ROUTES)
    routed = {
        severity: amtool("config", "routes", "test", f"--config.file={ROUTES}", f"severity={severity}").strip()
        for severity in ("page", "ticket")
    }
    assert routed == {"page": "pager", "ticket": "tickets"}
    told = amtool("config", "routes", "test", f"--config.file={ROUTES}", "alertname=Watchdog", "severity=none")
    assert told.strip() == "watchdog"


def test_an_inhibition_names_alerts_that_exist() -> None:
    for rule in yaml.safe_load(ROUTES.read_text())["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            if matcher.startswith("alertname"):
                assert set(re.findall(r"\w+", matcher.split("=", 1)[1])) <= set(ALERTS), matcher
