"""People who use the console: users, sessions, failed logins; and what its lists are read along."""

from alembic import op

revision = "0011"
down_revision = "0010"

SQL = """
create table users (
    name text primary key,
    role text not null check (role in ('viewer', 'operator', 'editor')),
    password_hash text not null,
    created_at timestamptz not null default now(),
    password_at timestamptz not null default now()
);
comment on table users is 'people who may use the web console';
comment on column users.password_hash is 'scrypt$log2 of N$r$p$salt$hash, the last two in base64';

create table sessions (
    token_hash bytea primary key,
    user_name text not null references users on delete cascade,
    began_at timestamptz not null default now(),
    ends_at timestamptz not null
);
comment on table sessions is 'who is signed in; the token itself is with the browser alone';
comment on column sessions.token_hash is 'SHA-256 of the token';
create index sessions_user on sessions (user_name);

create table login_attempts (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    user_name text not null,
    address text not null
);
comment on table login_attempts is 'logins under way or failed, of the last minutes; a login that succeeds takes its rows away';
comment on column login_attempts.user_name is 'as it was typed: there need be no such user';
create index login_attempts_at on login_attempts (at);

create index operator_actions_by_whom on operator_actions (by_whom, id);
create index operator_actions_action on operator_actions (action, id);
create index operator_actions_at on operator_actions (at);

create index dead_letters_at on dead_letters (at);

create index task_moves_ends on task_moves (at, to_status) where to_status in ('completed', 'failed', 'cancelled');

create index tasks_newest_of_pool on tasks (pool, status, created_at, id);
"""


def upgrade() -> None:
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(SQL)
