"""A RabbitMQ cluster of three nodes on loopback, of which any may be killed and started again."""

import functools
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local import Broker
from deploy.local.install import ready
from deploy.local.state import State
from tests.servers import abandoned, owned_directory

_PREFIX = "darkroom-cluster-"
_PORTS = ("amqp", "distribution", "prometheus")


class Node(Broker):
    """One node. What it knows beside a single one: the others' cookie and name server."""

    def __init__(self, folder: Path, cookie: str, first: "Node | None") -> None:
        folder.mkdir(parents=True)
        self.state = State(folder / "state.json")
        for port in _PORTS:
            self.state.choose_port(port)
        if first is None:
            self.state.choose_port("epmd")
        else:
            self.state.ports["epmd"] = first.state.port("epmd")
        super().__init__(folder / "rabbitmq", self.state, functools.cache(lambda: ready(lambda _: None)))
        self.folder.mkdir()
        secret = self.folder / ".erlang.cookie"
        secret.touch(0o600)
        secret.write_text(cookie)
        secret.chmod(0o400)

    @property
    def name(self) -> str:
        return f"{self.state.name}@localhost"

    def join(self, first: "Node") -> None:
        for command in (["stop_app"], ["reset"], ["join_cluster", first.name], ["start_app"]):
            self.ctl(*command)


class Cluster:
    """All three run. `urls` is what DARKROOM_AMQP_URL takes."""

    def __init__(self, folder: Path) -> None:
        cookie = secrets.token_hex(16)
        first = Node(folder / "node-1", cookie, None)
        self.nodes = [first, *(Node(folder / f"node-{n}", cookie, first) for n in (2, 3))]
        first.launch()
        epmd = first.state.process("epmd")
        assert epmd is not None
        for node in self.nodes[1:]:
            node.state.record("epmd", epmd)
            node.launch()
        for node in self.nodes:
            node.wait()
            node.ctl("await_startup")
        for node in self.nodes[1:]:
            node.join(first)

    @property
    def urls(self) -> str:
        return ",".join(node.url for node in self.nodes)

    def leader_of(self, queue: str) -> Node:
        """The node that leads this quorum queue now."""
        alive = next(node for node in self.nodes if node.process)
        answer = alive.ctl("list_queues", "--formatter", "json", "name", "leader")
        [leader] = [row["leader"] for row in json.loads(answer) if row["name"] == queue]
        return next(node for node in self.nodes if node.name == leader)


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    for left in abandoned(_PREFIX):
        _drop(left)
    directory = owned_directory(_PREFIX)
    try:
        yield Cluster(directory)
    finally:
        _drop(directory)


def _drop(directory: Path) -> None:
    """Whatever was started in there is gone, as its state files name it."""
    for file in directory.glob("node-*/state.json"):
        state = State(file)
        state.load()
        for name in ("broker", "epmd"):
            if process := state.process(name):
                process.stop()
    shutil.rmtree(directory, ignore_errors=True)
