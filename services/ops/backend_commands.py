"""`darkroom backend`: which servers there are, a pause for one of them, and a word that one is gone."""

import time
from typing import Annotated, Final

import typer

from shared.database.engine import connect
from shared.database.forget import StillThere, forget_backend
from shared.database.slots import Backend, Slots
from shared.terminal import AsJson, ByWhom, Quiet, duration, fail, plain, print_json, seconds_of, settings, table, tell

backend_app = typer.Typer(no_args_is_help=True, help="The servers and provider accounts that make the pictures.")

#: Between two looks at a backend that drains.
_LOOK_SECONDS: Final = 1.0

Name = Annotated[str, typer.Argument(help="Name of the backend, as in the backends file.")]


@backend_app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Show every backend with what it is doing."""
    found = _slots("darkroom backend list").backends()
    if as_json:
        for backend in found:
            print_json(plain(backend) | {"takes_work": backend.takes_work})
        return
    if not found:
        typer.echo("there are no backends yet; a submitter writes them here from its backends file")
        return
    headings = ("name", "pool", "adapter", "url", "in flight", "state")
    rows = [(b.name, b.pool, b.adapter, b.url, _load(b), _state(b)) for b in found]
    typer.echo(table(headings, rows))


@backend_app.command()
def pause(
    name: Name,
    by: ByWhom,
    reason: Annotated[str, typer.Option(help="Why; shown to whoever looks.")],
    for_: Annotated[str, typer.Option("--for", help="How long, such as 10m; without it until resumed.")] = "",
    as_json: AsJson = False,
) -> None:
    """Give a backend no new work. What runs there goes on and is finished."""
    seconds = seconds_of(for_) if for_ else None
    slots = _slots(by)
    if not slots.pause(name, by, reason, seconds):
        raise _unknown(slots, name)
    if as_json:
        print_json({"backend": name, "paused": True, "seconds": seconds, "reason": reason, "by": by})
    else:
        how_long = f"for {duration(seconds)}" if seconds else f"until `darkroom backend resume {name}`"
        typer.echo(f"{name} gets no new work {how_long}")


@backend_app.command()
def drain(
    name: Name,
    by: ByWhom,
    reason: Annotated[str, typer.Option(help="Why; shown to whoever looks.")],
    as_json: AsJson = False,
) -> None:
    """Pause a backend until it is resumed, and wait until nothing runs there any more."""
    slots = _slots(by)
    if not slots.pause(name, by, reason, None):
        raise _unknown(slots, name)
    told = -1
    while left := next((backend.in_flight for backend in slots.backends() if backend.name == name), 0):
        if left != told and not as_json:
            tell(f"{left} still run on {name}")
        told = left
        time.sleep(_LOOK_SECONDS)
    if as_json:
        print_json({"backend": name, "paused": True, "in_flight": 0, "reason": reason, "by": by})
    else:
        typer.echo(f"nothing runs on {name}; it gets no new work until `darkroom backend resume {name}`")


@backend_app.command()
def resume(name: Name, by: ByWhom, as_json: AsJson = False) -> None:
    """Give a paused or frozen backend work again."""
    slots = _slots(by)
    if not slots.resume(name, by):
        raise _unknown(slots, name)
    if as_json:
        print_json({"backend": name, "paused": False, "by": by})
    else:
        typer.echo(f"{name} gets work again")


@backend_app.command()
def forget(
    name: Name,
    by: ByWhom,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="What happened to it; kept with each order.")],
    as_json: AsJson = False,
) -> None:
    """Say that a server is gone for good or was restarted. What ran there is lost and goes elsewhere."""
    chosen = settings()
    engine = connect(chosen.database_url.get_secret_value(), pool_size=1)
    try:
        forgotten = forget_backend(engine, name, by, why, chosen.retry)
    except StillThere:
        raise fail(f"{name} is up, so its jobs are looked after; stop it or take it out of the file first", 1) from None
    if forgotten is None:
        raise _unknown(Slots(engine, by, Quiet()), name)
    if as_json:
        print_json(plain(forgotten) | {"backend": name, "why": why, "by": by})
        return
    typer.echo(
        f"{name} is forgotten: {forgotten.pending} wait for another server, {forgotten.failed} failed,"
        f" {forgotten.cancels} owed cancels dropped"
    )
    if forgotten.left:
        tell(f"{forgotten.left} are in the hands of a submitter until their lease is over; say it again then")


def _slots(actor: str) -> Slots:
    return Slots(connect(settings().database_url.get_secret_value(), pool_size=1), actor, Quiet())


def _unknown(slots: Slots, name: str) -> typer.Exit:
    names = ", ".join(backend.name for backend in slots.backends())
    return fail(f"no backend is called {name!r}; there are: {names or 'none'}", 1)


def _load(backend: Backend) -> str:
    """2/5, or 2/3 of 5 for one that takes less at the moment."""
    narrowed = f" of {backend.capacity}" if backend.limit < backend.capacity else ""
    return f"{backend.in_flight}/{backend.limit}{narrowed}"


def _state(backend: Backend) -> str:
    """One word for what matters most, and why."""
    if not backend.enabled:
        return "no longer in the backends file"
    if backend.is_paused:
        return f"paused: {backend.pause_reason}" if backend.pause_reason else "paused"
    if backend.health != "up":
        return f"{backend.health}: {backend.health_detail}" if backend.health_detail else backend.health
    return "up"
