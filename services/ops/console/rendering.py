"""Templates to pages. Every value is text until a template says otherwise, and none does."""

import hashlib
import hmac
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape

from shared.domain.task import Status
from shared.terminal import duration

HERE: Final = Path(__file__).parent
STATIC: Final = HERE / "static"

_SAID: Final = "darkroom_said"
_SAID_SECONDS: Final = 60
#: Of UTF-8, which base64 makes a third longer: a browser drops a cookie of more than 4096.
_SAID_BYTES: Final = 2400

#: A sign beside each word, so that nothing is told by colour alone.
SIGNS: Final = {
    Status.PENDING: "○",
    Status.SUBMITTING: "◔",
    Status.PROCESSING: "◑",
    Status.COMPLETED: "✓",
    Status.FAILED: "✕",
    Status.CANCELLED: "⊘",
}


class Pages:
    """Makes pages of the templates beside this module."""

    def __init__(self) -> None:
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        # Names of what a browser may keep change with what it holds.
        version = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(STATIC.iterdir()))).hexdigest()[:12]
        self._templates.globals |= {
            "asset": lambda name: f"/static/{name}?v={version}",
            "link": link,
            "sign_of": lambda status: SIGNS[Status(status)],
            "statuses": list(Status),
        }
        self._templates.filters |= {
            "moment": _moment,
            "duration": duration,
            "size": _size,
            "plain_json": _plain_json,
            "pretty": _pretty,
            "visible": lambda text: visible(str(text)),
            "prose": lambda text: prose(str(text)),
            "segment": lambda text: quote(str(text), safe=""),
        }

    def page(self, request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """The page, with who is signed in, and what the last form had to say."""
        signed = getattr(request.state, "signed", None)
        said = None if signed is None else _said_in(request.cookies.get(_SAID, ""), signed.token)
        shown = {
            "signed": signed,
            "now": signed.session.now if signed is not None else datetime.now(UTC),
            "path": request.url.path,
            "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            "said": said,
            "may_act": signed is not None and signed.session.role != "viewer",
            "may_edit": signed is not None and signed.session.role == "editor",
        }
        answer = HTMLResponse(self._templates.get_template(template).render(shown | values), status)
        if _SAID in request.cookies and "HX-Request" not in request.headers:
            answer.delete_cookie(_SAID, path="/", httponly=True, samesite="strict")
        return answer


def done(token: str, to: str, text: str, *, well: bool = True) -> RedirectResponse:
    """After a form: on to the page `to`, which says `text` once.

    token -- of the session, which vouches for the text: whoever could plant a cookie cannot put words into our mouth
    well  -- whether what was asked for was done
    """
    answer = RedirectResponse(to, 303)
    body = urlsafe_b64encode((b"+" if well else b"-") + text.encode("utf-8", "replace")[:_SAID_BYTES]).decode()
    answer.set_cookie(
        _SAID, f"{body}.{_vouched(body, token)}", max_age=_SAID_SECONDS, path="/", httponly=True, samesite="strict"
    )
    return answer


def link(path: str, **query: object) -> str:
    """The path with what is given of the query. Pure."""
    given = [(name, str(value)) for name, value in query.items() if value not in (None, "")]
    return f"{path}?{urlencode(given)}" if given else path


def _vouched(body: str, token: str) -> str:
    return hmac.new(token.encode(), b"said " + body.encode(), hashlib.sha256).hexdigest()


def _said_in(cookie: str, token: str) -> tuple[bool, str] | None:
    body, _, vouched = cookie.partition(".")
    if not vouched or not hmac.compare_digest(vouched.encode(), _vouched(body, token).encode()):
        return None
    said = urlsafe_b64decode(body).decode("utf-8", "ignore")  # the last character may be cut
    return said.startswith("+"), said[1:]


@pass_context
def _moment(context: Context, at: datetime | None, way: str = "") -> Markup | str:
    """How long ago, or in how long, with the moment itself for whoever points at it."""
    if at is None:
        return "–"
    seconds = (context["now"] - at).total_seconds()
    length = _short(abs(seconds))
    words = "just now" if abs(seconds) < 1 else f"{length} ago" if seconds > 0 else f"in {length}"
    words = length if way == "for" else words
    utc = at.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        utc.isoformat(timespec="milliseconds"), f"{utc:%Y-%m-%d %H:%M:%S} UTC", words
    )


def _short(seconds: float) -> str:
    """4 s, 12 min, 3 h 5 min, 2 d 4 h."""
    if seconds < 60:
        return f"{int(seconds)} s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours and days < 10 else f"{days} d"


def _size(count: int) -> str:
    """12 B, 3.4 kB, 5.6 MB."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"


#: What a reader could take for something else: line and direction marks, and characters without a picture. JSON may
#: also name half a character, which no page can carry.
_UNSEEN: Final = re.compile(
    "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)


def visible(text: str) -> str:
    """Foreign text with what cannot be seen, or turns the direction of reading, written out. Pure."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_TASK_ID: Final = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.ASCII)
_COMMAND: Final = re.compile("`([^`]+)`")


def prose(text: str) -> Markup:
    """A sentence of ours: `commands` as code, ids of tasks as links to their orders. Pure."""
    safe = str(escape(visible(text)))
    linked = _TASK_ID.sub(lambda found: f'<a class="id" href="/orders/{found[0]}">{found[0]}</a>', safe)
    return Markup(_COMMAND.sub(r"<code>\1</code>", linked))  # noqa: S704 - escaped above


def _plain_json(value: Any) -> str:
    return visible(json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, default=str))


def _pretty(text: str) -> str:
    """JSON with a line for each of its fields; whatever else it is, as it came."""
    try:
        return _plain_json(json.loads(text))
    except (ValueError, RecursionError):
        return visible(text)
