"""The `darkroom` command: gathers each service's commands. The one place that may import several services."""

import importlib
import logging
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer
from typer.core import TyperGroup

from shared.config import SettingsError
from shared.domain.errors import DarkroomError, DatabaseAway
from shared.observe.logs import redacted
from shared.observe.metrics import our_version
from shared.terminal import settings, tell

#: Where each command is; a module is imported when its command is called, so none waits for the imports of another.
COMMANDS: Final = {
    "submit": "services.producer.commands:submit",
    "order": "services.ops.order_commands:order_app",
    "dead": "services.ops.commands:dead_app",
    "audit": "services.ops.audit_command:audit",
    "drill": "services.ops.drill:drill",
    "backend": "services.ops.backend_commands:backend_app",
    "user": "services.ops.user_commands:user_app",
    "workflow": "services.ops.setup_commands:workflow_app",
    "provider": "services.ops.provider_commands:provider_app",
    "doctor": "services.ops.doctor:doctor",
    "purge": "services.ops.purge_command:purge",
    "migrate": "services.ops.setup_commands:migrate",
}
#: PostgreSQL says so when a table or column is not there.
_NOT_MIGRATED: Final = frozenset({"42P01", "42703"})


class Gathered(TyperGroup):
    """The commands of all services, each imported when it is asked for."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        names: dict[str, Any] = dict.fromkeys(COMMANDS)
        self.commands = names  # a misspelt command is compared with these

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - typer's
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        found = getattr(importlib.import_module(module), name)
        if isinstance(found, typer.Typer):
            return typer.main.get_group(found)
        alone = typer.Typer(add_completion=False)
        alone.command(cmd_name)(found)
        return typer.main.get_command(alone)


app = typer.Typer(
    cls=Gathered,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Image orders in, finished pictures out. The settings come from DARKROOM_ variables and .local/env.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(our_version())
        raise typer.Exit


@app.callback()
def darkroom(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """The options that stand before a command."""


def main() -> None:
    """Run the command of this process's arguments. What goes wrong is a sentence and an exit status, no traceback."""
    logging.getLogger().addHandler(logging.NullHandler())  # what a person should read is said by the commands
    try:
        app()
    except SettingsError as error:
        tell(str(error))
    except DatabaseAway as error:
        tell(f"cannot reach PostgreSQL at {_database_address()} ({_first_line(error)}); `make up` starts one")
    except DarkroomError as error:
        tell(redacted(str(error)))
    except Exception as error:  # noqa: BLE001 - no traceback reaches a user
        if getattr(getattr(error, "orig", None), "pgcode", None) in _NOT_MIGRATED:
            tell(f"the database at {_database_address()} has not the schema this command needs: run `darkroom migrate`")
        else:
            tell(f"this is a mistake in darkroom: {type(error).__name__}: {_first_line(error)}{_place(error)}")
    else:
        return
    sys.exit(2)


def _place(error: Exception) -> str:
    """Where it happened, for whoever reports it."""
    frames = traceback.extract_tb(error.__traceback__)
    here = Path(__file__).parent
    folders = (here, here.parent / "shared")
    ours = [frame for frame in frames if any(Path(frame.filename).is_relative_to(folder) for folder in folders)]
    return f" ({Path(ours[-1].filename).name}, line {ours[-1].lineno})" if ours else ""


def _first_line(error: Exception) -> str:
    lines = redacted(str(error)).strip().splitlines()
    return lines[0] if lines else "no details"


def _database_address() -> str:
    """Host and port, without user and password."""
    try:
        parts = urlsplit(settings().database_url.get_secret_value())
        return f"{parts.hostname or 'localhost'}:{parts.port or 5432}"
    except (SettingsError, ValueError):
        return "the address in DARKROOM_DATABASE_URL"


if __name__ == "__main__":
    main()
