"""`make soak`: orders under faults for minutes or hours, then the audit. MINUTES and SEED choose how long and which."""

import argparse
import collections
import datetime
import os
import platform
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.local.interrupted import end_with
from deploy.local.problem import StackProblem
from services.ops.audit_apis import api_jobs_found
from services.ops.audit_command import jobs_found, keys_lost
from shared.config import load_settings
from shared.database.audit import run_audit
from shared.database.engine import connect
from shared.domain.task import Status
from shared.providers.table_files import load_tables
from shared.storage import Artifacts
from tests.conformance.simulated_apis import SimulatedApis, simulated_apis
from tests.conformance.table_lab import PLACES
from tests.e2e.gpu import PAID
from tests.e2e.image_apis import addresses, api_doubles, write_tables
from tests.e2e.promises import owed
from tests.e2e.system import System
from tests.e2e.worker import end_all
from tests.integration.api_lab import KEYS
from tests.servers import new_database, new_vhost, temporary_stack
from tests.soak.faults import Faults
from tests.soak.load import Load
from tests.soak.watch import Watch
from tests.waiting import eventually

POOLS: Final = ("comfyui", "studio")
_SERVERS: Final = 4
_PER_SECOND: Final = 3.0
_END_SECONDS: Final = 300.0
_SETTINGS: Final = {"RETRY_MAX_ATTEMPTS": 20, "RETRY_CAP_SECONDS": 5, "FROZEN_AFTER_SECONDS": 30, "BRAKE_AFTER": 1000}
_DOCUMENT: Final = Path(__file__).resolve().parents[2] / "docs" / "soak.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a soak found. doubles -- jobs that a server ran twice, and both times made a picture"""

    minutes: float
    seed: int
    numbers: dict[str, object]
    broken: Sequence[str]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--write", action="store_true", help="put the result into docs/soak.md")
    given = parser.parse_args()
    seed = random.randrange(10**6) if given.seed is None else given.seed
    console = Console()
    console.print(f"seed {seed}: the same faults and orders again with SEED={seed}")
    result = soak(given.minutes, seed, console)
    console.print(_table(result))
    for line in result.broken:
        console.print(f"[red]{line}[/red]")
    if given.write and not result.broken:
        _write(result)
    return 1 if result.broken else 0


def soak(minutes: float, seed: int, console: Console) -> Result:
    """Orders and faults for so long, then everything is healed, ended and looked at."""
    folder = Path(tempfile.mkdtemp(prefix="darkroom-soak-"))
    tables = write_tables(folder / "tables")
    with temporary_stack() as stack, simulated_apis("--seconds-per-image", "0.5") as apis:
        system = System(
            folder,
            new_database(stack),
            stack.broker.url_of(new_vhost(stack)),
            gpus=_SERVERS,
            seconds_per_image=0.2,
            pools=POOLS,
            apis=addresses(apis),
            settings={**_SETTINGS, "PROVIDERS_DIR": tables},
        )
        system.settings |= KEYS
        try:
            system.start(submitters=2, pollers=2, ops=2)
            spared = {f"{kind}-{n}" for kind, n in (("submitter", 1), ("poller", 3), ("ops", 5))}
            load, watch = Load(system, [*POOLS, *PLACES], _PER_SECOND, seed), Watch(system)
            faults = Faults(system, stack, apis, seed, spared)
            _run_for(minutes * 60, [load.run, faults.run, watch.run], console)
            if load.failures:
                raise load.failures[0]
            faults.heal()
            broken = _ended(system, load)
            watch.look()
            broken += _looked_at(system, load, tables)
            twice = _doubles(system, apis)
            broken += [f"{what} was made twice" for what in twice]
            numbers = _numbers(system, load, faults, watch, doubles=len(twice))
            return Result(minutes=minutes, seed=seed, numbers=numbers, broken=broken)
        finally:
            (folder / "tails.txt").write_text(system.tails())
            end_all()
            system.stop()


def _run_for(seconds: float, loops: Sequence[object], console: Console) -> None:
    """All loops side by side; a loop that fails ends the soak."""
    stopping = threading.Event()
    failures: list[BaseException] = []

    def guarded(loop: object) -> None:
        try:
            loop(stopping)  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(loop,)) for loop in loops]
    for thread in threads:
        thread.start()
    ends = time.monotonic() + seconds
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("orders under faults", total=seconds)
            while time.monotonic() < ends and not failures:
                time.sleep(0.5)
                progress.update(bar, completed=seconds - (ends - time.monotonic()))
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def _ended(system: System, load: Load) -> list[str]:
    """Wait until every order has ended and nothing is owed; what is still open then is lost."""

    def is_over() -> bool:
        statuses = system.statuses(load.orders)
        return sum(statuses.get(status, 0) for status in Status if status.is_final) == len(load.orders)

    try:
        eventually(lambda: is_over() and not owed(system), within=_END_SECONDS, what="every order ends", every=1.0)
    except AssertionError as error:
        return [f"{error}; {owed(system)}"]
    return []


def _looked_at(system: System, load: Load, tables: Path) -> list[str]:
    """What `darkroom audit --keys` says."""
    engine = connect(system.settings["DARKROOM_DATABASE_URL"])
    try:
        found = run_audit(engine, Artifacts(system.settings["DARKROOM_ARTIFACTS_URL"]))
        found += jobs_found(engine)[0]
        listed, silent = api_jobs_found(engine, load_tables(tables), KEYS)
        found += listed
        chosen = load_settings(system.settings, dotenv=None)
        found += keys_lost(engine, chosen, [order.idempotency_key for order in load.orders])
    finally:
        engine.dispose()
    broken = [f"{finding.check}: {finding.subject}: {finding.detail}" for finding in found]
    broken += [f"{name} could not be asked for its jobs" for name in silent]
    # Killed, or asked to leave: one that was still starting ends of the signal itself.
    ended = [w for w in system.workers if not w.is_alive and w.process.returncode not in (0, -9, -15)]
    return broken + [f"{worker.name} ended with {worker.process.returncode}: {worker.tail(3)}" for worker in ended]


def _doubles(system: System, apis: SimulatedApis) -> list[str]:
    """Jobs a server made pictures for more than once, and attempts that an API did."""
    paid = collections.Counter(
        run["prompt_id"] for gpu in system.gpus for run in gpu.executions if run["outcome"] in PAID
    )
    at_apis = [f"an attempt at {name}" for name, times in api_doubles(apis).items() for _ in range(times)]
    return [f"job {job_id}" for job_id, times in paid.items() if times > 1] + at_apis


def _numbers(system: System, load: Load, faults: Faults, watch: Watch, *, doubles: int) -> dict[str, object]:
    statuses = system.statuses(load.orders)
    reasons = system.sql("select reason, count(*) as n from tasks where status = 'failed' group by reason order by 1")
    growth = {
        name: f"{values[len(values) // 5]:.0f} to {values[-1]:.0f} MiB"
        for name, values in sorted(watch.memory.items())
        if name in {"submitter-1", "poller-3", "ops-5"} and values
    }
    pools = system.sql(
        "select pool, count(*) as orders, count(*) filter (where status = 'completed') as made from tasks"
        " group by 1 order by 1"
    )
    rows = sum(statuses.values())
    return {
        "orders": len(load.orders),
        "published a second time": load.duplicates,
        **dict(sorted(statuses.items())),
        "completed by pool": ", ".join(f"{row.pool} {row.made} of {row.orders}" for row in pools),
        "failed because": ", ".join(f"{row.reason} {row.n}" for row in reasons) or "none",
        "faults": sum(faults.count.values()),
        "faults by kind": ", ".join(f"{name} {times}" for name, times in faults.count.most_common()),
        "attempts": system.sql("select count(*) as n from attempts")[0].n,
        "redeliveries": watch.total("redeliveries"),
        "duplicates stopped": watch.total("duplicates"),
        "possible doubles counted": watch.total("possible doubles"),
        "double provider jobs": doubles,
        "lost": len(load.orders) - rows,
        **{f"memory of {name}": text for name, text in growth.items()},
    }


def _table(result: Result) -> Table:
    table = Table(title=f"{result.minutes:g} minutes, seed {result.seed}", show_header=False)
    for name, value in result.numbers.items():
        table.add_row(name, str(value))
    table.add_row("audit", f"{len(result.broken)} promises broken" if result.broken else "clean")
    return table


def _write(result: Result) -> None:
    """One result, with its date and machine, in place of the last one."""
    begin, end = "<!-- result -->\n", "<!-- /result -->"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    today = datetime.datetime.now(datetime.UTC).date()
    head = f"{today}, {result.minutes:g} minutes, seed {result.seed}; {os.cpu_count()} cores, {memory:.0f} GB,"
    lines = [f"{head} {platform.system()}, Python {platform.python_version()}:", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in result.numbers.items()] + ["| audit | clean |"]
    before, _, rest = _DOCUMENT.read_text().partition(begin)
    _, _, after = rest.partition(end)
    _DOCUMENT.write_text(before + begin + "\n".join(lines) + "\n" + end + after)


if __name__ == "__main__":
    end_with(main, StackProblem)
