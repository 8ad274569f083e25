"""`darkroom user`: people who may use the console are made, changed and taken away, and each deed is written down."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import app
from services.ops import user_commands
from shared.database.users import Role
from shared.domain.password import hash_password, is_password
from tests.integration.console_lab import CHEAP, PASSWORD, ConsoleLab

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def lab(database_url: str, tmp_path: Path) -> Iterator[ConsoleLab]:
    lab = ConsoleLab(database_url, tmp_path / "pictures")
    yield lab
    lab.close()


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str) -> Run:
    """`darkroom user …`: the exit status and all that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DARKROOM_DATABASE_URL", database_url)
    monkeypatch.setattr(user_commands, "hash_password", lambda given: hash_password(given, CHEAP))

    def run(*words: str, stdin: str = "") -> tuple[int, str]:
        result = CliRunner().invoke(app, ["user", *words], input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return run


def test_a_person_who_was_added_may_sign_in_with_the_password_from_standard_input(lab: ConsoleLab, user: Run) -> None:
    status, out = user("add", "ann", "--role", "editor", "--by", "root", stdin=f"{PASSWORD}\n")

    assert (status, out) == (0, "ann may sign in as editor\n")
    assert lab.browser().sign_in("ann").status_code == 303
    (row,) = lab.sql("select by_whom, action, subject, detail from operator_actions")
    assert tuple(row) == ("root", "user add", "ann", {"role": "editor"})


def test_a_password_that_is_too_short_a_strange_name_and_a_taken_one_add_nobody(lab: ConsoleLab, user: Run) -> None:
    assert user("add", "ann", "--role", "editor", stdin="short\n")[0] == 2
    assert user("add", "ann b", "--role", "editor", stdin=f"{PASSWORD}\n")[0] == 2
    assert user("add", "ann", "--role", "king", stdin=f"{PASSWORD}\n")[0] == 2
    assert lab.users.all() == []

    user("add", "ann", "--role", "viewer", stdin=f"{PASSWORD}\n")
    assert user("add", "ann", "--role", "editor", stdin=f"{PASSWORD}\n")[0] == 1
    assert [(person.name, person.role) for person in lab.users.all()] == [("ann", Role.VIEWER)]


def test_list_shows_who_there_is_and_never_a_hash(lab: ConsoleLab, user: Run) -> None:
    assert "darkroom user add NAME" in user("list")[1]
    lab.as_(Role.OPERATOR, "ann")

    (line,) = user("list", "--json")[1].splitlines()

    found = json.loads(line)
    assert (found["name"], found["role"], found["sessions"]) == ("ann", "operator", 1)
    assert "scrypt" not in line + user("list")[1]


def test_password_role_and_remove_do_what_they_say_and_are_written_down(lab: ConsoleLab, user: Run) -> None:
    lab.as_(Role.VIEWER, "ann")

    assert user("password", "ann", "--by", "root", stdin="another password\n")[0] == 0
    assert user("role", "ann", "operator", "--by", "root")[0] == 0
    assert lab.browser().sign_in("ann", "another password").status_code == 303
    assert [(person.role, person.sessions) for person in lab.users.all()] == [(Role.OPERATOR, 1)]
    assert user("remove", "ann", "--by", "root")[0] == 0

    assert lab.users.all() == []
    assert lab.sql("select * from sessions") == []
    assert lab.actions() == [("root", f"user {what}", "ann") for what in ("password", "role", "remove")]


@pytest.mark.parametrize("words", [("password", "bob"), ("role", "bob", "editor"), ("remove", "bob")])
def test_nobody_of_this_name_is_a_sentence_and_leaves_no_trace(lab: ConsoleLab, user: Run, words: list[str]) -> None:
    status, out = user(*words, stdin=f"{PASSWORD}\n")

    assert status == 1
    assert "there is no user 'bob'" in out
    assert lab.actions() == []


def test_a_hash_fits_its_password_alone_and_no_two_are_alike() -> None:
    first, second = hash_password(PASSWORD, CHEAP), hash_password(PASSWORD, CHEAP)

    assert first != second
    assert is_password(PASSWORD, first)
    assert not is_password(PASSWORD + " ", first)
    assert not is_password("", first)
    assert PASSWORD not in first
