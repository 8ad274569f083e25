"""Where the servers and the programs of tests are on this machine, and apt-get when they are not and we are root."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.local.problem import StackProblem

#: Folders that packages use, beside PATH. In /usr/sbin Debian and Red Hat put a wrapper that changes to the user
#: `rabbitmq` and forgets the environment; the scripts below take the environment as it is.
_RABBITMQ_FOLDERS = (
    "/usr/lib/rabbitmq/bin",
    "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "/opt/rabbitmq/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
    "/home/linuxbrew/.linuxbrew/opt/rabbitmq/sbin",
)
_WRAPPER_FOLDERS = frozenset(map(Path, ("/usr/sbin", "/usr/bin", "/sbin", "/bin")))
_EPMD_FOLDERS = (
    "/usr/bin",
    "/usr/lib/erlang/erts-*/bin",
    "/usr/lib64/erlang/erts-*/bin",
    "/usr/local/lib/erlang/erts-*/bin",
    "/opt/homebrew/lib/erlang/erts-*/bin",
)
_POSTGRES_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
    "/usr/local/pgsql/bin",
)

_POLICY = Path("/usr/sbin/policy-rc.d")
_OUR_POLICY = "#!/bin/sh\n# Placed by darkroom's deploy.local while packages install: start no service.\nexit 101\n"


@dataclass(frozen=True)
class Tools:
    """Everything the stack runs."""

    rabbitmq: Path  # folder with rabbitmq-server and rabbitmqctl
    epmd: Path
    postgres: Path  # folder with initdb, postgres and psql


def ready(
    say: Callable[[str], None],
    *,
    find: Callable[[], "Tools | list[str]"] | None = None,
    install: Callable[[Sequence[str]], None] | None = None,
) -> Tools:
    """Both servers' programs, installed first when that is possible.

    Raises StackProblem with one sentence on what to install. `find` and `install` are there for tests.
    """
    find = find or find_tools
    found = find()
    if isinstance(found, Tools):
        return found
    if install is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise StackProblem(_what_to_install(found))
        install = install_packages
    say(f"installing {' and '.join(found)} with apt-get, about a minute")
    install(found)
    found = find()
    if isinstance(found, Tools):
        return found
    raise StackProblem(f"{' and '.join(found)} was installed, but its programs are not in any folder we know")


def prometheus(say: Callable[[str], None]) -> Path:
    """Prometheus' program, beside which is promtool; installed first when that is possible. Raises StackProblem."""
    return _program("prometheus", "prometheus", say)


def alertmanager(say: Callable[[str], None]) -> Path:
    """Alertmanager's program, beside which is amtool; installed first when that is possible. Raises StackProblem."""
    names = ("prometheus-alertmanager", "alertmanager")  # Debian's name and everybody else's
    found = next((path for path in map(shutil.which, names) if path), None)
    return Path(found) if found else _program(names[0], "prometheus-alertmanager", say)


def chromium(say: Callable[[str], None]) -> Path:
    """Chromium, which the tests of the console drive; installed first when that is possible. Raises StackProblem."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for path in map(shutil.which, names) if path), None)
    return Path(found) if found else _program("chromium", "chromium", say, "fonts-dejavu-core")


def _program(name: str, package: str, say: Callable[[str], None], *beside: str) -> Path:
    """Find the program, or install its package and those `beside` it."""
    found = shutil.which(name)
    if found is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise StackProblem(_what_to_install([package]))
        say(f"installing {package} with apt-get, about a minute")
        install_packages([package, *beside])
        found = shutil.which(name, path="/usr/bin")
        if found is None:
            raise StackProblem(f"{package} was installed, but {name} is not in /usr/bin")
    return Path(found)


def find_tools(path: str | None = None, known: bool = True) -> Tools | list[str]:
    """The programs, or the names of the packages that would bring the missing ones.

    path   searched like PATH, which is the default
    known  look into the folders packages use, too
    """
    search = [
        Path(entry) for entry in (os.environ.get("PATH", "") if path is None else path).split(os.pathsep) if entry
    ]
    rabbitmq_folders = [
        *_expand(_RABBITMQ_FOLDERS, known),
        *(entry for entry in search if entry not in _WRAPPER_FOLDERS),
    ]
    rabbitmq = _first(rabbitmq_folders, "rabbitmq-server", "rabbitmqctl")
    epmd = _first([*search, *_expand(_EPMD_FOLDERS, known)], "epmd")
    postgres = _first([*_expand(_POSTGRES_FOLDERS, known), *_pg_config(search), *search], "initdb", "postgres", "psql")
    if rabbitmq and epmd and postgres:
        return Tools(rabbitmq, epmd / "epmd", postgres)
    return [
        *(["rabbitmq-server"] if not (rabbitmq and epmd) else []),
        *(["postgresql"] if not postgres else []),
    ]


def _expand(patterns: Iterable[str], known: bool) -> list[Path]:
    """The folders that exist, those of the newest version first."""
    if not known:
        return []
    folders = [folder for pattern in patterns for folder in Path("/").glob(pattern.lstrip("/"))]
    return sorted(folders, key=lambda folder: [int(number) for number in re.findall(r"\d+", str(folder))], reverse=True)


def _first(folders: Iterable[Path], *programs: str) -> Path | None:
    """The first folder that holds all of the programs."""
    return next((f for f in folders if all(os.access(f / program, os.X_OK) for program in programs)), None)


def _pg_config(search: Iterable[Path]) -> Iterator[Path]:
    folder = _first(search, "pg_config")
    if folder:
        answer = subprocess.run([folder / "pg_config", "--bindir"], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            yield Path(answer.stdout.strip())


def _what_to_install(packages: Sequence[str]) -> str:
    if shutil.which("apt-get"):
        how = f"run `apt-get install --no-install-recommends {' '.join(packages)}` as root"
    elif shutil.which("brew"):
        formulas = {"rabbitmq-server": "rabbitmq", "postgresql": "postgresql@17"}
        how = f"run `brew install {' '.join(formulas.get(package, package) for package in packages)}`"
    else:
        how = "install it with your system's package manager, or add the folder of its programs to PATH"
    names = {
        "rabbitmq-server": "RabbitMQ (with Erlang)",
        "postgresql": "the PostgreSQL server",
        "prometheus": "Prometheus",
        "prometheus-alertmanager": "Alertmanager",
        "chromium": "Chromium",
    }
    return f"{' and '.join(names[package] for package in packages)} not found on this machine: {how}, then try again."


def install_packages(packages: Sequence[str]) -> None:
    """apt-get installs the packages and starts none of their services. Raises StackProblem with apt's complaint."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1", "LC_ALL": "C"}
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    with tempfile.TemporaryFile("w+") as output, no_services():
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            answer = subprocess.run(
                [*apt, *command], env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
            )
        if answer.returncode:  # of the install: an update may fail for one source and still do
            output.seek(0)
            complaints = [line.strip() for line in output if line.startswith("E:")] or ["it gave no reason"]
            raise StackProblem(f"apt-get could not install {' and '.join(packages)}: {complaints[-1]}")


@contextmanager
def no_services(policy: Path = _POLICY) -> Iterator[None]:
    """While this lasts, packages start no services. A policy somebody else has set is left as it is.

    One of ours that a killed run left behind is taken over and removed.
    """
    if policy.exists() and policy.read_text() != _OUR_POLICY:
        yield
        return
    policy.write_text(_OUR_POLICY)
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)
