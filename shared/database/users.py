"""People who may use the console, their sessions, and how often somebody tried to be one of them."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from shared.database.actions import note_action
from shared.database.engine import in_transaction

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
#: A night's duty, and no longer.
SESSION_SECONDS: Final = 12 * 3600.0

#: Failed logins within the window after which nobody may try: of one name from one address, of one name from
#: anywhere (higher, so that a stranger does not lock a person out soon), from one address under any name.
WINDOW_SECONDS: Final = 900.0
MAX_OF_BOTH: Final = 5
MAX_OF_NAME: Final = 30
MAX_OF_ADDRESS: Final = 30


class Role(StrEnum):
    """What a person may do: look; also act; also change what an order asks for."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    EDITOR = "editor"

    def may(self, needed: "Role") -> bool:
        """Whether whoever has this role may do what `needed` is for."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """One row of `users`, without the hash."""

    name: str
    role: Role
    created_at: datetime
    password_at: datetime
    sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Somebody who is signed in. now -- the database's clock when this was read"""

    user: str
    role: Role
    ends_at: datetime
    now: datetime


_LIST: Final = sa.text("""
select name, role, created_at, password_at,
    (select count(*) from sessions s where s.user_name = u.name and s.ends_at > now()) as sessions
from users u order by name
""")
_ADD: Final = sa.text("""
insert into users (name, role, password_hash) values (:name, :role, :password_hash) on conflict (name) do nothing
""")
_REMOVE: Final = sa.text("delete from users where name = :name")
_PASSWORD: Final = sa.text("update users set password_hash = :password_hash, password_at = now() where name = :name")
_ROLE: Final = sa.text("update users set role = :role where name = :name")
_END_ALL: Final = sa.text("delete from sessions where user_name = :name")
_HASH: Final = sa.text("select password_hash from users where name = :name")
_ANY: Final = sa.text("select exists (select from users)")

#: Only while the hash that was compared still stands: a password may have been changed meanwhile.
_BEGIN: Final = sa.text("""
insert into sessions (token_hash, user_name, ends_at)
select :token_hash, name, now() + :seconds * interval '1 second' from users
where name = :name and password_hash = :password_hash
""")
_TIDY_SESSIONS: Final = sa.text("delete from sessions where ends_at < now()")
_FIND: Final = sa.text("""
select u.name as user, u.role, s.ends_at, now() as now from sessions s join users u on u.name = s.user_name
where s.token_hash = :token_hash and s.ends_at > now()
""")
_END: Final = sa.text("delete from sessions where token_hash = :token_hash")

_TRY: Final = sa.text("insert into login_attempts (user_name, address) values (:name, :address) returning id")
_TIDY_TRIES: Final = sa.text("delete from login_attempts where at < now() - :window * interval '1 second'")
_TRIES: Final = sa.text("""
select count(*) filter (where user_name = :name and address = :address) as both,
    count(*) filter (where user_name = :name) as name, count(*) filter (where address = :address) as address
from login_attempts where at > now() - :window * interval '1 second'
""")
_FORGET_TRY: Final = sa.text("delete from login_attempts where id = :id")
_FORGET_ALL_TRIES: Final = sa.text("delete from login_attempts where user_name = :name")
_FORGET_TRIES: Final = sa.text("delete from login_attempts where user_name = :name and address = :address")


class Users:
    """The tables users, sessions and login_attempts. Every method raises DatabaseAway."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def all(self) -> list[User]:
        """Everybody, by name."""
        rows = in_transaction(self._engine, lambda c: c.execute(_LIST).all())
        return [User(**dict(row._mapping) | {"role": Role(row.role)}) for row in rows]

    def is_there_any(self) -> bool:
        return bool(in_transaction(self._engine, lambda c: c.execute(_ANY).scalar_one()))

    def add(self, name: str, role: Role, password_hash: str, by_whom: str) -> bool:
        """False: the name is taken, and nothing was changed."""
        values = {"name": name, "role": role, "password_hash": password_hash}
        return self._change(_ADD, values, by_whom, "user add", {"role": role})

    def remove(self, name: str, by_whom: str) -> bool:
        """Signed out at once. False: there is no such user."""
        return self._change(_REMOVE, {"name": name}, by_whom, "user remove", {})

    def set_password(self, name: str, password_hash: str, by_whom: str) -> bool:
        """And signed out everywhere, and failed logins are forgotten. False: there is no such user."""
        values = {"name": name, "password_hash": password_hash}
        return self._change(_PASSWORD, values, by_whom, "user password", {}, begin_anew=True)

    def set_role(self, name: str, role: Role, by_whom: str) -> bool:
        """From the next request on. False: there is no such user."""
        return self._change(_ROLE, {"name": name, "role": role}, by_whom, "user role", {"role": role})

    def may_try(self, name: str, address: str) -> bool:
        """Note a login that is about to be tried; False: too many failed, so do not even look at the password.

        Noted and committed before it is counted: of any number of logins at the same moment no more than the limit
        are tried.
        """
        values: dict[str, Any] = {"name": name, "address": address, "window": WINDOW_SECONDS}

        def note(c: sa.Connection) -> int:
            c.execute(_TIDY_TRIES, values)
            return int(c.execute(_TRY, values).scalar_one())

        def judge(c: sa.Connection) -> bool:
            tries = c.execute(_TRIES, values).one()
            if tries.both <= MAX_OF_BOTH and tries.name <= MAX_OF_NAME and tries.address <= MAX_OF_ADDRESS:
                return True
            c.execute(_FORGET_TRY, {"id": noted})  # or whoever goes on trying would be locked out for ever
            return False

        noted = in_transaction(self._engine, note)
        return in_transaction(self._engine, judge)

    def password_hash(self, name: str) -> str | None:
        """None: there is no such user. Secret: do not log."""
        return in_transaction(self._engine, lambda c: c.execute(_HASH, {"name": name}).scalar_one_or_none())

    def begin(self, name: str, password_hash: str, address: str) -> str | None:
        """A session for whoever knew the password of this hash: its token, kept nowhere else; None: changed meanwhile.

        Failed logins of this name from this address are forgotten.
        """
        token = secrets.token_urlsafe(32)
        values = {"name": name, "password_hash": password_hash, "token_hash": _hashed(token)}

        def work(c: sa.Connection) -> bool:
            c.execute(_TIDY_SESSIONS)
            begun = c.execute(_BEGIN, values | {"seconds": SESSION_SECONDS}).rowcount == 1
            if begun:
                c.execute(_FORGET_TRIES, {"name": name, "address": address})
            return begun

        return token if in_transaction(self._engine, work) else None

    def session(self, token: str) -> Session | None:
        """Whose session this is; None: nobody's, or it is over."""
        values = {"token_hash": _hashed(token)}
        row = in_transaction(self._engine, lambda c: c.execute(_FIND, values).one_or_none())
        return None if row is None else Session(**dict(row._mapping) | {"role": Role(row.role)})

    def end(self, token: str) -> None:
        """Nobody is signed in with this token any more."""
        in_transaction(self._engine, lambda c: c.execute(_END, {"token_hash": _hashed(token)}))

    def _change(
        self,
        statement: sa.TextClause,
        values: dict[str, Any],
        by_whom: str,
        action: str,
        detail: dict[str, Any],
        *,
        begin_anew: bool = False,
    ) -> bool:
        def work(c: sa.Connection) -> bool:
            changed = c.execute(statement, values).rowcount == 1
            if changed:
                note_action(c, by_whom, action, values["name"], detail)
                if begin_anew:
                    c.execute(_END_ALL, {"name": values["name"]})
                    c.execute(_FORGET_ALL_TRIES, {"name": values["name"]})
            return changed

        return in_transaction(self._engine, work)


def _hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
