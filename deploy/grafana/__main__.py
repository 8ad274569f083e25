"""`python -m deploy.grafana` writes every dashboard again, with `--pictures` also docs/dashboards (`make dashboards`).

Tests fail when a file differs from what this makes, and when a picture shows another dashboard than the file.
"""

import json
import sys
from pathlib import Path
from typing import Final

from deploy.grafana.backend import backend
from deploy.grafana.dead_letters import dead_letters
from deploy.grafana.overview import overview
from deploy.grafana.panels import Json
from deploy.grafana.slo import slo
from deploy.grafana.workers import workers

FOLDER: Final = Path(__file__).parent / "dashboards"
PICTURES: Final = Path(__file__).parents[2] / "docs" / "dashboards"


def dashboards() -> list[Json]:
    """All of them, the one to begin with first. Pure."""
    return [overview(), backend(), dead_letters(), workers(), slo()]


def files() -> dict[str, str]:
    """Name and text of each dashboard's file. Pure."""
    return {f"{board['uid']}.json": json.dumps(board, indent=2, ensure_ascii=False) + "\n" for board in dashboards()}


def main(arguments: list[str]) -> None:
    """Write what is asked for."""
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    if "--pictures" in arguments:
        from deploy.grafana.asked import scraped  # noqa: PLC0415 - matplotlib alone takes a second
        from deploy.grafana.pictures import draw  # noqa: PLC0415

        with scraped() as asked:
            for board, text in zip(dashboards(), files().values(), strict=True):
                draw(board, text, asked, PICTURES / f"{board['uid']}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
