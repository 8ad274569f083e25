"""The tables as they are after all migrations, to be read; a test compares them with a migrated database.

The statements of this project are plain SQL: nothing is generated from here. What a column means is said in the
migrations, as comments in the database.
"""

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION, JSONB, TIMESTAMP

metadata: Final = sa.MetaData()

_MOMENT: Final = TIMESTAMP(timezone=True)
_FINAL: Final = "status in ('completed', 'failed', 'cancelled')"
_STARTED: Final = "status in ('submitting', 'processing')"


def _column(name: str, type_: Any, *rules: Any, key: bool = False, **more: Any) -> sa.Column[Any]:
    """A column that must be filled, unlike SQLAlchemy's own."""
    return sa.Column(name, type_, *rules, primary_key=key, **{"nullable": False} | more)


def _maybe(name: str, type_: Any, *rules: Any) -> sa.Column[Any]:
    return sa.Column(name, type_, *rules, nullable=True)


def _task(**more: Any) -> sa.Column[Any]:
    return _column("task_id", sa.Uuid, sa.ForeignKey("tasks.id"), **more)


backends: Final = sa.Table(
    "backends",
    metadata,
    _column("name", sa.Text, key=True),
    _column("pool", sa.Text),
    _column("adapter", sa.Text),
    _column("url", sa.Text),
    _column("capacity", sa.Integer, sa.CheckConstraint("capacity >= 1")),
    _column("max_run_seconds", DOUBLE_PRECISION, sa.CheckConstraint("max_run_seconds > 0")),
    _maybe("rate_starts", sa.Integer, sa.CheckConstraint("rate_starts >= 1")),
    _maybe("rate_seconds", DOUBLE_PRECISION, sa.CheckConstraint("rate_seconds > 0")),
    _column("enabled", sa.Boolean),
    _column("health", sa.Text, sa.CheckConstraint("health in ('up', 'down', 'frozen', 'refused', 'silent')")),
    _maybe("health_detail", sa.Text),
    _column("health_changed_at", _MOMENT),
    _maybe("paused_until", _MOMENT),
    _maybe("pause_reason", sa.Text),
    _maybe("result_ttl_seconds", DOUBLE_PRECISION, sa.CheckConstraint("result_ttl_seconds > 0")),
    _maybe("probe_at", _MOMENT),
    _maybe("probe_seconds", DOUBLE_PRECISION),
    _maybe("limit_now", sa.Integer, sa.CheckConstraint("limit_now >= 1")),
    _maybe("limit_since", _MOMENT),
    _maybe("limit_cut_at", _MOMENT),
    _column("doubts", sa.Integer, sa.CheckConstraint("doubts >= 0")),
    _maybe("doubted_at", _MOMENT),
    _maybe("gone_at", _MOMENT),
    sa.CheckConstraint("(rate_starts is null) = (rate_seconds is null)"),
    sa.CheckConstraint("limit_now is null or limit_since is not null"),
    sa.CheckConstraint("doubts = 0 or doubted_at is not null"),
)

capacities: Final = sa.Table(
    "capacities",
    metadata,
    _column("backend", sa.Text, sa.ForeignKey("backends.name"), key=True),
    _column("at", _MOMENT, key=True),
    _column("capacity", sa.Integer, sa.CheckConstraint("capacity >= 1")),
)

tasks: Final = sa.Table(
    "tasks",
    metadata,
    _column("id", sa.Uuid, key=True),
    _column("idempotency_key", sa.Text, unique=True),
    _maybe("order_id", sa.Text),
    _column("fingerprint", sa.Text),
    _column("pool", sa.Text),
    _column("priority", sa.SmallInteger, sa.CheckConstraint("priority in (0, 1)")),
    _maybe("body", JSONB),
    _column("status", sa.Text, sa.CheckConstraint(f"status in ('pending', 'submitting', 'processing') or {_FINAL}")),
    _column("version", sa.Integer),
    _column("attempt", sa.Integer),
    _column("charged", sa.Integer),
    _maybe("backend", sa.Text, sa.ForeignKey("backends.name")),
    _maybe("job_key", sa.Uuid),
    _maybe("provider_job_id", sa.Text),
    _column("free_at", _MOMENT),
    _maybe("due_at", _MOMENT),
    _column("deadline_at", _MOMENT),
    _column("created_at", _MOMENT),
    _column("changed_at", _MOMENT),
    _maybe("finished_at", _MOMENT),
    _column("cancel_owed", sa.Boolean),
    _maybe("told_at", _MOMENT),
    _maybe("avoid_backend", sa.Text),
    _maybe("reason", sa.Text),
    _maybe("detail", sa.Text),
    _maybe("stage", sa.Text),
    _column("actor", sa.Text),
    _column("trace_id", sa.Text),
    _column("job_handle", JSONB),
    _maybe("result_until", _MOMENT),
    _maybe("pinned_backend", sa.Text, sa.ForeignKey("backends.name")),
    sa.CheckConstraint(f"due_at is not null or {_FINAL}"),
    sa.CheckConstraint(f"not ({_STARTED}) or (backend is not null and job_key is not null)"),
    sa.CheckConstraint("status <> 'processing' or provider_job_id is not null"),
    sa.CheckConstraint("status <> 'failed' or (reason is not null and stage is not null)"),
    sa.CheckConstraint(f"(finished_at is not null) = ({_FINAL})"),
    sa.CheckConstraint("not cancel_owed or due_at is not null"),
    sa.CheckConstraint(f"told_at is null or {_FINAL}"),
)
sa.Index("tasks_one_active_order", tasks.c.order_id, unique=True, postgresql_where=sa.text(f"not ({_FINAL})"))
sa.Index("tasks_order_id", tasks.c.order_id, postgresql_where=sa.text("order_id is not null"))
sa.Index("tasks_newest", tasks.c.status, tasks.c.created_at, tasks.c.id)
sa.Index("tasks_newest_of_pool", tasks.c.pool, tasks.c.status, tasks.c.created_at, tasks.c.id)
sa.Index("tasks_due", tasks.c.due_at, postgresql_where=sa.text("due_at is not null"))
sa.Index(
    "tasks_free",
    tasks.c.pool,
    tasks.c.priority.desc(),
    tasks.c.created_at,
    postgresql_where=sa.text("status in ('pending', 'submitting')"),
)
sa.Index("tasks_leases", tasks.c.pool, tasks.c.free_at, postgresql_where=sa.text("status = 'submitting'"))
sa.Index("tasks_result_until", tasks.c.result_until, postgresql_where=sa.text("result_until is not null"))
sa.Index(
    "tasks_fallback",
    tasks.c.pool,
    tasks.c.changed_at,
    postgresql_where=sa.text("status = 'pending' and body -> 'pools' <> '[]'"),
)
sa.Index(
    "tasks_pinned",
    tasks.c.pinned_backend,
    tasks.c.priority.desc(),
    tasks.c.created_at,
    postgresql_where=sa.text("status = 'pending' and pinned_backend is not null"),
)
sa.Index("tasks_canaries", tasks.c.created_at, postgresql_where=sa.text("pool = 'canary'"))
sa.Index("tasks_live", tasks.c.backend, postgresql_where=sa.text(f"{_STARTED} or cancel_owed"))

duplicate_keys: Final = sa.Table(
    "duplicate_keys",
    metadata,
    _column("idempotency_key", sa.Text, key=True),
    _task(),
    _column("own_task_id", sa.Uuid, unique=True),
    _column("fingerprint", sa.Text),
    _column("at", _MOMENT),
)
sa.Index("duplicate_keys_task", duplicate_keys.c.task_id)

purged_keys: Final = sa.Table(
    "purged_keys",
    metadata,
    _column("idempotency_key", sa.Text, key=True),
    _column("task_id", sa.Uuid, unique=True),
    _column("fingerprint", sa.Text),
    _column("status", sa.Text, sa.CheckConstraint(_FINAL)),
    _column("finished_at", _MOMENT),
    _column("purged_at", _MOMENT),
)
sa.Index("purged_keys_at", purged_keys.c.purged_at)

purged_pictures: Final = sa.Table("purged_pictures", metadata, _column("task_id", sa.Uuid, key=True))

legal_moves: Final = sa.Table(
    "legal_moves", metadata, _column("from_status", sa.Text, key=True), _column("to_status", sa.Text, key=True)
)

task_moves: Final = sa.Table(
    "task_moves",
    metadata,
    _task(key=True),
    _column("version", sa.Integer, key=True),
    _column("at", _MOMENT),
    _maybe("from_status", sa.Text),
    _column("to_status", sa.Text),
    _column("actor", sa.Text),
    _column("attempt", sa.Integer),
    _maybe("backend", sa.Text),
    _maybe("reason", sa.Text),
    sa.ForeignKeyConstraint(["from_status", "to_status"], ["legal_moves.from_status", "legal_moves.to_status"]),
    sa.CheckConstraint("from_status is not null or to_status = 'pending'"),
)
sa.Index("task_moves_at", task_moves.c.at)
sa.Index(
    "task_moves_ends",
    task_moves.c.at,
    task_moves.c.to_status,
    postgresql_where=sa.text("to_status in ('completed', 'failed', 'cancelled')"),
)

lost_races: Final = sa.Table(
    "lost_races",
    metadata,
    _column("id", sa.BigInteger, sa.Identity(always=True), key=True),
    _column("task_id", sa.Uuid, sa.ForeignKey("tasks.id", ondelete="CASCADE")),
    _column("at", _MOMENT),
    _column("actor", sa.Text),
    _column("attempt", sa.Integer),
    _column("expected_status", sa.Text),
    _column("expected_version", sa.Integer),
    _column("wanted_status", sa.Text),
    _maybe("reason", sa.Text),
    _column("found_status", sa.Text),
    _column("found_version", sa.Integer),
    _column("found_attempt", sa.Integer),
)
sa.Index("lost_races_task", lost_races.c.task_id, lost_races.c.id)

attempts: Final = sa.Table(
    "attempts",
    metadata,
    _task(key=True),
    _column("attempt", sa.Integer, sa.CheckConstraint("attempt >= 1"), key=True),
    _column("backend", sa.Text, sa.ForeignKey("backends.name")),
    _column("job_key", sa.Uuid, unique=True),
    _column("seed", sa.BigInteger),
    _maybe("body_hash", sa.Text),
    _column("started_at", _MOMENT),
    _maybe("posted_at", _MOMENT),
    _maybe("accepted_at", _MOMENT),
    _maybe("provider_job_id", sa.Text),
    _maybe("ended_at", _MOMENT),
    _maybe("outcome", sa.Text),
    _maybe("detail", sa.Text),
    _column("deaths", sa.SmallInteger),
    _column("posts", sa.Integer),
    _column("looks", sa.Integer),
    _maybe("cost_estimated", DOUBLE_PRECISION),
    _maybe("cost_actual", DOUBLE_PRECISION),
    _maybe("cost_unit", sa.Text),
)
sa.Index("attempts_started", attempts.c.backend, attempts.c.started_at)

artifacts: Final = sa.Table(
    "artifacts",
    metadata,
    _task(key=True),
    _column("attempt", sa.Integer, key=True),
    _column("index", sa.Integer, sa.CheckConstraint("index >= 0"), key=True),
    _column("key", sa.Text),
    _column("sha256", sa.Text),
    _column("bytes", sa.BigInteger, sa.CheckConstraint("bytes > 0")),
    _column("media_type", sa.Text),
    _column("width", sa.Integer),
    _column("height", sa.Integer),
    _column("created_at", _MOMENT),
)

dead_letters: Final = sa.Table(
    "dead_letters",
    metadata,
    _column("id", sa.BigInteger, sa.Identity(always=True), key=True),
    _column("identity", sa.Text, unique=True),
    _maybe("task_id", sa.Uuid, sa.ForeignKey("tasks.id")),
    _maybe("attempt", sa.Integer),
    _column("stage", sa.Text),
    _column("reason", sa.Text),
    _column("detail", sa.Text),
    _column("fingerprint", sa.Text),
    _maybe("pool", sa.Text),
    _maybe("message_id", sa.Text),
    _maybe("message_type", sa.Text),
    _maybe("body", sa.Text),
    _column("headers", JSONB),
    _column("at", _MOMENT),
    _column("state", sa.Text, sa.CheckConstraint("state in ('open', 'replayed', 'discarded', 'archived')")),
    _maybe("closed_at", _MOMENT),
    _maybe("closed_by", sa.Text),
    _column("first_at", _MOMENT),
    _column("repeats", sa.Integer, sa.CheckConstraint("repeats >= 0")),
    _maybe("exception", sa.Text),
    _maybe("backend", sa.Text),
    _maybe("workflow", sa.Text),
    _maybe("provider_job_id", sa.Text),
    _maybe("exchange", sa.Text),
    _maybe("routing_key", sa.Text),
    _maybe("queue", sa.Text),
    _maybe("deliveries", sa.Integer),
    _maybe("broker_reason", sa.Text),
    _maybe("trace_id", sa.Text),
    _maybe("version", sa.Text),
)
sa.Index(
    "dead_letters_open",
    dead_letters.c.fingerprint,
    dead_letters.c.stage,
    dead_letters.c.reason,
    postgresql_where=sa.text("state = 'open'"),
)
sa.Index("dead_letters_waiting", dead_letters.c.at, postgresql_where=sa.text("state = 'open'"))
sa.Index("dead_letters_state", dead_letters.c.state, dead_letters.c.id)
sa.Index("dead_letters_group", dead_letters.c.fingerprint, dead_letters.c.id)
sa.Index("dead_letters_reason", dead_letters.c.reason, dead_letters.c.id)
sa.Index("dead_letters_pool", dead_letters.c.pool, dead_letters.c.id)
sa.Index("dead_letters_backend", dead_letters.c.backend, dead_letters.c.id)
sa.Index("dead_letters_workflow", dead_letters.c.workflow, dead_letters.c.id)
sa.Index("dead_letters_task", dead_letters.c.task_id)
sa.Index("dead_letters_at", dead_letters.c.at)

replays: Final = sa.Table(
    "replays",
    metadata,
    _column("id", sa.BigInteger, sa.Identity(always=True), key=True),
    _column("dead_letter_id", sa.BigInteger, sa.ForeignKey("dead_letters.id")),
    _column("by_whom", sa.Text),
    _column("at", _MOMENT),
    _maybe("task_id", sa.Uuid, sa.ForeignKey("tasks.id")),
    _column("state", sa.Text, sa.CheckConstraint("state in ('open', 'closed')")),
    _maybe("result", sa.Text),
    _maybe("closed_at", _MOMENT),
)
sa.Index("replays_one_open", replays.c.dead_letter_id, unique=True, postgresql_where=sa.text("state = 'open'"))
sa.Index("replays_task", replays.c.task_id)
sa.Index("replays_letter", replays.c.dead_letter_id)

letter_groups: Final = sa.Table(
    "letter_groups",
    metadata,
    _column("fingerprint", sa.Text, key=True),
    _column("reason", sa.Text),
    _maybe("pool", sa.Text),
    _column("total", sa.BigInteger, sa.CheckConstraint("total >= 0")),
    _column("first_at", _MOMENT),
    _column("last_at", _MOMENT),
    _column("backends", ARRAY(sa.Text)),
    _column("workflows", ARRAY(sa.Text)),
    _maybe("last_version", sa.Text),
    _maybe("note", sa.Text),
    _maybe("owner", sa.Text),
    _maybe("fixed_in", sa.Text),
    _maybe("fixed_at", _MOMENT),
    _maybe("reopened_at", _MOMENT),
    sa.CheckConstraint("(fixed_in is null) = (fixed_at is null)"),
    sa.CheckConstraint("reopened_at is null or fixed_at is not null"),
)

plans: Final = sa.Table(
    "plans",
    metadata,
    _column("id", sa.BigInteger, sa.Identity(always=True), key=True),
    _column("at", _MOMENT),
    _column("by_whom", sa.Text),
    _column("chosen", JSONB),
    _maybe("note", sa.Text),
    _column(
        "state",
        sa.Text,
        sa.CheckConstraint("state in ('planned', 'running', 'paused', 'stopped', 'done', 'aborted')"),
    ),
    _maybe("state_why", sa.Text),
    _column("changed_at", _MOMENT),
    _column("changed_by", sa.Text),
    _maybe("pool", sa.Text),
    _column("is_forced", sa.Boolean),
    _column("rate", DOUBLE_PRECISION, sa.CheckConstraint("rate > 0")),
    _column("ramp", ARRAY(sa.Integer), sa.CheckConstraint("0 < all (ramp)")),
    _maybe("stop_at", DOUBLE_PRECISION, sa.CheckConstraint("stop_at > 0 and stop_at <= 1")),
    _column("stop_window", sa.Integer, sa.CheckConstraint("stop_window >= 1")),
    _column("step", sa.Integer, sa.CheckConstraint("step >= 0")),
    _column("step_sent", sa.Integer, sa.CheckConstraint("step_sent >= 0")),
    _maybe("paced_until", _MOMENT),
    _maybe("judged_from", _MOMENT),
    _maybe("backend", sa.Text, sa.ForeignKey("backends.name")),
    sa.CheckConstraint("backend is null or pool is not null"),
    _maybe("preview", JSONB),
    _maybe("previewed_at", _MOMENT),
    _maybe("counted", JSONB),
    sa.CheckConstraint("(preview is null) = (previewed_at is null)"),
)
sa.Index("plans_running", plans.c.id, postgresql_where=sa.text("state = 'running'"))
sa.Index("plans_uncounted", plans.c.id, postgresql_where=sa.text("state in ('done', 'aborted') and counted is null"))

plan_items: Final = sa.Table(
    "plan_items",
    metadata,
    _column("plan_id", sa.BigInteger, sa.ForeignKey("plans.id", ondelete="CASCADE"), key=True),
    _column("place", sa.Integer, key=True),
    _column("dead_letter_id", sa.BigInteger, sa.ForeignKey("dead_letters.id", ondelete="CASCADE")),
    _column("predicted", sa.Text),
    _column("state", sa.Text, sa.CheckConstraint("state in ('waiting', 'sent', 'ended')")),
    _maybe(
        "result",
        sa.Text,
        sa.CheckConstraint("result in ('completed', 'failed', 'cancelled', 'published', 'refused')"),
    ),
    _maybe("why", sa.Text),
    _maybe("replay_id", sa.BigInteger, sa.ForeignKey("replays.id", ondelete="CASCADE")),
    _maybe("ended_at", _MOMENT),
    _maybe("dies_as", sa.Text),
    _maybe("becomes", sa.Uuid),
    sa.UniqueConstraint("plan_id", "dead_letter_id"),
    sa.CheckConstraint("(state = 'ended') = (result is not null)"),
    sa.CheckConstraint("state = 'waiting' or result = 'refused' or replay_id is not null"),
)
sa.Index("plan_items_letter", plan_items.c.dead_letter_id)
sa.Index("plan_items_replay", plan_items.c.replay_id, unique=True, postgresql_where=sa.text("replay_id is not null"))
sa.Index("plan_items_waiting", plan_items.c.plan_id, plan_items.c.place, postgresql_where=sa.text("state = 'waiting'"))
sa.Index("plan_items_sent", plan_items.c.plan_id, plan_items.c.place, postgresql_where=sa.text("state = 'sent'"))
sa.Index(
    "plan_items_result",
    plan_items.c.plan_id,
    plan_items.c.result,
    plan_items.c.place,
    postgresql_where=sa.text("result is not null"),
)
sa.Index("plan_items_ended", plan_items.c.plan_id, plan_items.c.ended_at, postgresql_where=sa.text("state = 'ended'"))

task_revisions: Final = sa.Table(
    "task_revisions",
    metadata,
    _column("task_id", sa.Uuid, sa.ForeignKey("tasks.id", ondelete="CASCADE"), key=True),
    _column("revision", sa.Integer, sa.CheckConstraint("revision >= 1"), key=True),
    _column("at", _MOMENT),
    _column("by_whom", sa.Text),
    _column("replay_id", sa.BigInteger, sa.ForeignKey("replays.id", ondelete="CASCADE")),
    _column("diff", JSONB),
)
sa.Index("task_revisions_replay", task_revisions.c.replay_id)

operator_actions: Final = sa.Table(
    "operator_actions",
    metadata,
    _column("id", sa.BigInteger, sa.Identity(always=True), key=True),
    _column("at", _MOMENT),
    _column("by_whom", sa.Text),
    _column("action", sa.Text),
    _column("subject", sa.Text),
    _column("detail", JSONB),
)
sa.Index("operator_actions_subject", operator_actions.c.subject)
sa.Index("operator_actions_by_whom", operator_actions.c.by_whom, operator_actions.c.id)
sa.Index("operator_actions_action", operator_actions.c.action, operator_actions.c.id)
sa.Index("operator_actions_at", operator_actions.c.at)

users: Final = sa.Table(
    "users",
    metadata,
    _column("name", sa.Text, key=True),
    _column("role", sa.Text, sa.CheckConstraint("role in ('viewer', 'operator', 'editor')")),
    _column("password_hash", sa.Text),
    _column("created_at", _MOMENT),
    _column("password_at", _MOMENT),
)

sessions: Final = sa.Table(
    "sessions",
    metadata,
    _column("token_hash", sa.LargeBinary, key=True),
    _column("user_name", sa.Text, sa.ForeignKey("users.name", ondelete="CASCADE")),
    _column("began_at", _MOMENT),
    _column("ends_at", _MOMENT),
)
sa.Index("sessions_user", sessions.c.user_name)

login_attempts: Final = sa.Table(
    "login_attempts",
    metadata,
    _column("id", sa.BigInteger, sa.Identity(always=True), key=True),
    _column("at", _MOMENT),
    _column("user_name", sa.Text),
    _column("address", sa.Text),
)
sa.Index("login_attempts_at", login_attempts.c.at)
