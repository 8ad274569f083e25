"""The quick copies of rules and routes that `make incident` runs with."""

from pathlib import Path

import yaml

from deploy.incident import scaled
from shared.terminal import seconds_of
from tests.observability.test_rules import ALERTS, amtool, promtool


def test_quick_rules_wait_for_a_twelfth_and_ask_the_same(tmp_path: Path) -> None:
    scaled.write_rules(tmp_path / "rules")
    files = sorted((tmp_path / "rules").glob("*.yml"))
    assert [file.name for file in files] == [file.name for file in sorted(scaled.RULES.glob("*.yml"))]
    promtool("check", "rules", *files)
    quick = {
        rule["alert"]: rule
        for file in files
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert {name: rule["expr"] for name, rule in quick.items()} == {n: rule["expr"] for n, rule in ALERTS.items()}
    for name, rule in ALERTS.items():
        for wait in {"for", "keep_firing_for"} & rule.keys():
            assert float(quick[name][wait].removesuffix("ms")) == round(seconds_of(rule[wait]) * 1000 / scaled.FACTOR)


def test_quick_routes_send_every_receiver_to_the_pager(tmp_path: Path) -> None:
    file = tmp_path / "alertmanager.yml"
    file.write_text(scaled.routes("http://127.0.0.1:1"))
    amtool("check-config", file)
    told = amtool("config", "routes", "test", f"--config.file={file}", "severity=ticket")
    assert told.strip() == "tickets"
    receivers = yaml.safe_load(file.read_text())["receivers"]
    assert {receiver["webhook_configs"][0]["url"] for receiver in receivers} == {
        f"http://127.0.0.1:1/{receiver['name']}" for receiver in receivers
    }
