"""Who may use the console: signing in and out, sessions, roles, and proof that a form is one of our pages'."""

import hashlib
import hmac
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Final
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse

from services.ops.console.forms import Form, read_form
from services.ops.console.problem import NotSignedIn, Refused
from services.ops.console.rendering import Pages
from shared.database.users import NAME, Role, Session, Users
from shared.domain.password import MAX_PASSWORD_CHARACTERS, hash_password, is_password

log = logging.getLogger(__name__)

COOKIE: Final = "darkroom_session"
#: Passwords compared at the same time: each takes 32 MiB and a quarter of a second of a core.
_COMPARISONS: Final = 2
_WAIT_SECONDS: Final = 5.0
_LOOKING: Final = frozenset({"GET", "HEAD"})


@dataclass(frozen=True, slots=True)
class Signed:
    """Who asks, with the secrets of the session."""

    session: Session
    token: str

    @property
    def csrf(self) -> str:
        """What a form of this login carries: nobody can tell it who has not seen one of its pages."""
        return hmac.new(self.token.encode(), b"csrf", hashlib.sha256).hexdigest()


class Gate:
    """Lets nobody through without a session, and no form without its session's word. A dependency of every page.

    needed -- what role a form takes; looking takes any
    """

    def __init__(self, users: Users, url: str | None, needed: Role = Role.OPERATOR) -> None:
        self._users = users
        self._url = url
        self._needed = needed

    async def __call__(self, request: Request) -> None:
        """`request.state.signed` is who asks, `request.state.form` what was posted. Raises NotSignedIn, Refused."""
        token = request.cookies.get(COOKIE, "")
        session = await run_in_threadpool(self._users.session, token) if token else None
        if session is None:
            raise NotSignedIn
        request.state.signed = signed = Signed(session, token)
        if any("\0" in text for text in (request.scope["path"], *request.query_params.values())):
            raise Refused(422, "This cannot be looked for", "The address holds a character with the code 0.")
        if request.method in _LOOKING:
            return
        must_be_from_here(request, self._url)
        if not session.role.may(self._needed):
            raise _forbidden(session.role, self._needed)
        form = await read_form(request)
        if not hmac.compare_digest(form.text("csrf").encode(), signed.csrf.encode()):
            raise Refused(403, "Nothing was done", "This form is from before the last login: open the page again.")
        request.state.form = form


def signed_in(request: Request) -> Signed:
    """Who asks; only where a Gate stands before."""
    signed = request.state.signed
    assert isinstance(signed, Signed)  # noqa: S101 - the gate saw to it
    return signed


def posted(request: Request) -> Form:
    """What was posted; only where a Gate stands before."""
    form = request.state.form
    assert isinstance(form, Form)  # noqa: S101
    return form


#: As parameters of a page's function.
SignedIn = Annotated[Signed, Depends(signed_in)]
Posted = Annotated[Form, Depends(posted)]


def needs(role: Role) -> Callable[[Request], Awaitable[None]]:
    """A further dependency of a route that takes more than an operator. Raises Refused."""

    async def look(request: Request) -> None:
        if not signed_in(request).session.role.may(role):
            raise _forbidden(signed_in(request).session.role, role)

    return look


def must_be_from_here(request: Request, url: str | None) -> None:
    """Whether one of our own pages posts this. Every browser says so in Origin. Raises Refused."""
    ours = {f"{request.url.scheme}://{request.headers.get('Host', '')}".lower()}
    if url is not None:
        parts = urlsplit(url)
        ours.add(f"{parts.scheme}://{parts.netloc}".lower())
    if request.headers.get("Origin", "").lower() not in ours:
        raise Refused(
            403,
            "Nothing was done",
            "This form was not sent by a page of this console. Behind a proxy, DARKROOM_CONSOLE_URL must name the"
            " address that the browser shows.",
        )


def login_routes(pages: Pages, users: Users, url: str | None) -> APIRouter:
    """The pages that need no session, and the end of one."""
    routes = APIRouter()
    comparing = threading.BoundedSemaphore(_COMPARISONS)

    def page(request: Request, to: str, status: int = 200, problem: str = "", name: str = "") -> Response:
        values = {"next": to, "problem": problem, "name": name, "has_users": users.is_there_any()}
        return pages.page(request, "login.html", status, **values)

    @routes.get("/login")
    def login(request: Request) -> Response:
        return page(request, _local(request.query_params.get("next", "")))

    @routes.post("/login")
    def sign_in(request: Request, form: Annotated[Form, Depends(read_form)]) -> Response:
        must_be_from_here(request, url)
        name, password = form.text("name"), form.all("password")[0] if form.all("password") else ""
        to = _local(form.text("next"))
        known = name if NAME.fullmatch(name) else "-"
        address = request.client.host if request.client else "-"
        if not users.may_try(known, address):
            log.warning("sign-in refused", extra={"user": known, "address": address, "why": "too many failed"})
            why = "Too many failed: wait a quarter of an hour, or have somebody run `darkroom user password`."
            return page(request, to, 429, why, name)
        stored = users.password_hash(known)
        if not comparing.acquire(timeout=_WAIT_SECONDS):
            return page(request, to, 503, "Too many sign in at this moment: try again.", name)
        try:
            # Compared also when there is no such user: how long it takes says nothing about who there is.
            fits = is_password(password[: MAX_PASSWORD_CHARACTERS + 1], stored or _of_nobody())
        finally:
            comparing.release()
        token = users.begin(known, stored, address) if fits and stored is not None else None
        if token is None:
            log.warning("sign-in refused", extra={"user": known, "address": address, "why": "wrong"})
            return page(request, to, 401, "No user has this name and password.", name)
        log.info("signed in", extra={"user": known, "address": address})
        if request.cookies.get(COOKIE):
            users.end(request.cookies[COOKIE])
        answer = RedirectResponse(to, 303)
        answer.set_cookie(COOKIE, token, path="/", httponly=True, samesite="strict", secure=_is_secure(request, url))
        return answer

    # Whoever may look may stop looking.
    @routes.post("/logout", dependencies=[Depends(Gate(users, url, Role.VIEWER))])
    def sign_out(signed: SignedIn) -> Response:
        users.end(signed.token)
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return answer

    return routes


def to_login(request: Request) -> str:
    """Where to sign in, and to come back from. A part of a page that is asked for alone comes back as the whole."""
    asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return "/login" if asked == "/" else f"/login?next={quote(asked, safe='')}"


@cache
def _of_nobody() -> str:
    return hash_password(secrets.token_urlsafe())


def _local(url: str) -> str:
    """The way to one of our own pages; any other address is the first page's."""
    return url if url.startswith("/") and not url.startswith(("//", "/\\")) and url.isprintable() else "/"


def _is_secure(request: Request, url: str | None) -> bool:
    return request.url.scheme == "https" or (url is not None and url.startswith("https://"))


def _forbidden(role: Role, needed: Role) -> Refused:
    return Refused(403, "Nothing was done", f"You are signed in as {role}; this takes {needed}.")
