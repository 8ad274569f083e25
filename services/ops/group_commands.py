"""`darkroom dead groups` and `darkroom dead group`: failures of one kind, and what people say about them."""

from typing import Annotated, Final

import typer

from services.ops.evidence import sentences
from services.ops.opened import opened
from shared.database.attribution import recent_attribution
from shared.database.letter_groups import Group, GroupFilter, Groups
from shared.domain.letters import gist
from shared.domain.task import Reason
from shared.terminal import AsJson, ByWhom, fail, plain, print_json, printable, settings, table, tell

group_app = typer.Typer(no_args_is_help=True, help="What is known about failures of one kind.")

#: Attempts that began so long ago or later tell whether orders or a backend are to blame.
_RECENT_SECONDS: Final = 86_400.0
_RECENT: Final = "24 hours"
#: Characters shown of what happened and of a note; `group show` has all of them.
_SHORT: Final = 60

Fingerprint = Annotated[str, typer.Argument(metavar="GROUP", help="As `darkroom dead groups` shows it.")]


def list_groups(
    *,
    reason: Annotated[Reason | None, typer.Option("--reason", metavar="REASON")] = None,
    pool: Annotated[str | None, typer.Option("--pool", metavar="POOL")] = None,
    backend: Annotated[str | None, typer.Option("--backend", metavar="NAME", help="That touched this backend.")] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", metavar="NAME", help="That touched it.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also those without open letters.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N")] = 50,
    as_json: AsJson = False,
) -> None:
    """What died and since when: failures of one kind together, those with the most open letters first."""
    wanted = GroupFilter(reason=reason, pool=pool, backend=backend, workflow=workflow, only_open=not every)
    with opened(settings()) as engine:
        groups = Groups(engine).find(wanted, limit)
        blame = recent_attribution(engine, _RECENT_SECONDS)
    if as_json:
        for group in groups:
            print_json(_fields(group))
        return
    if not groups:
        tell("no groups" if every else "no groups with open letters")
        return
    headings = (
        "group",
        "open",
        "total",
        "reason",
        "pool",
        "backends",
        "workflows",
        "first seen",
        "last seen",
        "is",
        "owner",
        "what happened",
        "note",
    )
    rows = [
        (
            g.fingerprint,
            g.open,
            g.total,
            g.reason,
            g.pool,
            ", ".join(g.backends) or None,
            ", ".join(g.workflows) or None,
            g.first_at,
            g.last_at,
            _standing(g),
            g.owner,
            gist(g.example or "", _SHORT) or None,
            gist(g.note or "", _SHORT) or None,
        )
        for g in groups
    ]
    typer.echo(table(headings, rows))
    for sentence in sentences(blame):
        typer.echo(f"In the last {_RECENT}: {printable(sentence)}")
    if len(groups) == limit:
        tell(f"there may be more than these {limit} (--limit)")


@group_app.command()
def show(group: Fingerprint, as_json: AsJson = False) -> None:
    """All about one group."""
    with opened(settings()) as engine:
        found = Groups(engine).get(group)
        if found is None:
            raise _unknown(group)
        blame = recent_attribution(engine, _RECENT_SECONDS, group)
    if as_json:
        print_json(_fields(found) | {"recent_attribution": blame})
        return
    for name, value in _fields(found).items():
        if value not in (None, []):
            shown = ", ".join(value) if isinstance(value, list) else str(value)
            typer.echo(f"{name + ':':<14} " + "\n".join(printable(line) for line in shown.splitlines()))
    for sentence in sentences(blame) or ["neither an order nor a backend stands out"]:
        typer.echo(f"In the last {_RECENT}: {printable(sentence)}")


@group_app.command()
def note(
    group: Fingerprint,
    text: Annotated[str, typer.Argument(help="What whoever comes next should know; an empty one takes it away.")],
    by: ByWhom,
) -> None:
    """Say something about a group."""
    with opened(settings()) as engine:
        if not Groups(engine).note(group, text or None, by):
            raise _unknown(group)
    typer.echo(f"{group}: {'noted' if text else 'the note is gone'}")


@group_app.command()
def owner(group: Fingerprint, name: Annotated[str, typer.Argument(help="An empty one: nobody.")], by: ByWhom) -> None:
    """Say who looks after a group."""
    with opened(settings()) as engine:
        if not Groups(engine).own(group, name or None, by):
            raise _unknown(group)
    typer.echo(f"{group}: {f'{printable(name)} looks after it' if name else 'nobody looks after it'}")


@group_app.command()
def fixed(
    group: Fingerprint,
    version: Annotated[str, typer.Argument(help="The version it is fixed in; an empty one: it is not.")],
    by: ByWhom,
) -> None:
    """Say in which version a group is fixed. The next failure of its kind opens it again."""
    with opened(settings()) as engine:
        if not Groups(engine).fixed(group, version or None, by):
            raise _unknown(group)
    typer.echo(f"{group}: {f'fixed in {printable(version)}' if version else 'not fixed'}")


def _unknown(group: str) -> typer.Exit:
    return fail(f"there is no group {group!r}; `darkroom dead groups --all` lists them", 1)


def _fields(group: Group) -> dict[str, object]:
    fields: dict[str, object] = plain(group)
    return fields | {"standing": str(group.standing)}


def _standing(group: Group) -> str:
    return f"{group.standing} ({group.fixed_in})" if group.fixed_in else str(group.standing)
