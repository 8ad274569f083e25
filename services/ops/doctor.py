"""`darkroom doctor`: looks at everything this installation stands on, and says in plain words what it found."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from functools import partial
from pathlib import Path
from typing import Final

import typer

from shared.broker.examine import examine_broker
from shared.broker.topology import topology
from shared.config import Settings
from shared.database.examine import examine_database
from shared.domain.errors import StorageAway
from shared.domain.finding import Finding, Verdict
from shared.providers.comfyui_examine import examine_comfyui
from shared.providers.http_examine import examine_api
from shared.providers.registry import BackendConfig, InvalidBackends, load_backends
from shared.providers.table import InvalidTables, Table, load_tables
from shared.providers.workflow import InvalidWorkflows, Workflows, load_workflows
from shared.storage import Artifacts
from shared.terminal import AsJson, print_json, settings, table

#: All parts are looked at side by side; one that hangs is given up after this.
_WITHIN_SECONDS: Final = 25.0


def doctor(as_json: AsJson = False) -> None:
    """Look at broker, database, servers, workflows and store. Exit status 1 when something has failed.

    What a new installation has yet to do (no schema, no queues, no backends file) is a warning, and so is a workflow
    that a server cannot run; a server of the backends file that does not answer is a failure.
    """
    given = settings(broker=True)
    findings = examine(given)
    if as_json:
        for finding in findings:
            print_json(finding)
    else:
        rows = [(f.verdict, f.about, f.found + (f" ({f.advice})" if f.advice else "")) for f in findings]
        typer.echo(table(("", "what", "found"), rows))
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        raise typer.Exit(1)


def examine(given: Settings) -> list[Finding]:
    """Everything found, in a fixed order. No part keeps another from being looked at."""
    backends, tables, workflows, findings = _files(given)
    pools = sorted({backend.pool for backend in backends}) or ["comfyui"]
    parts: dict[str, Callable[[], Iterable[Finding]]] = {
        "broker": partial(examine_broker, given.amqp_urls, topology(pools), hold_seconds=given.hold_seconds),
        "database": partial(examine_database, given.database_url.get_secret_value()),
        "artifact store": partial(_store, given.artifacts_url),
    }
    for backend in backends:
        parts[f"backend {backend.name}"] = (
            partial(examine_comfyui, backend.name, backend.url, workflows)
            if backend.provider is None
            else partial(examine_api, backend.name, tables[backend.provider], os.environ)
        )
    threads = ThreadPoolExecutor(len(parts))
    begun = {about: threads.submit(lambda look=look: list(look())) for about, look in parts.items()}  # type: ignore[misc]  # mypy cannot type a lambda with a default
    threads.shutdown(wait=False)
    for about, future in begun.items():
        try:
            findings += future.result(_WITHIN_SECONDS)
        except NotInTime:
            found = f"no answer within {_WITHIN_SECONDS:.0f} s"
            findings.append(Finding(about, Verdict.FAIL, found, "is a firewall between?"))
        except Exception as error:  # noqa: BLE001 - one part's mistake must not hide what the others found
            found = f"could not be looked at: {type(error).__name__}: {error}"
            findings.append(Finding(about, Verdict.FAIL, found, "please report this"))
    return [*findings, *_prefetch(given, backends)]


def _files(
    given: Settings,
) -> tuple[tuple[BackendConfig, ...], Mapping[str, Table], Workflows, list[Finding]]:
    findings = []
    backends: tuple[BackendConfig, ...] = ()
    tables: dict[str, Table] = {}
    workflows = Workflows({})
    if given.backends_file is None:
        advice = "name your servers in a file, see README, and set DARKROOM_BACKENDS_FILE"
        findings.append(Finding("backends file", Verdict.WARN, "none is set", advice))
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


def _store(url: str) -> Iterator[Finding]:
    try:
        Artifacts(url).probe()
    except (StorageAway, ValueError) as error:
        yield Finding("artifact store", Verdict.FAIL, str(error), "correct DARKROOM_ARTIFACTS_URL or the rights there")
    else:
        yield Finding("artifact store", Verdict.OK, "written, read and deleted")


def _prefetch(given: Settings, backends: Iterable[BackendConfig]) -> Iterator[Finding]:
    """Permits that one submitter holds, against the slots its pool has: too few leave slots empty."""
    capacity: dict[str, int] = defaultdict(int)
    for backend in backends:
        capacity[backend.pool] += backend.capacity
    for pool, slots in sorted(capacity.items()):
        prefetch = given.prefetch_comfyui if pool == "comfyui" else given.prefetch_api
        workers = -(-slots // prefetch)
        if workers > 1:
            found = f"pool {pool} has {slots} slots, one submitter holds {prefetch} permits"
            yield Finding("prefetch", Verdict.WARN, found, f"run {workers} submitters, or raise the prefetch")
        else:
            yield Finding("prefetch", Verdict.OK, f"{prefetch} permits per submitter for {slots} slots of pool {pool}")
