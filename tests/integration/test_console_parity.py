"""Whatever the console does, a command does too: the same rows and the same line in the audit, for the same person."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner

from services.cli import app
from shared.database.users import Role
from shared.domain.task import Reason, Task
from tests.integration.console_pages import posts_of
from tests.integration.letters_lab import LettersLab

#: Every form of the console and the command that does the same; `…` stands for what it is done to.
COMMANDS: Final[Mapping[str, str]] = {
    "/orders/{task_id}/cancel": "order cancel",
    "/orders/{task_id}/adopt": "order adopt",
    "/orders/{task_id}/submit-again": "order submit-again",
    "/orders/{task_id}/give-up": "order give-up",
    "/backends/pause": "backend pause",
    "/backends/resume": "backend resume",
    "/letters/close": "dead discard",
    "/letters/replay": "dead replay",
    "/letters/groups/{fingerprint}/{what}": "dead group note",
    "/letters/{letter_id}/edit": "dead edit",
    "/plans": "dead plan",
    "/plans/{plan_id}/{what}": "dead apply",
}
#: Forms about the session itself.
_OWN: Final = frozenset({"/login", "/logout"})
PERSON: Final = "ann"


@dataclass(frozen=True, kw_only=True)
class Deed:
    """One thing a person does, to what `arrange` makes, once on a page and once on a command line.

    form   -- path and fields of the form; {} in the path is what it is done to
    words  -- of the command; {} likewise
    refused -- whether both say that nothing was done
    """

    arrange: Callable[[LettersLab], str]
    form: tuple[str, Mapping[str, str]]
    words: Sequence[str]
    refused: bool = False


def _doubted(lab: LettersLab) -> str:
    return str(lab.dead(Reason.OUTCOME_UNKNOWN, "sent 1 time").id)


def _id(make: Callable[[LettersLab], Task]) -> Callable[[LettersLab], str]:
    return lambda lab: str(make(lab).id)


def _paused(lab: LettersLab) -> str:
    name = _backend(lab)
    lab.slots.pause(name, None, "too fast", 600.0)
    return name


def _backend(lab: LettersLab) -> str:
    name = f"backend/{len(lab.slots.backends())}"
    row = (name, "comfyui", "comfyui", "http://127.0.0.1:1", 1, 60.0)
    lab.slots.sync([("gpu-1", "comfyui", "comfyui", "http://127.0.0.1:1", 100, 60.0), row])
    return name


_CANCEL = ("/orders/{}/cancel", {"reason": "not wanted"})
_CANCEL_WORDS = ("order", "cancel", "{}", "--reason", "not wanted")
_ADOPT = ("/orders/{}/adopt", {"job": "job-7", "why": "seen"})
_ADOPT_WORDS = ("order", "adopt", "{}", "--job", "job-7", "--why", "seen")
_AGAIN = ("/orders/{}/submit-again", {"why": "not there"})
_AGAIN_WORDS = ("order", "submit-again", "{}", "--why", "not there")
_GIVE_UP = ("/orders/{}/give-up", {"why": "left"})
_GIVE_UP_WORDS = ("order", "give-up", "{}", "--why", "left")

DEEDS: Final[Mapping[str, Deed]] = {
    "cancel a pending order": Deed(arrange=_id(LettersLab.pending), form=_CANCEL, words=_CANCEL_WORDS),
    "cancel a running order": Deed(arrange=_id(LettersLab.processing), form=_CANCEL, words=_CANCEL_WORDS),
    "cancel a finished order": Deed(arrange=_id(LettersLab.completed), form=_CANCEL, words=_CANCEL_WORDS, refused=True),
    "cancel without a reason": Deed(
        arrange=_id(LettersLab.pending), form=("/orders/{}/cancel", {"reason": ""}), words=("order", "cancel", "{}")
    ),
    "adopt a job": Deed(arrange=_id(LettersLab.dead), form=_ADOPT, words=_ADOPT_WORDS),
    "adopt a job for an order that runs": Deed(
        arrange=_id(LettersLab.processing), form=_ADOPT, words=_ADOPT_WORDS, refused=True
    ),
    "submit an order in doubt again": Deed(arrange=_doubted, form=_AGAIN, words=_AGAIN_WORDS),
    "submit an order again that is not in doubt": Deed(
        arrange=_id(LettersLab.dead), form=_AGAIN, words=_AGAIN_WORDS, refused=True
    ),
    "give an order in doubt up": Deed(arrange=_doubted, form=_GIVE_UP, words=_GIVE_UP_WORDS),
    "give an order up that is not in doubt": Deed(
        arrange=_id(LettersLab.dead), form=_GIVE_UP, words=_GIVE_UP_WORDS, refused=True
    ),
    "pause a backend": Deed(
        arrange=_backend,
        form=("/backends/pause", {"name": "{}", "for": "10m", "reason": "new driver"}),
        words=("backend", "pause", "{}", "--for", "10m", "--reason", "new driver"),
    ),
    "pause a backend until it is resumed": Deed(
        arrange=_backend,
        form=("/backends/pause", {"name": "{}", "for": "", "reason": "new driver"}),
        words=("backend", "pause", "{}", "--reason", "new driver"),
    ),
    "drain a backend": Deed(
        arrange=_backend,
        form=("/backends/pause", {"name": "{}", "for": "", "reason": "new driver"}),
        words=("backend", "drain", "{}", "--reason", "new driver"),
    ),
    "resume a backend": Deed(
        arrange=_paused, form=("/backends/resume", {"name": "{}"}), words=("backend", "resume", "{}")
    ),
    "pause a backend that is not there": Deed(
        arrange=lambda _: "nobody",
        form=("/backends/pause", {"name": "{}", "reason": "x"}),
        words=("backend", "pause", "{}", "--reason", "x"),
        refused=True,
    ),
}


@pytest.fixture(scope="module")
def lab(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LettersLab]:
    from tests.servers import new_database

    lab = LettersLab(new_database(stack), tmp_path_factory.mktemp("pictures"))
    yield lab
    lab.close()


@pytest.fixture
def command(lab: LettersLab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, amqp_url: str) -> Callable[..., int]:
    """`darkroom …`: its exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DARKROOM_DATABASE_URL", lab.url)
    monkeypatch.setenv("DARKROOM_AMQP_URL", amqp_url)
    monkeypatch.setenv("DARKROOM_CONFIRM_TIMEOUT_SECONDS", "20")
    monkeypatch.setenv("DARKROOM_DEFAULT_DEADLINE_SECONDS", "3600")

    def run(*words: str) -> int:
        result = CliRunner().invoke(app, [*words, "--by", PERSON])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code

    return run


def test_every_form_of_the_console_has_a_command(lab: LettersLab) -> None:
    assert posts_of(lab.console.app.app) - _OWN == set(COMMANDS)
    for words in COMMANDS.values():
        result = CliRunner().invoke(app, [*words.split(), "--help"])
        assert result.exit_code == 0, words


@pytest.mark.parametrize("name", DEEDS)
def test_console_and_command_leave_the_same_rows_and_the_same_audit(
    name: str, lab: LettersLab, command: Callable[..., int]
) -> None:
    deed = DEEDS[name]
    browser = lab.console.as_(Role.OPERATOR, PERSON) if not lab.console.users.all() else lab.console.browser()
    browser.sign_in(PERSON)
    on_page, typed = deed.arrange(lab), deed.arrange(lab)
    path, fields = deed.form

    answer = browser.post(path.format(on_page), **{name: value.format(on_page) for name, value in fields.items()})
    status = command(*(word.format(typed) for word in deed.words))

    assert answer.status_code == 303
    assert ("▲" in browser.get(answer.headers["Location"]).text.partition("</p>")[0]) == deed.refused
    assert (status != 0) == deed.refused
    assert _left(lab, on_page) == _left(lab, typed)
    assert (_left(lab, on_page)["actions"] == "[]") == deed.refused


def _left(lab: LettersLab, subject: str) -> Mapping[str, str]:
    """What stands in every table about this subject, without ids and moments; "[]" where there is nothing."""
    found = {name: repr([tuple(row) for row in lab.sql(question, it=subject)]) for name, question in _QUESTIONS.items()}
    return {name: _NUMBER.sub(r"\1N", text.replace(subject, "IT")) for name, text in found.items()}


_NUMBER: Final = re.compile(r"(letter |'replay': )\d+")
_QUESTIONS: Final = {
    "task": "select status, reason, detail, stage, attempt, charged, cancel_owed, due_at is null, told_at is null,"
    " deadline_at > now() + interval '30 minutes', provider_job_id = 'job-7', actor from tasks"
    " where cast(id as text) = :it",
    "moves": "select from_status, to_status, actor, attempt, reason from task_moves"
    " where cast(task_id as text) = :it order by version",
    "attempts": "select attempt, outcome, detail, ended_at is null from attempts"
    " where cast(task_id as text) = :it order by attempt",
    "letters": "select state, closed_by, stage, reason from dead_letters where cast(task_id as text) = :it order by id",
    "replays": "select by_whom, state, result from replays where cast(task_id as text) = :it order by id",
    "backend": "select paused_until = 'infinity', pause_reason, health,"
    " round(extract(epoch from nullif(paused_until, 'infinity') - now()) / 60) from backends where name = :it",
    "actions": "select by_whom, action, detail from operator_actions where subject = :it or subject in"
    " (select cast(id as text) from dead_letters where cast(task_id as text) = :it) order by id",
}
