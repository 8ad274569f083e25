"""Replay plans: looked at before anything is sent, applied at a pace, watched, paused, resumed, aborted."""

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from services.ops.console.auth import Posted, SignedIn
from services.ops.console.chosen import posted_filter, whole_number
from services.ops.console.forms import Form
from services.ops.console.letters import back, chosen_ids
from services.ops.console.parts import Parts
from services.ops.console.problem import Refused
from services.ops.console.rendering import Pages, done, link
from shared.database.adopt import Refused as NotDone
from shared.database.letters import LetterFilter, Letters
from shared.database.plans import Pace, Plan, Plans, PlanState
from shared.database.users import Role

_PLANS: Final = 50
_ITEMS: Final = 100
_RESULTS: Final = ("completed", "failed", "cancelled", "published", "refused")
_ITEM_STATES: Final = ("waiting", "sent", "ended")


def routes(pages: Pages, parts: Parts) -> APIRouter:
    """The pages under /plans."""
    router = APIRouter()
    plans, letters = Plans(parts.engine), Letters(parts.engine)

    @router.get("/plans")
    def all_plans(request: Request) -> Response:
        before = whole_number(request.query_params, "before")
        found = plans.newest(_PLANS + 1, before)
        older = link("/plans", before=found[_PLANS - 1].id) if len(found) > _PLANS else None
        values: dict[str, Any] = {
            "plans": found[:_PLANS],
            "older": older,
            "newest": "/plans" if before is not None else None,
        }
        return pages.page(request, "plans.html", **values)

    @router.post("/plans")
    def make(form: Posted, signed: SignedIn) -> Response:
        force = form.text("force") == "yes"
        if force and not signed.session.role.may(Role.EDITOR):
            raise Refused(
                403, "Nothing was done", "Only an editor replays orders that were completed under another key."
            )
        chosen: LetterFilter | list[int] = (
            posted_filter(form, letters) if form.text("which") == "all" else chosen_ids(form, letters)
        )
        made = plans.make(
            chosen,
            signed.session.user,
            pool=form.text("to_pool") or None,
            backend=form.text("to_backend") or None,
            force=force,
            note=form.text("plan_note") or None,
            check=parts.offered.problems,
        )
        if isinstance(made, NotDone):
            return done(signed.token, back(form, "/letters"), made.why, well=False)
        plan, _ = made
        return done(signed.token, f"/plans/{plan.id}", "Nothing was sent yet: this is what would happen.")

    @router.get("/plans/{plan_id}")
    def one(request: Request, plan_id: int) -> Response:
        plan = plans.get(plan_id)
        if plan is None:
            raise Refused(404, "There is no such plan", "The address may be mistyped.")
        query = request.query_params
        state, result = query.get("state"), query.get("result")
        after = whole_number(query, "after") or 0
        found = plans.items(
            plan_id,
            limit=_ITEMS + 1,
            after=after,
            state=state if state in _ITEM_STATES else None,
            result=result if result in _RESULTS else None,
        )
        here = f"/plans/{plan_id}"
        shown = {"state": state, "result": result}
        values: dict[str, Any] = {
            "plan": plan,
            "items": found[:_ITEMS],
            "shown": shown,
            "further": link(here, after=found[_ITEMS - 1].place, **shown) if len(found) > _ITEMS else None,
            "first": link(here, **shown) if after else None,
            "results": _RESULTS,
        }
        return pages.page(request, "plan.html", **values)

    @router.post("/plans/{plan_id}/{what}")
    def change(plan_id: int, what: str, form: Posted, signed: SignedIn) -> Response:
        by, may_force = signed.session.user, signed.session.role.may(Role.EDITOR)
        match what:
            case "preview":
                answer = plans.look(plan_id)
            case "apply":
                answer = plans.apply(plan_id, by, _pace(form), may_force=may_force)
            case "pause":
                answer = plans.pause(plan_id, by)
            case "resume":
                answer = plans.resume(plan_id, by, may_force=may_force)
            case "abort":
                answer = plans.abort(plan_id, by)
            case _:
                raise Refused(404, "No such page", "The address may be mistyped.")
        is_refused = isinstance(answer, NotDone)
        words = answer.why if isinstance(answer, NotDone) else _said(answer)
        return done(signed.token, f"/plans/{plan_id}", words, well=not is_refused)

    return router


def _said(plan: Plan) -> str:
    """What the plan does from now on. Pure."""
    match plan.state:
        case PlanState.PLANNED:
            return "This is what would happen now. Nothing was sent yet."
        case PlanState.RUNNING:
            return "The plan runs: the ops service sends its letters."
        case PlanState.PAUSED:
            return "The plan is paused: what was sent goes on, nothing more is sent."
        case PlanState.ABORTED:
            return "The plan is aborted: the letters that waited stay open."
        case _:
            return f"The plan is {plan.state}."


def _pace(form: Form) -> Pace:
    """Raises Refused."""
    try:
        stop = form.text("stop_at").removesuffix("%").strip()
        return Pace(
            rate=float(form.text("rate")),
            ramp=[int(step) for step in form.text("ramp").replace(",", " ").split()],
            stop_at=float(stop) / 100 if stop else None,
            stop_window=int(form.text("stop_window") or 20),
        )
    except ValueError:
        why = "The rate is letters per second, the ramp whole numbers such as 1, 5, 25, 100, the share a percentage."
        raise Refused(422, "This is no pace", why) from None
