"""Programs that only tests need: found on this machine, or installed with apt-get when root."""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.local import StackProblem
from deploy.local.install import install_packages

_PACKAGES = {"node": "nodejs", "npm": "npm", "curl": "curl", "faketime": "faketime"}


def programs(
    *names: str,
    find: Callable[[str], str | None] = shutil.which,
    install: Callable[[Sequence[str]], None] | None = None,
) -> list[str]:
    """The paths of these programs. `find` and `install` are there for tests.

    Raises StackProblem with one sentence on what to install.
    """
    missing = [name for name in names if find(name) is None]
    if missing:
        packages = [_PACKAGES[name] for name in missing]
        if install is None:
            if os.geteuid() != 0 or find("apt-get") is None:
                raise StackProblem(
                    f"{' and '.join(missing)} not found on PATH: install {' and '.join(packages)} with your system's"
                    " package manager, then run the tests again."
                )
            install = install_packages
        install(packages)
    found = {name: find(name) for name in names}
    if absent := [name for name, path in found.items() if path is None]:
        raise StackProblem(f"{' and '.join(absent)} was installed and is not on PATH")
    return [path for path in found.values() if path is not None]


def npm_install(folder: Path, *packages: str) -> None:
    """The packages, named with their exact version, are in folder/node_modules; none: those of its package.json.

    Raises StackProblem with npm's complaint.
    """
    _, npm = programs("node", "npm")
    options = ["--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "--save-exact"]
    answer = subprocess.run(
        [npm, "install", "--loglevel=error", *options, *packages],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    if answer.returncode:
        raise StackProblem(f"npm could not install {' '.join(packages) or 'the packages'}: {answer.stderr.strip()}")
