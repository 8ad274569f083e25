"""The socket and the process of a simulator: what a client hears, and how it starts and ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import requests
import websocket

from tests.conformance.simulated import Simulated, forty_resizes, simulated, solid
from tests.waiting import eventually

# The socket


def test_a_socket_without_client_id_is_given_one(either: Simulated) -> None:
    with closing(websocket.create_connection(f"{either.url.replace('http', 'ws')}/ws", timeout=5)) as opened:
        assert len(json.loads(opened.recv())["data"]["sid"]) == 32


def test_a_second_socket_of_the_same_client_falls_silent_when_the_first_closes(either: Simulated) -> None:
    address = f"{either.url.replace('http', 'ws')}/ws?clientId=me"
    first = websocket.create_connection(address, timeout=5)
    with closing(websocket.create_connection(address, timeout=0.3)) as second:
        one = either.submit(solid(1))
        either.finished(one)
        first.close()
        other = either.submit(solid(2))
        either.finished(other)
        heard = "".join(everything_sent_to(second))
    assert one in heard
    assert other not in heard


def everything_sent_to(opened: websocket.WebSocket) -> Iterator[str]:
    """Its messages until it has been silent for its timeout."""
    while True:
        try:
            yield str(opened.recv())
        except websocket.WebSocketTimeoutException:
            return


def test_a_late_socket_hears_which_node_is_executing(either: Simulated) -> None:
    either.busy(client_id="me")
    address = f"{either.url.replace('http', 'ws')}/ws?clientId=me"
    with closing(websocket.create_connection(address, timeout=5)) as opened:
        assert json.loads(opened.recv())["type"] == "status"
        assert json.loads(opened.recv()) == {"type": "executing", "data": {"node": "3"}}


# The process


def test_two_servers_may_share_a_folder(tmp_path: Path) -> None:
    with (
        simulated("--directory", str(tmp_path)) as one,
        simulated("--directory", str(tmp_path), "--generation", "legacy") as other,
    ):
        one.run(solid(1))
        assert other.run(solid(2))["outputs"]["3"]["images"][0]["filename"] == "result_00002_.png"
        assert one.output_files() == other.output_files()


def test_connections_are_refused_during_start_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    command = [sys.executable, "-m", "services.simulator", "--port", str(port), "--startup-seconds", "0.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            eventually(lambda: is_bound(port), within=5, every=0.01)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            assert process.stdout.readline() == f"listening on http://127.0.0.1:{port}\n"
            assert requests.get(f"http://127.0.0.1:{port}/prompt", timeout=5).status_code == 200
        finally:
            process.terminate()
            assert process.wait(timeout=5) == 0


def test_it_can_be_ended_during_start_up() -> None:
    command = [sys.executable, "-m", "services.simulator", "--port", "0", "--startup-seconds", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        eventually(lambda: handles_sigterm(process.pid), within=5, every=0.01)
        process.terminate()
        assert process.wait(timeout=5) == 0
        assert process.stdout.read() == ""


def handles_sigterm(pid: int) -> bool:
    (caught,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def is_bound(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def test_its_own_folder_is_removed_at_the_end() -> None:
    with simulated() as server:
        directory = server.directory
        server.run(solid())
        server.submit(forty_resizes(1024))
        assert directory.exists()
    assert not os.path.exists(directory)


def test_the_simulator_imports_nothing_of_shared() -> None:
    code = "import sys, services.simulator.server; print([m for m in sys.modules if m.split('.')[0] == 'shared'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
