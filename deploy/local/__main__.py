"""The command line: `python -m deploy.local install | up | status | env | down`, see the package's first lines."""

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.local.install import alertmanager, chromium, prometheus, ready
from deploy.local.problem import StackProblem
from deploy.local.stack import ROOT, Server, Stack


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 with a sentence on stderr, or 3 from `status` when something is down."""
    arguments = _arguments(argv)
    try:
        return _run(arguments, Stack(arguments.dir, say=_say))
    except StackProblem as problem:
        print(problem, file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"{error.filename or arguments.dir} belongs to another user: run this as that user.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace, stack: Stack) -> int:
    match arguments.command:
        case "install":
            ready(_say)
            if arguments.with_prometheus:
                prometheus(_say)
                alertmanager(_say)
            if arguments.with_chromium:
                chromium(_say)
        case "up":
            stack.up()
            _print_table(stack.status())
        case "down":
            stack.down(wipe=arguments.wipe)
        case "env":
            return _print_environment(stack)
        case _:
            return _print_status(stack, as_json=arguments.json)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description="A private RabbitMQ and PostgreSQL.")
    parser.add_argument(
        "--dir", type=Path, default=ROOT / ".local", help="where everything is kept (default: %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    install = commands.add_parser("install", help="find both servers on this machine, or install them; start nothing")
    install.add_argument(
        "--with-prometheus", action="store_true", help="and Prometheus and Alertmanager, which the tests need"
    )
    install.add_argument("--with-chromium", action="store_true", help="and Chromium, which the tests need")
    commands.add_parser("up", help="find or install both servers and start them")
    down = commands.add_parser("down", help="stop them; the data stays")
    down.add_argument("--wipe", action="store_true", help="drop the data as well")
    status = commands.add_parser("status", help="what runs and where; exit status 3 unless both are up")
    status.add_argument("--json", action="store_true")
    commands.add_parser("env", help="the settings that lead to this stack, as lines for a shell")
    return parser.parse_args(argv)


def _print_environment(stack: Stack) -> int:
    if not all(server.pid for server in stack.status()):
        print("the local stack is not running: `make up` starts it", file=sys.stderr)
        return 3
    for name, value in stack.environment().items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def _print_status(stack: Stack, as_json: bool) -> int:
    servers = stack.status()
    if as_json:
        print(json.dumps([dataclasses.asdict(server) for server in servers], indent=2))
    else:
        _print_table(servers)
    return 0 if all(server.pid for server in servers) else 3


def _print_table(servers: list[Server]) -> None:
    for server in servers:
        print(f"{server.name:<12}{'up' if server.pid else 'down':<6}{server.pid or '-':<9}{server.url}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
