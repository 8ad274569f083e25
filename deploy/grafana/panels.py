"""Panels as plain dicts of Grafana's schema 39, laid out on its grid of 24 columns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

Json = dict[str, Any]

DATASOURCE: Final[Json] = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS: Final = 24

GREEN: Final = "green"
ORANGE: Final = "orange"
RED: Final = "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel.

    kind -- timeseries, stat, bargauge, table (one query, its labels are the columns) or text (no query, says is shown)
    queries -- (PromQL, legend); a legend takes {{label}}
    warn, alarm -- from these values on orange and red; a panel whose low values are bad has alarm_below instead
    colours -- of series whose legend is this text
    mapped -- a value, as text: what is shown for it, and in which colour
    leads_to -- uid of the dashboard that says more; for_label -- the variable there that takes this series' label
    """

    title: str
    says: str
    unit: str = "none"
    queries: Sequence[tuple[str, str]] = ()
    kind: str = "timeseries"
    warn: float | None = None
    alarm: float | None = None
    alarm_below: float | None = None
    stacked: bool = False
    maximum: float | None = None
    colours: dict[str, str] = field(default_factory=dict)
    mapped: dict[str, tuple[str, str]] = field(default_factory=dict)
    leads_to: str | None = None
    for_label: str | None = None

    def as_json(self, number: int, place: Json) -> Json:
        if self.kind == "text":
            return {
                "id": number,
                "type": "text",
                "title": self.title,
                "gridPos": place,
                "options": {"mode": "markdown", "content": self.says},
            }
        panel: Json = {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.says,
            "datasource": DATASOURCE,
            "gridPos": place,
            "targets": [
                {
                    "refId": chr(ord("A") + index),
                    "datasource": DATASOURCE,
                    "expr": query,
                    "legendFormat": legend,
                    "instant": self.kind != "timeseries",
                    "range": self.kind == "timeseries",
                    "format": "table" if self.kind == "table" else "time_series",
                }
                for index, (query, legend) in enumerate(self.queries)
            ],
            "fieldConfig": {"defaults": self._defaults(), "overrides": self._overrides()},
            "options": _OPTIONS[self.kind],
        }
        if self.kind == "table":
            panel["transformations"] = [{"id": "organize", "options": {"excludeByName": {"Time": True}}}]
        return panel

    def _defaults(self) -> Json:
        defaults: Json = {"unit": self.unit, "noValue": "–", "thresholds": self._thresholds()}
        if self.maximum is not None:
            defaults |= {"min": 0, "max": self.maximum}
        if self.mapped:
            options = {value: {"text": text, "color": colour} for value, (text, colour) in self.mapped.items()}
            defaults["mappings"] = [{"type": "value", "options": options}]
        if self.leads_to:
            chosen = f"var-{self.for_label}=${{__field.labels.{self.for_label}}}&" if self.for_label else ""
            url = f"/d/{self.leads_to}?{chosen}${{__url_time_range}}"
            defaults["links"] = [{"title": "Say more", "url": url}]
        if self.kind == "timeseries":
            has_line = self.warn is not None or self.alarm is not None
            defaults["min"] = 0
            defaults["custom"] = {
                "lineWidth": 1,
                "fillOpacity": 30 if self.stacked else 0,
                "showPoints": "never",
                "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
                "thresholdsStyle": {"mode": "dashed" if has_line else "off"},
            }
            defaults["color"] = {"mode": "palette-classic"}
        else:
            defaults["color"] = {"mode": "thresholds"}
        return defaults

    def _thresholds(self) -> Json:
        if self.alarm_below is not None:
            steps = [(None, RED), (self.alarm_below, GREEN)]
        else:
            bounds = [(self.warn, ORANGE), (self.alarm, RED)]
            steps = [(None, GREEN), *((bound, colour) for bound, colour in bounds if bound is not None)]
        return {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in steps]}

    def _overrides(self) -> list[Json]:
        return [
            {
                "matcher": {"id": "byName", "options": name},
                "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
            }
            for name, colour in self.colours.items()
        ]


_OPTIONS: Final[dict[str, Json]] = {
    "timeseries": {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background",
        "graphMode": "none",
        "textMode": "auto",
        "orientation": "auto",
    },
    "bargauge": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "displayMode": "basic",
        "orientation": "horizontal",
        "showUnfilled": True,
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
}


def rows(content: Iterable[tuple[str, int, Sequence[Panel]]]) -> list[Json]:
    """Each row a title, a height and panels of equal width, or nearly so; no two panels overlap."""
    made: list[Json] = []
    y = 0
    for title, height, panels in content:
        made.append(
            {
                "id": len(made) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"h": 1, "w": _COLUMNS, "x": 0, "y": y},
                "panels": [],
            }
        )
        edges = [_COLUMNS * index // len(panels) for index in range(len(panels) + 1)]
        for panel, (left, right) in zip(panels, pairwise(edges), strict=True):
            place = {"h": height, "w": right - left, "x": left, "y": y + 1}
            made.append(panel.as_json(len(made) + 1, place))
        y += 1 + height
    return made


def dashboard(uid: str, title: str, description: str, panels: list[Json], choices: Sequence[Json] = ()) -> Json:
    """A dashboard that nobody edits in the browser: the file is the truth. choices -- beside service and instance"""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["darkroom"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "15s",
        "timezone": "",
        "links": [{"type": "dashboards", "title": "darkroom", "tags": ["darkroom"], "asDropdown": True}],
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                choice("job", "Service", "label_values(darkroom_build_info, job)"),
                choice("instance", "Instance", 'label_values(darkroom_build_info{job=~"$job"}, instance)'),
                *choices,
            ]
        },
        "annotations": {
            "list": [
                {
                    "name": "Process starts",
                    "datasource": DATASOURCE,
                    "enable": True,
                    "iconColor": "blue",
                    "expr": 'time() - process_start_time_seconds{job=~"$job",instance=~"$instance"} < 60',
                    "titleFormat": "{{job}} started",
                    "textFormat": "{{instance}}",
                    "step": "15s",
                },
                {
                    "name": "Alerts",
                    "datasource": DATASOURCE,
                    "enable": True,
                    "iconColor": "red",
                    "expr": 'ALERTS{alertstate="firing",severity=~"page|ticket"}',
                    "titleFormat": "{{alertname}}",
                    "textFormat": "{{pool}} {{backend}} {{queue}}",
                    "step": "30s",
                },
            ]
        },
        "panels": panels,
    }


def choice(name: str, label: str, query: str) -> Json:
    """A variable that the reader sets, all values at first; query -- what lists them."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }
