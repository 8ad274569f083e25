"""The `dead` commands. Exit status: 0 all well, 1 something refused or found, 2 could not be done."""

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Final

import typer

from services.ops.closing import Closed, Closing, close, would_close
from services.ops.edit_command import edit_letter
from services.ops.group_commands import group_app, list_groups
from services.ops.letter_options import All, Chosen, DryRun, Ids, must_name, with_filter
from services.ops.opened import opened
from services.ops.plan_commands import abort, apply, pause, plan, resume, status
from services.ops.publishing import publishing
from services.ops.replay import Item, Replayer, Result
from shared.database.letter_states import Deed
from shared.database.letters import Letters, Page, StoredLetter
from shared.database.replays import Prediction, Replays, Way
from shared.database.revisions import Revision, revisions_of
from shared.database.slots import Slots
from shared.domain.letters import LetterState, gist
from shared.terminal import AsJson, ByWhom, Quiet, fail, plain, print_json, printable, settings, table, tell

dead_app = typer.Typer(no_args_is_help=True, help="Dead letters: why orders died, and what is to become of them.")
dead_app.command("groups")(list_groups)
dead_app.add_typer(group_app, name="group")
for _name, _command in (("plan", plan), ("apply", apply), ("status", status), ("pause", pause), ("resume", resume)):
    dead_app.command(_name)(_command)
dead_app.command("abort")(abort)
dead_app.command("edit")(edit_letter)

#: Characters shown of what happened; `show` has all of them.
_SHORT: Final = 80
#: Letters of one list, unless more are asked for.
_LISTED: Final = 50


class ShownState(StrEnum):
    OPEN = "open"
    REPLAYED = "replayed"
    DISCARDED = "discarded"
    ARCHIVED = "archived"
    ANY = "any"


State = Annotated[ShownState, typer.Option("--state")]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="Kept with the letter's story.")]


@dead_app.command("list")
@with_filter
def list_letters(
    *,
    chosen: Chosen,
    state: State = ShownState.OPEN,
    newest_first: Annotated[bool, typer.Option("--newest-first")] = False,
    after: Annotated[int | None, typer.Option("--after", metavar="ID", help="With greater ids than this.")] = None,
    before: Annotated[int | None, typer.Option("--before", metavar="ID", help="With lesser ids than this.")] = None,
    as_json: AsJson = False,
) -> None:
    """Dead letters, oldest first."""
    limit = chosen.limit or _LISTED
    with opened(settings()) as engine:
        letters = Letters(engine)
        wanted = chosen.frozen(letters, None if state is ShownState.ANY else state)
        found = letters.page(wanted, Page(limit=limit, after=after, before=before, newest_first=newest_first))
    if as_json:
        for letter in found:
            print_json(_fields(letter))
        return
    if not found:
        tell("no dead letters" if state is ShownState.ANY else f"no dead letters that are {state}")
        return
    rows = [
        (
            m.id,
            m.at,
            m.state,
            m.stage,
            m.reason,
            m.pool,
            m.backend,
            m.task_id,
            m.attempt,
            gist(m.detail, _SHORT),
            m.fingerprint,
        )
        for m in found
    ]
    headings = (
        "id",
        "last seen",
        "state",
        "stage",
        "reason",
        "pool",
        "backend",
        "task",
        "attempt",
        "what happened",
        "group",
    )
    typer.echo(table(headings, rows))
    if len(found) == limit:
        onwards = f"--before {found[-1].id}" if newest_first else f"--after {found[-1].id}"
        tell(f"there may be more than these {limit}: {onwards} shows the next, --limit more at once")


@dead_app.command("show")
def show_letter(letter_id: Annotated[int, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """All about one letter, what was done with it, and what a replay would do now."""
    chosen = settings()
    with opened(chosen) as engine:
        letters = Letters(engine)
        letter = letters.get([letter_id]).get(letter_id)
        if letter is None:
            raise fail(f"there is no dead letter {letter_id}", 1)
        replays = letters.replays(letter_id)
        revisions = revisions_of(engine, letter.task_id) if letter.task_id is not None else []
        (outlook,) = Replays(engine, chosen.default_deadline_seconds).preview([letter_id])
    if as_json:
        more = {"body": letter.body, "headers": letter.headers, "replays": replays, "revisions": revisions}
        print_json(_fields(letter) | more | {"replay_now": {"way": outlook.way, "why": outlook.why}})
        return
    rows = list(_fields(letter).items())
    rows += [(f"header {name}", value) for name, value in letter.headers.items()]
    rows += [("replay", f"by {r.by_whom} at {r.at:%Y-%m-%d %H:%M:%S}, {r.result or 'not ended'}") for r in replays]
    rows += [(f"revision {r.revision}", _revised(r)) for r in revisions]
    rows.append(("a replay now", ("refused: " if outlook.way is Way.REFUSED else "") + outlook.why))
    for name, value in rows:
        if value is not None:
            typer.echo(f"{name + ':':<16} {_lines(str(value))}")
    typer.echo(f"body:\n{_lines(letter.body or '-')}")


def _revised(revision: Revision) -> str:
    """By whom, when, and each input before and after; one that was or is not given is a dash."""
    changes = [
        f"{name}: {_input(change, 'before')} -> {_input(change, 'after')}" for name, change in revision.diff.items()
    ]
    return f"by {revision.by_whom} at {revision.at:%Y-%m-%d %H:%M:%S}, {'; '.join(changes)}"


def _input(change: Mapping[str, Any], side: str) -> str:
    return json.dumps(change[side], ensure_ascii=False) if side in change else "-"


@dead_app.command("export")
@with_filter
def export_letters(*, chosen: Chosen, state: State = ShownState.ANY) -> None:
    """Every letter that matches as a line of JSON, with its body and headers; secrets in it are hidden."""
    with opened(settings()) as engine:
        letters = Letters(engine)
        wanted = chosen.frozen(letters, None if state is ShownState.ANY else state)
        for letter in letters.all_whole(wanted, chosen.limit):
            print_json(letter)


@dead_app.command("replay")
@with_filter
def replay_letters(
    *,
    ids: Ids = None,
    chosen: Chosen,
    act_on_all: All = False,
    dry_run: DryRun = False,
    by_whom: ByWhom,
    as_json: AsJson = False,
) -> None:
    """Send letters round again: their tasks become pending with all tries and a new deadline."""
    must_name(ids, chosen, act_on_all=act_on_all, dry_run=dry_run)
    with_settings = settings(broker=not dry_run)
    with opened(with_settings) as engine:
        numbers = list(dict.fromkeys(ids)) if ids else chosen.ids(Letters(engine), LetterState.OPEN)
        replays = Replays(engine, with_settings.default_deadline_seconds)
        if dry_run:
            _end_with_predictions(numbers, replays.preview(numbers), as_json=as_json)
            return
        pools = sorted({backend.pool for backend in Slots(engine, by_whom, Quiet()).backends()})
        with publishing(with_settings, pools) as publish:
            replayer = Replayer(replays, publish=publish, pools=pools, metrics=Quiet())
            items = replayer.replay(numbers, by_whom)
    _end_with_items(items, as_json=as_json, dry_run=False)


@dead_app.command("discard")
@with_filter
def discard_letters(
    *,
    ids: Ids = None,
    why: Why,
    chosen: Chosen,
    act_on_all: All = False,
    dry_run: DryRun = False,
    by_whom: ByWhom,
    as_json: AsJson = False,
) -> None:
    """Close open letters for good; their tasks stay failed."""
    _close(Deed.DISCARD, ids, chosen, why, by_whom, act_on_all=act_on_all, dry_run=dry_run, as_json=as_json)


@dead_app.command("archive")
@with_filter
def archive_letters(
    *,
    ids: Ids = None,
    why: Why,
    chosen: Chosen,
    act_on_all: All = False,
    dry_run: DryRun = False,
    by_whom: ByWhom,
    as_json: AsJson = False,
) -> None:
    """Put open letters aside, undecided; `restore` brings them back."""
    _close(Deed.ARCHIVE, ids, chosen, why, by_whom, act_on_all=act_on_all, dry_run=dry_run, as_json=as_json)


@dead_app.command("restore")
@with_filter
def restore_letters(
    *,
    ids: Ids = None,
    why: Why,
    chosen: Chosen,
    act_on_all: All = False,
    dry_run: DryRun = False,
    by_whom: ByWhom,
    as_json: AsJson = False,
) -> None:
    """Make archived letters open again."""
    _close(Deed.RESTORE, ids, chosen, why, by_whom, act_on_all=act_on_all, dry_run=dry_run, as_json=as_json)


# --- what the commands share ------------------------------------------------------------------------------------------


def _close(
    deed: Deed,
    ids: list[int] | None,
    chosen: Chosen,
    why: str,
    by_whom: str,
    *,
    act_on_all: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    must_name(ids, chosen, act_on_all=act_on_all, dry_run=dry_run)
    state = LetterState.ARCHIVED if deed is Deed.RESTORE else LetterState.OPEN
    with opened(settings()) as engine:
        letters = Letters(engine)
        numbers = list(dict.fromkeys(ids)) if ids else chosen.ids(letters, state)
        do = would_close if dry_run else partial(close, by_whom=by_whom)
        items = do(letters, deed, numbers, why=why)
    _end_with_items(items, as_json=as_json, dry_run=dry_run)


def _end_with_predictions(ids: Sequence[int], predictions: Sequence[Prediction], *, as_json: bool) -> None:
    known = {p.letter_id: p for p in predictions}
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


def _end_with_items(items: Sequence[Item] | Sequence[Closed], *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        for i in items:
            print_json({"id": i.letter_id, "result": i.result, "why": i.why, "task_id": i.task_id, "dry_run": dry_run})
    elif items:
        would = "would be " if dry_run else ""
        typer.echo(table(("id", "result", "why"), [(i.letter_id, would + i.result, i.why) for i in items]))
    else:
        tell("no letter matches")
    if dry_run and not as_json:
        tell("nothing was changed")
    raise typer.Exit(1 if any(item.result in {Result.REFUSED, Closing.REFUSED} for item in items) else 0)


def _fields(letter: StoredLetter) -> dict[str, Any]:
    fields: dict[str, Any] = plain(letter)
    return {name: value for name, value in fields.items() if name not in {"body", "headers", "has_body"}}


def _lines(text: str) -> str:
    """Foreign text with its lines, and without anything that could rewrite the terminal."""
    return "\n".join(printable(line) for line in text.splitlines())
