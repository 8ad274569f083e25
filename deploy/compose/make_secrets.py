"""Fills the volumes of secrets at the first start; what is there already stays. Standard library only.

A volume of secrets lives and dies with the volumes of data that were made with it: no password outlives its database,
and none is lost before it. Each server mounts its own volume alone; the services mount those of both servers they use.

The files can be read by everybody inside a container, since each server runs as another user. On the host they lie
under Docker's own folder, which is root's.
"""

import secrets
import sys
from pathlib import Path

_FOLDERS = ("broker", "database", "grafana", "http")


def make(folder: Path) -> list[str]:
    """The names of the volumes that were empty, or had not all their files, and have them now."""
    made = []
    for name in _FOLDERS:
        files = _files(name, secrets.token_hex(24))
        if all((folder / name / file).exists() for file in files):
            continue
        # No server has started before all are there, so what a run left that was killed in between is made anew.
        for file, text in files.items():
            draft = folder / name / f".{file}"
            draft.write_text(text)
            draft.chmod(0o444)
            draft.rename(folder / name / file)
        made.append(name)
    return made


def _files(name: str, password: str) -> dict[str, str]:
    match name:
        case "broker":
            return {
                "amqp_url": f"amqp://darkroom:{password}@rabbitmq:5672/%2F\n",
                "rabbitmq.conf": f"default_user = darkroom\ndefault_pass = {password}\n",
            }
        case "database":
            return {
                "url": f"postgresql://darkroom:{password}@postgres:5432/darkroom\n",
                "password": f"{password}\n",
            }
        case "http":
            return {"tokens": f"{password}\n"}
        case _:
            return {"admin_password": f"{password}\n"}


if __name__ == "__main__":
    print("secrets:", ", ".join(make(Path(sys.argv[1]))) or "all there")
