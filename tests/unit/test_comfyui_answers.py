"""What a finished job's entry means, in the shapes the simulator does not produce."""

from typing import Any

import pytest

from shared.domain.task import Reason
from shared.providers.base import Failed, Running, Succeeded
from shared.providers.comfyui_answers import (
    ExecutionStatus,
    misses_picture,
    refusal,
    state_of_finished,
    state_of_row,
)
from shared.providers.comfyui_http import Answer

PICTURE = {"filename": "result_00001_.png", "subfolder": "darkroom/x", "type": "output"}
SUCCESS = ["execution_success", {"prompt_id": "x", "timestamp": 1795458462690}]


def status(*messages: Any, status_str: str = "success") -> ExecutionStatus:
    return ExecutionStatus.model_validate({"status_str": status_str, "messages": list(messages)})


def test_success_needs_message_status_and_every_picture() -> None:
    state = state_of_finished({"3": {"images": [PICTURE]}}, status(["execution_start", {}], SUCCESS), {"3": 1})
    assert state == Succeeded([PICTURE], finished_at=1795458462.69)


@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"3": {}},
        {"3": {"images": []}},
        {"3": {"images": [{**PICTURE, "type": "temp"}]}},
        {"3": {"images": [PICTURE, PICTURE]}},
        {"3": {"images": [{"type": "output"}]}},
        {"3": None},
        {"4": {"images": [PICTURE]}},
    ],
)
def test_a_success_without_its_pictures_is_none(outputs: dict[str, Any]) -> None:
    state = state_of_finished(outputs, status(SUCCESS), {"3": 1})
    assert isinstance(state, Failed)
    assert (state.reason, state.retryable) == (Reason.NO_OUTPUTS, True)


def test_a_status_carried_over_from_the_last_node_is_not_believed() -> None:
    error = ["execution_error", {"exception_type": "KeyError", "exception_message": "'x'", "node_id": "7"}]
    state = state_of_finished({"3": {"images": [PICTURE]}}, status(error), {"3": 1})
    assert isinstance(state, Failed)
    assert state.why == "node 7: KeyError: 'x'"


def test_a_failed_status_is_believed_whatever_the_last_message() -> None:
    state = state_of_finished({"3": {"images": [PICTURE]}}, status(SUCCESS, status_str="error"), {"3": 1})
    assert isinstance(state, Failed)


def test_an_error_tells_nothing_of_inputs_and_traceback() -> None:
    data = {
        "node_id": "2",
        "node_type": "CLIPTextEncode",
        "exception_type": "ValueError",
        "exception_message": "too\n long " + "x" * 5000,
        "current_inputs": {"text": ["a portrait of Mrs Miller"]},
        "traceback": ["File /srv/comfyui/nodes.py"],
    }
    state = state_of_finished({}, status(["execution_error", data], status_str="error"), {"3": 1})
    assert isinstance(state, Failed)
    assert state.why.startswith("node 2 CLIPTextEncode: ValueError: too long x")
    assert len(state.why) < 500
    assert "Miller" not in state.why
    assert "/srv" not in state.why


@pytest.mark.parametrize(
    ("word", "state"),
    [("pending", Running(waiting=True)), ("odd", Running(unknown=True)), ("in_progress", Running()), ("failed", None)],
)
def test_an_unknown_word_in_the_queue_is_running(word: str, state: Running | None) -> None:
    assert state_of_row(word) == state


def test_a_refusal_names_node_and_field_but_no_value() -> None:
    item = {
        "type": "value_not_in_list",
        "details": "text: 'Mrs Miller' not in []",
        "extra_info": {"input_name": "text", "received_value": "Mrs Miller"},
    }
    body = {
        "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"},
        "node_errors": {"6": {"class_type": "Pick", "errors": [item]}},
    }
    sentence = refusal(Answer(400, body, "", None))
    assert "node 6 Pick: value_not_in_list (text)" in sentence
    assert "Miller" not in sentence


@pytest.mark.parametrize("body", [None, [], "x", {}, {"error": "x"}, {"node_errors": {"1": 3}}, {"node_errors": []}])
def test_a_refusal_in_any_shape_is_a_sentence(body: Any) -> None:
    answer = Answer(400, body, "", None)
    assert refusal(answer)
    assert not misses_picture(answer)
