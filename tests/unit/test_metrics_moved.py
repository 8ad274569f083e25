"""No metric is dead: for each there is a test that says which value it has after what."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.observe.catalog import CATALOGUE, PREFIX, Metric
from tests.e2e.test_counted import AT_LEAST, IMPLIED

TESTS = Path(__file__).parents[1]
CODE = TESTS.parent
#: They list what there is, and write nothing.
LISTS = {"catalog.py", "label_values.py", "metric.py", "state_metrics.py", "work_metrics.py"}
#: They read the catalogue itself, or what reads it.
WITHOUT = {"test_metrics.py", "test_metrics_moved.py", "test_dashboards.py"}


def texts_in_asserts(file: Path) -> Iterator[str]:
    """Every text that an assert compares with, or that what it calls in the same file is given."""
    tree = ast.parse(file.read_text())
    named = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assert) and not _waits(node):
            continue
        spoken = {getattr(part, "id", getattr(part, "attr", "")) for part in ast.walk(node)}
        called = spoken & named.keys()
        for part in (node, *(named[name] for name in called if not name.startswith("test_"))):
            yield from (
                text.value for text in ast.walk(part) if isinstance(text, ast.Constant) and isinstance(text.value, str)
            )


def _waits(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "eventually"


def moved() -> set[str]:
    files = [path for path in TESTS.rglob("*.py") if path.name not in WITHOUT]
    told = {text.partition("{")[0] for path in files for text in texts_in_asserts(path)}
    return told | {name for name, _, value in (*IMPLIED, *AT_LEAST) if value}


@pytest.fixture(scope="module")
def told() -> set[str]:
    return moved()


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_a_test_says_which_value_it_has_after_what(metric: Metric, told: set[str]) -> None:
    samples = [metric.name, *(f"{metric.name}_{part}" for part in ("count", "sum", "bucket"))]
    assert told & {prefix + sample for prefix in ("", PREFIX) for sample in samples}


@pytest.fixture(scope="module")
def said() -> set[str]:
    """Every text in the code that could be a label's value."""
    files = [path for part in ("shared", "services") for path in (CODE / part).rglob("*.py") if path.name not in LISTS]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_the_code_says_each_value_that_a_label_may_have(metric: Metric, said: set[str]) -> None:
    listed = {value for values in metric.labels.values() if isinstance(values, tuple) for value in values}
    assert {str(value) for value in listed} <= said
