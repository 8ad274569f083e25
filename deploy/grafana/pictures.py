"""Pictures of the dashboards for docs/dashboards, drawn from their JSON: the same grid, queries, units and colours.

A picture carries the digest of the dashboard it shows, so a test can tell an old one.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from deploy.grafana.asked import Asked, Series
from deploy.grafana.panels import Json
from deploy.prometheus.story.world import BEGIN

_COLUMN, _ROW = 0.62, 0.34  # inches of one cell of the grid
_DPI: Final = 80
_MOST_LINES: Final = 9
_COLOURS: Final = {
    "green": "#56a64b",
    "orange": "#ff9830",
    "red": "#e02f44",
    "yellow": "#e0b400",
    "blue": "#3274d9",
    "text": "#8e8e8e",
}
_BACKGROUND: Final = "#f4f5f5"
_DIGEST: Final = "Description"
mpl.use("Agg")
mpl.rcParams["font.size"] = 7
mpl.rcParams["axes.edgecolor"] = "#c7c7c7"

Named = list[tuple[str, Series]]


def digest(board: str) -> str:
    """Of the text of a dashboard's file."""
    return hashlib.sha256(board.encode()).hexdigest()


def draw(board: Json, text: str, asked: Asked, file: Path) -> None:
    """Write the PNG of one dashboard. text -- the dashboard as its file has it"""
    places = [panel["gridPos"] for panel in board["panels"]]
    height = max(place["y"] + place["h"] for place in places) + 1
    figure = Figure(figsize=(24 * _COLUMN, height * _ROW), dpi=_DPI, facecolor=_BACKGROUND)
    figure.text(0.008, 1 - 0.55 / height, board["title"], fontsize=12, weight="bold", va="center")
    figure.text(0.3, 1 - 0.55 / height, board["description"], fontsize=9, va="center", color="#555555")
    for panel in board["panels"]:
        place = panel["gridPos"]
        left, top = place["x"] / 24, 1 - (place["y"] + 1) / height
        if panel["type"] == "row":
            figure.text(left + 0.008, top - 0.5 / height, panel["title"], fontsize=9, weight="bold", va="center")
            continue
        box = (left + 0.004, top - (place["h"] - 0.15) / height, place["w"] / 24 - 0.008, (place["h"] - 0.3) / height)
        frame = figure.add_axes(box, facecolor="white")
        frame.set_xticks([])
        frame.set_yticks([])
        figure.text(left + 0.009, top - 0.7 / height, panel["title"], fontsize=8, weight="bold", va="center")
        x, y, width, tall = box
        inner = (x + 0.035, y + 0.75 / height, width - 0.045, tall - 1.9 / height)
        if panel["type"] != "timeseries":
            inner = (x + 0.006, y + 0.2 / height, width - 0.012, tall - 1.2 / height)
        axes = figure.add_axes(inner, facecolor="white")
        _DRAWN[panel["type"]](axes, panel, _named(panel, asked))
    figure.savefig(file, metadata={"Software": None, _DIGEST: digest(text)})


def _named(panel: Json, asked: Asked) -> Named:
    return [
        (_legend(target["legendFormat"], series), series)
        for target in panel.get("targets", ())
        for series in asked.series(target["expr"], instant=target["instant"])
    ]


def _legend(form: str, series: Series) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda label: series.labels.get(label[1], ""), form).strip()


def shown(value: float, unit: str) -> str:
    """A value with its unit, as short as a panel has room for. Pure."""
    match unit:
        case "s" if abs(value) >= 90:
            return f"{value / 60:.3g} min"
        case "s" if 0 < abs(value) < 1:
            return f"{value * 1000:.3g} ms"
        case "s":
            return f"{value:.3g} s"
        case "percentunit":
            return f"{value * 100:.3g} %"
        case "bytes":
            return f"{value / 2**20:.4g} MiB"
        case "Bps":
            return f"{value / 2**10:.3g} KiB/s"
        case "ops":
            return f"{value:.2g}/s"
        case _:
            return f"{value:.4g}"


def _lines(axes: Axes, panel: Json, named: Named) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    fixed = {
        o["matcher"]["options"]: o["properties"][0]["value"]["fixedColor"] for o in panel["fieldConfig"]["overrides"]
    }
    times = sorted({at for _, series in named for at, _ in series.points})
    minutes = [(at - BEGIN) / 60 for at in times]
    colours = [_COLOURS[fixed[name]] if name in fixed else f"C{index % 10}" for index, (name, _) in enumerate(named)]
    columns = [[dict(series.points).get(at, float("nan")) for at in times] for _, series in named]
    if defaults["custom"]["stacking"]["mode"] == "normal":
        whole = [[0.0 if value != value else value for value in column] for column in columns]  # noqa: PLR0124 - NaN
        axes.stackplot(minutes, whole, colors=colours, alpha=0.6, labels=[name for name, _ in named])
    else:
        for (name, _), column, colour in zip(named, columns, colours, strict=True):
            axes.plot(minutes, column, color=colour, linewidth=0.9, label=name)
    top = max([value for column in columns for value in column if value == value] or [1.0])  # noqa: PLR0124 - NaN
    if defaults["custom"]["thresholdsStyle"]["mode"] != "off":
        for step in defaults["thresholds"]["steps"][1:]:
            if step["value"] <= 1.5 * top:
                axes.axhline(step["value"], color=_COLOURS[step["color"]], linewidth=0.8, linestyle="--")
    if defaults["custom"]["stacking"]["mode"] != "normal":
        axes.set_ylim(0, top * 1.15 or 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, defaults["unit"])))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda minute, _: f"{int(minute) // 60}:{int(minute) % 60:02}"))
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 3]))
    axes.grid(color="#ececec", linewidth=0.6)
    axes.tick_params(length=2, labelsize=6)
    axes.margins(x=0)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        if len(labels) > _MOST_LINES:
            labels = [*labels[: _MOST_LINES - 1], f"and {len(labels) - _MOST_LINES + 1} more"]
        axes.legend(handles[:_MOST_LINES], labels, loc="upper left", fontsize=5.5, frameon=False, ncol=2)


def _colour(value: float, defaults: Json) -> str:
    mapped = defaults.get("mappings", [{"options": {}}])[0]["options"].get(f"{value:g}")
    if mapped:
        return _COLOURS[mapped["color"]]
    reached = [s for s in defaults["thresholds"]["steps"] if s["value"] is None or s["value"] <= value]
    return _COLOURS[reached[-1]["color"]]


def _words(value: float, defaults: Json) -> str:
    mapped = defaults.get("mappings", [{"options": {}}])[0]["options"].get(f"{value:g}")
    return str(mapped["text"]) if mapped else shown(value, defaults["unit"])


def _stats(axes: Axes, panel: Json, named: Named) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    axes.axis("off")
    if not named:
        axes.text(0.5, 0.5, defaults["noValue"], ha="center", va="center", fontsize=16)
    down = 2 if len(named) > 4 else 1
    across = max(1, -(-len(named) // down))
    size = 16 if len(named) == 1 else max(6, 12 - across)
    for index, (name, series) in enumerate(named):
        value = series.points[-1][1]
        x, y = (index % across) / across, 1 - (index // across + 1) / down
        axes.add_patch(
            mpl.patches.Rectangle(
                (x + 0.004, y + 0.02), 1 / across - 0.008, 1 / down - 0.04, color=_colour(value, defaults)
            )
        )
        middle = x + 0.5 / across
        axes.text(
            middle, y + 0.6 / down, _words(value, defaults), ha="center", va="center", fontsize=size, color="white"
        )
        axes.text(middle, y + 0.2 / down, name, ha="center", va="center", fontsize=6, color="white")


def _bars(axes: Axes, panel: Json, named: Named) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    axes.axis("off")
    for index, (name, series) in enumerate(named):
        value, y = series.points[-1][1], 1 - (index + 0.5) / len(named)
        tall = 0.5 / len(named)
        axes.add_patch(mpl.patches.Rectangle((0.25, y - tall / 2), 0.6, tall, color="#e9e9e9"))
        filled = 0.6 * min(1.0, max(0.0, value / defaults.get("max", 1)))
        axes.add_patch(mpl.patches.Rectangle((0.25, y - tall / 2), filled, tall, color=_colour(value, defaults)))
        axes.text(0.24, y, name, ha="right", va="center")
        axes.text(0.87, y, shown(value, defaults["unit"]), va="center", fontsize=9)


def _table(axes: Axes, _: Json, named: Named) -> None:
    axes.axis("off")
    columns = sorted({label for _, series in named for label in series.labels})
    rows = [
        [series.labels.get(column, "") for column in columns] + [f"{series.points[-1][1]:g}"] for _, series in named
    ]
    for line, cells in enumerate([[*columns, "Value"], *rows[:8]]):
        for number, cell in enumerate(cells):
            x, weight = number / len(cells), "bold" if line == 0 else "normal"
            axes.text(x, 0.95 - line / 9, cell, va="center", fontsize=6.5, weight=weight)


def _text(axes: Axes, panel: Json, _: Named) -> None:
    axes.axis("off")
    axes.text(0, 1, panel["options"]["content"], va="top", fontsize=4.8, family="monospace", wrap=True)


_DRAWN: Final[dict[str, Callable[[Axes, Json, Named], Any]]] = {
    "timeseries": _lines,
    "stat": _stats,
    "bargauge": _bars,
    "table": _table,
    "text": _text,
}
