"""What makes a ComfyUI graph safe to send, in API format: node id -> {class_type, inputs}. Pure.

ComfyUI checks only the nodes an output depends on, and one node without `inputs` beside them kills its worker thread
for good while HTTP goes on answering. So every node is checked here, reachable or not.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

#: Nodes that write `<filename_prefix>_<counter>_.png` into the output folder. Previews write to temp: no results.
SAVE_NODES: Final = frozenset({"SaveImage"})

Graph = Mapping[str, Mapping[str, Any]]


def read_graph(text: str) -> Any:
    """The JSON value; ValueError for what is no JSON, NaN and Infinity included."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def graph_problems(graph: Any) -> list[str]:
    """One sentence per mistake; an empty list means every node and every link is well formed."""
    if not isinstance(graph, dict) or not graph:
        return ["graph.json must be an object of nodes"]
    if isinstance(graph.get("nodes"), list):
        return ["graph.json is in the editor's format; export it with 'Export (API)'"]
    problems = [problem for node_id, node in graph.items() for problem in _node_problems(node_id, node)]
    if not problems:
        problems += [problem for node_id in graph for problem in _link_problems(node_id, graph)]
    if not problems:
        problems += _cycle_problems(graph)
    return problems


def links_of(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(input name, value) of every input that is a list: ComfyUI reads each of them as a link."""
    return ((name, value) for name, value in node["inputs"].items() if isinstance(value, list))


def save_nodes_of(graph: Graph) -> list[str]:
    return [node_id for node_id, node in graph.items() if node["class_type"] in SAVE_NODES]


def _node_problems(node_id: str, node: Any) -> Iterator[str]:
    if not isinstance(node, dict):
        yield f"node {node_id} must be an object"
        return
    if not isinstance(node.get("class_type"), str) or not node["class_type"]:
        yield f"node {node_id} has no class_type"
    if not isinstance(node.get("inputs"), dict):
        yield f"node {node_id} has no inputs object (ComfyUI's worker thread would die of it)"


def _link_problems(node_id: str, graph: Graph) -> Iterator[str]:
    for name, value in links_of(graph[node_id]):
        match value:
            case [str(source), int(slot)] if slot >= 0 and not isinstance(slot, bool):
                if source not in graph:
                    yield f"node {node_id}: {name} links to node {source}, which does not exist"
            case _:
                yield f"node {node_id}: {name} is a list but no link [node id, slot]"


def _cycle_problems(graph: Graph) -> list[str]:
    """Takes away nodes whose sources are all gone, until nothing moves: what stays hangs on a circle."""
    waiting = {node_id: {value[0] for _, value in links_of(node)} for node_id, node in graph.items()}
    while ready := [node_id for node_id, sources in waiting.items() if not sources & waiting.keys()]:
        for node_id in ready:
            del waiting[node_id]
    return [f"nodes {', '.join(sorted(waiting))} depend on each other in a circle"] if waiting else []
