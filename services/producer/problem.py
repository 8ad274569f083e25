"""What the HTTP interface answers when it cannot do as asked: RFC 9457, application/problem+json."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import Response
from pydantic import BaseModel, Field

from services.producer.orders import Mistake

MEDIA_TYPE: Final = "application/problem+json"
#: What Retry-After says; an outage that is over sooner is not worth a herd of early callers.
RETRY_AFTER_SECONDS: Final = 5


class Problem(BaseModel):
    """Body of every answer that is not a success."""

    type: str
    title: str
    status: int
    code: str = Field(description="stable; for programs")
    detail: str
    errors: list[dict[str, str]] | None = Field(None, description="one per wrong field: field, message")
    task_id: str | None = None


#: code -> status and title. Codes are part of the interface: add, never rename.
PROBLEMS: Final[dict[str, tuple[HTTPStatus, str]]] = {
    "malformed_json": (HTTPStatus.BAD_REQUEST, "The body is not JSON"),
    "bad_request": (HTTPStatus.BAD_REQUEST, "The request cannot be read"),
    "not_claimed_yet": (HTTPStatus.NOT_FOUND, "No row has this id yet"),
    "not_found": (HTTPStatus.NOT_FOUND, "There is nothing at this address"),
    "method_not_allowed": (HTTPStatus.METHOD_NOT_ALLOWED, "This address does not take that method"),
    "key_reused": (HTTPStatus.CONFLICT, "The idempotency key belongs to an order with another content"),
    "too_large": (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The order is too large"),
    "invalid_order": (HTTPStatus.UNPROCESSABLE_ENTITY, "The order cannot be accepted as it is"),
    "invalid_request": (HTTPStatus.UNPROCESSABLE_ENTITY, "The request cannot be accepted as it is"),
    "internal_error": (HTTPStatus.INTERNAL_SERVER_ERROR, "A mistake of ours"),
    "broker_away": (HTTPStatus.SERVICE_UNAVAILABLE, "The order was not confirmed"),
    "database_away": (HTTPStatus.SERVICE_UNAVAILABLE, "The status cannot be read now"),
}


def problem(
    code: str, detail: str, *, mistakes: Sequence[Mistake] = (), task_id: str | None = None, retry: bool = False
) -> Response:
    """The answer for `code`, one of PROBLEMS. retry -- with Retry-After."""
    status, title = PROBLEMS[code]
    body = Problem(
        type=f"urn:darkroom:problem:{code}",
        title=title,
        status=status,
        code=code,
        detail=detail,
        errors=[{"field": mistake.field, "message": mistake.message} for mistake in mistakes] or None,
        task_id=task_id,
    )
    return Response(
        body.model_dump_json(exclude_none=True),
        status_code=status,
        media_type=MEDIA_TYPE,
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)} if retry else None,
    )


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The same for FastAPI's `responses`, so the OpenAPI document names every answer."""
    schema = Problem.model_json_schema()
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, title = PROBLEMS[code]
        known = found.setdefault(int(status), {"description": "", "content": {MEDIA_TYPE: {"schema": schema}}})
        known["description"] = "; ".join(filter(None, [known["description"], f"`{code}`: {title}"]))
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            known["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return found
