"""`darkroom user`: who may use the console, and as what."""

import sys
from typing import Annotated

import typer

from services.ops.opened import opened
from shared.database.users import NAME, Role, Users
from shared.domain.password import MAX_PASSWORD_CHARACTERS, MIN_PASSWORD_CHARACTERS, hash_password
from shared.terminal import AsJson, ByWhom, fail, plain, print_json, settings, table, tell

user_app = typer.Typer(no_args_is_help=True, help="People who may use the web console.")

Name = Annotated[str, typer.Argument(help="The name the person signs in with.")]
AsRole = Annotated[
    Role, typer.Option("--role", help="viewer looks, operator acts, editor also changes what an order asks for.")
]


@user_app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Show everybody who may sign in."""
    with opened(settings()) as engine:
        found = Users(engine).all()
    if as_json:
        for user in found:
            print_json(plain(user))
        return
    if not found:
        tell("there are no users yet; `darkroom user add NAME --role editor` makes the first")
        return
    rows = [(user.name, user.role, user.created_at, user.password_at, user.sessions) for user in found]
    typer.echo(table(("name", "role", "added", "password set", "signed in"), rows))


@user_app.command()
def add(name: Name, role: AsRole, by: ByWhom, as_json: AsJson = False) -> None:
    """Let a person sign in. The password is asked for, or read from standard input."""
    if not NAME.fullmatch(name):
        raise fail(
            "a name is 1 to 64 letters, digits, dots, dashes, underscores and @, and begins with a letter or digit"
        )
    password_hash = hash_password(_password(name))
    with opened(settings()) as engine:
        if not Users(engine).add(name, role, password_hash, by):
            raise fail(f"there is a user {name!r} already", 1)
    if as_json:
        print_json({"user": name, "role": role, "by": by})
    else:
        typer.echo(f"{name} may sign in as {role}")


@user_app.command()
def remove(name: Name, by: ByWhom, as_json: AsJson = False) -> None:
    """Let a person sign in no more, and sign them out everywhere. What they did stays in the audit."""
    with opened(settings()) as engine:
        if not Users(engine).remove(name, by):
            raise _unknown(name)
    if as_json:
        print_json({"user": name, "removed": True, "by": by})
    else:
        typer.echo(f"{name} is removed, and signed out")


@user_app.command()
def password(name: Name, by: ByWhom, as_json: AsJson = False) -> None:
    """Give a person a new password, and sign them out everywhere."""
    password_hash = hash_password(_password(name))
    with opened(settings()) as engine:
        if not Users(engine).set_password(name, password_hash, by):
            raise _unknown(name)
    if as_json:
        print_json({"user": name, "password": "changed", "by": by})
    else:
        typer.echo(f"{name} has a new password, and is signed out")


@user_app.command()
def role(name: Name, role: Annotated[Role, typer.Argument()], by: ByWhom, as_json: AsJson = False) -> None:
    """Let a person do more, or less, from now on."""
    with opened(settings()) as engine:
        if not Users(engine).set_role(name, role, by):
            raise _unknown(name)
    if as_json:
        print_json({"user": name, "role": role, "by": by})
    else:
        typer.echo(f"{name} is {role} from now on")


def _password(name: str) -> str:
    """Asked for twice on a terminal; the first line of standard input otherwise."""
    if sys.stdin.isatty():
        given = str(typer.prompt(f"Password of {name}", hide_input=True, confirmation_prompt=True, err=True))
    else:
        given = sys.stdin.readline().rstrip("\r\n")
    if not MIN_PASSWORD_CHARACTERS <= len(given) <= MAX_PASSWORD_CHARACTERS:
        raise fail(f"a password has {MIN_PASSWORD_CHARACTERS} to {MAX_PASSWORD_CHARACTERS} characters")
    return given


def _unknown(name: str) -> typer.Exit:
    return fail(f"there is no user {name!r}; `darkroom user list` shows who there is", 1)
