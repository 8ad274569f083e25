"""Looks at a ComfyUI server as a newcomer would: is it there, new enough, and can it run the workflows we have."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from shared.domain.errors import ProviderAway
from shared.domain.finding import Finding, Verdict
from shared.providers.comfyui import ignore
from shared.providers.comfyui_http import Server, Timings
from shared.providers.comfyui_looks import version_of
from shared.providers.values import InputSpec
from shared.providers.workflow import Workflow, Workflows

#: Before it POST /prompt gave the prompt an id of its own.
_MIN_VERSION: Final = (0, 3, 45)


def examine_comfyui(name: str, url: str, workflows: Workflows) -> Iterator[Finding]:
    """Everything there is to say. Changes nothing there."""
    about = f"backend {name}"
    server = Server(url, Timings(connect=3.0, read=5.0), ignore, on_lost=lambda: None)
    try:
        stats = server.get("/system_stats", "health")
        match stats.body:
            case {"system": {"comfyui_version": str(text)}} if stats.status == 200:
                yield _version(about, text)
            case _:
                found = f"{url} is no ComfyUI: GET /system_stats answers {stats.status}"
                yield Finding(about, Verdict.FAIL, found, "correct its url in the backends file")
                return
        nodes = server.get("/object_info", "health")
    except ProviderAway as error:
        yield Finding(about, Verdict.FAIL, f"{url} does not answer: {error}", "start it, or pause the backend")
        return
    if nodes.status != 200 or not isinstance(nodes.body, dict):
        found = f"GET /object_info answers {nodes.status}, so its nodes are unknown"
        yield Finding(about, Verdict.WARN, found, "look at the server's log")
        return
    for workflow_name in workflows.names():
        workflow = workflows.get(workflow_name)
        lacks = sorted(set(_lacks(workflow, nodes.body))) if workflow is not None else []
        if lacks:
            found = f"cannot run {workflow_name}: it lacks {', '.join(lacks)}"
            advice = "install that there, or take the workflow out of DARKROOM_WORKFLOWS_DIR"
            yield Finding(about, Verdict.FAIL, found, advice)
        else:
            yield Finding(about, Verdict.OK, f"has the nodes and files of {workflow_name}")


def _version(about: str, text: str) -> Finding:
    version = version_of(text)
    if version is None:
        return Finding(
            about, Verdict.WARN, f"ComfyUI of an unreadable version {text[:40]!r}", "0.3.45 or newer is needed"
        )
    if version < _MIN_VERSION:
        return Finding(about, Verdict.FAIL, f"ComfyUI {text} is too old", "0.3.45 or newer is needed")
    return Finding(about, Verdict.OK, f"ComfyUI {text}")


def _lacks(workflow: Workflow, nodes: Mapping[str, Any]) -> Iterator[str]:
    """Node types and files that the graph names and the server does not, and values its orders may ask for."""
    asked = {(spec.node, spec.field): _may_be(spec) for spec in workflow.binding.inputs.values()}
    for node_id, node in workflow.graph.items():
        described = nodes.get(node["class_type"])
        if not isinstance(described, dict):
            yield f"node type {node['class_type']}"
            continue
        inputs = described.get("input", {})
        specs = {**inputs.get("required", {}), **inputs.get("optional", {})}
        for field, value in node["inputs"].items():
            choices = _choices(specs.get(field))
            wanted = asked.get((node_id, field), [value])
            if choices is not None:
                yield from (f"{field} {name}" for name in wanted if isinstance(name, str) and name not in choices)


def _may_be(spec: InputSpec) -> Sequence[object]:
    """What an order may fill in, as far as the binding says; a picture is uploaded first."""
    return spec.choices or ([spec.default] if spec.default else [])


def _choices(spec: Any) -> list[Any] | None:
    """What the input may be, where that is a list; newer servers write ["COMBO", {"options": [...]}]."""
    match spec:
        case [list(choices), *_]:
            return choices
        case ["COMBO", {"options": list(choices)}, *_]:
            return choices
    return None
