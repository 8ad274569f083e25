"""Dead letters: by group, as lists, one by one; and what people say about them and decide."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from services.ops.closing import Closed, Closing, close
from services.ops.console.auth import Posted, SignedIn
from services.ops.console.chosen import ANY, Id, address_of, fields_of, filter_of, posted_filter, whole_number
from services.ops.console.forms import Form
from services.ops.console.parts import Parts
from services.ops.console.problem import Refused
from services.ops.console.rendering import Pages, done
from services.ops.evidence import sentences
from services.ops.replay import Item, Result
from shared.database.attribution import read_attribution, recent_attribution
from shared.database.letter_groups import GroupFilter, Groups
from shared.database.letter_states import Deed
from shared.database.letters import LetterFilter, Letters, Page, StoredLetter
from shared.domain.letters import LetterState
from shared.domain.task import Reason, Stage
from shared.terminal import plain

#: Rows of a list.
_ROWS: Final = 50
_GROUPS: Final = 200
#: Letters that one form acts on: more are a plan's, or the command's business.
_MOST: Final = 10_000
#: What died within so long of a letter may have died of the same.
_NEAR: Final = timedelta(minutes=10)
_NEIGHBOURS: Final = 5
#: How long a page looks for a text.
_SEARCH_SECONDS: Final = 0.08
#: Letters looked through at once for a text: a few milliseconds of short details, 40 of tracebacks out of their rows.
_STRETCH: Final = 2000
#: Whether orders or a backend are to blame is judged by what was tried within so long.
_LATELY: Final = timedelta(hours=1)


def routes(pages: Pages, parts: Parts) -> APIRouter:
    """The pages under /letters."""
    router = APIRouter()
    letters, groups = Letters(parts.engine), Groups(parts.engine)

    @router.get("/letters")
    def all_groups(request: Request) -> Response:
        query = request.query_params
        wanted = GroupFilter(
            reason=query.get("reason") or None,
            pool=query.get("pool") or None,
            backend=query.get("backend") or None,
            workflow=query.get("workflow") or None,
            only_open=query.get("show") != "all",
        )
        found = groups.find(wanted, _GROUPS)
        values: dict[str, Any] = {
            "groups": found,
            "wanted": wanted,
            "open": sum(g.open for g in found),
            "choices": _choices(parts),
        }
        values["blame"] = sentences(recent_attribution(parts.engine, _LATELY.total_seconds()))
        return pages.page(request, "groups.html", **values)

    @router.get("/letters/list")
    def some(request: Request) -> Response:
        wanted, is_new = filter_of(request.query_params, letters)
        if is_new:
            return RedirectResponse(address_of(wanted), 303)
        return pages.page(request, "letters.html", choices=_choices(parts), **_listed(letters, wanted, request))

    @router.get("/letters/export")
    def export(request: Request) -> Response:
        wanted, _ = filter_of(request.query_params, letters)
        lines = (json.dumps(plain(letter), ensure_ascii=False) + "\n" for letter in letters.all_whole(wanted))
        named = {"Content-Disposition": 'attachment; filename="letters.ndjson"'}
        return StreamingResponse(lines, media_type="application/x-ndjson", headers=named)

    @router.get("/letters/groups/{fingerprint}")
    def group(request: Request, fingerprint: str) -> Response:
        found = groups.get(fingerprint)
        if found is None:
            raise _no_group()
        state = request.query_params.get("state", LetterState.OPEN)
        wanted, _ = filter_of({"group": fingerprint, "state": state}, letters)
        end = found.last_at + timedelta(seconds=1)
        blame = sentences(read_attribution(parts.engine, end - _LATELY, end, fingerprint))
        return pages.page(
            request,
            "group.html",
            group=found,
            blame=blame,
            choices=_choices(parts),
            **_listed(letters, wanted, request),
        )

    @router.post("/letters/groups/{fingerprint}/{what}")
    def say(fingerprint: str, what: str, form: Posted, signed: SignedIn) -> Response:
        """what -- note, owner or fixed; an empty value takes it away"""
        says = {"note": (groups.note, 4000), "owner": (groups.own, 200), "fixed": (groups.fixed, 200)}
        if what not in says:
            raise Refused(404, "No such page", "The address may be mistyped.")
        write, at_most = says[what]
        value = form.text("value", at_most=at_most) or None
        if not write(fingerprint, value, signed.session.user):
            raise _no_group()
        words = {"note": "The note", "owner": "The owner", "fixed": "Fixed in"}[what]
        return done(signed.token, f"/letters/groups/{fingerprint}", f"{words}: {value or 'nothing any more'}")

    @router.get("/letters/{letter_id}")
    def letter(request: Request, letter_id: Id) -> Response:
        found = letters.get([letter_id]).get(letter_id)
        if found is None:
            raise Refused(404, "There is no such letter", "It may have been purged.")
        window = LetterFilter(state=None, since=found.at - _NEAR, until=found.at + _NEAR)
        values: dict[str, Any] = {
            "letter": found,
            "group": groups.get(found.fingerprint),
            "replays": letters.replays(letter_id),
            "outlook": next(iter(parts.replayer.preview([letter_id])), None),
            "near": _neighbours(letters, found, window),
            "counts": _near_counts(letters, found, window),
            "window": window,
        }
        return pages.page(request, "letter.html", **values)

    @router.post("/letters/close")
    def close_letters(request: Request, form: Posted, signed: SignedIn) -> Response:
        deed = _deed(form.text("deed"))
        why = form.text("why", needed="Say why: it is kept with the letter's story.")
        ids = chosen_ids(form, letters)
        if deed is Deed.DISCARD and len(ids) > 1 and form.text("sure") != "yes":
            chosen = _chosen_again(form, ids, letters, signed.session.now)
            again = [("why", why), ("back", back(form, "/letters")), *chosen]
            return pages.page(request, "discard.html", count=len(ids), fields=again, back=back(form, "/letters"))
        return _told(signed, form, close(letters, deed, ids, signed.session.user, why))

    @router.post("/letters/replay")
    def replay(form: Posted, signed: SignedIn) -> Response:
        return _told(signed, form, parts.replayer.replay(chosen_ids(form, letters), signed.session.user))

    return router


def _listed(letters: Letters, wanted: LetterFilter, request: Request) -> dict[str, Any]:
    """What the list of letters shows: one stretch of them, and the ways to the next and back."""
    before = whole_number(request.query_params, "before")
    found: Sequence[StoredLetter]
    count: int | None
    if wanted.text is None:
        found, down_to = letters.page(wanted, Page(limit=_ROWS + 1, before=before, newest_first=True)), None
        count = letters.count(wanted, _MOST + 1) if before or len(found) > _ROWS else len(found)
    else:
        searched = letters.search(wanted, _ROWS + 1, before, _SEARCH_SECONDS, _STRETCH)
        found, down_to = searched.letters, searched.down_to
        count = None if before or len(found) > _ROWS or down_to is not None else len(found)
    shown = found[:_ROWS]
    return {
        "letters": shown,
        "wanted": wanted,
        "fields": fields_of(wanted),
        "export": address_of(wanted, "/letters/export"),
        "count": count,
        "most": _MOST,
        "down_to": down_to,
        "further": None if down_to is None else _older(request, down_to),
        "older": _older(request, shown[-1].id) if len(found) > _ROWS else None,
        "newest": _older(request, None) if before is not None else None,
    }


def chosen_ids(form: Form, letters: Letters) -> list[int]:
    """The letters a form names, or all of the filter it carries when `which` says so. Raises Refused."""
    if form.text("which") == "all":
        ids = letters.ids(posted_filter(form, letters), _MOST + 1)
        if len(ids) > _MOST:
            raise Refused(422, "These are too many at once", f"Narrow the list to {_MOST} letters, or make a plan.")
    else:
        typed = form.all("id")
        if not all(one.isdecimal() and len(one) <= 18 for one in typed):
            raise Refused(422, "This is no letter", "The id of a letter is a number.")
        ids = list(dict.fromkeys(map(int, typed)))
    if not ids:
        raise Refused(422, "No letter is chosen", "Tick some, or choose all that match.")
    return ids


def _chosen_again(form: Form, ids: Sequence[int], letters: Letters, now: datetime) -> list[tuple[str, str]]:
    """Fields by which another form names the same letters, and none that arrives meanwhile."""
    if form.text("which") != "all":
        return [("id", str(one)) for one in ids]
    wanted = posted_filter(form, letters)
    return [("which", "all"), *fields_of(replace(wanted, until=wanted.until or now)).items()]


def back(form: Form, otherwise: str) -> str:
    """The page a form says it was on, if that is one of the letters'. Pure."""
    to = form.text("back")
    return to if to.startswith("/letters") and to.isprintable() and "\\" not in to else otherwise


def _told(signed: SignedIn, form: Form, items: Sequence[Item] | Sequence[Closed]) -> Response:
    """Back to where the form was, with how many of what, and why some were refused."""
    results: dict[str, int] = {}
    for item in items:
        results[item.result] = results.get(item.result, 0) + 1
    words = ", ".join(f"{count} {result}" for result, count in results.items())
    refusals = list(dict.fromkeys(item.why for item in items if item.result in {Result.REFUSED, Closing.REFUSED}))
    if refusals:
        words += f" ({'; '.join(refusals[:3])})"
    return done(signed.token, back(form, "/letters"), words, well=not refusals)


def _deed(text: str) -> Deed:
    try:
        return Deed(text)
    except ValueError:
        raise Refused(422, "Nothing was done", "A letter is discarded, archived or restored.") from None


def _no_group() -> Refused:
    return Refused(404, "There is no such group", "The address may be mistyped, or all its letters were purged.")


def _older(request: Request, before: int | None) -> str:
    query = request.url.remove_query_params("before")
    url = query if before is None else query.include_query_params(before=before)
    return url.path + (f"?{url.query}" if url.query else "")


def _choices(parts: Parts) -> Mapping[str, Sequence[str]]:
    """What the fields of a filter offer."""
    backends = parts.seen().state
    return {
        "reason": list(Reason),
        "stage": list(Stage),
        "pool": sorted(parts.pools),
        "backend": sorted(backend.name for backend in backends.backends) if backends is not None else [],
        "state": [*LetterState, ANY],
    }


def _neighbours(letters: Letters, letter: StoredLetter, window: LetterFilter) -> list[StoredLetter]:
    """Those recorded just after and just before it, newest first."""
    after = letters.page(window, Page(limit=_NEIGHBOURS, after=letter.id))
    before = letters.page(window, Page(limit=_NEIGHBOURS, before=letter.id, newest_first=True))
    return [*sorted(after, key=lambda one: -one.id), *before]


def _near_counts(letters: Letters, letter: StoredLetter, window: LetterFilter) -> list[tuple[str, int, str]]:
    """(what, how many around the same time, where they are listed)."""
    narrowed = {"of any kind": window, "of this kind": replace(window, fingerprint=letter.fingerprint)}
    if letter.backend is not None:
        narrowed[f"at {letter.backend}"] = replace(window, backend=letter.backend)
    if letter.workflow is not None:
        narrowed[f"of {letter.workflow}"] = replace(window, workflow=letter.workflow)
    return [(what, letters.count(one, 1000), address_of(one)) for what, one in narrowed.items()]
