"""What ComfyUI's answers mean for a job. Pure; everything it says is checked before it is believed."""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.domain.task import Reason
from shared.providers.base import Failed, JobState, Running, Succeeded
from shared.providers.comfyui_http import Answer, BadAnswer

#: Characters kept of a text that a server wrote.
_MAX_TEXT: Final = 300
#: The year 3000, in milliseconds.
_LAST_MOMENT: Final = 32_503_680_000_000


class _Lenient(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class PromptAccepted(_Lenient):
    """200 of POST /prompt."""

    prompt_id: str
    node_errors: dict[str, Any] = Field(default_factory=dict)


class Row(_Lenient):
    """One row of GET /api/jobs."""

    id: str
    status: str


class JobList(_Lenient):
    jobs: list[Row]


class Queue(_Lenient):
    """GET /queue: rows are [number, prompt_id, graph, extra_data, output ids]."""

    queue_running: list[list[Any]]
    queue_pending: list[list[Any]]

    def states(self) -> dict[str, Running]:
        waiting = {str(row[1]): Running(waiting=True) for row in self.queue_pending if len(row) > 1}
        return waiting | {str(row[1]): Running() for row in self.queue_running if len(row) > 1}


class ExecutionStatus(_Lenient):
    status_str: str = ""
    messages: list[tuple[str, dict[str, Any]]] = Field(default_factory=list)


class Finished(_Lenient):
    """One entry of GET /history/{id}."""

    outputs: dict[str, Any] = Field(default_factory=dict)
    status: ExecutionStatus


class Detail(_Lenient):
    """GET /api/jobs/{id}; the last two only once it is finished."""

    status: str
    outputs: dict[str, Any] | None = None
    execution_status: ExecutionStatus | None = None


Model = TypeVar("Model", bound=BaseModel)


def read(model: type[Model], answer: Answer, what: str) -> Model:
    """The body of a 200 as `model`. Raises BadAnswer for every other status and every other shape."""
    if answer.status != 200:
        raise BadAnswer(f"{what}: HTTP {answer.status}")
    try:
        return model.model_validate(answer.body)
    except ValidationError as error:
        raise BadAnswer(f"{what}: not an answer of ComfyUI") from error


def state_of_row(status: str) -> Running | None:
    """The state a queue row shows; None when the job has left the queue. A word we do not know means running."""
    match status:
        case "pending":
            return Running(waiting=True)
        case "completed" | "failed" | "cancelled":
            return None
        case "in_progress":
            return Running()
        case _:
            return Running(unknown=True)


def state_of_detail(detail: Detail, expected: Mapping[str, int] | None) -> JobState:
    still = state_of_row(detail.status)
    if still is not None:
        return still
    if detail.execution_status is None:
        if detail.status == "cancelled":
            return _interrupted({})
        raise BadAnswer(f"a {detail.status} job without its execution_status")
    return state_of_finished(detail.outputs or {}, detail.execution_status, expected)


def state_of_finished(
    outputs: Mapping[str, Any], status: ExecutionStatus, expected: Mapping[str, int] | None
) -> Succeeded | Failed:
    """Success is: the last message says so, the status says so, and every expected picture is there.

    `status_str` alone is not enough: it is carried over from the last node that ran. `temp` pictures are previews.
    expected -- output node -> number of pictures, in order; None when the template is gone: then all pictures count
    """
    name, data = status.messages[-1] if status.messages else ("", {})
    if name == "execution_interrupted":
        return _interrupted(data)
    if name != "execution_success" or status.status_str != "success":
        errors = [data for name, data in status.messages if name == "execution_error"]
        return _failed(errors[-1] if errors else {})
    pictures: list[Mapping[str, Any]] = []
    for node, count in (expected if expected is not None else dict.fromkeys(outputs)).items():
        found = _pictures(outputs.get(node))
        if count is not None and len(found) != count:
            return _no_outputs(f"node {node} gave {len(found)} pictures instead of {count}")
        pictures += found
    if not pictures:
        return _no_outputs("no node gave a picture")
    return Succeeded(pictures, finished_at=_moment(data.get("timestamp")))


def _moment(stamp: Any) -> float | None:
    """Milliseconds as Unix time; None for what is no moment of this millennium: JSON carries NaN and any integer."""
    return stamp / 1000 if isinstance(stamp, int | float) and 0 < stamp < _LAST_MOMENT else None


def refusal(answer: Answer) -> str:
    """The sentence for a 400: what ComfyUI says of the prompt and of each node, without the values it was sent."""
    body = answer.body if isinstance(answer.body, dict) else {}
    error = body.get("error")
    error = error if isinstance(error, dict) else {"message": error or f"HTTP {answer.status}"}
    sentence = _text(f"{error.get('type', 'error')}: {error.get('message', '')} {error.get('details', '')}")
    for node, kind, item in _node_errors(body):
        sentence += f"; node {node} {kind}: {_text(item.get('type'))} ({_field(item)})"
    if _lacks_model_or_node(error, body):
        sentence += ". This server lacks a model or node that another one may have"
    return sentence[:2000]


def misses_picture(answer: Answer) -> bool:
    """Whether a 400 says that an input picture is not (any more) in the server's input folder."""
    body = answer.body if isinstance(answer.body, dict) else {}
    return any(
        item.get("type") == "custom_validation_failed" and "Invalid image file" in str(item.get("details"))
        for _, _, item in _node_errors(body)
    )


def _node_errors(body: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(node id, class, error) of every node error in an answer of POST /prompt."""
    nodes = body.get("node_errors")
    found: list[tuple[str, str, Mapping[str, Any]]] = []
    for node, entry in (nodes if isinstance(nodes, dict) else {}).items():
        if isinstance(entry, dict) and isinstance(entry.get("errors"), list):
            kind = _text(entry.get("class_type"))
            found += [(_text(node), kind, item) for item in entry["errors"] if isinstance(item, dict)]
    return found


def _lacks_model_or_node(error: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
    if error.get("type") in ("missing_node_type", "invalid_prompt"):
        return True
    return any(
        item.get("type") == "value_not_in_list" and _field(item).endswith("_name") for _, _, item in _node_errors(body)
    )


def _field(item: Mapping[str, Any]) -> str:
    extra = item.get("extra_info")
    return _text(extra.get("input_name") or "") if isinstance(extra, dict) else ""


def _pictures(output: Any) -> list[Mapping[str, Any]]:
    """What `fetch` needs of each picture. The names are the server's: they go back to it and nowhere else."""
    items = output.get("images") if isinstance(output, dict) else None
    return [
        {"filename": item["filename"], "subfolder": str(item.get("subfolder") or ""), "type": "output"}
        for item in (items if isinstance(items, list) else [])
        if isinstance(item, dict) and item.get("type") == "output" and isinstance(item.get("filename"), str)
    ]


def _interrupted(data: Mapping[str, Any]) -> Failed:
    where = f" at node {_text(data['node_id'])}" if data.get("node_id") else ""
    return Failed(reason=Reason.LOST, why=f"somebody cancelled the job{where}", retryable=True)


def _no_outputs(why: str) -> Failed:
    return Failed(reason=Reason.NO_OUTPUTS, why=why, retryable=True)


def _failed(data: Mapping[str, Any]) -> Failed:
    """Of an execution_error only these four are told: current_inputs and traceback hold customer text and paths."""
    kind = _text(data.get("exception_type", "unknown error"))
    node = f"node {_text(data.get('node_id', '?'))} {_text(data.get('node_type', ''))}".strip()
    why = f"{node}: {kind}: {_text(data.get('exception_message', ''))}"
    is_memory = kind.endswith("OutOfMemoryError")
    # Kept apart, so that running out of memory does not use up the one more attempt of a graph that fails.
    return Failed(
        reason=Reason.EXECUTION_FAILED,
        why=why,
        retryable=True,
        once=not is_memory,
        elsewhere=True,
        attempt_outcome="out_of_memory" if is_memory else None,
    )


def _text(value: Any) -> str:
    """On one line and not too long."""
    return " ".join(str(value).split())[:_MAX_TEXT]
