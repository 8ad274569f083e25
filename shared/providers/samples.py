"""Runs a provider's table against answers whose meaning is known, each with the verdict it must get."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shared.providers import pointers
from shared.providers.answers import Answer, Reading, no_answer, read
from shared.providers.table import Phase, Table
from shared.providers.table_files import CATALOG

SAMPLES: Final = CATALOG / "samples"
_PHASES: Final[Mapping[str, Phase]] = {
    "submit": "submit", "poll": "poll", "fetch": "fetch", "cancel": "cancel", "list": "list"
}  # fmt: skip
_COMPARED: Final = ("state", "error_class", "images", "task_id", "retry_after_s")
_WEBHOOK: Final = "a callback only makes its row due: nothing but the key in its address is believed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One case. expected, got -- what was compared; skipped -- why nothing was, empty when something was"""

    provider: str
    case: str
    kind: str
    expected: Mapping[str, Any]
    got: Mapping[str, Any]
    skipped: str = ""

    @property
    def is_right(self) -> bool:
        return self.expected == self.got


def sample_file(name: str) -> Path | None:
    """The samples that are shipped for this provider, if there are any."""
    file = SAMPLES / f"{name}.json"
    return file if file.is_file() else None


def judge(name: str, table: Table, file: Path) -> list[Judged]:
    """Every case of the file, in order. Raises ValueError for a file that holds none, OSError."""
    cases = json.loads(file.read_text(encoding="utf-8")).get("cases")
    if not isinstance(cases, list) or not cases:
        raise ValueError(f"{file.name} has no cases")
    return [_judge(name, table, case) for case in cases]


def _judge(name: str, table: Table, case: Mapping[str, Any]) -> Judged:
    kind, expect = case["kind"], case["expect"]
    if kind not in _PHASES:
        return Judged(provider=name, case=case["name"], kind=kind, expected={}, got={}, skipped=_WEBHOOK)
    expected = {
        key: expect[key] for key in ("state", "error_class", "images", "task_id", "retry_after_s") if key in expect
    }
    if kind == "list":
        return _judge_list(name, table, case)
    got = _described(_reading(table, _PHASES[kind], case["response"]))
    # What the sample leaves unsaid is not asked; but a success nobody expected is never right.
    shown = {key: got.get(key) for key in expected}
    if got["state"] == "succeeded" and expected.get("state") != "succeeded":
        shown["state"] = "succeeded"
    return Judged(provider=name, case=case["name"], kind=kind, expected=expected, got=shown)


def _reading(table: Table, phase: Phase, response: Mapping[str, Any]) -> Reading:
    if response["status"] == 0:  # the client gave up waiting after it had sent everything
        return no_answer(phase)
    body = response["body"]
    text = body if isinstance(body, str) else json.dumps(body)
    # A page of HTML is a string in the file and no JSON on the wire.
    return read(
        table, phase, Answer(response["status"], response["headers"], None if isinstance(body, str) else body, text)
    )


def _described(reading: Reading) -> dict[str, Any]:
    return {
        "state": reading.status,
        "error_class": reading.error,
        "images": len(reading.outputs),
        "task_id": reading.job_id,
        "retry_after_s": reading.retry_after,
    }


def _judge_list(name: str, table: Table, case: Mapping[str, Any]) -> Judged:
    """The rows must be found in it, each with a job's id and, where the table looks for it, a seed."""
    listing = table.listing
    if listing is None:
        return Judged(provider=name, case=case["name"], kind="list", expected={"rows": 1}, got={"rows": "no [list]"})
    body = case["response"]["body"]
    found: Sequence[Any] = [row for pointer in listing.rows for rows in pointers.found(body, pointer) for row in rows]
    ids = [row for row in found if pointers.first(row, [listing.job_id]) is not None]
    seeds = [row for row in ids if listing.seed is None or isinstance(pointers.first(row, [listing.seed]), int)]
    got = {"rows": len(ids), "seeds": len(seeds)}
    return Judged(provider=name, case=case["name"], kind="list", expected={"rows": 1, "seeds": 1}, got=got)
