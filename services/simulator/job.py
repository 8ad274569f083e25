"""One run of one prompt: which nodes run, in which order, what the cache spares, what history will say of it."""

from __future__ import annotations

import hashlib
import time
import traceback
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Final, Protocol

from .catalog import NODE_TYPES
from .faults import Faults
from .files import Folders, OutsideFolder
from .nodes import Interrupted, NotInstalled, Result, Run, execute, new_temp_suffix
from .prompts import Memory, Row
from .wire import Encoded

_OUT_OF_MEMORY_TIPS: Final = (
    "This error means you ran out of memory on your GPU.\n\nTIPS: If the workflow worked before you might have "
    "accidentally set the batch_size to a large number."
)


class Listeners(Protocol):
    """Where the worker's news go. Called from the worker thread."""

    def tell(self, event: str, data: dict[str, Any] | Encoded, client_id: str | None) -> None: ...

    def tell_preview(self, jpeg: bytes, metadata: dict[str, Any] | None, client_id: str | None) -> None: ...

    def node_is_running(self, client_id: str | None, node_id: str | None) -> None: ...

    def crash(self) -> None:
        """End the whole process, as an unhashable client id does."""


@dataclass
class Workshop:
    """What a worker keeps from prompt to prompt, and whom it talks to."""

    memory: Memory
    folders: Folders
    faults: Faults
    listeners: Listeners
    cache: dict[str, Result] = field(default_factory=dict)  # by node signature, of the preceding prompt only
    temp_suffixes: dict[str, str] = field(default_factory=dict)

    def temp_suffix(self, node_id: str) -> str:
        """The same for a node as long as every prompt has it."""
        return self.temp_suffixes.setdefault(node_id, new_temp_suffix())

    def tidy_up(self, job: Job) -> None:
        """Keep what the next prompt may find again."""
        self.cache = job.results
        self.temp_suffixes = {node_id: kept for node_id, kept in self.temp_suffixes.items() if node_id in job.row[2]}


class SimulatedFailure(Exception):
    """The fault fail_execution struck; carries the exception type to report."""

    def __init__(self, exception_type: str, message: str) -> None:
        super().__init__(message)
        self.exception_type = exception_type


@dataclass
class Job:
    """One run of one prompt: what was done so far and what will stand in history."""

    workshop: Workshop
    row: Row
    graph_text: str  # the graph of the row as JSON
    client_id: str | None
    failure: dict[str, Any] | None
    is_corrupt: bool
    outputs: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)  # by signature
    _messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    _signatures: dict[str, str] = field(default_factory=dict)
    _executed: list[str] = field(default_factory=list)
    _maxima: dict[str, float] = field(default_factory=dict)  # of the progress of each node
    _progress: dict[str, str] = field(default_factory=dict)  # of each node, as JSON

    def __post_init__(self) -> None:
        memory = self.workshop.memory
        self.run_facts = Run(
            self.graph_text,
            self.row[3],
            self.workshop.folders,
            self.is_corrupt,
            self.workshop.temp_suffix,
            self._step,
            lambda: not memory.is_over,
        )

    @property
    def _graph(self) -> dict[str, Any]:
        return self.row[2]

    def run(self) -> str:
        """Execute what no cache holds; returns the outcome for the statistics."""
        for node_id in self._graph:
            self._signature(node_id)
        if self.failure is None:
            known = self.workshop.cache
            wanted = set(self._signatures.values())
            self.results = {signature: known[signature] for signature in known if signature in wanted}
        cached = [node_id for node_id in self._graph if self._signatures[node_id] in self.results]
        self.message("execution_cached", {"nodes": cached})
        node_id = ""
        try:
            for node_id in self._order():
                self._node(node_id)
        except Interrupted:
            about = {"node_id": node_id, "node_type": self._class_of(node_id), "executed": list(self._executed)}
            self.message("execution_interrupted", about, is_broadcast=True)
            return "interrupted"
        except Exception as error:  # noqa: BLE001  whatever a node raises ends its prompt, not the worker
            self.message("execution_error", self._describe(node_id, error))
            return "error"
        self.message("execution_success", {})
        return "success" if self._executed else "cached"

    def status(self) -> dict[str, Any]:
        """`status` of the history entry."""
        is_success = self._messages[-1][0] == "execution_success"
        return {
            "status_str": "success" if is_success else "error",
            "completed": is_success,
            "messages": [list(each) for each in self._messages],
        }

    def message(self, event: str, data: dict[str, Any], is_broadcast: bool = False) -> None:
        """Note a milestone for history and tell the client of the prompt (or everybody)."""
        data = {**({"prompt_id": self.row[1]} if event != "execution_cached" else {}), **data}
        data.setdefault("prompt_id", self.row[1])
        data["timestamp"] = int(time.time() * 1000)
        self._messages.append((event, data))
        if self.client_id is not None or is_broadcast:
            self.workshop.listeners.tell(event, data, self.client_id)

    def _signature(self, node_id: str) -> str:
        """Equal for nodes that must yield the same: class, inputs, those of all sources, bytes of a loaded picture."""
        known = self._signatures.get(node_id)
        if known is not None:
            return known
        self._signatures[node_id] = ""  # ends the recursion of a circle nobody depends on
        node = self._graph[node_id]
        inputs = []
        for name, value in sorted(node["inputs"].items()):
            is_link = isinstance(value, list) and len(value) == 2 and value[0] in self._graph
            inputs.append((name, [self._signature(value[0]), value[1]] if is_link else value, is_link))
        content = ""
        if node["class_type"] == "LoadImage" and isinstance(node["inputs"].get("image"), str):
            path = self.workshop.folders.locate(node["inputs"]["image"])
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path else ""
        text = repr((node["class_type"], inputs, content))
        self._signatures[node_id] = hashlib.sha256(text.encode()).hexdigest()
        return self._signatures[node_id]

    def _order(self) -> list[str]:
        """Outputs and what they need and no cache holds. Of the nodes that could run, output nodes go first, then
        those that feed one."""
        needs: dict[str, set[str]] = {}
        waiting = list(self.row[4])
        while waiting:
            node_id = waiting.pop(0)
            if node_id in needs:
                continue
            sources = [] if self._is_known(node_id) else self._sources(node_id)
            needs[node_id] = {each for each in sources if not self._is_known(each)}
            waiting += needs[node_id]
        order: list[str] = []
        while needs:
            ready = [node_id for node_id, missing in needs.items() if not missing]
            feeding = {source for node_id, missing in needs.items() if self._is_output(node_id) for source in missing}
            ready.sort(key=lambda node_id: 0 if self._is_output(node_id) else 1 if node_id in feeding else 2)
            chosen = ready[0]
            order.append(chosen)
            del needs[chosen]
            for missing in needs.values():
                missing.discard(chosen)
        return order

    def _sources(self, node_id: str) -> list[str]:
        wanted = NODE_TYPES[self._class_of(node_id)].required
        inputs = self._graph[node_id]["inputs"]
        return [inputs[name][0] for name in wanted if isinstance(inputs.get(name), list)]

    def _node(self, node_id: str) -> None:
        if self._is_known(node_id):
            self._show(node_id, self.results[self._signatures[node_id]])
            self._set_progress(node_id, 1, 1, "finished")
            return
        self._set_progress(node_id, 0.0, 1.0, "running")
        self.workshop.listeners.node_is_running(self.client_id, node_id)
        if self.client_id is not None:
            about = {"node": node_id, "display_node": node_id, "prompt_id": self.row[1]}
            self.workshop.listeners.tell("executing", about, self.client_id)
        values = self._values(node_id)
        if self.failure is not None:
            raise SimulatedFailure(self.failure["exception_type"], self.failure["message"])
        if self._is_output(node_id):
            self._use_gpu(self.workshop.faults.seconds_per_image * len(values["images"]))
        self._check_stop()  # interrupts strike here, between nodes, and where a node itself asks
        result = execute(node_id, self._class_of(node_id), values, self.run_facts)
        self.results[self._signatures[node_id]] = result
        self._executed.append(node_id)
        if result.ui:
            self._show(node_id, result)
        last = self._maxima[node_id]
        self._set_progress(node_id, last, last, "finished")

    def _show(self, node_id: str, result: Result) -> None:
        if not result.ui:
            return
        self.outputs[node_id] = result.ui
        self.meta[node_id] = {
            "node_id": node_id,
            "display_node": node_id,
            "parent_node": None,
            "real_node_id": node_id,
        }
        if self.client_id is not None:
            about = {"node": node_id, "display_node": node_id, "output": result.ui, "prompt_id": self.row[1]}
            self.workshop.listeners.tell("executed", about, self.client_id)

    def _values(self, node_id: str) -> dict[str, Any]:
        values = {}
        for name in NODE_TYPES[self._class_of(node_id)].required:
            value = self._graph[node_id]["inputs"][name]
            if isinstance(value, list):
                value = self.results[self._signatures[value[0]]].slots[value[1]]
            values[name] = value
        return values

    def _use_gpu(self, seconds: float) -> None:
        """The time the model would take; like a sampler it asks for interrupts meanwhile."""
        if seconds > 0:
            self.workshop.memory.stop_wanted.wait(seconds)

    def _check_stop(self) -> None:
        if self.workshop.memory.stop_wanted.is_set():
            self.workshop.memory.stop_wanted.clear()
            raise Interrupted

    def _step(self, node_id: str, value: int, maximum: int, jpeg: bytes) -> None:
        self._check_stop()
        self._set_progress(node_id, value, maximum, "running")
        metadata = {
            "node_id": node_id,
            "prompt_id": self.row[1],
            "display_node_id": node_id,
            "parent_node_id": None,
            "real_node_id": node_id,
        }
        # The recordings have the new kind of preview before `progress` and the old kind after it.
        self.workshop.listeners.tell_preview(jpeg, metadata, self.client_id)
        about = {"value": value, "max": maximum, "prompt_id": self.row[1], "node": node_id}
        if self.client_id is not None:
            self.workshop.listeners.tell("progress", about, self.client_id)
        self.workshop.listeners.tell_preview(jpeg, None, self.client_id)

    def _set_progress(self, node_id: str, value: float, maximum: float, state: str) -> None:
        node, prompt = quoted(node_id), quoted(self.row[1])
        self._maxima[node_id] = maximum
        self._progress[node_id] = (
            f'{node}: {{"value": {value}, "max": {maximum}, "state": "{state}", "node_id": {node}, '
            f'"prompt_id": {prompt}, "display_node_id": {node}, "parent_node_id": null, "real_node_id": {node}}}'
        )
        # Without client_id this goes to every socket, see ws_no_client_id. Each time it carries all nodes so far.
        about = Encoded(f'{{"prompt_id": {prompt}, "nodes": {{{", ".join(self._progress.values())}}}}}')
        self.workshop.listeners.tell("progress_state", about, self.client_id)

    def _is_known(self, node_id: str) -> bool:
        return self._signatures[node_id] in self.results

    def _is_output(self, node_id: str) -> bool:
        return NODE_TYPES[self._class_of(node_id)].is_output

    def _class_of(self, node_id: str) -> str:
        return str(self._graph[node_id]["class_type"])

    def _describe(self, node_id: str, error: Exception) -> dict[str, Any]:
        """Data of execution_error."""
        kind = _exception_type(error)
        tips = _OUT_OF_MEMORY_TIPS if kind.endswith("OutOfMemoryError") else ""
        message = str(error)
        inputs = {name: [_shown(value)] for name, value in self._shown_values(node_id).items()}
        return {
            "node_id": node_id,
            "node_type": self._class_of(node_id),
            "executed": list(self._executed),
            "exception_message": f"{message}\n{tips}" if tips or not message.endswith("\n") else message,
            "exception_type": kind,
            "traceback": [
                '  File "<comfyui>/execution.py", line 545, in execute\n',
                '  File "<comfyui>/execution.py", line 344, in get_output_data\n',
                '  File "<comfyui>/execution.py", line 318, in _async_map_node_over_list\n',
                '  File "<comfyui>/execution.py", line 306, in process_inputs\n',
                *(f'  File "<comfyui>/{each.name}"\n' for each in traceback.extract_tb(error.__traceback__)[-2:]),
            ],
            "current_inputs": inputs,
            "current_outputs": list(self._graph),
        }

    def _shown_values(self, node_id: str) -> dict[str, Any]:
        try:
            values = self._values(node_id)
        except (KeyError, IndexError):
            return {}
        hidden = NODE_TYPES[self._class_of(node_id)].hidden or {}
        if "prompt" in hidden:
            values["prompt"] = str(self._graph)
        if "extra_pnginfo" in hidden:
            values["extra_pnginfo"] = self.row[3].get("extra_pnginfo")
        return values


def _exception_type(error: Exception) -> str:
    if isinstance(error, SimulatedFailure):
        return error.exception_type
    if isinstance(error, OutsideFolder):
        return "Exception"
    if isinstance(error, NotInstalled):
        return "RuntimeError"
    return f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")


def _shown(value: Any) -> Any:
    """An input as execution_error shows it; a picture stands as the tensor it would be."""
    if value is None or isinstance(value, int | float | str):
        return value
    if isinstance(value, list):
        return f"tensor of {len(value)} pictures, {value[0].width} x {value[0].height}" if value else "tensor([])"
    return str(value)
