"""`python -m deploy.grafana` writes every dashboard again; a test fails when a file differs from what this makes."""

import json
from pathlib import Path
from typing import Final

from deploy.grafana.backend import backend
from deploy.grafana.dead_letters import dead_letters
from deploy.grafana.overview import overview
from deploy.grafana.panels import Json
from deploy.grafana.slo import slo
from deploy.grafana.workers import workers

FOLDER: Final = Path(__file__).parent / "dashboards"


def dashboards() -> list[Json]:
    """All of them, the one to begin with first. Pure."""
    return [overview(), backend(), dead_letters(), workers(), slo()]


def files() -> dict[str, str]:
    """Name and text of each dashboard's file. Pure."""
    return {f"{board['uid']}.json": json.dumps(board, indent=2, ensure_ascii=False) + "\n" for board in dashboards()}


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
