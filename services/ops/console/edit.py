"""One dead order with other inputs: a form made of what its workflow takes, for editors."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Depends, Request, Response

from services.ops.console.auth import Posted, SignedIn, needs
from services.ops.console.chosen import Id
from services.ops.console.parts import Parts
from services.ops.console.problem import Refused
from services.ops.console.rendering import Pages, done
from services.ops.edits import edit
from shared.database.adopt import Refused as NotDone
from shared.database.letters import Letters, StoredLetter
from shared.database.replays import Replays
from shared.database.revisions import revisions_of
from shared.database.slots import Slots
from shared.database.tasks import Tasks
from shared.database.users import Role
from shared.domain.task import Task, said_in
from shared.providers.values import InputSpec
from shared.terminal import Quiet

#: Characters of one input.
_LONGEST: Final = 20_000
_PREFIX: Final = "input."


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One input as a form shows it. kind -- int, float, choice, text, long or json; hint -- what it may be"""

    name: str
    kind: str
    value: str
    hint: str
    choices: Sequence[str] = ()
    is_required: bool = False


def routes(pages: Pages, parts: Parts) -> APIRouter:
    """The page under /letters/…/edit."""
    router = APIRouter(dependencies=[Depends(needs(Role.EDITOR))])
    letters = Letters(parts.engine)
    slots = Slots(parts.engine, "console", Quiet())
    tasks, replays = Tasks(parts.engine, "console", Quiet()), Replays(parts.engine, parts.default_deadline_seconds)

    def found(letter_id: int) -> tuple[StoredLetter, Task]:
        letter = letters.get([letter_id]).get(letter_id)
        task = tasks.get([letter.task_id]).get(letter.task_id) if letter is not None and letter.task_id else None
        if letter is None or task is None or task.body is None:
            text = "This letter has no order whose inputs could be changed: have its sender place it anew."
            raise Refused(404, "There is nothing to edit", text)
        return letter, task

    def page(
        request: Request, letter_id: int, status: int = 200, problem: str = "", typed: Mapping[str, str] | None = None
    ) -> Response:
        letter, task = found(letter_id)
        fields = fields_of(parts, task)
        values: dict[str, Any] = {
            "letter": letter,
            "task": task,
            "workflow": said_in(task.body or {}, task.pool).get("workflow"),
            "fields": [(one, (typed or {}).get(one.name, one.value)) for one in fields],
            "revisions": revisions_of(parts.engine, task.id),
            "problem": problem,
            "pools": sorted(parts.offered.pools),
            "backends": [backend.name for backend in slots.backends() if backend.enabled],
        }
        return pages.page(request, "edit.html", status, **values)

    @router.get("/letters/{letter_id}/edit")
    def look(request: Request, letter_id: Id) -> Response:
        return page(request, letter_id)

    @router.post("/letters/{letter_id}/edit")
    def replay(request: Request, letter_id: Id, form: Posted, signed: SignedIn) -> Response:
        letter, task = found(letter_id)
        fields = fields_of(parts, task)
        typed = {one.name: form.text(_PREFIX + one.name, at_most=_LONGEST) for one in fields}
        changes = {one.name: _value(one, typed[one.name]) for one in fields if typed[one.name] != _typed(one.value)}
        why = form.text("why") or None
        pool, backend = form.text("to_pool") or None, form.text("to_backend") or None
        answer = edit(
            replays,
            parts.replayer,
            letter.id,
            changes,
            signed.session.user,
            check=parts.offered.problems,
            why=why,
            pool=None if pool == task.pool else pool,
            backend=backend,
        )
        if isinstance(answer, NotDone):
            return page(request, letter_id, 422, answer.why, typed)
        seen = answer.replay.prediction
        where = f"at {seen.backend} alone" if seen.backend is not None else f"in the pool {seen.pool}"
        changed = f"with other {', '.join(answer.diff)}, " if answer.diff else ""
        return done(signed.token, f"/orders/{task.id}", f"Pending again {changed}{where}.")

    return router


def fields_of(parts: Parts, task: Task) -> list[Field]:
    """What the order's workflow or API takes, with what the order gives; inputs nobody knows come last. Pure."""
    said = said_in(task.body or {}, task.pool)
    given: Mapping[str, Any] = said.get("inputs") or {}
    workflow = parts.offered.workflows.get(said.get("workflow"))
    table = parts.offered.tables.get(task.pool)
    fields: list[Field] = []
    if workflow is not None:
        fields = [_bound(name, spec, given.get(name)) for name, spec in workflow.binding.inputs.items()]
    elif table is not None:
        fields = [
            Field(
                name=name,
                kind={"string": "long", "path": "text", "int": "int", "float": "float"}.get(spec.type, "json"),
                value=_shown(given.get(name)),
                hint=f"{_shown(spec.default)} when empty" if spec.default is not None else "",
                choices=spec.choices or (),
                is_required=spec.is_required,
            )
            for name, spec in table.inputs.items()
        ]
    known = {one.name for one in fields}
    rest = [
        Field(name=n, kind="json", value=_shown(v), hint="JSON, or text") for n, v in given.items() if n not in known
    ]
    return [*fields, *rest]


def _bound(name: str, spec: InputSpec, value: object) -> Field:
    bounds = f"{spec.min} to {spec.max}" if spec.min is not None and spec.max is not None else ""
    length = f"up to {spec.max_length} characters" if spec.max_length is not None else ""
    default = f"{spec.default} when empty" if spec.default is not None else ""
    kinds = {"string": "long", "image": "text", "seed": "int"}
    return Field(
        name=name,
        kind=kinds.get(spec.type, spec.type),
        value=_shown(value),
        hint=", ".join(filter(None, (spec.type if spec.type == "image" else "", bounds, length, default))),
        choices=spec.choices or (),
        is_required=spec.is_required,
    )


def _shown(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _typed(value: str) -> str:
    """What a form says of a value that nobody has touched."""
    return "\n".join(value.splitlines()).strip()


def _value(field: Field, text: str) -> Any:
    """What was typed, as the workflow takes it; what is not of its type stays text, and is refused with a reason."""
    if not text:
        return None
    if field.kind in {"int", "float", "json"}:
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
