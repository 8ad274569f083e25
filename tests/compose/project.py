"""docker-compose.yml under a project name and on ports of its own, seen from outside."""

import json
import os
import subprocess
import uuid
from collections.abc import Sequence
from typing import Any, Final

import requests

from deploy.local.stack import ROOT
from tests.servers import free_port

_FILES: Final = ("docker-compose.yml", "tests/compose/quick.yml")
_PORTS: Final = (
    "DARKROOM_HTTP_PORT",
    "DARKROOM_CONSOLE_PORT",
    "RABBITMQ_PORT",
    "RABBITMQ_MANAGEMENT_PORT",
    "PROMETHEUS_PORT",
    "GRAFANA_PORT",
)
#: Runs in a container of its own that sees the host's processes: works for whoever may use the engine, root or not.
_KILL: Final = "import os, signal, sys; [os.kill(int(pid), signal.SIGKILL) for pid in sys.argv[1:]]"
_STATS: Final = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8188/_sim/stats?log=0').read().decode())"


def engine_problem() -> str | None:
    """One sentence on what is missing; None when there is an engine with Compose."""
    for command, sentence in (
        (["docker", "version", "--format", "{{.Server.Version}}"], "no Docker engine answers: install or start one"),
        (["docker", "compose", "version"], "the engine has no Compose plugin: install docker-compose-plugin"),
    ):
        try:
            answer = subprocess.run(command, capture_output=True, check=False, timeout=60)
        except FileNotFoundError:
            return "docker is not on PATH: install Docker Engine with its Compose plugin"
        if answer.returncode:
            return sentence
    return None


class Project:
    """The whole system with two simulated servers. Nothing runs before `up`, nothing is left after `wipe`."""

    def __init__(self) -> None:
        self.name = f"darkroom-test-{uuid.uuid4().hex[:8]}"
        self._token: str | None = None
        ports: dict[str, int] = {}
        for variable in _PORTS:
            ports[variable] = free_port(ports.values())
        self.api, self.prometheus, self.grafana = (
            f"http://127.0.0.1:{ports[variable]}"
            for variable in ("DARKROOM_HTTP_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
        )
        kept = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME"} or key.startswith("DOCKER_")}
        self._environment = {
            **kept,
            **{variable: str(port) for variable, port in ports.items()},
            "DARKROOM_BACKENDS_FILE": "./deploy/demo/backends.toml",
        }

    def compose(self, *words: str, within: float = 420) -> str:
        """What it printed. AssertionError with its last lines when it failed."""
        files = [word for file in _FILES for word in ("-f", file)]
        return self._run(
            "docker", "compose", "--ansi", "never", "-p", self.name, *files, "--profile", "demo", *words, within=within
        )

    def up(self, submitters: int = 1, pollers: int = 1) -> None:
        """Every container is healthy."""
        scale = ["--scale", f"submitter={submitters}", "--scale", f"poller={pollers}"]
        self.compose("build", within=600)  # the first time it installs everything
        try:
            self.compose("up", "-d", "--wait", *scale)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def down(self) -> None:
        """No containers any more; the volumes stay."""
        self.compose("down")

    def wipe(self) -> None:
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")

    def containers(self, *services: str) -> list[str]:
        """Their ids, those that ended included."""
        return self.compose("ps", "--all", "--quiet", *services).split()

    def state(self, container: str) -> dict[str, Any]:
        return dict(json.loads(self._run("docker", "inspect", "-f", "{{json .State}}", container)))

    def crash(self, containers: Sequence[str]) -> None:
        """kill -9 of all at once, from outside, which Docker does not take for a wish to stop them."""
        pids = [str(self.state(container)["Pid"]) for container in containers]
        self._run("docker", "run", "--rm", "--pid", "host", "--user", "0", "darkroom", "python", "-c", _KILL, *pids)

    def restarts(self, container: str) -> int:
        return int(self._run("docker", "inspect", "-f", "{{.RestartCount}}", container))

    def executions(self) -> list[dict[str, Any]]:
        """Every prompt the simulated servers accepted since they started."""
        found: list[dict[str, Any]] = []
        for server in ("comfyui-1", "comfyui-2"):
            found += json.loads(self.compose("exec", "-T", server, "python", "-c", _STATS))["executions"]
        return found

    def darkroom(self, *words: str) -> str:
        """What the command says, in the container of ops."""
        return self.compose("exec", "-T", "ops", "darkroom", *words)

    def _authorization(self) -> dict[str, str]:
        if self._token is None:
            self._token = self.compose("exec", "-T", "ops", "cat", "/secrets/http/tokens").strip()
        return {"Authorization": f"Bearer {self._token}"}

    def place(self, order: dict[str, Any]) -> str:
        """The order's address."""
        answer = requests.post(f"{self.api}/v1/orders", json=order, headers=self._authorization(), timeout=10)
        assert answer.status_code in {200, 202}, answer.text
        return self.api + answer.headers["Location"]

    def statuses(self, addresses: Sequence[str]) -> dict[str, int]:
        """How many orders are in each status; `unknown` before there is a row or an answer."""
        found: dict[str, int] = {}
        for address in addresses:
            try:
                answer = requests.get(address, headers=self._authorization(), timeout=10)
            except requests.ConnectionError:  # the producer may be on its way up
                status = "unknown"
            else:
                status = answer.json()["status"] if answer.status_code == 200 else "unknown"
            found[status] = found.get(status, 0) + 1
        return found

    def logs(self) -> str:
        return self.compose("logs", "--no-color", "--tail", "40")

    def _run(self, *command: str, within: float = 60) -> str:
        answer = subprocess.run(
            command,
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=within,
        )
        said = (answer.stderr or answer.stdout)[-3000:]
        assert answer.returncode == 0, f"{' '.join(command)}: {answer.returncode}\n{said}"
        return answer.stdout
