"""What an answer of a provider means, by its table. Pure.

The body wins over the HTTP status: failures come inside a 200, no money comes as a 429, and a green status may come
without a picture.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, Final

from shared.domain.task import Cost
from shared.providers import pointers
from shared.providers.retry_after import MOST_SECONDS, retry_after_seconds
from shared.providers.table import ErrorClass, JobStatus, Phase, Poll, Rule, Table

#: Characters kept of a text that a provider wrote.
_MAX_TEXT: Final = 300
#: Statuses of a submit that mean a wrong address or a proxy in front: no order is at fault, a person must look.
_WRONG_ADDRESS: Final = frozenset({301, 302, 303, 305, 307, 308, 405, 407, 421})


@dataclass(frozen=True, slots=True)
class Answer:
    """body -- the decoded JSON, None when it is none."""

    status: int
    headers: Mapping[str, str]
    body: Any = field(repr=False)
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What an answer says.

    status      -- of the job; None when the answer tells nothing about it
    error       -- what an answer that is no success allows
    why         -- the provider's own words, for a person
    is_unmapped -- the job's status is a word the table does not have, which is read as running
    retry_after -- seconds
    outputs     -- {"kind": "url" or "base64", "value": ...} each
    """

    status: JobStatus | None = None
    error: ErrorClass | None = None
    why: str = ""
    is_unmapped: bool = False
    retry_after: float | None = None
    job_id: str | None = None
    saved: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[Mapping[str, str], ...] = ()
    cost: Cost | None = None


def no_answer(phase: Phase) -> Reading:
    """What it means that the request left and nothing usable came back."""
    return Reading(error=ErrorClass.AMBIGUOUS if phase == "submit" else None, why="no answer")


def read(table: Table, phase: Phase, answer: Answer) -> Reading:
    """The one place that decides what an answer is."""
    code = _text(pointers.first(answer.body, table.error_code))
    message = _text(pointers.first(answer.body, table.error_message))
    why = _why(answer, code, message)
    ruled = next((rule.is_ for rule in table.errors if _fits(rule, phase, answer.status, code, message)), None)
    if not 200 <= answer.status < 300:
        return _refused(table, phase, answer, ruled or _default(phase, answer.status), why)
    if answer.body is None and phase != "cancel":
        return Reading(error=ErrorClass.AMBIGUOUS if phase == "submit" else None, why=f"{why}, no JSON")
    match phase:
        case "submit" if table.shape == "sync":
            return _result(table, answer, ruled, why)
        case "submit":
            return _submitted(table, answer, ruled, why)
        case "poll":
            return _polled(table, answer, ruled, why)
        case "fetch":
            return _result(table, answer, ruled, why)
        case "cancel" | "list":
            return Reading(status=_status(table.poll, answer.body)[0])


def _refused(table: Table, phase: Phase, answer: Answer, error: ErrorClass | None, why: str) -> Reading:
    wait = _retry_after(table, answer) if error is ErrorClass.RATE_LIMITED else None
    ends_job = error in (
        ErrorClass.PERMANENT, ErrorClass.CONTENT_REJECTED, ErrorClass.RETRYABLE, ErrorClass.LOST
    )  # fmt: skip
    status = None
    if ends_job:
        status = JobStatus.LOST if error is ErrorClass.LOST else JobStatus.FAILED
    if phase == "poll" and error in (ErrorClass.PERMANENT, ErrorClass.AMBIGUOUS):
        # A question that was put wrongly says nothing about the job; only a status, or that it is gone, ends it.
        return Reading(why=why)
    return Reading(status=status, error=error, why=why, retry_after=wait)


def _default(phase: Phase, http: int) -> ErrorClass | None:
    if http == 429:
        return ErrorClass.RATE_LIMITED
    if http in (401, 402, 403):
        return ErrorClass.ACCOUNT
    if http == 451:
        return ErrorClass.CONTENT_REJECTED
    if phase == "submit":
        if http in _WRONG_ADDRESS:
            return ErrorClass.ACCOUNT
        return ErrorClass.AMBIGUOUS if http in (408, 409) or not 400 <= http < 500 else ErrorClass.PERMANENT
    if http in (404, 410):
        return ErrorClass.LOST
    if phase == "fetch" and http in (400, 413, 415, 422):
        return ErrorClass.PERMANENT
    return None


def _fits(rule: Rule, phase: Phase, http: int, code: str, message: str) -> bool:
    return (
        (not rule.phase or phase in rule.phase)
        and (not rule.http or http in rule.http)
        and (not rule.code or any(fnmatchcase(code, glob) for glob in rule.code if code))
        and (rule.message is None or (message != "" and re.search(rule.message, message) is not None))
    )


def _submitted(table: Table, answer: Answer, ruled: ErrorClass | None, why: str) -> Reading:
    job_id = _text(pointers.first(answer.body, table.submit.job_id))
    if not job_id:
        # Without the id nothing proves that there is no job, unless a rule knows this answer.
        return _refused(table, "submit", answer, ruled or ErrorClass.AMBIGUOUS, f"{why}, no job id")
    word = _text(pointers.first(answer.body, [table.submit.status])) if table.submit.status else ""
    status = table.poll.map.get(word, JobStatus.QUEUED) if table.poll is not None else JobStatus.QUEUED
    saved = {
        name: value
        for name, pointer in table.submit.save.items()
        if (value := _text(pointers.first(answer.body, [pointer])))
    }
    return Reading(status=status, job_id=job_id, saved=saved, cost=_estimate(table, answer.body))


def _polled(table: Table, answer: Answer, ruled: ErrorClass | None, why: str) -> Reading:
    poll = table.poll
    if poll is None:
        return Reading()
    if poll.lost_if is not None and pointers.first(answer.body, [poll.lost_if]):
        return Reading(status=JobStatus.LOST, error=ErrorClass.LOST, why="the provider has thrown its result away")
    status, word = _status(poll, answer.body)
    if poll.failed_if is not None and pointers.first(answer.body, [poll.failed_if]):
        status = JobStatus.FAILED
    if status is None and ruled is not None:
        return _refused(table, "poll", answer, ruled, why)
    match status:
        case None:
            return Reading(status=JobStatus.RUNNING, is_unmapped=True, why=f"status {word[:40]!r}")
        case JobStatus.SUCCEEDED:
            return _result(table, answer, None, why)
        case JobStatus.FAILED:
            return Reading(status=status, error=ruled or ErrorClass.RETRYABLE, why=why)
        case JobStatus.LOST:
            return Reading(status=status, error=ErrorClass.LOST, why=why)
        case JobStatus.CANCELLED:
            return Reading(status=status, why="the job was cancelled at the provider")
        case _:
            return Reading(status=status)


def _status(poll: Poll | None, body: Any) -> tuple[JobStatus | None, str]:
    word = _text(pointers.first(body, [poll.status])) if poll is not None else ""
    return (poll.map.get(word) if poll is not None else None), word


def _result(table: Table, answer: Answer, ruled: ErrorClass | None, why: str) -> Reading:
    """An answer that should hold the pictures."""
    cost = _cost(table, answer.body)
    if ruled is not None:
        return Reading(
            status=JobStatus.FAILED if ruled is not ErrorClass.AMBIGUOUS else None,
            error=ruled,
            why=why,
            retry_after=_retry_after(table, answer) if ruled is ErrorClass.RATE_LIMITED else None,
            cost=cost,
        )
    flags = table.result.rejected_if
    if flags is not None and any(flag is True for flag in pointers.found(answer.body, flags)):
        why = "the provider blacked the picture out"
        return Reading(status=JobStatus.FAILED, error=ErrorClass.CONTENT_REJECTED, why=why, cost=cost)
    outputs = tuple(_outputs(table, answer.body))
    if not outputs:
        return Reading(status=JobStatus.FAILED, error=table.result.empty, why="a success without a picture", cost=cost)
    return Reading(status=JobStatus.SUCCEEDED, outputs=outputs, cost=cost)


def _outputs(table: Table, body: Any) -> Iterator[Mapping[str, str]]:
    """What the first of the table's places that has any picture has."""
    for images in table.result.images:
        found = []
        for beside, value in pointers.places(body, images.at):
            word = _text(beside.get(images.kind_from)) if isinstance(beside, dict) and images.kind_from else ""
            kind = images.kind or images.kinds.get(word)
            if kind is not None and isinstance(value, str) and value:
                found.append({"kind": kind, "value": value})
        if found:
            yield from found
            return


def _retry_after(table: Table, answer: Answer) -> float | None:
    headers = {name.lower(): text for name, text in answer.headers.items()}
    said = retry_after_seconds(headers.get("retry-after"), headers.get("date"), datetime.now(UTC))
    if said is None and table.retry_after_text is not None:
        found = re.search(table.retry_after_text, answer.text)
        said = min(float(found[1]), MOST_SECONDS) if found else None
    return said


def _estimate(table: Table, body: Any) -> Cost | None:
    """What the provider says when it accepts a job, or else what the table reckons."""
    if table.cost is None:
        return None
    said = _number(body, table.cost.at_submit)
    amount = table.cost.estimate if said is None else said
    return None if amount is None else Cost(amount, table.cost.unit)


def _cost(table: Table, body: Any) -> Cost | None:
    amount = _number(body, table.cost.at_end) if table.cost is not None else None
    return None if amount is None or table.cost is None else Cost(amount, table.cost.unit)


def _number(body: Any, pointer: str | None) -> float | None:
    value = pointers.first(body, [pointer]) if pointer is not None else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, int) and value is not True else ""


def _why(answer: Answer, code: str, message: str) -> str:
    said = ": ".join(part for part in (code, message) if part)[:_MAX_TEXT]
    return f"HTTP {answer.status}" + (f" {said}" if said else "")
