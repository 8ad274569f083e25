"""What the console's pages are made of: handed down from `__main__`, or put together by a test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from services.ops.exporter import Seen
from services.ops.replay import Replayer
from shared.domain.retry import RetryPolicy
from shared.providers.offered import Offered
from shared.storage import Artifacts


@dataclass(frozen=True, kw_only=True)
class Parts:
    """engine   -- the console's own: a slow page must not keep the collector waiting for a connection
    replayer -- sends letters round again, as for the CLI, over the connections of `engine`
    offered  -- what each pool takes from an order
    seen     -- what the exporter saw last, None before its first answer
    url      -- under which browsers reach the console when that is not the address it listens on
    """

    engine: sa.Engine
    store: Artifacts
    replayer: Replayer
    offered: Offered
    seen: Callable[[], Seen]
    pools: Sequence[str]
    retry: RetryPolicy
    default_deadline_seconds: float
    url: str | None = None
