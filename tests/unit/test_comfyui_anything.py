"""Whatever JSON a server answers with: it is read, or it is no answer of ComfyUI's. Nothing else comes out of it."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from shared.providers.base import Failed, Running, Succeeded
from shared.providers.comfyui_answers import (
    Detail,
    ExecutionStatus,
    Finished,
    JobList,
    PromptAccepted,
    Queue,
    misses_picture,
    read,
    refusal,
    state_of_detail,
    state_of_finished,
)
from shared.providers.comfyui_http import Answer, BadAnswer

any_text = st.text(st.characters(exclude_categories=()), max_size=20)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=8,
)


def objects(**likely: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects with these fields, each as it should be or anything at all, or missing."""
    return st.fixed_dictionaries({}, optional={name: value | any_json for name, value in likely.items()})


picture = objects(filename=any_text, subfolder=any_text, type=st.just("output"))
outputs = st.dictionaries(st.sampled_from(["1", "2"]), objects(images=st.lists(picture, max_size=3)), max_size=2)
named = st.sampled_from(["execution_success", "execution_error", "execution_interrupted", "?"])
told = objects(
    timestamp=st.integers() | st.floats(), exception_type=any_text, node_id=any_text, exception_message=any_text
)
status = objects(
    status_str=st.sampled_from(["success", "error"]), messages=st.lists(st.tuples(named, told).map(list), max_size=3)
)
details = objects(
    status=st.sampled_from(["completed", "failed", "cancelled", "pending", "in_progress", "?"]),
    outputs=outputs,
    execution_status=status,
)
error = objects(type=any_text, message=any_text, details=any_text, extra_info=objects(input_name=any_text))
refusals = objects(
    error=error,
    node_errors=st.dictionaries(any_text, objects(errors=st.lists(error, max_size=2), class_type=any_text), max_size=2),
    prompt_id=any_text,
)
rows = st.lists(st.lists(any_json, max_size=5), max_size=3)


def an_answer(body: Any, status: int = 200) -> Answer:
    return Answer(status=status, body=body, text=str(body)[:500], retry_after=None)


@settings(max_examples=150, deadline=None)
@given(
    body=any_json | details | refusals | objects(queue_running=rows, queue_pending=rows) | objects(jobs=rows),
    model=st.sampled_from([PromptAccepted, Queue, JobList, Finished, Detail]),
)
def test_an_answer_has_the_shape_we_read_or_is_none(body: Any, model: type[BaseModel]) -> None:
    try:
        found = read(model, an_answer(body), "GET /it")
    except BadAnswer:
        return
    if isinstance(found, Queue):
        assert all(isinstance(state, Running) for state in found.states().values())


@settings(max_examples=200, deadline=None)
@given(body=details, expected=st.none() | st.just({"1": 1}))
def test_a_job_s_end_is_a_state_or_no_answer(body: Any, expected: dict[str, int] | None) -> None:
    try:
        state = state_of_detail(read(Detail, an_answer(body), "GET /it"), expected)
    except BadAnswer:
        return
    assert isinstance(state, Running | Failed | Succeeded)
    if isinstance(state, Failed):
        assert len(state.why.splitlines()) <= 1
        assert len(state.why) < 2000
    if isinstance(state, Succeeded):
        assert all(isinstance(picture["filename"], str) for picture in state.outputs)
        assert state.finished_at is None or math.isfinite(state.finished_at)


@pytest.mark.parametrize("stamp", [10**400, float("nan"), float("inf"), -1, 0, True, "1", None, [1]])
def test_a_moment_that_is_none_costs_no_picture(stamp: Any) -> None:
    status = ExecutionStatus.model_validate(
        {"status_str": "success", "messages": [["execution_success", {"timestamp": stamp}]]}
    )
    pictures = {"1": {"images": [{"filename": "a.png", "type": "output"}]}}
    state = state_of_finished(pictures, status, {"1": 1})
    assert isinstance(state, Succeeded)
    assert state.finished_at is None or 0 < state.finished_at < 1


@settings(max_examples=150, deadline=None)
@given(body=any_json | refusals)
def test_a_refusal_is_one_short_line(body: Any) -> None:
    answer = an_answer(body, 400)
    assert isinstance(misses_picture(answer), bool)
    assert len(refusal(answer).splitlines()) <= 1
    assert len(refusal(answer)) <= 2000
