"""The drill's matrix has every crash point of the code, and docs/drill.md every drill of the matrix."""

from collections import Counter

import pytest
from typer.testing import CliRunner

from services.cli import app
from services.ops import drill as command
from tests.drill import table
from tests.drill.lane import Report
from tests.drill.matrix import MATRIX
from tests.drill.table import cells, documented, missing, write


def test_every_crash_point_of_the_code_is_in_the_matrix() -> None:
    assert missing() == set()


def test_no_drill_stands_twice_in_the_matrix() -> None:
    assert set(Counter(drill.name for drill in MATRIX).values()) == {1}


def test_the_document_shows_every_drill_of_the_matrix_and_no_other_and_each_as_kept() -> None:
    shown = documented()
    assert [line[:2] for line in shown] == [(str(drill.point), str(drill.victim)) for drill in MATRIX]
    assert {line[-1] for line in shown} == {"kept"}


def test_a_drill_replaces_its_line_and_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    document = tmp_path / "drill.md"
    document.write_text("before\n<!-- table -->\n<!-- /table -->\nafter\n")
    monkeypatch.setattr(table, "DOCUMENT", document)
    for drill, tasks in ((MATRIX[1], 1), (MATRIX[0], 2), (MATRIX[1], 3)):
        write(Report(drill=drill, tasks=tasks, verdict="kept"))
    assert [(line[0], line[3]) for line in documented()] == [(MATRIX[0].point, "2"), (MATRIX[1].point, "3")]
    assert document.read_text().startswith("before\n<!-- table -->\n| point |")
    assert document.read_text().endswith("<!-- /table -->\nafter\n")


def test_a_verdict_stays_on_its_line() -> None:
    assert cells(Report(drill=MATRIX[0], verdict="lost\na | b"))[-1] == "lost a / b"


def test_a_point_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = CliRunner().invoke(app, ["drill", "--only", "claim_comitted"])
    assert answer.exit_code == 2
    assert "claim_comitted" in answer.output


def test_without_a_checkout_the_command_says_so_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(command, "_ROOT", tmp_path)
    answer = CliRunner().invoke(app, ["drill"])
    assert answer.exit_code == 2
    assert "needs a checkout" in answer.output
