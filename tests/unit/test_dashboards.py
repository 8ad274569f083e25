"""The dashboards: what is committed is what the generator makes, and every query asks for series that exist."""

import hashlib
import itertools
import json
import re
from typing import Any

import pytest
from PIL import Image

from deploy.grafana.__main__ import FOLDER, PICTURES, files
from deploy.prometheus import recorded, without_rules
from shared.observe.catalog import CATALOGUE, PREFIX, Kind, Metric

#: What others export, with the labels we use.
FOREIGN = {
    "rabbitmq_detailed_queue_messages_ready": {"queue"},
    "rabbitmq_detailed_queue_messages_unacked": {"queue"},
    "rabbitmq_detailed_queue_consumers": {"queue"},
    "rabbitmq_alarms_memory_used_watermark": set(),
    "rabbitmq_alarms_free_disk_space_watermark": set(),
    "process_start_time_seconds": set(),
    "process_resident_memory_bytes": set(),
    "process_cpu_seconds_total": set(),
    "process_open_fds": set(),
}
OURS = {PREFIX + metric.name: metric for metric in CATALOGUE}
FROM_THE_SCRAPE = {"job", "instance"}
BOARDS = {name: json.loads((FOLDER / name).read_text()) for name in sorted(path.name for path in FOLDER.glob("*.json"))}

_NAME = re.compile(r"\b(?:darkroom|rabbitmq|process|pg|up)_\w+")
_SELECTED = re.compile(r"(\w+)\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"')
_BY = re.compile(r"\bby \(([^)]*)\)")


PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] not in {"row", "text"}
]


def queries(panel: Any) -> list[str]:
    """As they are without recording rules, which a test of their own reads."""
    return [without_rules(target["expr"]) for target in panel["targets"]]


def metric_of(series: str) -> Metric | None:
    """The catalogue's row for a name in a query; None for a name of others. KeyError: nobody exports it."""
    if series in FOREIGN:
        return None
    base = re.sub(r"_(bucket|sum|count)$", "", series)
    return OURS[base if base in OURS and OURS[base].kind is Kind.HISTOGRAM else series]


def test_the_committed_files_are_what_the_generator_makes():
    made = files()
    assert {name: (FOLDER / name).read_text() for name in BOARDS} == made, "run `make dashboards`"


@pytest.mark.parametrize("name", BOARDS)
def test_the_picture_in_the_docs_shows_the_committed_dashboard(name):
    with Image.open(PICTURES / name.replace(".json", ".png")) as picture:
        drawn = picture.info["Description"]
    assert drawn == hashlib.sha256((FOLDER / name).read_bytes()).hexdigest(), "run `make dashboards`"


@pytest.mark.parametrize("panel", PANELS)
def test_every_series_and_label_value_in_a_query_exists(panel):
    for query in queries(panel):
        names = _NAME.findall(query)
        assert names
        for name in names:
            metric_of(name)
        for name, matchers in _SELECTED.findall(query):
            metric = metric_of(name)
            for label, text in _MATCHER.findall(matchers):
                if label in FROM_THE_SCRAPE:
                    continue
                if metric is None:
                    assert label in FOREIGN[name]
                    continue
                if label == "le":
                    assert float(text) in (metric.buckets or ())
                    continue
                known = metric.labels[label]
                assert not isinstance(known, tuple) or set(text.split("|")) <= set(known)


@pytest.mark.parametrize("panel", PANELS)
def test_every_label_that_a_query_or_a_legend_groups_by_exists(panel):
    for target in panel["targets"]:
        known = FROM_THE_SCRAPE | {"le"}
        expression = without_rules(target["expr"])
        for name in _NAME.findall(expression):
            metric = metric_of(name)
            known |= set(metric.labels) if metric else FOREIGN[name]
        grouped = {label.strip() for labels in _BY.findall(expression) for label in labels.split(",")}
        assert grouped <= known
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= grouped


@pytest.mark.parametrize("panel", PANELS)
def test_counters_are_read_as_rates_and_gauges_of_rows_are_never_summed_over_replicas(panel):
    for query in queries(panel):
        for name in _NAME.findall(query):
            metric = metric_of(name)
            if metric is None:
                continue
            window = r"\$__rate_interval|5m|10m|30m|1h|6h|3d|30d"
            is_rate = re.search(rf"(rate|increase)\({name}(\{{[^}}]*\}})?\[({window})\]\)", query)
            assert bool(is_rate) == (metric.kind is not Kind.GAUGE), name
            if metric.kind is Kind.GAUGE and metric.services == ("ops",):
                assert re.search(rf"(max|min)( by \([^)]*\))? \((time\(\) - )?{name}|max\({name}", query), query


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows_and_in_which_unit(panel):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert all(target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_panels_stand_beside_each_other_on_the_grid(board):
    places = [panel["gridPos"] for panel in board["panels"]]
    cells = [
        cell
        for place in places
        for cell in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("panel", PANELS)
def test_what_is_shown_live_is_a_rate_over_the_scrape_interval_unless_the_panel_names_its_window(panel):
    for target in panel["targets"]:
        windows = set(re.findall(r"\[([^\]]+)\]", target["expr"]))
        assert windows <= {"$__rate_interval", "10m", "1h", "30d"}
        said = f"{panel['title']} {panel['description']}".lower()
        names = {"10m": ("10 minutes", "ten minutes"), "1h": ("hour",), "30d": ("30 days",)}
        assert all(any(name in said for name in names[window]) for window in windows - {"$__rate_interval"}), said


def test_a_recorded_series_is_written_out_with_its_matchers():
    assert without_rules('darkroom:tasks:max{status="pending"} > 0') == (
        '(max by (pool, status) (darkroom_tasks{status="pending"})) > 0'
    )
    assert "darkroom:" not in without_rules(" + ".join(recorded()))
    with pytest.raises(ValueError, match="matchers of its own"):
        without_rules('darkroom:orders_finished:increase1h{pool="comfyui"}')
    with pytest.raises(KeyError):
        without_rules("darkroom:nothing:of_the_kind")


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_link_leads_to_a_dashboard_that_takes_what_it_is_given(board):
    uids = {other["uid"]: other for other in BOARDS.values()}
    for panel in board["panels"]:
        for link in panel.get("fieldConfig", {}).get("defaults", {}).get("links", ()):
            uid, _, query = link["url"].removeprefix("/d/").partition("?")
            chosen = {choice["name"] for choice in uids[uid]["templating"]["list"]}
            given = dict(re.findall(r"var-(\w+)=\$\{__field\.labels\.(\w+)\}", query))
            assert set(given) <= chosen
            assert all(f"{{{{{label}}}}}" in panel["targets"][0]["legendFormat"] for label in given.values())
            assert query.endswith("${__url_time_range}")
    assert board["links"] == [{"type": "dashboards", "title": "darkroom", "tags": ["darkroom"], "asDropdown": True}]
    assert board["tags"] == ["darkroom"]


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_dashboard_can_be_provisioned_and_lets_the_reader_choose(board):
    assert not board["editable"]
    assert board["schemaVersion"] == 39
    choices = [choice["name"] for choice in board["templating"]["list"]]
    assert choices[:3] == ["datasource", "job", "instance"]
    used = set(
        re.findall(
            r"\$(\w+)", " ".join(query for panel in board["panels"] if "targets" in panel for query in queries(panel))
        )
    )
    assert used - {"__rate_interval"} <= set(choices)
    assert set(choices[3:]) <= used
    assert "__inputs" not in board
