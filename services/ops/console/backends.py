"""Backends: what each is doing, and a pause for one of them."""

from typing import Any, Final

import typer
from fastapi import APIRouter, Request, Response

from services.ops.console.auth import Posted, SignedIn
from services.ops.console.parts import Parts
from services.ops.console.problem import Refused
from services.ops.console.rendering import Pages, done
from shared.database.slots import Slots
from shared.terminal import Quiet, duration, seconds_of

#: How long a pause may be, in the words of the CLI; "" until somebody resumes it.
_PAUSES: Final = {"": "until resumed", "10m": "10 minutes", "1h": "1 hour", "4h": "4 hours", "1d": "1 day"}


def routes(pages: Pages, parts: Parts) -> APIRouter:
    """The page at /backends, and its forms."""
    router = APIRouter()

    def slots(by_whom: str) -> Slots:
        return Slots(parts.engine, by_whom, Quiet())

    @router.get("/backends")
    def backends(request: Request) -> Response:
        values: dict[str, Any] = {"backends": slots("console").backends(), "pauses": _PAUSES}
        return pages.page(request, "backends.html", **values)

    # Names may hold anything, a slash too, so they come as a field and not as a part of the path.
    @router.post("/backends/pause")
    def pause(signed: SignedIn, form: Posted) -> Response:
        name, reason = form.text("name"), form.text("reason", needed="Say why: it is shown to whoever looks.")
        seconds = _seconds(form.text("for"))
        if not slots(signed.session.user).pause(name, signed.session.user, reason, seconds):
            return done(signed.token, "/backends", f"There is no backend {name}.", well=False)
        how_long = f"for {duration(seconds)}" if seconds else "until somebody resumes it"
        return done(signed.token, "/backends", f"{name} gets no new work {how_long}. What runs there is finished.")

    @router.post("/backends/resume")
    def resume(signed: SignedIn, form: Posted) -> Response:
        name = form.text("name")
        if not slots(signed.session.user).resume(name, signed.session.user):
            return done(signed.token, "/backends", f"There is no backend {name}.", well=False)
        return done(signed.token, "/backends", f"{name} gets work again.")

    return router


def _seconds(text: str) -> float | None:
    if not text:
        return None
    try:
        return seconds_of(text)
    except typer.BadParameter as error:
        raise Refused(422, "This is no length of time", f"{error}.") from None
