"""`darkroom doctor`: looks at everything this installation stands on, and says in plain words what it found."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from shared.broker.examine import BrokerLook
from shared.broker.topology import ORDERS_QUEUE, check_queue, dead_queue, submit_queue, topology
from shared.config import Settings
from shared.database.examine import DatabaseLook
from shared.domain import fit
from shared.domain.canary_order import CANARY_POOL
from shared.domain.errors import StorageAway
from shared.domain.finding import Finding, Verdict
from shared.domain.task import Stage
from shared.providers.comfyui_examine import examine_comfyui
from shared.providers.http_examine import examine_api
from shared.providers.registry import BackendConfig, InvalidBackends, build, load_backends
from shared.providers.table import InvalidTables, Table
from shared.providers.table_files import load_tables
from shared.providers.workflow import InvalidWorkflows, Workflows, load_workflows
from shared.service import tools_of
from shared.storage import Artifacts
from shared.terminal import AsJson, print_json, settings, table, tell

#: All parts are looked at side by side; one that hangs is given up when so much has passed since the beginning.
_WITHIN_SECONDS: Final = 12.0
#: How long a start waits for a broker and a database that are on their way up.
_START_WITHIN_SECONDS: Final = 30.0
_AGAIN_SECONDS: Final = 0.5

Look = Callable[[], Iterable[Finding]]


def doctor(
    before_start: Annotated[
        bool, typer.Option("--start", help="Look only at what must hold before any service starts; wait 30 s for it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look at broker, database, servers, workflows and store. Exit status 1 when something has failed.

    A warning is no failure: what a new installation has yet to do (no schema, no queues, no backends file), or what
    works and could be better. A server of the backends file that does not answer, or cannot run a workflow, is one.
    With --start none of this counts but what keeps services from starting; what is well is not listed then.
    """
    given = settings(broker=True)
    findings = examine_start(given) if before_start else examine(given)
    if as_json:
        for finding in findings:
            print_json(finding)
    elif before_start:
        failed = [f for f in findings if f.verdict is Verdict.FAIL]
        for f in failed:
            tell(f"{f.about}: {f.found}" + (f" ({f.advice})" if f.advice else ""))
        if not failed:
            typer.echo("the services can start")
    else:
        rows = [(f.verdict, f.about, f.found + (f" ({f.advice})" if f.advice else "")) for f in findings]
        typer.echo(table(("", "what", "found"), rows))
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        raise typer.Exit(1)


def examine(given: Settings) -> list[Finding]:
    """Everything found, in a fixed order. No part keeps another from being looked at."""
    backends, tables, workflows, findings = _files(given)
    pools = sorted({backend.pool for backend in backends}) or ["comfyui"]
    broker = BrokerLook(given.amqp_urls, topology(pools))
    database = DatabaseLook(given.database_url.get_secret_value())
    looks: dict[str, Look] = {
        "broker": broker.findings,
        "database": database.findings,
        "artifact store": partial(_store, given.artifacts_url),
    }
    for backend in backends:
        looks[f"backend {backend.name}"] = _look_at(backend, tables, workflows)
    findings += _side_by_side(looks)
    findings += _fit(given, backends, tables, workflows, broker.consumers)
    if database.room is not None:
        findings += fit.connection_findings(database.room, _processes(broker.consumers, pools))
    return findings


def examine_start(given: Settings) -> list[Finding]:
    """What keeps services from starting, whatever runs beside them: no server is asked, no worker expected."""
    backends, _, _, findings = _files(given, unset=Verdict.FAIL)
    pools = sorted({backend.pool for backend in backends}) or ["comfyui"]
    ends = time.monotonic() + _START_WITHIN_SECONDS
    broker = BrokerLook(given.amqp_urls, topology(pools), before_start=True)
    database = DatabaseLook(given.database_url.get_secret_value(), before_start=True)
    looks: dict[str, Look] = {
        "broker": partial(_patiently, broker, ends),
        "database": partial(_patiently, database, ends),
        "artifact store": partial(_store, given.artifacts_url),
    }
    return [*findings, *_side_by_side(looks, _START_WITHIN_SECONDS + _WITHIN_SECONDS)]


def _patiently(look: BrokerLook | DatabaseLook, ends: float) -> list[Finding]:
    """What is found once it answers, or when time is up."""
    while True:
        found = list(look.findings())
        if look.answered or time.monotonic() > ends:
            return found
        time.sleep(_AGAIN_SECONDS)


def _side_by_side(looks: Mapping[str, Look], within: float = _WITHIN_SECONDS) -> Iterator[Finding]:
    """What each of them finds, in their order; also what one had found before it hung or broke."""
    found: dict[str, list[Finding]] = {about: [] for about in looks}
    ended = {about: threading.Event() for about in looks}

    def run(about: str, look: Look) -> None:
        try:
            found[about].extend(look())
        except Exception as error:  # noqa: BLE001 - one part's mistake must not hide what the others found
            said = f"could not be looked at: {type(error).__name__}: {error}"
            found[about].append(Finding(about, Verdict.FAIL, said, "please report this"))
        ended[about].set()

    ends = time.monotonic() + within
    for about, look in looks.items():
        threading.Thread(target=run, args=(about, look), daemon=True).start()  # nobody waits for one that hangs
    for about in looks:
        in_time = ended[about].wait(max(0.0, ends - time.monotonic()))
        yield from list(found[about])
        if not in_time:
            said = f"no answer within {within:.0f} s"
            yield Finding(about, Verdict.FAIL, said, "is a firewall between? is it overloaded?")


def _files(
    given: Settings, unset: Verdict = Verdict.WARN
) -> tuple[tuple[BackendConfig, ...], Mapping[str, Table], Workflows, list[Finding]]:
    findings = []
    backends: tuple[BackendConfig, ...] = ()
    tables: dict[str, Table] = {}
    workflows = Workflows({})
    if given.backends_file is None:
        advice = "name your servers in a file, see README, and set DARKROOM_BACKENDS_FILE"
        findings.append(Finding("backends file", unset, "none is set", advice))
    else:
        try:
            tables = load_tables(given.providers_dir)
            backends = load_backends(Path(given.backends_file), tables)
            findings.append(Finding("backends file", Verdict.OK, f"{len(backends)} backends"))
        except (InvalidBackends, InvalidTables) as error:
            findings.append(Finding("backends file", Verdict.FAIL, "; ".join(error.problems), "correct it"))
    try:
        workflows = load_workflows(given.workflows_dir)
        findings.append(Finding("workflows", Verdict.OK, f"{len(workflows.names())} templates"))
    except InvalidWorkflows as error:
        findings.append(Finding("workflows", Verdict.FAIL, "; ".join(error.problems), "correct them"))
    return backends, tables, workflows, findings


def _look_at(backend: BackendConfig, tables: Mapping[str, Table], workflows: Workflows) -> Look:
    if backend.adapter == CANARY_POOL:
        return lambda: [Finding(f"backend {backend.name}", Verdict.OK, "an order every minute")]
    if backend.provider is None:
        return partial(examine_comfyui, backend.name, backend.url, workflows)
    return partial(examine_api, backend.name, tables[backend.provider], os.environ)


def _store(url: str) -> Iterator[Finding]:
    try:
        Artifacts(url).probe()
    except (StorageAway, ValueError) as error:
        yield Finding("artifact store", Verdict.FAIL, str(error), "correct DARKROOM_ARTIFACTS_URL or the rights there")
    else:
        yield Finding("artifact store", Verdict.OK, "written, read and deleted")


def _fit(
    given: Settings,
    backends: Sequence[BackendConfig],
    tables: Mapping[str, Table],
    workflows: Workflows,
    consumers: Mapping[str, int],
) -> Iterator[Finding]:
    """Settings against each other, against the backends, and against the workers that run."""
    tools = tools_of(given, workflows)
    servers = {b.name: build(b, tools).submit_limit_seconds for b in backends if b.provider is None}
    accounts = {b.name: tables[b.provider].submit_limit_seconds for b in backends if b.provider is not None}
    yield from fit.lease_findings(given.lease_seconds, servers)  # an API's pool has a lease of its own
    yield from fit.ack_timeout_findings(given.hold_seconds, servers | accounts)
    yield from fit.drain_findings(given.drain_seconds)
    slots: dict[str, int] = defaultdict(int)
    for backend in (b for b in backends if b.adapter != CANARY_POOL):
        slots[backend.pool] += backend.capacity
    for pool, count in sorted(slots.items()):
        prefetch = given.prefetch_comfyui if pool == "comfyui" else given.prefetch_api
        submitters = consumers.get(submit_queue(pool), 0)
        yield from fit.prefetch_findings(pool, slots=count, prefetch=prefetch, submitters=submitters)


def _processes(consumers: Mapping[str, int], pools: Iterable[str]) -> dict[str, int]:
    """How many of each service run, by the consumers their queues have. A producer consumes nothing."""
    return {
        "submitter": consumers.get(ORDERS_QUEUE, 0),
        "poller": max((consumers.get(check_queue(pool), 0) for pool in pools), default=0),
        "ops": max(consumers.get(dead_queue(stage), 0) for stage in Stage),
    }
