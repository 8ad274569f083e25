"""What POST /prompt checks before it queues a graph, and the words it refuses with.

Follows execution.py of the measured servers step by step; Python's own exceptions on malformed graphs are part of the
behaviour (they become a plain 500 or an `exception_during_...` error), so nothing here checks shapes beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

from .catalog import NODE_TYPES, InputSpec

Graph = dict[str, Any]
Problem = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """`error` is None when at least one output is good; `node_errors` may be there in both cases."""

    error: Problem | None
    outputs: list[str]
    node_errors: dict[str, Any]


@dataclass(frozen=True)
class Surroundings:
    """What validation must know of the server: its generation and its files."""

    is_modern: bool
    choices: Callable[[str], list[str]]
    has_image: Callable[[str], bool]


def problem(kind: str, message: str, details: str = "", extra_info: dict[str, Any] | None = None) -> Problem:
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info or {}}


def validate(graph: Graph, around: Surroundings, targets: Container[str] | None) -> Verdict:
    """Check a graph; numbers sent as strings are converted in place, as the real server stores them.

    Raises whatever Python raises on a graph of the wrong shape: the caller answers 500.
    """
    outputs = []
    for node_id in graph:
        if "class_type" not in graph[node_id]:
            return Verdict(_missing_class(node_id, graph[node_id], around.is_modern), [], {})
        class_name = graph[node_id]["class_type"]
        if class_name not in NODE_TYPES:
            return Verdict(_unknown_class(node_id, class_name, graph[node_id], around.is_modern), [], {})
        if NODE_TYPES[class_name].is_output and (targets is None or node_id in targets):
            outputs.append(node_id)
    if not outputs:
        return Verdict(problem("prompt_no_outputs", "Prompt has no outputs"), [], {})
    check = _Check(graph, around)
    good: list[str] = []
    node_errors: dict[str, Any] = {}
    own_errors: list[str] = []
    for output in outputs:
        if check.output_is_good(output):
            good.append(output)
            continue
        own_errors += [f"{each['message']}: {each['details']}" for each in check.errors[output]]
        for node_id, errors in check.errors.items():
            if errors:  # a node that is bad only through its sources has none and is not listed
                entry = {"errors": errors, "dependent_outputs": [], "class_type": graph[node_id]["class_type"]}
                node_errors.setdefault(node_id, entry)["dependent_outputs"].append(output)
    if good:
        return Verdict(None, good, node_errors)
    failed = problem("prompt_outputs_failed_validation", "Prompt outputs failed validation", "\n".join(own_errors))
    return Verdict(failed, [], node_errors)


class _Check:
    """The nodes checked so far for one graph."""

    def __init__(self, graph: Graph, around: Surroundings) -> None:
        self._graph = graph
        self._around = around
        self._is_good: dict[str, bool] = {}
        self._path: list[str] = []  # from the output to the node being checked
        self.errors: dict[str, list[Problem]] = {}

    def output_is_good(self, node_id: str) -> bool:
        try:
            return self._node(node_id)
        except Exception as error:  # noqa: BLE001  the real server reports whatever validation raised
            info = {"exception_type": type(error).__name__, "traceback": _traceback()}
            self._settle(
                node_id,
                [problem("exception_during_validation", "Exception when validating node", str(error), info)],
            )
            return False

    def _settle(self, node_id: str, errors: list[Problem], is_good: bool = False) -> bool:
        self._is_good[node_id] = is_good
        self.errors[node_id] = errors
        return is_good

    def _node(self, node_id: str) -> bool:
        if node_id in self._is_good:
            return self._is_good[node_id]
        if node_id in self._path:
            return self._cycle(node_id)
        self._path.append(node_id)
        try:
            errors, sources_are_good = self._inputs(node_id)
        finally:
            self._path.pop()
        if node_id in self._is_good:  # found to be part of a cycle meanwhile
            return False
        return self._settle(node_id, errors, is_good=not errors and sources_are_good)

    def _cycle(self, node_id: str) -> bool:
        if not self._around.is_modern:
            raise RecursionError("maximum recursion depth exceeded")  # legacy walks the circle until Python stops it
        circle = [*self._path[self._path.index(node_id) :], node_id]
        members = list(dict.fromkeys(circle))
        shown = " -> ".join(f"{each} ({self._graph[each]['class_type']})" for each in circle)
        for each in members:
            info = {"node_id": each, "cycle_nodes": members}
            self._settle(each, [problem("dependency_cycle", "Dependency cycle detected", shown, info)])
        return False

    def _inputs(self, node_id: str) -> tuple[list[Problem], bool]:
        inputs = self._graph[node_id]["inputs"]
        node_type = NODE_TYPES[self._graph[node_id]["class_type"]]
        errors: list[Problem] = []
        sources_are_good = True
        for name, spec in node_type.inputs(self._around.choices).items():
            if name not in inputs:
                info = {"input_name": name}
                errors.append(problem("required_input_missing", "Required input is missing", name, info))
            elif isinstance(inputs[name], list):
                found = self._link(name, spec, inputs[name])
                sources_are_good = sources_are_good and found is not False
                if isinstance(found, dict):
                    errors.append(found)
            else:
                bad = self._value(inputs, name, spec, name in node_type.checks_itself)
                errors += [bad] if bad else []
        if node_type.name == "LoadImage" and not isinstance(inputs.get("image", []), list):
            image = inputs["image"]
            if not self._around.has_image(image):
                details = f"image - Invalid image file: {image}"
                message = "Custom validation failed for node"
                errors.append(problem("custom_validation_failed", message, details, {"input_name": "image"}))
        return errors, sources_are_good

    def _link(self, name: str, spec: InputSpec, link: list[Any]) -> Problem | bool:
        """True: fine. False: something upstream is bad. A problem: the link itself is."""
        config = list(spec)
        if len(link) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            info = {"input_name": name, "input_config": config, "received_value": link}
            return problem("bad_linked_input", message, name, info)
        source = link[0]
        received = NODE_TYPES[self._graph[source]["class_type"]].returns[link[1]]
        if received != spec[0]:
            details = f"{name}, received_type({received}) mismatch input_type({spec[0]})"
            info = {"input_name": name, "input_config": config, "received_type": received, "linked_node": link}
            return problem("return_type_mismatch", "Return type mismatch between linked nodes", details, info)
        try:
            return self._node(source)
        except Exception as error:  # noqa: BLE001  the real server reports whatever validation raised
            info = {
                "input_name": name,
                "input_config": config,
                "exception_message": str(error),
                "exception_type": type(error).__name__,
                "traceback": _traceback(),
                "linked_node": link,
            }
            message = "Exception when validating inner node"
            self._settle(source, [problem("exception_during_inner_validation", message, str(error), info)])
            return False

    def _value(self, inputs: dict[str, Any], name: str, spec: InputSpec, checks_itself: bool) -> Problem | None:
        kind, config = spec
        value = inputs[name]
        if isinstance(value, dict) and "__value__" in value:
            value = inputs[name] = value["__value__"]
        try:
            if isinstance(kind, str) and kind in _CONVERSIONS:
                value = inputs[name] = _CONVERSIONS[kind](value)
        except Exception as error:  # noqa: BLE001  the real server reports whatever the conversion raised
            info = {
                "input_name": name,
                "input_config": list(spec),
                "received_value": value,
                "exception_message": str(error),
            }
            message = f"Failed to convert an input value to a {kind} value"
            return problem("invalid_input_type", message, f"{name}, {value}, {error}", info)
        if checks_itself:
            return None
        info = {"input_name": name, "input_config": list(spec), "received_value": value}
        if "min" in config and value < config["min"]:
            return problem("value_smaller_than_min", f"Value {value} smaller than min of {config['min']}", name, info)
        if "max" in config and value > config["max"]:
            return problem("value_bigger_than_max", f"Value {value} bigger than max of {config['max']}", name, info)
        if isinstance(kind, list) and value not in kind:
            shown = str(kind)
            if len(kind) > 20:  # long lists are not sent back
                shown, info["input_config"] = f"(list of length {len(kind)})", None
            return problem("value_not_in_list", "Value not in list", f"{name}: '{value}' not in {shown}", info)
        return None


_CONVERSIONS: dict[str, Callable[[Any], Any]] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


def _traceback() -> list[str]:
    """What stands where the real server sends its own stack."""
    return [
        '  File "<comfyui>/execution.py", line 955, in validate_inputs\n',
        '  File "<comfyui>/execution.py", line 933, in validate_inputs\n',
    ]


def _missing_class(node_id: str, node: dict[str, Any], is_modern: bool) -> Problem:
    if not is_modern:
        message = "Cannot execute because a node is missing the class_type property."
        return problem("invalid_prompt", message, f"Node ID '#{node_id}'")
    message = f"Node 'ID #{node_id}' has no class_type. The workflow may be corrupted or a custom node is missing."
    info = {"node_id": node_id, "class_type": None, "node_title": _title(node)}
    return problem("missing_node_type", message, f"Node ID '#{node_id}'", info)


def _unknown_class(node_id: str, class_name: str, node: dict[str, Any], is_modern: bool) -> Problem:
    if not is_modern:
        message = f"Cannot execute because node {class_name} does not exist."
        return problem("invalid_prompt", message, f"Node ID '#{node_id}'")
    title = _title(node) or class_name
    info = {"node_id": node_id, "class_type": class_name, "node_title": title}
    message = f"Node '{title}' not found. The custom node may not be installed."
    return problem("missing_node_type", message, f"Node ID '#{node_id}'", info)


def _title(node: dict[str, Any]) -> str | None:
    title = node.get("_meta", {}).get("title")
    return title if title is None else str(title)
