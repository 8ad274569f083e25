"""Templates: what is refused at start, what is refused in an order, and what is sent."""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest

from shared.domain.errors import ProviderRejected
from shared.domain.task import Reason, job_key_for, seed_for
from shared.providers.base import Job
from shared.providers.graph import graph_problems
from shared.providers.workflow import InvalidWorkflows, Workflows, load_workflows

SHIPPED = Path(__file__).parents[2] / "deploy" / "workflows"


@pytest.fixture(scope="module")
def workflows() -> Workflows:
    return load_workflows(SHIPPED)


def a_job(workflow: str | None, **inputs: Any) -> Job:
    task_id = uuid.uuid4()
    key = job_key_for(task_id, 1)
    return Job(task_id=task_id, attempt=1, job_key=key, seed=seed_for(key), workflow=workflow, inputs=inputs)


def test_every_shipped_template_is_sound(workflows: Workflows) -> None:
    assert workflows.names() == ["photo-batch", "photo-invert", "sdxl-img2img", "sdxl-txt2img", "solid-invert"]


def test_defaults_alone_are_an_order(workflows: Workflows) -> None:
    assert workflows.problems("solid-invert", {}) == []
    assert workflows.problems("photo-invert", {}) == ["input photo is missing"]


@pytest.mark.parametrize(
    "inputs",
    [
        {"width": 15},
        {"width": 4097},
        {"width": "512"},
        {"width": 512.0},
        {"width": True},
        {"width": None},
        {"width": ["3", 0]},
        {"width": {"a": 1}},
        {"width": 10**400},
        {"cfg": 1},
    ],
)
def test_a_value_outside_its_bounds_is_refused(workflows: Workflows, inputs: dict[str, Any]) -> None:
    assert len(workflows.problems("solid-invert", inputs)) == 1


@pytest.mark.parametrize(
    "inputs",
    [
        {"cfg": float("nan")},
        {"cfg": float("inf")},
        {"cfg": 10**400},
        {"cfg": "6"},
        {"cfg": True},
        {"prompt": "x" * 2001},
        {"prompt": 7},
        {"prompt": ["6", 0]},
        {"sampler": "psychic"},
        {"sampler": ["euler"]},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": 1.5},
    ],
)
def test_each_type_refuses_what_it_cannot_send(workflows: Workflows, inputs: dict[str, Any]) -> None:
    assert len(workflows.problems("sdxl-txt2img", {"prompt": "a lighthouse", **inputs})) == 1


@pytest.mark.parametrize("photo", ["", "ftp://x/y.png", "data:image/png;base64,AA", 3, ["1", 0], "x" * 5000])
def test_a_picture_is_given_by_an_address_we_can_read(workflows: Workflows, photo: Any) -> None:
    assert len(workflows.problems("photo-invert", {"photo": photo})) == 1


def test_all_mistakes_of_an_order_are_named_at_once(workflows: Workflows) -> None:
    problems = workflows.problems("photo-batch", {"width": 0, "copies": 9, "shop": "x"})
    assert problems == [
        "input shop is unknown",
        "input photo is missing",
        "input width must be within 16 and 4096",
        "input copies must be within 1 and 8",
    ]


def test_an_unknown_workflow_names_the_known_ones(workflows: Workflows) -> None:
    assert "photo-batch" in workflows.problems("nope", {})[0]
    with pytest.raises(ProviderRejected) as caught:
        workflows.render(a_job("nope"), {})
    assert caught.value.reason == Reason.INVALID_WORKFLOW
    with pytest.raises(ProviderRejected) as caught:
        workflows.render(a_job("solid-invert", width=0), {})
    assert caught.value.reason == Reason.REJECTED


def test_rendering_sets_values_seed_and_the_folder_of_the_attempt(workflows: Workflows) -> None:
    job = a_job("sdxl-txt2img", prompt="a lighthouse", cfg=7)
    graph = workflows.render(job, {})
    assert graph["6"]["inputs"]["text"] == "a lighthouse"
    assert graph["3"]["inputs"]["seed"] == job.seed
    assert graph["3"]["inputs"]["cfg"] == 7.0
    assert isinstance(graph["3"]["inputs"]["cfg"], float)
    assert graph["9"]["inputs"]["filename_prefix"] == f"darkroom/{job.job_key}/result"
    assert graph["6"]["inputs"]["clip"] == ["4", 1]


def test_a_seed_in_the_order_wins(workflows: Workflows) -> None:
    graph = workflows.render(a_job("sdxl-txt2img", prompt="x", seed=2**64 - 1), {})
    assert graph["3"]["inputs"]["seed"] == 2**64 - 1


def test_rendering_leaves_the_template_alone(workflows: Workflows) -> None:
    first = workflows.render(a_job("photo-invert", photo="a.png"), {"photo": "darkroom/1.png"})
    second = workflows.render(a_job("photo-invert", photo="b.png"), {"photo": "darkroom/2.png"})
    assert first["10"]["inputs"]["image"] == "darkroom/1.png"
    assert second["10"]["inputs"]["image"] == "darkroom/2.png"


def test_the_files_a_job_leaves_are_known_beforehand(workflows: Workflows) -> None:
    job = a_job("photo-batch", photo="a.png", copies=3)
    assert [(file.node, file.subfolder, file.filename) for file in workflows.expected_files(job)] == [
        ("40", f"darkroom/{job.job_key}", f"result_0000{number}_.png") for number in (1, 2, 3)
    ]
    assert len(workflows.expected_files(a_job("photo-batch", photo="a.png"))) == 2


def test_further_outputs_have_a_prefix_saveimage_does_not_mix_up(tmp_path: Path) -> None:
    folder = _template(tmp_path)
    graph = json.loads((folder / "graph.json").read_text())
    graph["4"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
    (folder / "graph.json").write_text(json.dumps(graph))
    with (folder / "binding.toml").open("a") as binding:
        binding.write('[[outputs]]\nnode = "4"\nimages = 2\n')
    workflows = load_workflows(tmp_path)
    job = a_job("good")
    rendered = workflows.render(job, {})
    assert rendered["4"]["inputs"]["filename_prefix"] == f"darkroom/{job.job_key}/result-2"
    assert [file.filename for file in workflows.expected_files(job)] == [
        "result_00001_.png",
        "result-2_00001_.png",
        "result-2_00002_.png",
    ]


@pytest.mark.parametrize(
    ("graph", "sentence"),
    [
        ([], "must be an object of nodes"),
        ({}, "must be an object of nodes"),
        ({"nodes": [], "links": []}, "editor's format"),
        ({"1": {"inputs": {}}}, "node 1 has no class_type"),
        ({"1": {"class_type": "A"}}, "node 1 has no inputs object"),
        ({"1": 5}, "node 1 must be an object"),
        ({"1": {"class_type": "A", "inputs": {"a": ["2", 0]}}}, "links to node 2, which does not exist"),
        ({"1": {"class_type": "A", "inputs": {"a": [1, 2, 3]}}}, "a list but no link"),
        ({"1": {"class_type": "A", "inputs": {"a": ["1", True]}}}, "a list but no link"),
        ({"1": {"class_type": "A", "inputs": {"a": ["1", 0]}}}, "in a circle"),
        (
            {"1": {"class_type": "A", "inputs": {"a": ["2", 0]}}, "2": {"class_type": "A", "inputs": {"a": ["1", 0]}}},
            "nodes 1, 2 depend on each other",
        ),
    ],
)
def test_a_graph_that_could_kill_the_server_is_refused(graph: Any, sentence: str) -> None:
    (problem,) = graph_problems(graph)
    assert sentence in problem


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ('node = "3"', 'node = "9"', "output 9: no such node"),
        ('node = "3"', 'node = "2"', "output 2: ImageInvert saves no pictures"),
        ("images = 1", 'images_from = "color"', "input color needs bounds within 1 and 64"),
        ("images = 1", 'images_from = "nothing"', "images_from must name an int input"),
        ("images = 1", "", "give either images or images_from"),
        ("default = 256", "default = 5", "input width: default must be within 16 and 4096"),
        ('field = "width"', 'field = "breadth"', "node 1 has no field breadth"),
        ('field = "width"', 'field = "height"', "field height of node 1 is bound twice"),
        ('node = "1"', 'node = "7"', "node 7 does not exist"),
        ('type = "int"', 'type = "image"', "min makes no sense for type image"),
        ('type = "int"', 'type = "integer"', "binding.toml: inputs.width.type"),
        ('type = "int"', 'type = "int"\nstep = 8', "binding.toml: inputs.width.step: Extra inputs"),
        ("min = 16\n", "", "min and max are needed"),
        ("title", "titel", "binding.toml: titel: Extra inputs"),
    ],
)
def test_a_wrong_binding_is_named_at_start(tmp_path: Path, before: str, after: str, sentence: str) -> None:
    folder = _template(tmp_path)
    text = (folder / "binding.toml").read_text()
    assert before in text
    (folder / "binding.toml").write_text(text.replace(before, after, 1))
    with pytest.raises(InvalidWorkflows) as caught:
        load_workflows(tmp_path)
    assert any(sentence in problem for problem in caught.value.problems), caught.value.problems


def test_an_undeclared_save_node_is_named(tmp_path: Path) -> None:
    folder = _template(tmp_path)
    graph = json.loads((folder / "graph.json").read_text())
    graph["8"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
    (folder / "graph.json").write_text(json.dumps(graph))
    with pytest.raises(InvalidWorkflows, match="good: node 8 saves pictures but is no output"):
        load_workflows(tmp_path)


def test_the_mistakes_of_all_templates_are_named_at_once(tmp_path: Path) -> None:
    first, second = _template(tmp_path, "first"), _template(tmp_path, "second")
    (first / "graph.json").write_text('{"1": NaN}')
    (second / "binding.toml").unlink()
    _template(tmp_path, "Third Name")
    with pytest.raises(InvalidWorkflows) as caught:
        load_workflows(tmp_path)
    assert {problem.split(":")[0] for problem in caught.value.problems} == {"first", "second", "Third Name"}


def test_a_folder_without_templates_is_a_mistake(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InvalidWorkflows):
            load_workflows(folder)


def _template(directory: Path, name: str = "good") -> Path:
    return Path(shutil.copytree(SHIPPED / "solid-invert", directory / name))
