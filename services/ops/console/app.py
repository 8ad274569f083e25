"""The web console: what is wrong and since when, every order's story, and what people may do about it."""

import logging
from http import HTTPStatus
from typing import Final

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.ops.console import audit, auth, backends, edit, letters, order, orders, overview, plans
from services.ops.console.parts import Parts
from services.ops.console.problem import NotSignedIn, Refused
from services.ops.console.rendering import STATIC, Pages
from shared.database.users import Users
from shared.domain.errors import Outage

log = logging.getLogger(__name__)

#: `same-origin` and not `no-referrer`: with the latter a browser hides Origin, which every form is judged by.
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
_KEPT: Final = "public, max-age=31536000, immutable"


def create_app(parts: Parts) -> "Guarded":
    """The console as an ASGI application."""
    app = FastAPI(title="darkroom", docs_url=None, redoc_url=None, openapi_url=None)
    pages, users = Pages(), Users(parts.engine)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.include_router(auth.login_routes(pages, users, parts.url))
    behind_the_gate = APIRouter(dependencies=[Depends(auth.Gate(users, parts.url))])
    everything = (overview, orders, order, letters, edit, plans, backends, audit)
    for routes in (page.routes for page in everything):
        behind_the_gate.include_router(routes(pages, parts))
    app.include_router(behind_the_gate)
    _answer_problems(app, pages)
    return Guarded(app)


class Guarded:
    """Sets the headers of every answer, also of one to an exception that nobody expected."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if scope["path"].startswith("/static/") and message["status"] == HTTPStatus.OK:
                    headers["Cache-Control"] = _KEPT
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        inner: ASGIApp = self.app
        await inner(scope, receive, guarded)


def _answer_problems(app: FastAPI, pages: Pages) -> None:
    """Every problem is a page that says what to do; a part of a page that cannot be had leaves the old one there."""

    def page(request: Request, status: int, title: str, text: str) -> Response:
        return pages.page(request, "problem.html", status, title=title, text=text)

    @app.exception_handler(NotSignedIn)
    def not_signed_in(request: Request, _: NotSignedIn) -> Response:
        to = auth.to_login(request)
        if "HX-Request" in request.headers:
            return Response(status_code=401, headers={"HX-Redirect": to})
        if request.method == "GET":
            return RedirectResponse(to, 303)
        return page(request, 401, "Nothing was done", "Your session is over: sign in, and do it again.")

    @app.exception_handler(Refused)
    def refused(request: Request, problem: Refused) -> Response:
        return page(request, problem.status, problem.title, problem.text)

    @app.exception_handler(Outage)
    def outage(request: Request, problem: Outage) -> Response:
        log.warning("page not served", extra={"path": request.url.path, "why": str(problem)})
        text = "The database, the broker or the picture store is away. What was asked for may have been done: look."
        return page(request, 503, "The console cannot reach its servers", text)

    @app.exception_handler(RequestValidationError)
    def unreadable(request: Request, _: RequestValidationError) -> Response:
        return page(request, 404, "No such page", "The address may be mistyped.")

    @app.exception_handler(HTTPException)
    def other(request: Request, problem: HTTPException) -> Response:
        text = "The address may be mistyped." if problem.status_code == 404 else str(problem.detail)
        title = "No such page" if problem.status_code == 404 else HTTPStatus(problem.status_code).phrase
        return page(request, problem.status_code, title, text)

    @app.exception_handler(Exception)
    def broken(request: Request, problem: Exception) -> Response:
        log.error("page broken", exc_info=problem, extra={"path": request.url.path})
        return page(request, 500, "This is a mistake in the console", "It is in the log of the ops service.")
