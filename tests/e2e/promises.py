"""The audit after every test: what was promised, asked of the database, the servers, the broker and the logs."""

import collections
from typing import Any

from shared.database.audit import run_audit
from shared.database.engine import connect
from shared.storage import Artifacts
from tests.e2e.gpu import PAID
from tests.e2e.system import FINAL, System
from tests.waiting import eventually


def audit(system: System) -> None:
    """Wait until nothing is owed, then raise AssertionError with every promise that was broken."""
    try:
        eventually(lambda: not owed(system), within=45)
    except AssertionError:
        raise AssertionError(f"still owed: {owed(system)}") from None
    broken = [*_database(system), *_servers(system), *_told(system), *_logs(system)]
    assert not broken, "\n".join(broken)


def owed(system: System) -> list[str]:
    """What somebody still has to do: unfinished rows, follow-ups, messages in work queues and dead queues."""
    rows = system.sql(
        "select status, count(*) as rows from tasks where status <> all(:final) or due_at is not null or cancel_owed"
        " group by status",
        final=list(FINAL),
    )
    found = [f"{row.rows} rows {row.status}" for row in rows]
    return found + [f"{depth} in {queue}" for queue, depth in system.mail.depths().items() if depth]


def _database(system: System) -> list[str]:
    engine = connect(system.settings["DARKROOM_DATABASE_URL"])
    try:
        findings = run_audit(engine, Artifacts(system.settings["DARKROOM_ARTIFACTS_URL"]))
    finally:
        engine.dispose()
    found = [f"{finding.check}: {finding.subject} {finding.detail}" for finding in findings]
    letters = system.sql("""
        select t.id, t.reason, t.stage, array_agg(d.reason) filter (where d.id is not null) as letters
        from tasks t left join dead_letters d on d.task_id = t.id and d.attempt = t.attempt and d.stage = t.stage
        where t.status = 'failed' group by t.id
    """)
    wrong = [row for row in letters if row.letters != [row.reason]]
    return found + [f"failed as {row.reason}, letters {row.letters}: {row.id}" for row in wrong]


def _servers(system: System) -> list[str]:
    attempts = system.sql(
        "select task_id, backend, cast(job_key as text) as job_key, provider_job_id from attempts"
        " where backend <> 'canary'"
    )  # which is no server
    backend_of = {attempt.job_key: attempt.backend for attempt in attempts}
    task_of = {attempt.job_key: attempt.task_id for attempt in attempts}
    broken: list[str] = []
    accepted: set[str] = set()
    paid: collections.Counter[Any] = collections.Counter()
    for gpu in system.gpus:
        runs = gpu.executions
        accepted |= {run["prompt_id"] for run in runs}
        paid.update(task_of.get(run["prompt_id"]) for run in runs if run["outcome"] in PAID)
        if gpu.most_at_once() > gpu.capacity:
            broken.append(f"{gpu.name} had {gpu.most_at_once()} at once and takes {gpu.capacity}")
        # A job that its server forgot in a restart is none any more: its attempt's may be made.
        times = collections.Counter(run["prompt_id"] for run in runs if run["outcome"] != "lost")
        broken += [f"{gpu.name} accepted {key} {n} times" for key, n in times.items() if n > 1]
        broken += [
            f"{gpu.name} has prompt {key} of {backend_of.get(key)}" for key in times if backend_of.get(key) != gpu.name
        ]
        broken += [f"{gpu.name} still runs {run['prompt_id']}" for run in runs if run["ended_at"] is None]
    names = {gpu.name for gpu in system.gpus}
    recorded = {a.job_key for a in attempts if a.provider_job_id is not None and a.backend in names}
    broken += [f"no server has ever had the recorded job {key}" for key in recorded - accepted]
    broken += [
        f"{n} pictures were made for task {task}"
        for task, n in paid.items()
        if n > 1 and str(task) not in system.paid_twice_allowed
    ]
    return broken


def _told(system: System) -> list[str]:
    """Every end of a task was announced as what it was, also one that a replay took back, and nothing else was."""
    told: dict[str, list[Any]] = collections.defaultdict(list)
    for event in system.mail.events():
        if event["event"] in FINAL:
            told[event["task_id"]].append((event["event"], event["version"], len(event["artifacts"])))
    pictures = {row.task_id: row.n for row in system.sql("select task_id, count(*) as n from artifacts group by 1")}
    ends: dict[str, list[Any]] = collections.defaultdict(list)
    for move in system.sql(
        "select task_id, to_status, version from task_moves where to_status = any(:final) order by version",
        final=list(FINAL),
    ):
        made = pictures.get(move.task_id, 0) if move.to_status == "completed" else 0
        ends[str(move.task_id)].append((move.to_status, move.version, made))
    return [
        f"task {task} ended as {ends[task]}, and the events say {told[task]}"
        for task in ends.keys() | told.keys()
        if sorted(told[task], key=lambda event: event[1]) != ends[task]
    ]


def _logs(system: System) -> list[str]:
    return [
        f"{worker.name}: {line.get('event')} {line.get('exc', line.get('raw', ''))}"
        for worker in system.workers
        for line in worker.exceptions()
        if line.get("event") not in system.expected_exceptions
    ]
