"""What a pool takes is told from the backends file alone, and is what its provider then says."""

from pathlib import Path

import pytest

from shared.providers.offered import Offered
from shared.providers.registry import load_backends
from shared.providers.table_files import load_tables
from shared.providers.workflow import load_workflows

ROOT = Path(__file__).parents[2]
FILE = """
[[backend]]
name = "gpu-1"
adapter = "comfyui"
url = "http://127.0.0.1:1"

[[backend]]
name = "pictures"
adapter = "http"
provider = "openai_images"

[[backend]]
name = "rented"
adapter = "http"
provider = "runpod_comfyui"
url = "http://127.0.0.1:1"
"""


@pytest.fixture
def offered(tmp_path: Path) -> Offered:
    file = tmp_path / "backends.toml"
    file.write_text(FILE)
    tables = load_tables()
    return Offered.of(load_backends(file, tables), tables, load_workflows(ROOT / "deploy" / "workflows"))


@pytest.mark.parametrize("pool", ["comfyui", "runpod_comfyui"])
def test_pools_that_take_workflows_look_at_the_binding(offered: Offered, pool: str) -> None:
    assert offered.problems(pool, "solid-invert", {"width": 64}) == []
    assert offered.problems(pool, "solid-invert", {"width": "wide"}) != []
    assert offered.problems(pool, "no-such-workflow", {}) != []


def test_an_api_looks_at_its_table_and_at_no_workflow(offered: Offered) -> None:
    assert offered.problems("openai_images", None, {"prompt": "a moon", "model": "gpt-image-1"}) == []
    assert "input width is unknown" in offered.problems("openai_images", None, {"width": 64})


def test_a_pool_that_the_file_does_not_name_takes_nothing(offered: Offered) -> None:
    (problem,) = offered.problems("moon", None, {})
    assert "'moon'" in problem
    assert "comfyui, openai_images, runpod_comfyui" in problem
