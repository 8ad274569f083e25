"""`darkroom order`: what became of an order, its whole story, its end on request, and the job it has after all."""

import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, Final

import typer

from services.ops import unknown
from services.ops.closing import Closed
from services.ops.pinned import pin_said
from services.ops.publishing import publishing
from services.ops.replay import Item, Replayer
from services.ops.trace import Event, events_of, waterfall
from shared.database.adopt import JOB_ID, Refused
from shared.database.adopt import adopt as adopt_job
from shared.database.engine import connect
from shared.database.history import History
from shared.database.letters import Letters
from shared.database.replays import Replays
from shared.database.slots import Slots
from shared.database.tasks import Tasks
from shared.domain.messages import Artifact
from shared.domain.task import Status, Task, task_id_for
from shared.terminal import AsJson, ByWhom, Quiet, duration, fail, plain, print_json, printable, settings, tell

order_app = typer.Typer(no_args_is_help=True, help="One order: what became of it, its story, its end on request.")

Which = Annotated[str, typer.Argument(metavar="ID|KEY", help="Task id, or the order's idempotency key.")]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="How you decided; kept with the order.")]
#: The status that a command ends with when there is no such order.
_NOT_FOUND: Final = 1


@order_app.command()
def show(
    which: Annotated[str, typer.Argument(metavar="[ID|KEY]", help="Task id, or the order's idempotency key.")] = "",
    order_id: Annotated[str, typer.Option("--order-id", help="Every task of this order id, the newest first.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show where an order stands, and its pictures."""
    if bool(which) == bool(order_id):
        raise fail("give either a task id or idempotency key, or --order-id")
    rows, history, slots = _reach(actor="darkroom order show")
    found = history.of_order(order_id) if order_id else [_found(rows, which)]
    if not found:
        raise fail(f"no task has the order id {order_id!r}", _NOT_FOUND)
    pictures = rows.artifacts([task.id for task in found])
    for number, task in enumerate(found):
        if as_json:
            print_json(_described(task) | {"artifacts": pictures.get(task.id, [])})
        else:
            typer.echo("\n" * (number > 0) + _card(task, pictures.get(task.id, []), _pin(task, slots)))


@order_app.command()
def cancel(
    which: Which,
    by: ByWhom,
    reason: Annotated[str, typer.Option(help="Why; it is kept and told to the order's owner.")] = "",
    as_json: AsJson = False,
) -> None:
    """Cancel an unfinished order. Its job at the provider is cancelled by the poller, soon after."""
    rows, _, _ = _reach(actor=by)
    before = _found(rows, which)
    task = rows.cancel(before.id, reason or None, by) or before
    if as_json:
        print_json(_described(task))
    if task.status is not Status.CANCELLED:
        raise fail(f"task {task.id} is {task.status} already; nothing was changed", 1)
    if not as_json:
        how = "was cancelled already" if before.status is Status.CANCELLED else "is cancelled"
        owed = "; its job at the provider is cancelled next" if task.cancel_owed else ""
        typer.echo(f"task {task.id} (key {printable(task.idempotency_key)}) {how}{owed}")


@order_app.command()
def adopt(
    which: Which,
    by: ByWhom,
    job: Annotated[str, typer.Option("--job", metavar="ID", help="The provider's id of the job that made it.")],
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="How you know; kept with the order.")],
    as_json: AsJson = False,
) -> None:
    """Let a failed order wait for a job that exists after all. A wrong ID ends as failed again."""
    if not JOB_ID.fullmatch(job):
        raise fail("a job id is 1 to 200 letters, digits, dots, dashes, colons and underscores")
    chosen = settings()
    engine = connect(chosen.database_url.get_secret_value(), pool_size=1)
    before = _found(Tasks(engine, by, Quiet()), which)
    after = adopt_job(
        engine,
        before,
        job,
        by,
        why,
        default_deadline=chosen.default_deadline_seconds,
        tries=chosen.retry_max_attempts,
    )
    if isinstance(after, Refused):
        raise fail(f"task {before.id} cannot adopt a job: {after.why}", 1)
    if as_json:
        print_json(_described(after))
    else:
        typer.echo(f"task {after.id} waits for job {job} on {after.backend}; the poller looks at it next")


@order_app.command("submit-again")
def submit_again(which: Which, by: ByWhom, why: Why, as_json: AsJson = False) -> None:
    """Send an order of unknown outcome once more. Its provider may be paid for two pictures; the order gets one."""
    chosen = settings(broker=True)
    engine = connect(chosen.database_url.get_secret_value(), pool_size=1)
    task = _found(Tasks(engine, by, Quiet()), which)
    replays = Replays(engine, chosen.default_deadline_seconds)
    pools = sorted({backend.pool for backend in Slots(engine, by, Quiet()).backends()})
    with publishing(chosen, pools) as publish:
        replayer = Replayer(replays, publish=publish, pools=pools, metrics=Quiet())
        done = unknown.submit_again(Letters(engine), replayer, task, by, why)
    _say(task, done, "is pending again, as a new attempt", as_json=as_json)


@order_app.command("give-up")
def give_up(which: Which, by: ByWhom, why: Why, as_json: AsJson = False) -> None:
    """Leave an order of unknown outcome failed, and close its dead letter."""
    chosen = settings()
    engine = connect(chosen.database_url.get_secret_value(), pool_size=1)
    task = _found(Tasks(engine, by, Quiet()), which)
    done = unknown.give_up(Letters(engine), task, by, why)
    _say(task, done, "stays failed, and its dead letter is closed", as_json=as_json)


@order_app.command()
def trace(which: Which, as_json: AsJson = False) -> None:
    """Tell the whole story of an order: moves, lost races, attempts, pictures, dead letters, what people did."""
    rows, history, slots = _reach(actor="darkroom order trace")
    story = history.story(_found(rows, which).id)
    if story is None:
        raise fail(f"no task is called {which!r}", _NOT_FOUND)
    task, events = story.task, events_of(story)
    if as_json:
        print_json(
            _described(task)
            | {
                "trace_id": task.trace_id,
                "duplicate_keys": story.duplicate_keys,
                "events": [_plain_event(event) for event in events],
                "attempts": story.attempts,
                "artifacts": [
                    {"attempt": attempt, "at": at} | plain(picture) for attempt, at, picture in story.artifacts
                ],
                "dead_letters": story.letters,
                "lost_races": story.lost_races,
            }
        )
        return
    typer.echo(f"task   {task.id}\nkey    {printable(task.idempotency_key)}\ntrace  {task.trace_id}")
    if pin := _pin(task, slots):
        typer.echo(f"at     {printable(pin)}")
    for key in story.duplicate_keys:
        typer.echo(f"also   {printable(key)} (same order id, kept with this task)")
    typer.echo("\n" + waterfall(story, events))


def _say(task: Task, done: Item | Closed | str, what: str, *, as_json: bool) -> None:
    if isinstance(done, str):
        raise fail(f"task {task.id}: nothing was changed: {done}", 1)
    if as_json:
        print_json({"task_id": task.id, "letter": done.letter_id, "result": done.result, "why": done.why})
    else:
        typer.echo(f"task {task.id} (key {printable(task.idempotency_key)}) {what}")


def _reach(actor: str) -> tuple[Tasks, History, Slots]:
    engine = connect(settings().database_url.get_secret_value(), pool_size=1)
    return Tasks(engine, actor, Quiet()), History(engine), Slots(engine, actor, Quiet())


def _pin(task: Task, slots: Slots) -> str | None:
    return None if task.pinned_backend is None else pin_said(task, slots.backends())


def _found(rows: Tasks, which: str) -> Task:
    """The task with this id, or else the one this key names. Ends the command when there is neither."""
    names = [task_id_for(which)]
    with suppress(ValueError):
        names.insert(0, uuid.UUID(which))
    by_id = rows.find(names[0]) if len(names) > 1 else None
    task = by_id or rows.find(names[-1])
    if task is None:
        if status := next(filter(None, map(rows.purged, names)), None):
            raise fail(f"that order is {status}, and it is purged: nothing more is kept of it", _NOT_FOUND)
        raise fail(f"no task has the id or idempotency key {which!r}; an order just placed has none yet", _NOT_FOUND)
    if task.idempotency_key != which and by_id is None:
        tell(f"this key was kept with the task of {printable(task.idempotency_key)}: same order id")
    return task


def _described(task: Task) -> dict[str, Any]:
    return {
        "task_id": task.id,
        "status": task.status,
        "version": task.version,
        "attempt": task.attempt,
        "charged": task.charged,
        "pool": task.pool,
        "workflow": task.workflow,
        "priority": task.priority,
        "order_id": task.order_id,
        "idempotency_key": task.idempotency_key,
        "backend": task.backend,
        "pinned_backend": task.pinned_backend,
        "provider_job_id": task.provider_job_id,
        "reason": task.reason,
        "detail": task.detail,
        "stage": task.stage,
        "created_at": task.created_at,
        "changed_at": task.changed_at,
        "deadline_at": task.deadline_at,
        "due_at": task.due_at,
    }


def _plain_event(event: Event) -> dict[str, Any]:
    fields: dict[str, Any] = plain(event)
    return fields | {"seconds": round(event.seconds, 6)}


def _card(task: Task, pictures: Sequence[Artifact], pin: str | None) -> str:
    """One order for a person to read."""
    age = duration((task.now - task.changed_at).total_seconds())
    lines = [
        ("task", task.id),
        ("status", f"{task.status} for {age}, attempt {task.attempt}, version {task.version}"),
        ("reason", ": ".join(filter(None, [task.reason, task.detail])) or None),
        ("key", task.idempotency_key),
        ("order", task.order_id),
        ("pool", f"{task.pool}, {task.priority} priority" + (f", workflow {task.workflow}" if task.workflow else "")),
        ("backend", task.backend),
        ("made at", pin),
        ("job", task.provider_job_id),
        ("created", f"{task.created_at:%Y-%m-%d %H:%M:%S %Z}"),
        ("deadline", f"{task.deadline_at:%Y-%m-%d %H:%M:%S %Z}"),
        *(("picture", f"{p.key}  {p.width}x{p.height} {p.media_type} {p.bytes} bytes") for p in pictures),
    ]
    return "\n".join(f"{name:<9} {printable(str(value))}" for name, value in lines if value is not None)
