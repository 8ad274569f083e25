"""The `dead` commands. Exit status: 0 all well, 1 something refused or found, 2 could not be done."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from services.ops.opened import opened
from services.ops.replay import Item, Publish, Replayer, Result, confirmed
from shared.broker.broker import Broker
from shared.broker.topology import topology
from shared.config import Settings
from shared.database.dead_letters import DeadLetters, LetterFilter, StoredLetter
from shared.database.replays import Prediction, Replays, Way
from shared.database.slots import Slots
from shared.domain.messages import Message
from shared.domain.task import Reason, Stage
from shared.terminal import (
    AsJson,
    ByWhom,
    Quiet,
    fail,
    plain,
    print_json,
    printable,
    seconds_of,
    settings,
    table,
    tell,
)

dead_app = typer.Typer(no_args_is_help=True, help="Dead letters: why orders died, and what is to become of them.")

#: Characters shown of what happened; `show` has all of them.
_SHORT: Final = 80


class LetterState(StrEnum):
    OPEN = "open"
    REPLAYED = "replayed"
    DISCARDED = "discarded"
    ANY = "any"


Ids = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="As `darkroom dead list` shows them.")]
OfReason = Annotated[Reason | None, typer.Option("--reason", metavar="REASON", help=f"One of {', '.join(Reason)}.")]
OfStage = Annotated[Stage | None, typer.Option("--stage", help="The step it died in.")]
OfPool = Annotated[str | None, typer.Option("--pool", metavar="POOL")]
Since = Annotated[str | None, typer.Option("--since", metavar="TIME", help="Recorded in the last 90s, 30m, 2h, 7d.")]
OfTask = Annotated[uuid.UUID | None, typer.Option("--task", metavar="ID", help="About this task.")]
Group = Annotated[str | None, typer.Option("--group", metavar="FINGERPRINT", help="Failures of one kind.")]
State = Annotated[LetterState, typer.Option("--state")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="The oldest N.")]
All = Annotated[bool, typer.Option("--all", help="Act on every open letter that matches, without naming ids.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen; change nothing.")]


@dead_app.command("list")
def list_letters(
    *,
    reason: OfReason = None,
    stage: OfStage = None,
    pool: OfPool = None,
    since: Since = None,
    task: OfTask = None,
    group: Group = None,
    state: State = LetterState.OPEN,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Dead letters, oldest first."""
    wanted = LetterFilter(
        reason=reason,
        stage=stage,
        pool=pool,
        since_seconds=_seconds(since),
        task_id=task,
        fingerprint=group,
        state=None if state is LetterState.ANY else state,
        limit=limit,
    )
    with opened(settings()) as engine:
        letters = DeadLetters(engine, "").find(wanted)
    if as_json:
        for letter in letters:
            print_json(_fields(letter))
        return
    if not letters:
        tell("no dead letters" if state is LetterState.ANY else f"no dead letters that are {state}")
        return
    rows = [
        (m.id, m.at, m.state, m.stage, m.reason, m.pool, m.task_id, m.attempt, _short(m.detail), m.fingerprint)
        for m in letters
    ]
    headings = ("id", "recorded", "state", "stage", "reason", "pool", "task", "attempt", "what happened", "group")
    typer.echo(table(headings, rows))
    if len(letters) == limit:
        tell(f"these are the oldest {limit}; there may be more (--limit)")


@dead_app.command("show")
def show_letter(letter_id: Annotated[int, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """All about one letter, what was done with it, and what a replay would do now."""
    chosen = settings()
    with opened(chosen) as engine:
        letters = DeadLetters(engine, "")
        letter = letters.get([letter_id]).get(letter_id)
        if letter is None:
            raise fail(f"there is no dead letter {letter_id}", 1)
        replays = letters.replays(letter_id)
        (outlook,) = Replays(engine, chosen.default_deadline_seconds).preview([letter_id])
    if as_json:
        more = {"body": letter.body, "headers": letter.headers, "replays": replays}
        print_json(_fields(letter) | more | {"replay_now": {"way": outlook.way, "why": outlook.why}})
        return
    rows = list(_fields(letter).items())
    rows += [(f"header {name}", value) for name, value in letter.headers.items()]
    rows += [("replay", f"by {r.by_whom} at {r.at:%Y-%m-%d %H:%M:%S}, {r.result or 'not ended'}") for r in replays]
    rows.append(("a replay now", ("refused: " if outlook.way is Way.REFUSED else "") + outlook.why))
    for name, value in rows:
        if value is not None:
            typer.echo(f"{name + ':':<16} {_lines(str(value))}")
    typer.echo(f"body:\n{_lines(letter.body or '-')}")


@dead_app.command("replay")
def replay_letters(
    *,
    ids: Ids = None,
    reason: OfReason = None,
    stage: OfStage = None,
    pool: OfPool = None,
    since: Since = None,
    task: OfTask = None,
    group: Group = None,
    limit: Limit = None,
    act_on_all: All = False,
    dry_run: DryRun = False,
    by_whom: ByWhom,
    as_json: AsJson = False,
) -> None:
    """Send letters round again: their tasks become pending with all tries and a new deadline."""
    wanted = LetterFilter(
        reason=reason,
        stage=stage,
        pool=pool,
        since_seconds=_seconds(since),
        task_id=task,
        fingerprint=group,
        limit=limit,
    )
    _must_name(ids, wanted, act_on_all=act_on_all, dry_run=dry_run)
    chosen = settings(broker=not dry_run)
    with opened(chosen) as engine:
        letters = DeadLetters(engine, by_whom)
        numbers = list(dict.fromkeys(ids)) if ids else letters.ids(wanted)
        replays = Replays(engine, chosen.default_deadline_seconds)
        if dry_run:
            _end_with_predictions(numbers, replays.preview(numbers), as_json=as_json)
            return
        pools = sorted({backend.pool for backend in Slots(engine, by_whom, Quiet()).backends()})
        with publishing(chosen, pools) as publish:
            replayer = Replayer(letters, replays, publish=publish, pools=pools, metrics=Quiet())
            items = replayer.replay(numbers, by_whom)
    _end_with_items(items, as_json=as_json, dry_run=False)


@dead_app.command("discard")
def discard_letters(
    *,
    ids: Ids = None,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="Kept with the letter's story.")],
    reason: OfReason = None,
    stage: OfStage = None,
    pool: OfPool = None,
    since: Since = None,
    task: OfTask = None,
    group: Group = None,
    limit: Limit = None,
    act_on_all: All = False,
    dry_run: DryRun = False,
    by_whom: ByWhom,
    as_json: AsJson = False,
) -> None:
    """Close letters for good; their tasks stay failed."""
    wanted = LetterFilter(
        reason=reason,
        stage=stage,
        pool=pool,
        since_seconds=_seconds(since),
        task_id=task,
        fingerprint=group,
        limit=limit,
    )
    _must_name(ids, wanted, act_on_all=act_on_all, dry_run=dry_run)
    chosen = settings()
    with opened(chosen) as engine:
        letters = DeadLetters(engine, by_whom)
        numbers = list(dict.fromkeys(ids)) if ids else letters.ids(wanted)
        replays = Replays(engine, chosen.default_deadline_seconds)
        replayer = Replayer(letters, replays, publish=publish_nothing, pools=(), metrics=Quiet())
        items = replayer.would_discard(numbers, why) if dry_run else replayer.discard(numbers, by_whom, why)
    _end_with_items(items, as_json=as_json, dry_run=dry_run)


# --- what the commands share ------------------------------------------------------------------------------------------


def _seconds(since: str | None) -> float | None:
    return None if since is None else seconds_of(since)


def _must_name(ids: list[int] | None, wanted: LetterFilter, *, act_on_all: bool, dry_run: bool) -> None:
    """Nobody acts on everything by accident."""
    if ids and (wanted != LetterFilter() or act_on_all):
        raise fail("name ids, or a filter with --all, not both")
    if not ids and not act_on_all and not dry_run:
        raise fail("name the ids of letters, or add --all to act on every open letter that matches")


@contextmanager
def publishing(chosen: Settings, pools: Sequence[str]) -> Iterator[Publish]:
    """Connects when something is to be published; each call gives up after `confirm_timeout_seconds`."""
    brokers: list[Broker] = []

    def publish(messages: Sequence[Message]) -> None:
        if not brokers:
            brokers.append(Broker(chosen.amqp_urls, topology(pools), name="darkroom dead", metrics=Quiet()))
            brokers[0].start()
        confirmed(brokers[0].publish, chosen.confirm_timeout_seconds)(messages)

    try:
        yield publish
    finally:
        for broker in brokers:
            broker.stop()


def publish_nothing(_: Sequence[Message]) -> None:
    """A discard publishes nothing."""


def _end_with_predictions(ids: Sequence[int], predictions: Sequence[Prediction], *, as_json: bool) -> None:
    known = {p.letter.id: p for p in predictions}
    plan = [(i, known[i].way, known[i].why) if i in known else (i, Way.REFUSED, "no such letter") for i in ids]
    if as_json:
        for id_, way, why in plan:
            print_json({"id": id_, "way": way, "why": why})
    else:
        words = {Way.ROW: "would be replayed", Way.MESSAGE: "would be published", Way.REFUSED: "would be refused"}
        if plan:
            typer.echo(table(("id", "a replay", "because"), [(i, words[way], why) for i, way, why in plan]))
        going = sum(way is not Way.REFUSED for _, way, _ in plan)
        tell(f"{going} of {len(plan)} would go round; nothing was changed")
    raise typer.Exit(1 if any(way is Way.REFUSED for _, way, _ in plan) else 0)


def _end_with_items(items: Sequence[Item], *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        for i in items:
            print_json({"id": i.letter_id, "result": i.result, "why": i.why, "task_id": i.task_id, "dry_run": dry_run})
    elif items:
        would = "would be " if dry_run else ""
        typer.echo(table(("id", "result", "why"), [(i.letter_id, would + i.result, i.why) for i in items]))
    else:
        tell("no open letter matches")
    if dry_run and not as_json:
        tell("nothing was changed")
    raise typer.Exit(1 if any(item.result is Result.REFUSED for item in items) else 0)


def _fields(letter: StoredLetter) -> dict[str, Any]:
    fields: dict[str, Any] = plain(letter)
    return {name: value for name, value in fields.items() if name not in {"body", "headers", "has_body"}}


def _short(text: str) -> str:
    """The end of a traceback, the beginning of everything else, on one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if "Traceback" in text and lines else " ".join(lines)
    return line if len(line) <= _SHORT else line[: _SHORT - 1] + "…"


def _lines(text: str) -> str:
    """Foreign text with its lines, and without anything that could rewrite the terminal."""
    return "\n".join(printable(line) for line in text.splitlines())
