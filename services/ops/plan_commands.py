"""`darkroom dead plan` and what is done with plans. Exit status: 0 all well, 1 refused or stopped, 2 could not be done.

The commands only write what is wanted: the ops service carries plans out, whoever started them and wherever.
"""

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeVar

import typer

from services.ops.edit_command import offered_check
from services.ops.letter_options import All, Chosen, Ids, must_name, with_filter
from services.ops.opened import opened
from shared.database.adopt import Refused
from shared.database.letters import Letters
from shared.database.plans import Pace, Plan, PlanItem, Plans, PlanState, Preview
from shared.database.predictions import Outcome
from shared.domain.letters import LetterState
from shared.terminal import AsJson, ByWhom, duration, fail, plain, print_json, settings, table, tell

T = TypeVar("T")

#: What a person reads of each outcome.
_SAID: Final[Mapping[Outcome, str]] = {
    Outcome.WILL_RUN: "will run",
    Outcome.EXPIRED: "will run, though the time their orders gave is over",
    Outcome.BLOCKED: "will wait: no backend that may make them takes work",
    Outcome.COMPLETED: "refused: completed already",
    Outcome.IN_FLIGHT: "refused: on their way already",
    Outcome.SUPERSEDED: "refused: another task of their order is active or completed",
    Outcome.CONFLICT: "refused: their key belongs to another order",
    Outcome.OUTCOME_UNKNOWN: "refused: `darkroom order adopt`, `submit-again` or `give-up` decides about each",
    Outcome.NOT_OPEN: "refused: somebody has decided already",
    Outcome.IMPOSSIBLE: "refused: nothing that could go round",
}
_WATCH_SECONDS: Final = 1.0

Force = Annotated[
    bool, typer.Option("--force-superseded", help="Also what another task of the same order has completed.")
]
ForceAgain = Annotated[
    bool,
    typer.Option("--force-superseded", help="Needed for a plan made with it: completed orders are paid for once more."),
]

PlanId = Annotated[int, typer.Argument(metavar="PLAN", help="As `darkroom dead status` shows them.")]
Rate = Annotated[float | None, typer.Option("--rate", metavar="N", help="Letters per second, at most; default 2.")]
Ramp = Annotated[
    str | None,
    typer.Option("--ramp", metavar="N,N,..", help="Steps that wait for their results; default 1,5,25,100; `none`."),
]
StopAt = Annotated[
    str | None,
    typer.Option("--stop-at", metavar="SHARE", help="Stop when so many of the last 20 failed: 20% or 0.2; `never`."),
]
RedirectTo = Annotated[
    str | None, typer.Option("--redirect-to", metavar="POOL", help="Have them made in this pool instead.")
]
RedirectToBackend = Annotated[
    str | None, typer.Option("--redirect-to-backend", metavar="NAME", help="Have them made at this backend alone.")
]


@with_filter
def plan(
    *,
    ids: Ids = None,
    chosen: Chosen,
    act_on_all: All = False,
    rate: Rate = None,
    ramp: Ramp = None,
    stop_at: StopAt = None,
    redirect_to: RedirectTo = None,
    redirect_to_backend: RedirectToBackend = None,
    force: Force = False,
    note: Annotated[str | None, typer.Option("--why", metavar="TEXT", help="Kept with the plan.")] = None,
    by_whom: ByWhom,
    as_json: AsJson = False,
) -> None:
    """Freeze a set of letters and say what would become of each. Nothing is sent before `apply`."""
    must_name(ids, chosen, act_on_all=act_on_all, dry_run=False)
    pace = _pace(Pace(), rate, ramp, stop_at)
    with_settings = settings()
    is_redirected = redirect_to is not None or redirect_to_backend is not None
    check = offered_check(with_settings) if is_redirected else None
    with opened(with_settings) as engine:
        wanted = ids or chosen.frozen(Letters(engine), LetterState.OPEN)
        plans = Plans(engine)
        limit = None if ids else chosen.limit
        made = plans.make(
            wanted,
            by_whom,
            pace=pace,
            pool=redirect_to,
            backend=redirect_to_backend,
            force=force,
            note=note,
            limit=limit,
            check=check,
        )
    if isinstance(made, Refused):
        raise fail(made.why, 1)
    new, preview = made
    if as_json:
        print_json(_fields(new))
        return
    typer.echo(_previewed(preview))
    typer.echo(f"plan {new.id}: {_paced(new.pace)}{_redirected(new)}")
    tell(f"nothing is sent yet: `darkroom dead apply {new.id}` does it")


def apply(
    *,
    plan_id: PlanId,
    by_whom: ByWhom,
    rate: Rate = None,
    ramp: Ramp = None,
    stop_at: StopAt = None,
    force: ForceAgain = False,
    as_json: AsJson = False,
) -> None:
    """Have the ops service send a plan's letters round, at its pace."""
    with opened(settings()) as engine:
        plans = Plans(engine)
        found = plans.get(plan_id)
        if found is None:
            raise fail(f"there is no plan {plan_id}", 1)
        pace = _pace(found.pace, rate, ramp, stop_at)
        _end(plans.apply(plan_id, by_whom, pace, may_force=force), as_json=as_json)
    tell(f"the ops service sends its letters: `darkroom dead status {plan_id} --watch`")


def pause(plan_id: PlanId, by_whom: ByWhom, as_json: AsJson = False) -> None:
    """Send nothing more of a plan until it is resumed; what was sent goes on."""
    _end(_with_plans(lambda plans: plans.pause(plan_id, by_whom)), as_json=as_json)


def resume(plan_id: PlanId, by_whom: ByWhom, force: ForceAgain = False, as_json: AsJson = False) -> None:
    """Go on with a plan that was paused, or that stopped itself."""
    _end(_with_plans(lambda plans: plans.resume(plan_id, by_whom, may_force=force)), as_json=as_json)


def abort(plan_id: PlanId, by_whom: ByWhom, as_json: AsJson = False) -> None:
    """Give up the letters of a plan that were not sent: they stay open. What was sent goes on."""
    _end(_with_plans(lambda plans: plans.abort(plan_id, by_whom)), as_json=as_json)


def status(
    plan_id: Annotated[int | None, typer.Argument(metavar="[PLAN]", help="Without it: all, newest first.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again until it ends or stops.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Plans, or letters of one.")] = 50,
    as_json: AsJson = False,
) -> None:
    """How far plans have come, and of one of them what became of each letter, or what would. Status 1: it stopped."""
    if plan_id is None:
        found = _with_plans(lambda plans: plans.newest(limit))
        _list(found, as_json=as_json)
        return
    with opened(settings()) as engine:
        plans = Plans(engine)
        one = _got(plans, plan_id)
        while watch and one.state is PlanState.RUNNING:
            _line(one, as_json=as_json)
            time.sleep(_WATCH_SECONDS)
            one = _got(plans, plan_id)
        if one.state is PlanState.PLANNED and isinstance(looked := plans.look(plan_id), Plan):
            one = looked
        items = plans.items(plan_id, limit=limit)
    if as_json:
        print_json(_fields(one))
        for item in items:
            print_json(item)
    else:
        _line(one, as_json=False)
        if one.state is PlanState.PLANNED and one.preview is not None:
            typer.echo(_previewed(one.preview))
        _items(items, limit)
    raise typer.Exit(1 if one.state is PlanState.STOPPED else 0)


# --- what the commands share ------------------------------------------------------------------------------------------


def _with_plans(do: Callable[[Plans], T]) -> T:
    with opened(settings()) as engine:
        return do(Plans(engine))


def _got(plans: Plans, plan_id: int) -> Plan:
    found = plans.get(plan_id)
    if found is None:
        raise fail(f"there is no plan {plan_id}", 1)
    return found


def _pace(base: Pace, rate: float | None, ramp: str | None, stop_at: str | None) -> Pace:
    return Pace(
        rate=base.rate if rate is None else rate,
        ramp=base.ramp if ramp is None else _steps(ramp),
        stop_at=base.stop_at if stop_at is None else _share(stop_at),
        stop_window=base.stop_window,
    )


def _steps(text: str) -> list[int]:
    if text == "none":
        return []
    try:
        return [int(step) for step in text.split(",")]
    except ValueError:
        raise typer.BadParameter("give the steps of the ramp such as 1,5,25,100, or none") from None


def _share(text: str) -> float | None:
    if text == "never":
        return None
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise typer.BadParameter("give a share such as 20% or 0.2, or never") from None


def _end(answer: Plan | Refused, *, as_json: bool) -> None:
    if isinstance(answer, Refused):
        raise fail(answer.why, 1)
    _line(answer, as_json=as_json)


def _list(plans: list[Plan], *, as_json: bool) -> None:
    if as_json:
        for one in plans:
            print_json(_fields(one))
        return
    if not plans:
        tell("no plans yet: `darkroom dead plan` makes one")
        return
    headings = (
        "plan",
        "made",
        "by",
        "state",
        "letters",
        "waiting",
        "on their way",
        "completed",
        "failed",
        "others",
        "",
    )
    rows = [
        (
            one.id,
            one.at,
            one.by_whom,
            one.state,
            one.progress.letters,
            one.progress.waiting,
            one.progress.sent,
            one.progress.completed,
            one.progress.failed,
            one.progress.cancelled + one.progress.published + one.progress.refused,
            one.state_why or "",
        )
        for one in plans
    ]
    typer.echo(table(headings, rows))


def _line(one: Plan, *, as_json: bool) -> None:
    if as_json:
        print_json(_fields(one))
        return
    counts = {name: count for name, count in plain(one.progress).items() if count}
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    why = f" ({one.state_why})" if one.state_why else ""
    typer.echo(f"plan {one.id} is {one.state}{why}: {said}{_redirected(one)}")


def _items(items: list[PlanItem], limit: int) -> None:
    headings = ("letter", "task", "expected", "is", "result", "why")
    rows = [(i.letter_id, i.task_id, i.predicted, i.state, i.result, i.why or "") for i in items]
    typer.echo(table(headings, rows))
    if len(items) == limit:
        tell(f"these are the first {limit}; there may be more (--limit)")


def _previewed(preview: Preview) -> str:
    """The whole preview for a person."""
    counts = table(("letters", "of which"), [(preview.letters, "in all"), *_outcomes(preview)])
    estimate = preview.estimate
    costs = [f"{amount:g} {unit}" for unit, amount in estimate.costs.items()]
    unknown = f"nobody knows what {estimate.without_cost} cost" if estimate.without_cost else ""
    lines = [
        f"last seen {preview.oldest:%Y-%m-%d %H:%M:%S} to {preview.newest:%Y-%m-%d %H:%M:%S} UTC",
        counts,
        f"calls to providers: about {estimate.calls}",
        f"cost: {'; '.join(filter(None, [', '.join(costs), unknown])) or 'none'}",
        f"time: {'nobody knows' if preview.seconds is None else 'about ' + duration(preview.seconds)}",
    ]
    return "\n".join(lines)


def _outcomes(preview: Preview) -> list[tuple[int, str]]:
    said = [(count, _SAID[outcome]) for outcome, count in preview.outcomes.items()]
    forced = (preview.forced, "by force: another task has completed their order")
    return [*said, forced] if preview.forced else said


def _redirected(one: Plan) -> str:
    to = f", made at {one.backend} alone" if one.backend is not None else ""
    return f"{to}, in pool {one.pool}" if one.pool is not None else to


def _paced(pace: Pace) -> str:
    ramp = f", first {', '.join(map(str, pace.ramp))} and each time waiting for results" if pace.ramp else ""
    stop = f", stops when {pace.stop_at:.0%} of the last {pace.stop_window} failed" if pace.stop_at is not None else ""
    return f"{pace.rate:g} letters per second{ramp}{stop}"


def _fields(one: Plan) -> dict[str, Any]:
    fields: dict[str, Any] = plain(one) | {"letters": one.progress.letters}
    if one.preview is not None:
        fields["preview"] |= {"going": one.preview.going}
    return fields
