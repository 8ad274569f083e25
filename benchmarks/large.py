"""Fills an empty, migrated PostgreSQL with a large past: tasks with their history, attempts, pictures and dead letters.

    python -m benchmarks.large [--tasks 1000000] [--letters 100000] [--seed 1]

Into the database of DARKROOM_DATABASE_URL, or into one called `large` of the servers of `make up`. The same numbers
make the same rows; their moments are counted back from now. `darkroom audit` finds nothing wrong with them, except that
the pictures themselves do not exist. Keys and indexes are dropped first and made again over all rows in the same
transaction, so what breaks one cannot stay; with them on, a million tasks take three times as long. Two triggers are
off meanwhile: one would note each birth with the clock of now, the other count letters before there are keys.
"""

import argparse
import io
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Final

import psycopg2

from benchmarks import large_sql
from benchmarks.fates import (
    CANCELLED,
    DEAD,
    FATES,
    LEASED,
    MADE,
    RETRIED,
    ROWLESS,
    RUNNING,
    TURN_SECONDS,
    UNWANTED,
    WAITING,
    Fate,
)
from deploy.local.problem import StackProblem
from deploy.local.stack import ROOT, Stack
from shared.database.migrate import upgrade
from shared.domain.messages import Order
from shared.domain.task import FINAL, Status, job_key_for, task_id_for

DATABASE: Final = "large"
#: (backend, pool, slots). Each slot takes one order after the other, so no capacity was ever exceeded.
BACKENDS: Final = (
    *((f"gpu-{number}", "comfyui", 8) for number in range(1, 7)),
    ("dashscope", "dashscope", 20),
    ("fal", "fal", 12),
    ("replicate", "replicate", 12),
    ("runpod", "runpod_comfyui", 8),
)
POOLS: Final = frozenset(pool for _, pool, _ in BACKENDS)
_SLOTS: Final = sum(slots for _, _, slots in BACKENDS)
#: One in so many waits; waiting orders came within an hour.
_ONE_WAITS_IN: Final = 50
_WAITED_SECONDS: Final = 3600
#: Of 100 dead letters: of messages without a row, of tasks that were replayed and of those that somebody gave up.
_ROWLESS: Final = 5
_REPLAYED: Final = 25
_DISCARDED: Final = 15
_ONE_KEY_TWICE_IN: Final = 100
_TRIGGERS_OFF: Final = (("tasks", "tasks_born"), ("dead_letters", "letters_arrived"))

Say = Callable[[str], None]


class NotEmpty(Exception):
    """There are tasks in the database already."""


def fill(database_url: str, *, tasks: int, letters: int, seed: int, say: Say = lambda _: None) -> None:
    """The migrated database holds so many tasks and dead letters more, in one transaction, and is analysed.

    Raises NotEmpty, ValueError when so many letters do not go with so few tasks.
    """
    rowless = letters * _ROWLESS // 100
    span = tasks * TURN_SECONDS / _SLOTS
    with closing(psycopg2.connect(database_url)) as connection:
        with connection, connection.cursor() as cursor:
            cursor.execute("select exists (select from tasks)")
            if cursor.fetchone() != (False,):
                raise NotEmpty("the database has tasks already; give it an empty one")
            _describe(cursor, span + _WAITED_SECONDS)
            _timed(say, "planned", lambda: _plan(cursor, tasks, letters - rowless, seed))
            for table, trigger in _TRIGGERS_OFF:
                cursor.execute(f"alter table {table} disable trigger {trigger}")
            again = _without_keys(cursor)
            for name, statement in large_sql.STATEMENTS:
                _timed(say, name, partial(_execute, cursor, statement))
            cursor.execute(large_sql.ROWLESS_LETTERS, {"count": rowless, "span": span})
            _timed(say, "keys and indexes", partial(_execute_all, cursor, again))
            cursor.execute(large_sql.GROUPS)
            for table, trigger in _TRIGGERS_OFF:
                cursor.execute(f"alter table {table} enable trigger {trigger}")
        connection.autocommit = True
        with connection.cursor() as cursor:
            _timed(say, "vacuumed, analysed", partial(_execute, cursor, "vacuum (analyze)"))


def _execute(cursor: Any, statement: str) -> int:
    cursor.execute(statement)
    return max(0, int(cursor.rowcount))


def _execute_all(cursor: Any, statements: Sequence[str]) -> int:
    for statement in statements:
        cursor.execute(statement)
    return len(statements)


def _without_keys(cursor: Any) -> list[str]:
    """The tables have no keys and no indexes; how to make them again, what others refer to first."""
    found = []
    for question in (large_sql.KEYS, large_sql.INDEXES):
        cursor.execute(question, {"tables": list(large_sql.TABLES)})
        found += cursor.fetchall()
    _execute_all(cursor, [drop for drop, _ in found])
    cursor.execute("set local maintenance_work_mem = '256MB'")
    return [add for _, add in reversed(found)]


def _timed(say: Say, name: str, work: Callable[[], int]) -> None:
    began = time.monotonic()
    rows = work()
    say(f"{name:<20}{rows:>10}{time.monotonic() - began:>8.1f} s")


def _describe(cursor: Any, span: float) -> None:
    """The fates, the slots and the groups of letters as tables, for joins."""
    cursor.execute(large_sql.TEMPORARY)
    for number, fate in enumerate(FATES):
        cursor.execute(large_sql.FATE, _columns(number, fate))
        steps = _rows_of_steps(number, fate)
        cursor.executemany("insert into pg_temp.steps values (%s, %s, %s, %s, %s, %s, %s, %s)", steps)
        tries = [
            (number, attempt, one.started, one.accepted, one.ended, one.outcome)
            for attempt, one in enumerate(fate.attempts(), start=1)
        ]
        cursor.executemany("insert into pg_temp.tries values (%s, %s, %s, %s, %s, %s)", tries)
        groups = [(number, pool, fate.kind.fingerprint(pool)) for pool in sorted(POOLS) if fate.kind is not None]
        cursor.executemany("insert into pg_temp.groups values (%s, %s, %s)", groups)
    places = [(name, pool) for name, pool, slots in BACKENDS for _ in range(slots)]
    for slot, (name, pool) in enumerate(places):
        values = (slot, name, pool, json.dumps(_body(pool)), _canonical(pool))
        cursor.execute("insert into pg_temp.slots values (%s, %s, %s, %s, %s)", values)
    for place, (name, pool, slots) in enumerate(BACKENDS, start=1):
        adapter = "comfyui" if pool == "comfyui" else "http_api"
        row = {"name": name, "pool": pool, "adapter": adapter, "url": f"http://127.0.0.1:{place}", "slots": slots}
        cursor.execute(large_sql.BACKEND, row | {"span": span})
    for kind in ROWLESS:
        letter = (kind.stage, kind.reason, kind.detail, kind.fingerprint(None))
        cursor.execute("insert into pg_temp.rowless values (%s, %s, %s, %s)", letter)


def _rows_of_steps(number: int, fate: Fate) -> Iterator[tuple[Any, ...]]:
    attempt, before = 0, None
    for version, step in enumerate(fate.steps, start=1):
        attempt += step.to is Status.SUBMITTING
        stands_there = step.to is Status.SUBMITTING or (attempt > 0 and Status.PENDING not in (before, step.to))
        yield number, version, step.at, before, step.to, step.reason, attempt, stands_there
        before = step.to


def _columns(number: int, fate: Fate) -> dict[str, Any]:
    attempts = fate.attempts()
    last = fate.steps[-1]
    is_waiting = last.to is Status.PENDING
    deaths = [place for place, step in enumerate(fate.steps) if step.to is Status.FAILED]
    began = sum(step.to is Status.SUBMITTING for step in fate.steps[: deaths[0]]) if deaths else 0
    return {
        "fate": number,
        "status": last.to,
        "version": len(fate.steps),
        "attempt": len(attempts),
        "charged": sum(one.outcome not in (None, "completed") for one in attempts),
        "has_backend": bool(attempts) and not is_waiting,
        "is_accepted": bool(attempts) and attempts[-1].accepted is not None and not is_waiting,
        "is_final": last.to in FINAL,
        "at": last.at,
        "reason": last.reason,
        "stage": fate.kind.stage if fate.kind and last.to is Status.FAILED else None,
        "detail": fate.kind.detail if fate.kind and last.to is Status.FAILED else None,
        "letter": fate.letter,
        "letter_at": fate.died_at,
        "letter_attempt": began,
        "letter_stage": fate.kind and fate.kind.stage,
        "letter_reason": fate.kind and fate.kind.reason,
        "letter_detail": fate.kind and fate.kind.detail,
        "replayed_at": next((step.at for step in fate.steps if step.reason == "replay"), None),
    }


def _order(pool: str) -> Order:
    """What all orders of a pool look like; NUMBER and KEY stand for their own."""
    return Order(
        idempotency_key="KEY",
        order_id="shop-NUMBER",
        pool=pool,
        workflow="sdxl-img2img",
        inputs={"photo": "https://shop.example/photos/NUMBER.jpg", "prompt": "a watercolour, number NUMBER"},
        metadata={"shop": "north"},
    )


def _body(pool: str) -> dict[str, Any]:
    return _order(pool).model_dump(mode="json")


def _canonical(pool: str) -> str:
    """The text whose SHA-256 is the fingerprint, see `Order.fingerprint`."""
    body = {key: value for key, value in _body(pool).items() if key not in ("pools", "fallback_on")}
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _plan(cursor: Any, tasks: int, dead: int, seed: int) -> int:
    """One line per task: its ids, its fate, its slot, when it came and when its turn began."""
    cursor.execute("select extract(epoch from now())::float8")
    lines = _Lines(_planned(tasks, dead, seed, cursor.fetchone()[0]))
    cursor.copy_expert("copy pg_temp.plan from stdin", lines)
    cursor.execute(large_sql.PLANNED)
    return tasks


def _planned(tasks: int, dead: int, seed: int, now: float) -> Iterator[str]:
    chance = random.Random(seed)
    waiting = tasks // _ONE_WAITS_IN
    ended = tasks - waiting - _SLOTS
    if ended < 2 * dead:
        raise ValueError(f"{dead} dead letters do not go with {tasks} tasks: more than half of those that ended")
    number_of = {fate: number for number, fate in enumerate(FATES)}
    fates = [number_of[fate] for fate in chance.choices(DEAD, [_weight(fate) for fate in DEAD], k=dead)]
    others, shares = [MADE, RETRIED, CANCELLED, UNWANTED], [93, 4, 2, 1]
    fates += [number_of[fate] for fate in chance.choices(others, shares, k=ended - dead)]
    chance.shuffle(fates)
    fates += [number_of[fate] for fate in chance.choices([RUNNING, LEASED], [9, 1], k=_SLOTS)]
    fates += [number_of[WAITING]] * waiting
    attempts = [len(fate.attempts()) for fate in FATES]
    step = TURN_SECONDS / _SLOTS
    for number, fate in enumerate(fates):
        key = f"large-{seed}-{number}"
        task_id = task_id_for(key)
        job_keys = ",".join(str(job_key_for(task_id, attempt)) for attempt in range(1, attempts[fate] + 1))
        began = (ended + _SLOTS - number) * step
        waited = chance.random() * (_WAITED_SECONDS if number >= ended + _SLOTS else 240)
        came = waited if number >= ended + _SLOTS else began + waited
        twice = task_id_for(f"{key}-again") if number % _ONE_KEY_TWICE_IN == 1 else "\\N"
        moments = f"{now - came:.3f}\t{now - began:.3f}"
        yield f"{number}\t{key}\t{task_id}\t{fate}\t{number % _SLOTS}\t{moments}\t{{{job_keys}}}\t{twice}\n"


def _weight(fate: Fate) -> int:
    assert fate.kind is not None  # noqa: S101 - all of DEAD have one
    share = {"replayed": _REPLAYED, "discarded": _DISCARDED}.get(fate.letter or "", 100 - _REPLAYED - _DISCARDED)
    return fate.kind.weight * share


class _Lines(io.TextIOBase):
    """An iterator as a file that COPY reads."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._rest = ""

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> str:
        parts, length = [self._rest], len(self._rest)
        while size is None or size < 0 or length < size:
            line = next(self._lines, None)
            if line is None:
                break
            parts.append(line)
            length += len(line)
        text = "".join(parts)
        cut = len(text) if size is None or size < 0 else size
        self._rest = text[cut:]
        return text[:cut]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--letters", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.monotonic()
    url = os.environ.get("DARKROOM_DATABASE_URL") or _private()
    upgrade(url)
    fill(url, tasks=arguments.tasks, letters=arguments.letters, seed=arguments.seed, say=_say)
    _say(f"filled in {time.monotonic() - began:.0f} s: {url}")
    return 0


def _private() -> str:
    """An empty database among the servers of `make up`, which stay up."""
    stack = Stack(ROOT / ".local", say=_say)
    stack.up()
    stack.database.sql(f"drop database if exists {DATABASE} with (force)")
    return stack.create_database(DATABASE)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (StackProblem, NotEmpty, ValueError) as problem:
        sys.exit(str(problem))
