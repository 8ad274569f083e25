"""Which check replays which recorded exchange, and on which server."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.conformance.simulated import (
    HERE,
    Simulated,
    assert_same,
    replay,
)

INDEX = json.loads((HERE / "samples" / "index.json").read_text())

#: Recorded with --enable-assets, a SQLite catalogue of files which the simulator does not have.
NOT_REPLAYED = {
    "assets_features.json": "needs --enable-assets, which the simulator does not offer",
    "assets_history_success.json": "needs --enable-assets: output entries would carry an asset id",
    "assets_list_by_name.json": "needs --enable-assets: /api/assets is not imitated",
}

Replay = Callable[[Simulated], None]
REPLAYS: dict[str, tuple[str, Replay]] = {}


def replays(*names: str, on: str = "modern") -> Callable[[Replay], Replay]:
    """Mark what replays these samples, and on which server."""

    def remember(check: Replay) -> Replay:
        for name in names:
            assert name not in REPLAYS, name
            REPLAYS[name] = (on, check)
        return check

    return remember


def plainly(*names: str, on: str = "modern") -> None:
    """These samples need nothing to happen first."""
    for name in names:
        replays(name, on=on)(lambda server, name=name: assert_same(name, replay(server, name), server))  # type: ignore[misc]
