"""One private RabbitMQ node: its folder, its process, its epmd, and the questions we put to rabbitmqctl."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.local.install import Tools
from deploy.local.ports import LOOPBACK
from deploy.local.problem import StackProblem
from deploy.local.process import Process, launch, run
from deploy.local.state import State

#: Erlang's schedulers spin for a while before they sleep; on two cores that steals time from everything else.
_NO_BUSY_WAITING = "+sbwt none +sbwtdcpu none +sbwtdio none"
_LOOPBACK_DISTRIBUTION = "-kernel inet_dist_use_interface {127,0,0,1}"


class Broker:
    """`start`, `stop` and `kill` act on one node that keeps its ports and its data."""

    def __init__(self, folder: Path, state: State, tools: Callable[[], Tools]) -> None:
        self.folder = folder
        self._state = state
        self._tools = tools

    @property
    def process(self) -> Process | None:
        return self._state.process("broker")

    @property
    def url(self) -> str:
        return self.url_of("/")

    def url_of(self, vhost: str) -> str:
        """The AMQP URL of a virtual host."""
        return f"amqp://guest:guest@{LOOPBACK}:{self._state.port('amqp')}/{vhost.replace('/', '%2F')}"

    def start(self) -> None:
        """Returns when the broker takes connections. Does nothing to one that runs."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start the node without waiting for it."""
        self._start_epmd()
        if self.process:
            return
        for name in ("mnesia", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "enabled_plugins").write_text("[rabbitmq_prometheus].\n")
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {LOOPBACK}:{self._state.port('amqp')}\n"
            f"prometheus.tcp.ip = {LOOPBACK}\n"
            f"prometheus.tcp.port = {self._state.port('prometheus')}\n"
            "disk_free_limit.absolute = 200MB\n"
        )
        server = self._tools().rabbitmq / "rabbitmq-server"
        process = launch([server], environment=self._environment(), folder=self.folder, output=self._output)
        self._state.record("broker", process)

    def wait(self, seconds: float = 120) -> None:
        """Returns when the node answers an AMQP greeting: its listener opens last, when everything else is up."""
        end = time.monotonic() + seconds
        while not self._answers():
            if not self.process:
                raise StackProblem(f"RabbitMQ ended while it was starting; it says why in {self._output}.")
            if time.monotonic() > end:
                raise StackProblem(f"RabbitMQ did not answer within {seconds:g} s; see {self._output}.")
            time.sleep(0.05)

    def stop(self) -> None:
        """Shut the node down cleanly."""
        if self.process:
            self.process.stop((signal.SIGTERM, 60))
        self._state.forget("broker")

    def kill(self) -> None:
        """A crash: the node gets no chance to write anything down."""
        if self.process:
            self.process.stop()

    def stop_epmd(self) -> None:
        """epmd outlives its node and has to be stopped by itself."""
        if epmd := self._state.process("epmd"):
            epmd.stop((signal.SIGTERM, 5))
        self._state.forget("epmd")

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` answers; about a second a call. Raises StackProblem with its complaint."""
        command = [str(self._tools().rabbitmq / "rabbitmqctl"), "--quiet", "--node", self._node, *arguments]
        answer = run(command, environment=self._environment(), folder=self.folder)
        if answer.returncode:
            complaint = (answer.stderr.strip() or answer.stdout.strip()).splitlines()
            raise StackProblem(f"rabbitmqctl {arguments[0]}: {complaint[0] if complaint else answer.returncode}")
        return answer.stdout

    def queues(self, *columns: str, vhost: str = "/") -> list[dict[str, Any]]:
        """`rabbitmqctl list_queues`: name and messages, or the columns asked for."""
        answer = self.ctl("list_queues", "--vhost", vhost, "--formatter", "json", *(columns or ("name", "messages")))
        rows: list[dict[str, Any]] = json.loads(answer)
        return rows

    def add_vhosts(self, names: list[str]) -> None:
        """Make many virtual hosts that guest may use, in one call."""
        definitions = {
            "vhosts": [{"name": name} for name in names],
            "permissions": [
                {"user": "guest", "vhost": name, "configure": ".*", "write": ".*", "read": ".*"} for name in names
            ],
        }
        file = self.folder / f"{names[0]}.json"
        file.write_text(json.dumps(definitions))
        self.ctl("import_definitions", str(file))
        file.unlink()

    @property
    def _node(self) -> str:
        return f"{self._state.name}@localhost"

    @property
    def _output(self) -> Path:
        return self.folder / "output.log"

    def _start_epmd(self) -> None:
        """Erlang's name server. The node would start one by itself, but then we would not know its pid."""
        if self._state.process("epmd"):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        port = self._state.port("epmd")
        command = [str(self._tools().epmd), "-port", str(port), "-address", LOOPBACK]
        process = launch(command, environment=self._environment(), folder=self.folder, output=self._output)
        self._state.record("epmd", process)
        end = time.monotonic() + 10
        while not _accepts(port):
            if not process.is_alive or time.monotonic() > end:
                raise StackProblem(f"Erlang's epmd did not start on port {port}; see {self._output}.")
            time.sleep(0.02)

    def _environment(self) -> dict[str, str]:
        """All a node and its tools may know; nothing of ours or of a system-wide RabbitMQ leaks in."""
        tools = self._tools()
        path = [str(tools.epmd.parent), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        folder = str(self.folder)
        return {
            "PATH": os.pathsep.join([*path, os.environ.get("PATH", "")]),
            "LANG": "C.UTF-8",
            "HOME": folder,  # the cookie that lets rabbitmqctl in
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(self._state.port("amqp")),
            "RABBITMQ_DIST_PORT": str(self._state.port("distribution")),
            "ERL_EPMD_PORT": str(self._state.port("epmd")),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            # Files that do not exist: without these names the ones in /etc/rabbitmq would be read.
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/none-env.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/none-advanced.config",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{_LOOPBACK_DISTRIBUTION} {_NO_BUSY_WAITING}",
            "RABBITMQ_CTL_ERL_ARGS": f"{_LOOPBACK_DISTRIBUTION} {_NO_BUSY_WAITING}",
            # The start script then becomes the Erlang VM: the pid we know is the broker's.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _answers(self) -> bool:
        try:
            with socket.create_connection((LOOPBACK, self._state.port("amqp")), 1) as connection:
                connection.settimeout(5)
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return bool(connection.recv(7))
        except OSError:
            return False


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0
