"""Workflow templates: a graph, a binding that says which inputs an order may set, and what comes out of it.

A workflow is a folder `<name>/` with `graph.json` (API format) and `binding.toml`:

    title = "Photo, scaled and inverted"

    [inputs.photo]                 # an order without it is refused: there is no default
    node = "10"
    field = "image"
    type = "image"                 # int, float, string, choice, image or seed

    [inputs.width]
    node = "20"
    field = "width"
    type = "int"
    min = 64
    max = 2048
    default = 512

    [[outputs]]
    node = "40"
    images = 1                     # or images_from = "copies", the name of an int input
"""

import json
import re
import tomllib
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.domain.errors import DarkroomError, ProviderRejected
from shared.domain.task import Reason
from shared.providers.base import Job
from shared.providers.graph import SAVE_NODES, Graph, graph_problems, read_graph, save_nodes_of
from shared.providers.values import InputSpec, spec_problems, value_problem

#: Folder of all our files, in ComfyUI's input and output folders alike.
OUR_FOLDER: Final = "darkroom"
_NAME: Final = re.compile(r"^[a-z0-9][a-z0-9_-]{0,63}$")


class InvalidWorkflows(DarkroomError):
    """At least one template is wrong; `problems` names every mistake of all of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class OutputSpec(BaseModel):
    """A node that saves pictures, and how many it saves in one run."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    node: str
    images: int | None = Field(None, ge=1, le=64)
    images_from: str | None = None


class Binding(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    title: str = Field(min_length=1)
    inputs: dict[str, InputSpec] = Field(default_factory=dict)
    outputs: list[OutputSpec] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class ExpectedFile:
    """A picture that a finished job leaves in the output folder, if no other run wrote there."""

    node: str
    subfolder: str
    filename: str


@dataclass(frozen=True)
class Workflow:
    name: str
    graph: Graph = field(repr=False)
    binding: Binding

    @cached_property
    def _as_json(self) -> str:
        return json.dumps(self.graph)

    def copy_of_graph(self) -> dict[str, dict[str, Any]]:
        """For the caller to change. By way of JSON, which takes a tenth of the time of `copy.deepcopy`."""
        copied: dict[str, dict[str, Any]] = json.loads(self._as_json)
        return copied

    def problems(self, inputs: Mapping[str, Any]) -> list[str]:
        """One sentence per mistake in the order's inputs. Pure; says nothing of the values themselves."""
        return [f"input {name[:64]} {problem}" for name, problem in self.wrong_inputs(inputs).items()]

    def wrong_inputs(self, inputs: Mapping[str, Any]) -> dict[str, str]:
        """Name of each wrong input -> the end of a sentence that says why. Pure."""
        known = self.binding.inputs
        wrong = {str(name): "is unknown" for name in inputs if name not in known}
        for name, spec in known.items():
            if name in inputs:
                problem = value_problem(spec, inputs[name])
                wrong |= {name: problem} if problem else {}
            elif spec.is_required:
                wrong[name] = "is missing"
        return wrong

    def images_of(self, output: OutputSpec, inputs: Mapping[str, Any]) -> int:
        if output.images_from is None:
            return output.images or 1
        return int(inputs.get(output.images_from, self.binding.inputs[output.images_from].default))

    @property
    def image_inputs(self) -> list[str]:
        return [name for name, spec in self.binding.inputs.items() if spec.type == "image"]


class Workflows:
    """Every template of one folder. Read once at start, never changes, safe for all threads."""

    def __init__(self, workflows: Mapping[str, Workflow]) -> None:
        self._workflows = dict(workflows)

    def names(self) -> list[str]:
        return sorted(self._workflows)

    def get(self, name: str | None) -> Workflow | None:
        return None if name is None else self._workflows.get(name)

    def problems(self, workflow_name: str | None, inputs: Mapping[str, Any]) -> list[str]:
        """What is wrong with such an order; empty means that `render` will take it. Pure."""
        workflow = self.get(workflow_name)
        return [self._unknown(workflow_name)] if workflow is None else workflow.problems(inputs)

    def for_job(self, job: Job) -> Workflow:
        """The job's template, its inputs checked. Raises ProviderRejected."""
        workflow = self.get(job.workflow)
        if workflow is None:
            raise ProviderRejected(self._unknown(job.workflow), reason=Reason.INVALID_WORKFLOW)
        if problems := workflow.problems(job.inputs):
            raise ProviderRejected(f"workflow {workflow.name}: {'; '.join(problems)}")
        return workflow

    def render(self, job: Job, uploaded: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """The graph to send. Raises ProviderRejected.

        uploaded -- name of an image input -> `subfolder/name` that the server gave the picture
        """
        workflow = self.for_job(job)
        graph = workflow.copy_of_graph()
        for name, spec in workflow.binding.inputs.items():
            graph[spec.node]["inputs"][spec.field] = _value(name, spec, job, uploaded)
        for index, output in enumerate(workflow.binding.outputs):
            graph[output.node]["inputs"]["filename_prefix"] = f"{_folder(job)}/{_stem(index)}"
        return graph

    def expected_files(self, job: Job) -> list[ExpectedFile]:
        """What the job leaves in the output folder, in the order of the pictures; [] when the template is gone.

        SaveImage counts from 1 within its prefix, and the prefix is this attempt's alone.
        """
        workflow = self.get(job.workflow)
        if workflow is None or workflow.problems(job.inputs):
            return []
        return [
            ExpectedFile(output.node, _folder(job), f"{_stem(index)}_{number:05d}_.png")
            for index, output in enumerate(workflow.binding.outputs)
            for number in range(1, workflow.images_of(output, job.inputs) + 1)
        ]

    def expected_counts(self, job: Job) -> dict[str, int] | None:
        """Output node -> how many pictures it gives, in order; None when the template is gone."""
        files = self.expected_files(job)
        return dict(Counter(file.node for file in files)) if files else None

    @property
    def most_image_inputs(self) -> int:
        return max((len(workflow.image_inputs) for workflow in self._workflows.values()), default=0)

    def _unknown(self, name: str | None) -> str:
        if name is None:
            return "the order names no workflow"
        return f"unknown workflow {name[:64]!r}; there are: {', '.join(self.names()) or 'none'}"


def load_workflows(directory: Path) -> Workflows:
    """Every template below `directory`. Raises InvalidWorkflows with every mistake of every template."""
    if not directory.is_dir():
        raise InvalidWorkflows([f"{directory}: no such folder"])
    problems: list[str] = []
    workflows: dict[str, Workflow] = {}
    for folder in sorted(path for path in directory.iterdir() if path.is_dir()):
        loaded = _load(folder)
        if isinstance(loaded, Workflow):
            workflows[loaded.name] = loaded
        else:
            problems += [f"{folder.name}: {problem}" for problem in loaded]
    if not problems and not workflows:
        problems.append(f"{directory}: no workflow in it")
    if problems:
        raise InvalidWorkflows(problems)
    return Workflows(workflows)


def _load(folder: Path) -> Workflow | list[str]:
    problems = [] if _NAME.match(folder.name) else ["a name is a-z, 0-9, - and _, at most 64 characters"]
    graph: Any = None
    binding: Binding | None = None
    try:
        graph = read_graph((folder / "graph.json").read_text(encoding="utf-8"))
        problems += graph_problems(graph)
    except (OSError, ValueError) as error:
        problems.append(f"graph.json cannot be read: {error}")
    graph_is_sound = not problems
    try:
        binding = Binding.model_validate(tomllib.loads((folder / "binding.toml").read_text(encoding="utf-8")))
    except ValidationError as error:
        problems += [f"binding.toml: {_place(item['loc'])}: {item['msg']}" for item in error.errors()]
    except (OSError, ValueError) as error:
        problems.append(f"binding.toml cannot be read: {error}")
    if binding is not None:
        problems += [f"input {name}: {text}" for name, spec in binding.inputs.items() for text in spec_problems(spec)]
        if graph_is_sound:
            problems += [*_target_problems(binding, graph), *_output_problems(binding, graph)]
    if problems or binding is None:
        return problems
    return Workflow(folder.name, graph, binding)


def _target_problems(binding: Binding, graph: Graph) -> Iterator[str]:
    targets = Counter((spec.node, spec.field) for spec in binding.inputs.values())
    for name, spec in binding.inputs.items():
        if not _NAME.match(name):
            yield f"input {name}: a name is a-z, 0-9, - and _, at most 64 characters"
        if spec.node not in graph:
            yield f"input {name}: node {spec.node} does not exist"
        elif spec.field not in graph[spec.node]["inputs"]:
            yield f"input {name}: node {spec.node} has no field {spec.field}"
        elif isinstance(graph[spec.node]["inputs"][spec.field], list):
            yield f"input {name}: field {spec.field} of node {spec.node} is a link, not a value"
        elif spec.field == "filename_prefix":
            yield f"input {name}: file names are ours to choose"
        if targets[spec.node, spec.field] > 1:
            yield f"input {name}: field {spec.field} of node {spec.node} is bound twice"


def _output_problems(binding: Binding, graph: Graph) -> Iterator[str]:
    declared = Counter(output.node for output in binding.outputs)
    for node_id in save_nodes_of(graph):
        if node_id not in declared:
            yield f"node {node_id} saves pictures but is no output"
    for output in binding.outputs:
        if output.node not in graph:
            yield f"output {output.node}: no such node"
        elif graph[output.node]["class_type"] not in SAVE_NODES:
            yield f"output {output.node}: {graph[output.node]['class_type']} saves no pictures"
        if declared[output.node] > 1:
            yield f"output {output.node}: declared twice"
        if (output.images is None) == (output.images_from is None):
            yield f"output {output.node}: give either images or images_from"
        if output.images_from is not None:
            source = binding.inputs.get(output.images_from)
            if source is None or source.type != "int":
                yield f"output {output.node}: images_from must name an int input"
            elif source.min is None or source.min < 1 or source.max is None or source.max > 64:
                yield f"output {output.node}: input {output.images_from} needs bounds within 1 and 64"


def _value(name: str, spec: InputSpec, job: Job, uploaded: Mapping[str, str]) -> Any:
    kind: Literal["int", "float", "string", "choice", "image", "seed"] = spec.type
    if kind == "image":
        return uploaded[name]
    if kind == "seed" and name not in job.inputs:
        low, high = int(spec.low), int(spec.high)
        return low + job.seed % (high - low + 1)
    value = job.inputs.get(name, spec.default)
    return float(value) if kind == "float" else value


def _folder(job: Job) -> str:
    """One folder per attempt: nobody else counts files in it. An adopted job has the folder of its own id."""
    try:
        key = uuid.UUID(job.provider_job_id) if job.provider_job_id else job.job_key
    except ValueError:
        key = job.job_key
    return f"{OUR_FOLDER}/{key}"


def _stem(index: int) -> str:
    """`result-2` and not `result_2`: SaveImage would count the files of `result_2` as files of `result`."""
    return "result" if index == 0 else f"result-{index + 1}"


def _place(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location) or "binding"
