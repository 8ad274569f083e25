"""The options by which commands choose letters: ids, or a filter whose window of time is frozen when it is read."""

import inspect
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from shared.database.letters import LetterFilter, Letters
from shared.domain.task import Reason, Stage
from shared.terminal import fail, seconds_of, tell

Ids = Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="As `darkroom dead list` shows them.")]
All = Annotated[bool, typer.Option("--all", help="Act on every letter that matches, without naming ids.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen; change nothing.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a person typed. since, until -- seconds ago, or a moment"""

    wanted: LetterFilter = field(default_factory=LetterFilter)
    since: float | datetime | None = None
    until: float | datetime | None = None
    limit: int | None = None

    def frozen(self, letters: Letters, state: str | None) -> LetterFilter:
        """The filter with a window that does not move any more; a relative one is said in absolute times."""
        seconds = [edge if isinstance(edge, float) else None for edge in (self.since, self.until)]
        window = letters.frozen(self.wanted, seconds[0], seconds[1] or 0.0)
        since = self.since if isinstance(self.since, datetime) else window.since
        until = self.until if isinstance(self.until, datetime) else window.until
        if any(edge is not None for edge in seconds):
            begin = f"from {since:%Y-%m-%d %H:%M:%S} " if since is not None else ""
            tell(f"letters last seen {begin}until {until:%Y-%m-%d %H:%M:%S} UTC")
        return self.wanted.with_window(state, since, until)

    def ids(self, letters: Letters, state: str) -> list[int]:
        """The letters that match in this state, the oldest `limit` of them."""
        return letters.ids(self.frozen(letters, state), self.limit)


def must_name(ids: list[int] | None, chosen: Chosen, *, act_on_all: bool, dry_run: bool) -> None:
    """Nobody acts on everything by accident."""
    if ids and (chosen != Chosen() or act_on_all):
        raise fail("name ids, or a filter with --all, not both")
    if not ids and not act_on_all and not dry_run:
        raise fail("name the ids of letters, or add --all to act on every letter that matches")


def with_filter(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of a filter in place of its parameter `chosen: Chosen`. All are given by name."""
    own = inspect.signature(command).parameters
    options = inspect.signature(_chosen).parameters

    @wraps(command)
    def run(**given: Any) -> None:
        typed = {name: given.pop(name) for name in options}
        command(**given, chosen=_chosen(**typed))

    parameters = [*(one for name, one in own.items() if name != "chosen"), *options.values()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    hints = get_type_hints(command, include_extras=True) | get_type_hints(_chosen, include_extras=True)
    run.__annotations__ = {one.name: hints[one.name] for one in parameters}
    return run


def _chosen(
    *,
    reason: Annotated[
        Reason | None, typer.Option("--reason", metavar="REASON", help=f"One of {', '.join(Reason)}.")
    ] = None,
    stage: Annotated[Stage | None, typer.Option("--stage", help="The step it died in.")] = None,
    pool: Annotated[str | None, typer.Option("--pool", metavar="POOL")] = None,
    backend: Annotated[str | None, typer.Option("--backend", metavar="NAME", help="Where the attempt ran.")] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", metavar="NAME")] = None,
    group: Annotated[
        str | None, typer.Option("--group", metavar="FINGERPRINT", help="As `darkroom dead groups` shows them.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="TIME", help="Last seen in the last 30m, 2h, 7d, or since 2026-11-26T03:00 (UTC)."
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Last seen before, such as 10m ago.")
    ] = None,
    order: Annotated[str | None, typer.Option("--order", metavar="ORDER_ID", help="About this order_id.")] = None,
    task: Annotated[uuid.UUID | None, typer.Option("--task", metavar="ID", help="About this task.")] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="TEXT", help="Stands in what happened, letter for letter.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="The first N.")] = None,
) -> Chosen:
    wanted = LetterFilter(
        reason=reason,
        stage=stage,
        pool=pool,
        backend=backend,
        workflow=workflow,
        fingerprint=group,
        order_id=order,
        task_id=task,
        text=text,
    )
    return Chosen(wanted=wanted, since=_edge(since), until=_edge(until), limit=limit)


def _edge(text: str | None) -> float | datetime | None:
    """A moment, or seconds ago. Raises typer.BadParameter."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return seconds_of(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
