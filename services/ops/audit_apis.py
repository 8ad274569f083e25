"""What API providers say of our jobs that list them with our seeds: one of each attempt, and it is the recorded one."""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from shared.database.audit import Check, Finding, Posted, posted
from shared.database.slots import Backend, Slots
from shared.domain.errors import ProviderAway
from shared.providers import templates
from shared.providers.http_api import HttpApi
from shared.providers.inputs import Pictures
from shared.providers.recovery import listed_seeds, provider_seed
from shared.providers.registry import InvalidBackends, Tools, build
from shared.providers.table import Table
from shared.providers.workflow import Workflows
from shared.terminal import Quiet

#: Attempts of this last time are asked for; lists reach back for an hour at least.
WINDOW_SECONDS: Final = 3300.0
_MARGIN_SECONDS: Final = 120.0


def api_jobs_found(
    engine: sa.Engine, tables: Mapping[str, Table], environ: Mapping[str, str]
) -> tuple[list[Finding], list[str]]:
    """Jobs made twice or under another name, and the backends that could not be asked. Raises DatabaseAway."""
    found: list[Finding] = []
    silent: list[str] = []
    for backend in Slots(engine, "audit", Quiet()).backends():
        adapter, _, provider = backend.adapter.partition(":")
        table = tables.get(provider) if adapter == "http" else None
        if table is None or table.listing is None or table.listing.seed is None:
            continue
        attempts = posted(engine, backend.name, WINDOW_SECONDS)
        if not attempts:
            continue
        try:
            jobs = _jobs(backend, attempts, tables, environ)
        except ProviderAway:
            silent.append(backend.name)
        except InvalidBackends:
            silent.append(f"{backend.name} (its key is not given)")
        else:
            found += [finding for attempt in attempts if (finding := _compared(backend.name, attempt, jobs))]
    return found, silent


def _jobs(
    backend: Backend, attempts: Sequence[Posted], tables: Mapping[str, Table], environ: Mapping[str, str]
) -> Mapping[int, set[str]]:
    """The ids of the jobs that were made with each seed. Raises ProviderAway, InvalidBackends."""
    tools = Tools(workflows=Workflows({}), pictures=Pictures(), tables=tables, environ=environ)
    api = build(backend, tools)
    assert isinstance(api, HttpApi)  # noqa: S101 - its adapter is http
    before = datetime.now(UTC) + timedelta(seconds=_MARGIN_SECONDS)
    after = before - timedelta(seconds=WINDOW_SECONDS + 2 * _MARGIN_SECONDS)
    jobs: defaultdict[int, set[str]] = defaultdict(set)
    for inputs in _kinds(attempts, templates.places_in(api.table.listing.request if api.table.listing else "")):
        for id_, seed in listed_seeds(api, inputs, after, before)[0]:
            if isinstance(seed, int):
                jobs[seed].add(id_)
    return jobs


def _kinds(attempts: Sequence[Posted], names: Collection[str]) -> list[Mapping[str, Any]]:
    """What orders give for these names, each combination once: a list may be one of a model."""
    kinds = []
    for attempt in attempts:
        inputs = attempt.said.get("inputs")
        given = inputs if isinstance(inputs, dict) else {}
        kinds.append({name: given[name] for name in names if isinstance(given.get(name), str)})
    return list({json.dumps(kind, sort_keys=True): kind for kind in kinds}.values())


def _compared(name: str, attempt: Posted, jobs: Mapping[int, set[str]]) -> Finding | None:
    ids = sorted(jobs.get(provider_seed(attempt.seed), ()))
    about = f"attempt {attempt.attempt}"
    if len(ids) > max(1, attempt.posts):
        detail = f"{about}: {name} has {len(ids)} jobs of its {attempt.posts} POSTs: {', '.join(ids)}"
    elif ids and attempt.provider_job_id is not None and attempt.provider_job_id not in ids:
        detail = f"{about} has job {attempt.provider_job_id}, and {name} made {', '.join(ids)} for it"
    else:
        return None
    return Finding(check=Check.DOUBLE_JOB, subject=str(attempt.task_id), detail=detail)
