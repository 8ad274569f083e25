"""What one stack remembers between commands: ports, password, folders and the processes it started."""

import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deploy.local.ports import free_port
from deploy.local.problem import StackProblem
from deploy.local.process import Process

PORTS = ("amqp", "distribution", "epmd", "prometheus", "postgres")


@dataclass
class State:
    """One JSON file, readable by its owner only, since it holds the database's password."""

    file: Path
    folder: str = ""  # where the file was written: a copy of it elsewhere speaks of somebody else's servers
    name: str = field(default_factory=lambda: f"darkroom-{secrets.token_hex(4)}")
    password: str = field(default_factory=lambda: secrets.token_hex(16))
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    database_folder: str = ""

    def load(self) -> None:
        """Take what the file says, since another command may have changed it. Without a file, stay as it is."""
        try:
            content = json.loads(self.file.read_text())
            if content["folder"] != str(self.file.parent):
                return
            content["processes"] = {name: Process(**process) for name, process in content["processes"].items()}
            self.__dict__.update(vars(State(file=self.file, **content)))
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            sentence = f"{self.file} cannot be read ({error}): stop the processes it names, then delete it."
            raise StackProblem(sentence) from error

    def save(self) -> None:
        self.folder = str(self.file.parent)
        content = asdict(self)
        del content["file"]
        draft = self.file.with_suffix(".new")
        draft.touch(0o600)
        draft.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(draft, self.file)

    def process(self, name: str) -> Process | None:
        """The process if it is alive and really the one we started."""
        process = self.processes.get(name)
        return process if process and process.is_alive else None

    def record(self, name: str, process: Process) -> None:
        self.processes[name] = process
        self.save()

    def forget(self, name: str) -> None:
        if self.processes.pop(name, None):
            self.save()

    def port(self, name: str) -> int:
        """Raises StackProblem when the stack has never been up, or was wiped."""
        try:
            return self.ports[name]
        except KeyError:
            raise StackProblem(f"nothing was ever started in {self.file.parent}: `make up` does it.") from None

    def choose_port(self, name: str) -> None:
        """Give the server called `name` another port."""
        self.ports[name] = free_port(besides=self.ports.values())
        self.save()
