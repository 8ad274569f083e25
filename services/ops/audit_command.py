"""The `audit` command. Exit status: 0 all kept, 1 something found, 2 it could not be asked."""

import json
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Final

import sqlalchemy as sa
import typer
from rich.console import Console

from services.ops.audit_apis import api_jobs_found
from services.ops.opened import opened
from shared.broker.peek import NotLookedAt, waiting
from shared.broker.topology import ORDERS_QUEUE, dead_queue
from shared.config import Settings
from shared.database.audit import PROMISES, Check, Finding, owners, run_audit, unaccounted
from shared.database.slots import Backend, Slots
from shared.domain.errors import BrokerAway, ProviderAway, StorageAway
from shared.domain.task import Stage
from shared.providers.base import KnownJob
from shared.providers.registry import LISTS
from shared.providers.table import InvalidTables, Table
from shared.providers.table_files import load_tables
from shared.storage import Artifacts
from shared.terminal import AsJson, Quiet, fail, print_json, printable, settings, table, tell

#: A whole-table question may take its time; it holds no lock.
_TIMEOUT_SECONDS: Final = 600.0
#: Findings shown per check; --json has them all.
_SHOWN: Final = 20
#: Servers asked at the same time.
_ASKED_AT_ONCE: Final = 8

Keys = Annotated[
    str | None,
    typer.Option(
        "--keys",
        metavar="FILE",
        help="Idempotency keys of published orders, one a line; - for standard input. Each must be accounted for. "
        "What still waits in a queue is looked at there, ten times at most: RabbitMQ counts each look as a delivery.",
    ),
]


def audit(keys: Keys = None, as_json: AsJson = False) -> None:
    chosen = settings(broker=keys is not None)
    wanted = None if keys is None else _keys(keys)
    with opened(chosen, _TIMEOUT_SECONDS) as engine, Console(stderr=True).status("asking the database") as status:
        try:
            artifacts = Artifacts(chosen.artifacts_url)
        except ValueError as error:
            raise fail(str(error)) from error
        try:
            found = run_audit(engine, artifacts, lambda left: status.update(f"reading pictures, {left} left"))
            status.update("asking the backends")
            jobs, silent = jobs_found(engine)
            listed, unlisted = api_jobs_found(engine, _tables(chosen), os.environ)
            found += jobs + listed
            silent += unlisted
            if wanted is not None:
                status.update("looking for the keys")
                found += keys_lost(engine, chosen, wanted)
        except (StorageAway, BrokerAway, NotLookedAt) as error:
            raise fail(str(error)) from error
    _print(found, silent, with_keys=wanted is not None, as_json=as_json)
    raise typer.Exit(1 if found else 0)


audit.__doc__ = (
    "Check every promise against the rows, the pictures, the backends that answer and, with --keys, the queues.\n\n"
    "Status 0: all kept, 1: findings, 2: could not be asked. The checks, and what each proves:\n\n\b\n"
    + "\n".join(
        line
        for check in Check
        for line in textwrap.wrap(PROMISES[check], 76, initial_indent=f"{check:<17}", subsequent_indent=" " * 17)
    )
)


def jobs_found(engine: sa.Engine) -> tuple[list[Finding], list[str]]:
    """What the backends say of our jobs, and the names of those that said nothing. Raises DatabaseAway."""
    backends = [backend for backend in Slots(engine, "audit", Quiet()).backends() if backend.adapter in LISTS]
    known, silent = _ask(backends)
    ids = sorted({job.provider_job_id for jobs in known.values() for job in jobs})
    whose = owners(engine, ids)
    found = []
    for name, jobs in known.items():
        for job_id, times in Counter(job.provider_job_id for job in jobs).items():
            owner = whose.get(job_id)
            if owner is None:
                continue
            if times > 1:
                detail = f"attempt {owner.attempt}: {name} has its job {job_id} {times} times"
                found.append(Finding(check=Check.DOUBLE_JOB, subject=str(owner.task_id), detail=detail))
            elif owner.backend != name:
                detail = f"attempt {owner.attempt} was made for {owner.backend}, and {name} has its job {job_id}"
                found.append(Finding(check=Check.DOUBLE_JOB, subject=str(owner.task_id), detail=detail))
    suspects = [
        (name, job.provider_job_id)
        for name, jobs in known.items()
        for job in jobs
        if not job.is_over and job.provider_job_id in whose and whose[job.provider_job_id].owes_nothing
    ]
    if suspects:
        # The rows were read after the servers were asked: what ended in between runs no more when they are asked again.
        again, _ = _ask([backend for backend in backends if backend.name in {name for name, _ in suspects}])
        for name, job_id in sorted(set(suspects)):
            if KnownJob(job_id, is_over=False) in again.get(name, ()):
                owner = whose[job_id]
                detail = f"attempt {owner.attempt} is over ({owner.status}), and {name} still runs its job {job_id}"
                found.append(Finding(check=Check.STRAY_JOB, subject=str(owner.task_id), detail=detail))
    return found, silent


def _tables(chosen: Settings) -> Mapping[str, Table]:
    try:
        return load_tables(chosen.providers_dir)
    except InvalidTables as error:
        raise fail(str(error)) from error


def keys_lost(engine: sa.Engine, chosen: Settings, keys: Sequence[str]) -> list[Finding]:
    """Keys of which neither the database nor a queue knows anything. Raises DatabaseAway, BrokerAway, NotLookedAt."""
    missing = unaccounted(engine, keys)
    if missing:
        queued = waiting(chosen.amqp_urls, [ORDERS_QUEUE, dead_queue(Stage.ORDERS)])
        in_queue = {key for bodies in queued.values() for body in bodies if (key := _key_of(body)) is not None}
        # It may have been in a consumer's hands at that moment, and have its row by now.
        missing = unaccounted(engine, [key for key in missing if key not in in_queue])
    return [
        Finding(check=Check.UNACCOUNTED, subject=key, detail="no task, no kept key, no dead letter, in no queue")
        for key in missing
    ]


def _ask(backends: Sequence[Backend]) -> tuple[dict[str, Sequence[KnownJob]], list[str]]:
    def ask(backend: Backend) -> Sequence[KnownJob] | None:
        try:
            return LISTS[backend.adapter](backend.url)
        except ProviderAway:
            return None

    with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="audit") as asking:
        answers = dict(zip([b.name for b in backends], asking.map(ask, backends), strict=True))
    known = {name: jobs for name, jobs in answers.items() if jobs is not None}
    return known, [name for name, jobs in answers.items() if jobs is None]


def _keys(source: str) -> list[str]:
    """The keys of the file, each once."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise fail(f"the keys cannot be read: {error}") from error
    return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


def _key_of(body: bytes) -> str | None:
    try:
        order = json.loads(body)
    except (ValueError, RecursionError):
        return None
    key = order.get("idempotency_key") if isinstance(order, dict) else None
    return key if isinstance(key, str) else None


def _print(found: Sequence[Finding], silent: Sequence[str], *, with_keys: bool, as_json: bool) -> None:
    asked = [check for check in Check if with_keys or check is not Check.UNACCOUNTED]
    by_check = {check: [finding for finding in found if finding.check is check] for check in asked}
    if as_json:
        checks = {check: {"promise": PROMISES[check], "findings": len(by_check[check])} for check in asked}
        print_json({"ok": not found, "checks": checks, "findings": found, "silent_backends": silent})
        return
    _print_table(by_check)
    if silent:
        tell(f"not asked about their jobs, since they do not answer: {', '.join(silent)}")


def _print_table(by_check: Mapping[Check, Sequence[Finding]]) -> None:
    results = {check: f"broken: {len(found)}" if found else "kept" for check, found in by_check.items()}
    typer.echo(table(("check", "result", "promise"), [(c, results[c], PROMISES[c]) for c in by_check]))
    for check, found in by_check.items():
        for finding in found[:_SHOWN]:
            typer.echo(printable(f"{check}: {finding.subject}: {finding.detail}"))
        if len(found) > _SHOWN:
            typer.echo(f"{check}: {len(found) - _SHOWN} more (--json shows all)")
