"""Each action of the console on dead letters and plans against its command: the same rows, the same audit."""

import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from deploy.local import Stack
from services.ops import commands
from services.ops.console import app as console_app
from shared.database.users import Role
from tests.integration.letters_lab import LettersLab
from tests.integration.rows_lab import POOL
from tests.servers import new_database

_BACKENDS = """
[[backend]]
name = "gpu-1"
adapter = "comfyui"
url = "http://127.0.0.1:1"

[[backend]]
name = "gpu-2"
adapter = "comfyui"
url = "http://127.0.0.1:2"
pool = "other-pool"
"""


@dataclass(frozen=True)
class Deed:
    """One thing that people do. before -- commands that lead up to it, on both sides"""

    route: str
    form: dict[str, Any]
    words: str
    before: tuple[str, ...] = field(default=())


#: What stands for the one group there is of what each row's letters are about.
_GROUP = "GROUP"
_PLAN = "dead plan 1 2"
_DEEDS = {
    "note": Deed("/letters/groups/GROUP/note", {"value": "see 12"}, "dead group note GROUP 'see 12'"),
    "owner": Deed("/letters/groups/GROUP/owner", {"value": "ben"}, "dead group owner GROUP ben"),
    "fixed": Deed("/letters/groups/GROUP/fixed", {"value": "1.2"}, "dead group fixed GROUP 1.2"),
    "discard": Deed(
        "/letters/close", {"deed": "discard", "id": [1, 2], "why": "no", "sure": "yes"}, "dead discard 1 2 --why no"
    ),
    "archive": Deed("/letters/close", {"deed": "archive", "id": [1, 2], "why": "no"}, "dead archive 1 2 --why no"),
    "restore": Deed(
        "/letters/close",
        {"deed": "restore", "id": [1], "why": "yes"},
        "dead restore 1 --why yes",
        ("dead archive 1 --why no",),
    ),
    "discard all": Deed(
        "/letters/close",
        {"deed": "discard", "which": "all", "reason": "execution_failed", "why": "no", "sure": "yes"},
        "dead discard --reason execution_failed --all --why no",
    ),
    "replay": Deed("/letters/replay", {"id": [1, 2]}, "dead replay 1 2"),
    "edit": Deed(
        "/letters/1/edit",
        {"input.color": "7", "why": "wrong colour"},
        "dead edit 1 --input color=7 --why 'wrong colour'",
    ),
    "plan": Deed("/plans", {"id": [1, 2], "plan_note": "again"}, "dead plan 1 2 --why again"),
    "redirect": Deed("/plans", {"id": [1], "to_pool": "other-pool"}, "dead plan 1 --redirect-to other-pool"),
    "redirect to a backend": Deed(
        "/plans", {"id": [1], "to_backend": "gpu-2"}, "dead plan 1 --redirect-to-backend gpu-2"
    ),
    "edit for a backend": Deed(
        "/letters/1/edit",
        {"input.color": "7", "to_backend": "gpu-2"},
        "dead edit 1 --input color=7 --redirect-to-backend gpu-2",
    ),
    "force": Deed("/plans", {"id": [1], "force": "yes"}, "dead plan 1 --force-superseded"),
    "apply": Deed(
        "/plans/1/apply",
        {"rate": "5", "ramp": "1, 2", "stop_at": "30", "stop_window": "20"},
        "dead apply 1 --rate 5 --ramp 1,2 --stop-at 30%",
        (_PLAN,),
    ),
    "pause": Deed("/plans/1/pause", {}, "dead pause 1", (_PLAN, "dead apply 1")),
    "resume": Deed("/plans/1/resume", {}, "dead resume 1", (_PLAN, "dead apply 1", "dead pause 1")),
    "abort": Deed("/plans/1/abort", {}, "dead abort 1", (_PLAN, "dead apply 1")),
}

#: What differs between two databases although the same was done: moments, traces, and messages that hold them.
_OF_THE_MOMENT = re.compile(
    r"_at$|\.at$|\.(paced_until|judged_from|trace_id|job_key)$|^dead_letters\.(body|headers|message_id)$"
)
_TABLES = {
    "dead_letters": "id",
    "letter_groups": "fingerprint",
    "replays": "id",
    "plans": "id",
    "plan_items": "plan_id, place",
    "task_revisions": "task_id, revision",
    "tasks": "idempotency_key",
    "task_moves": "task_id, version",
}


@contextmanager
def _side(stack: Stack, folder: Path) -> Iterator[LettersLab]:
    """Two letters about failed rows, one that nobody can read; the same each time, in a database of their own."""
    lab = LettersLab(new_database(stack), folder)
    try:
        address = "http://127.0.0.1:1"
        pools = ((1, POOL), (2, "other-pool"))
        lab.slots.sync([(f"gpu-{n}", pool, "comfyui", address, 100, 60.0) for n, pool in pools])
        for number in (1, 2):
            lab.dead(
                idempotency_key=f"key-{number}",
                order_id=f"order-{number}",
                workflow="solid-invert",
                inputs={"color": 5},
            )
        lab.unreadable(message_id="1")
        yield lab
    finally:
        lab.close()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amqp_url: str) -> Callable[..., None]:
    """`darkroom …` as ann, against the database of a side."""
    workflows = Path("deploy/workflows").resolve()
    (tmp_path / "backends.toml").write_text(_BACKENDS)
    monkeypatch.setenv("DARKROOM_AMQP_URL", amqp_url)
    monkeypatch.setenv("DARKROOM_BACKENDS_FILE", str(tmp_path / "backends.toml"))
    monkeypatch.setenv("DARKROOM_WORKFLOWS_DIR", str(workflows))
    monkeypatch.setenv("DARKROOM_DEFAULT_DEADLINE_SECONDS", "3600")  # the console's of these tests
    monkeypatch.setenv("DARKROOM_CONFIRM_TIMEOUT_SECONDS", "20")

    app = typer.Typer()
    app.add_typer(commands.dead_app, name="dead")

    def run(lab: LettersLab, words: str) -> None:
        monkeypatch.setenv("DARKROOM_DATABASE_URL", lab.url)
        result = CliRunner().invoke(app, [*shlex.split(words.replace(_GROUP, _group(lab))), "--by", "ann"])
        assert result.exit_code == 0, result.output

    return run


@pytest.mark.parametrize("deed", _DEEDS.values(), ids=_DEEDS)
def test_a_form_and_its_command_leave_the_same_rows_and_the_same_audit(
    deed: Deed, stack: Stack, tmp_path: Path, run: Callable[..., None]
) -> None:
    with _side(stack, tmp_path / "form") as by_form, _side(stack, tmp_path / "command") as by_command:
        for words in deed.before:
            run(by_form, words)
            run(by_command, words)
        before = _written(by_form)

        browser = by_form.console.as_(Role.EDITOR, "ann")
        answer = browser.post(deed.route.replace(_GROUP, _group(by_form)), **deed.form)
        assert answer.status_code == 303, answer.text
        run(by_command, deed.words)

        assert _written(by_form) == _written(by_command)
        assert _written(by_form) != before


def test_every_form_about_letters_and_plans_has_its_command_here() -> None:
    routes = {
        re.sub(r"\{[a-z_]+\}", "*", route.path)
        for module in (console_app.letters, console_app.edit, console_app.plans)
        for route in module.routes(console_app.Pages(), _NoParts()).routes  # type: ignore[arg-type]  # asked for paths
        if "POST" in getattr(route, "methods", ())
    }
    held = {re.sub(r"/(\d+|GROUP)(?=/)", "/*", deed.route) for deed in _DEEDS.values()}
    by_word = {re.sub(r"(?<=/\*/)(note|owner|fixed|apply|pause|resume|abort)$", "*", route) for route in held}
    assert by_word == routes


class _NoParts:
    """Enough to put the routes together."""

    engine = None
    default_deadline_seconds = 1.0


def _group(lab: LettersLab) -> str:
    return str(lab.sql("select fingerprint from letter_groups where reason = 'execution_failed'")[0].fingerprint)


def _written(lab: LettersLab) -> dict[str, list[dict[str, Any]]]:
    """Everything that a deed may write, but for moments; and the audit."""
    found = {
        table: [
            {
                name: _timeless(value)
                for name, value in row._mapping.items()
                if not _OF_THE_MOMENT.search(f"{table}.{name}")
            }
            for row in lab.sql(f"select * from {table} order by {order}")  # noqa: S608 - our own names
        ]
        for table, order in _TABLES.items()
    }
    audit = lab.sql(
        "select by_whom, action, subject, detail from operator_actions where action <> 'user add' order by id"
    )
    return {**found, "audit": [{**row._mapping, "detail": _timeless(row.detail)} for row in audit]}


def _timeless(value: Any) -> Any:
    """Without moments inside."""
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in {"since", "until", "oldest", "newest"}}
    return value
