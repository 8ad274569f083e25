"""Crash points: each name stands at one place, handlers have none, and only an armed process dies, by SIGKILL alone."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from shared.config import SettingsError, load_settings
from shared.observe.crash import KILLED, CrashPoint, KillAt, arm, crash_point, read_kill_at
from tests.drill.apis import MATRIX as APIS

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT / "shared" / "observe" / "crash.py"
#: The adapter of image APIs, whose edge has points of ComfyUI's: tests/drill/apis.py dies at these.
API = ROOT / "shared" / "providers" / "http_api.py"
SERVERS = {"DARKROOM_DATABASE_URL": "postgresql://localhost/d", "DARKROOM_AMQP_URL": "amqp://localhost"}


def sources(folder: str) -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text())) for path in (ROOT / folder).rglob("*.py") if path != LIST]


def calls(tree: ast.Module) -> list[ast.Call]:
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in found if isinstance(call.func, ast.Name) and call.func.id == "crash_point"]


def places(trees: Iterable[ast.Module]) -> Counter[str]:
    return Counter(
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "CrashPoint"
    )


def test_each_name_of_the_list_stands_at_exactly_one_place_of_the_code_and_of_the_other_adapter() -> None:
    found = places(tree for path, tree in sources("shared") if path != API)
    assert found == Counter(point.name for point in CrashPoint)
    other = places(tree for path, tree in sources("shared") if path == API)
    assert set(other.values()) == {1}
    assert set(other) <= {drill.point.name for drill in APIS}


def test_each_call_has_a_name_of_the_list_or_a_table_of_them_that_no_other_call_has() -> None:
    asked = [ast.unparse(call.args[0]) for path, tree in sources("shared") if path != API for call in calls(tree)]
    assert asked
    assert len(set(asked)) == len(asked)
    tables = {
        node.name
        for node in ast.walk(ast.parse((ROOT / "shared/broker/crash_points.py").read_text()))
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    assert {name for name in asked if not name.startswith("CrashPoint.")} == {
        *(f"crash_points.{table}" for table in tables),
        "_MOVED.get",
    }


def test_handlers_have_none() -> None:
    assert [path for path, tree in sources("services") if calls(tree)] == []


@pytest.mark.parametrize(
    ("text", "kill_at"),
    [("claim_committed", KillAt(CrashPoint.CLAIM_COMMITTED)), ("posted:3", KillAt(CrashPoint.POSTED, 3))],
)
def test_a_point_is_named_alone_or_with_how_often(text: str, kill_at: KillAt) -> None:
    assert read_kill_at(text) == kill_at
    assert load_settings({**SERVERS, "DARKROOM_KILL_AT": text}, dotenv=None).kill_at == kill_at


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("claim_comitted", "DARKROOM_KILL_AT names no crash point; the nearest is claim_committed"),
        ("posted:0", "DARKROOM_KILL_AT must end with a number from 1 behind its colon, as in posted:2"),
        ("posted:", "DARKROOM_KILL_AT must end with a number from 1"),
        ("posted:-1", "DARKROOM_KILL_AT must end with a number from 1"),
    ],
)
def test_a_misspelt_point_stops_the_start_and_names_the_nearest(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({**SERVERS, "DARKROOM_KILL_AT": text}, dotenv=None)
    assert said in str(refused.value)


def test_a_process_that_is_not_armed_asks_no_table_and_lives() -> None:
    arm(None)
    for point in CrashPoint:
        crash_point(point)

    def table(_: object) -> CrashPoint:
        raise AssertionError("asked")

    crash_point(table, "something")


def test_an_armed_process_dies_of_sigkill_at_the_nth_time_and_runs_nothing_more() -> None:
    program = """
import atexit
from shared.observe.crash import CrashPoint, arm, crash_point, read_kill_at
atexit.register(print, "at exit", flush=True)
arm(read_kill_at("posted:2"))
try:
    for turn in (1, 2, 3):
        print(turn, flush=True)
        crash_point(CrashPoint.POSTING)
        crash_point({"it": CrashPoint.POSTED}.get, "it")
finally:
    print("finally", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == -9
    assert ended.stdout.split() == ["1", "2"]
    assert KILLED in ended.stderr
