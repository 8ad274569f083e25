"""The closed sets that labels of metrics take their values from."""

import itertools
from typing import Final

from shared.domain.task import LEGAL_MOVES, Reason, Status
from shared.observe.metric import OTHER

STATUSES: Final = tuple(Status)
UNFINISHED = tuple(status for status in Status if not status.is_final)
_ILLEGAL = frozenset(itertools.product(STATUSES, repeat=2)) - LEGAL_MOVES
MOVES = frozenset(
    [(str(a), str(b), result) for a, b in LEGAL_MOVES for result in ("applied", "stale")]
    + [(str(a), str(b), "forbidden") for a, b in _ILLEGAL]
)

BACKEND_OPERATIONS = ("upload", "submit", "poll", "download", "cancel", "health")
BACKEND_RESULTS = ("ok", "timeout", "connect", "http_429", "http_4xx", "http_5xx", "bad_response", "other")

#: Parts of an order's way that add up to its duration, and `deliver` behind them, see shared/database/measured.py.
STEPS: Final = ("queue", "submit", "execute", "detect", "deliver")
#: Why a row that was free to start had to wait, see Slots.take.
WAITS: Final = ("permit", "slot", "rate", "closed")
#: What ended an attempt whose order goes on.
RETRY_REASONS: Final = (*Reason, "not_created", "out_of_memory", OTHER)
#: What a look at one job found.
JOB_STATES: Final = ("pending", "running", "done", "failed", "missing", "unknown")
#: Why a connection to the broker had to be opened again, see shared/broker/connection.py.
RECONNECTS: Final = ("heartbeat", "closed_by_broker", "given_up", "network")
#: Transactions that are timed, see shared/database/measured.py.
TRANSACTIONS: Final = ("claim", "take", "may_post", "move", "due", "follow_up")
#: What has become of a replay; published: its letter had no row, so its body went to `orders` again.
REPLAYS: Final = ("open", "completed", "failed", "cancelled", "published")
#: The loops that stamp themselves; shared/observe/health.py writes the gauge.
LOOPS: Final = ("consume", "schedule", "watch", "replay", "plans", "export", "canary")
#: What the exporter asks the database; each answer goes stale by itself.
QUESTIONS: Final = ("state", "invariants")
#: Whether a backend takes work, see Backend.state in shared/database/slots.py.
BACKEND_STATES: Final = ("working", "paused", "away")
#: Classes of SQLSTATE, see shared/database/engine.py.
DATABASE_ERRORS: Final = ("deadlock", "serialization", "lock_timeout", "disconnect", "other")
#: Bounds of a row's time, see shared/database/state.py.
BOUNDS: Final = ("lease", "poll", "deadline", "follow_up")
#: SQL questions whose answer must be 0, see shared/database/audit.py.
INVARIANTS: Final = (
    "duplicate_task",
    "duplicate_order",
    "double_submit",
    "lost_order",
    "missing_artifact",
    "missing_letter",
    "over_capacity",
    "zombie",
    "bad_history",
    "legal_moves",
)
