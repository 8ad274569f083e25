"""The private servers themselves: started once, kept, crashed, stopped by pid."""

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pika
import pytest

from deploy.local import Stack, StackProblem, install, ports
from deploy.local.__main__ import main
from deploy.local.process import Process
from deploy.local.stack import ROOT
from tests import servers
from tests.servers import VhostPool, free_port, new_database, sweep
from tests.waiting import eventually

#: Becomes `nobody` after the imports, since `nobody` may not be able to read the Python this runs on.
_AS_NOBODY = """
import encodings.idna, os, pwd, sys
from deploy.local.__main__ import main
nobody = pwd.getpwnam("nobody")
os.setgroups([]); os.setgid(nobody.pw_gid); os.setuid(nobody.pw_uid)
os.environ["HOME"] = sys.argv[2]
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder that every user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="darkroom-stack-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def command(folder: Path, *arguments: str, program: tuple[str, ...] = ("-m", "deploy.local")) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *program, "--dir", str(folder), *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(folder: Path, *arguments: str, program: tuple[str, ...] = ("-m", "deploy.local")) -> tuple[int, str, str]:
    with command(folder, *arguments, program=program) as process:
        out, err = process.communicate(timeout=150)
    return process.returncode, out, err


def pids(stack: Stack) -> list[int | None]:
    return [server.pid for server in stack.status()]


def processes_in(folder: Path) -> list[str]:
    """Every process that works below the folder, children of the servers included."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            inside = (entry / "cwd").readlink().is_relative_to(folder)
        except OSError:
            continue
        if inside:
            found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found


def test_a_second_up_keeps_the_running_servers(private_stack: Stack) -> None:
    before = pids(private_stack)

    private_stack.up()

    assert None not in before
    assert pids(private_stack) == before


def test_no_port_is_a_standard_one_and_all_are_on_the_loopback_address(private_stack: Stack) -> None:
    chosen = json.loads((private_stack.directory / "state.json").read_text())["ports"]

    assert len(set(chosen.values())) == 5
    assert not set(chosen.values()) & ports.STANDARD_PORTS
    assert "127.0.0.1" in private_stack.amqp_url
    assert "127.0.0.1" in private_stack.database_url


def test_prometheus_is_answered(private_stack: Stack) -> None:
    with socket.create_connection(("127.0.0.1", private_stack.prometheus_port), 5) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in connection.recv(100)


def test_a_confirmed_message_survives_a_killed_broker(private_stack: Stack) -> None:
    with pika.BlockingConnection(pika.URLParameters(private_stack.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("kept", durable=True, arguments={"x-queue-type": "quorum"})
        channel.basic_publish("", "kept", b"order", pika.BasicProperties(delivery_mode=2), mandatory=True)
        time.sleep(5)  # a quorum queue declared less than a second before a crash never comes back (3.10 and 4.0)
    url = private_stack.amqp_url

    private_stack.broker.kill()
    assert pids(private_stack)[0] is None
    private_stack.broker.start()

    assert private_stack.amqp_url == url
    eventually(
        lambda: {"name": "kept", "messages": 1} in private_stack.broker.queues(),
        within=30,
        what="the message is back",
    )


@pytest.mark.parametrize("immediate", [False, True])
def test_rows_survive_a_stopped_database(private_stack: Stack, immediate: bool) -> None:
    name = f"rows_{immediate}".lower()
    private_stack.create_database(name)
    private_stack.database.sql("CREATE TABLE kept AS SELECT 42 AS answer", name)

    private_stack.database.stop(immediate=immediate)
    assert pids(private_stack)[2] is None
    private_stack.database.start()

    assert private_stack.database.sql("SELECT answer FROM kept", name).strip() == "42"


def test_down_leaves_no_process_and_up_finds_the_data_trusts_no_old_pid_and_replaces_taken_ports(
    private_stack: Stack,
) -> None:
    """One down and one up for all of it: a start of RabbitMQ takes four seconds of CPU time."""
    private_stack.create_database("kept")
    url = private_stack.database_url
    assert len(processes_in(private_stack.directory)) > 3  # epmd, broker, database and their children

    private_stack.down()
    assert processes_in(private_stack.directory) == []
    assert not (private_stack.directory / "env").exists()

    file = private_stack.directory / "state.json"
    before = json.loads(file.read_text())
    with subprocess.Popen(["sleep", "120"]) as stranger, ExitStack() as intruders:
        for name in ("amqp", "epmd"):
            intruders.enter_context(socket.create_server(("127.0.0.1", before["ports"][name])))
        try:
            born = {"pid": stranger.pid, "born": "before the last reboot"}
            file.write_text(json.dumps(before | {"processes": dict.fromkeys(("broker", "epmd", "database"), born)}))
            assert pids(private_stack) == [None, None, None]
            private_stack.down()
            private_stack.up()

            assert stranger.poll() is None
            assert stranger.pid not in pids(private_stack)
        finally:
            stranger.kill()

    assert None not in pids(private_stack)
    after = json.loads(file.read_text())["ports"]
    assert {name for name, port in after.items() if port != before["ports"][name]} == {"amqp", "epmd"}
    assert private_stack.database_url == url
    assert private_stack.database.exists("kept")


def test_a_copied_folder_does_not_take_the_servers_of_the_original_for_its_own(
    private_stack: Stack, folder: Path
) -> None:
    (folder / "state.json").write_text((private_stack.directory / "state.json").read_text())

    copy = Stack(folder)
    copy.down()

    assert pids(copy) == [None, None]
    assert None not in pids(private_stack)


def test_two_ups_at_the_same_moment_start_one_stack_and_root_is_not_needed(folder: Path) -> None:
    program = ("-m", "deploy.local")
    if os.geteuid() == 0:
        program = ("-c", _AS_NOBODY)
        os.chown(folder, *_ids_of_nobody())
    stack = folder / "a folder with spaces"
    both = [command(stack, "up", program=program), command(stack, "up", program=program)]
    try:
        said = [process.communicate(timeout=150) for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert said[0][0] == said[1][0]  # the same pids and URLs
        assert said[0][0].count(" up ") == 3
        assert all(path.stat().st_uid == folder.stat().st_uid for path in stack.rglob("*"))
        assert stat.S_IMODE((stack / "state.json").stat().st_mode) == 0o600
        assert stat.S_IMODE((stack / "env").stat().st_mode) == 0o600
        _, exports, _ = answer(stack, "env", program=program)
        assert exports.count("export DARKROOM_") == 4
        assert answer(stack, "status", program=program)[0] == 0
    finally:
        status, _, err = answer(stack, "down", "--wipe", program=program)
        assert (status, err) == (0, "")
    assert answer(stack, "status", program=program)[0] == 3
    assert answer(stack, "env", program=program)[0] == 3
    assert processes_in(folder) == []


def _ids_of_nobody() -> tuple[int, int]:
    import pwd

    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def test_missing_servers_are_one_sentence_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = install.find_tools(path="", known=False)
    assert nothing == ["rabbitmq-server", "postgresql"]
    monkeypatch.setattr(install, "find_tools", lambda: nothing)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert main(["--dir", str(tmp_path / "stack"), "up"]) == 1

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "RabbitMQ" in said.err
    assert "PostgreSQL" in said.err
    assert Stack(tmp_path / "stack").status()[0].pid is None


def test_a_stack_that_was_never_up_says_so(tmp_path: Path) -> None:
    with pytest.raises(StackProblem, match="nothing was ever started"):
        _ = Stack(tmp_path).amqp_url


def test_root_installs_only_what_is_missing() -> None:
    asked: list[list[str]] = []
    tools = install.Tools(Path("/rabbitmq"), Path("/epmd"), Path("/postgres"))
    answers: list[install.Tools | list[str]] = [["postgresql"], tools]

    found = install.ready(
        lambda _: None, find=lambda: answers.pop(0), install=lambda packages: asked.append(list(packages))
    )

    assert found is tools
    assert asked == [["postgresql"]]


def test_an_install_that_brings_nothing_is_said_so() -> None:
    with pytest.raises(StackProblem, match="not in any folder we know"):
        install.ready(lambda _: None, find=lambda: ["postgresql"], install=lambda _: None)


@pytest.mark.parametrize("find", [install.prometheus, install.alertmanager, install.chromium])
def test_without_what_the_tests_need_somebody_who_is_not_root_reads_what_to_install(
    find: Callable[[Callable[[str], None]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        StackProblem, match=rf"^{find.__name__.title()} not found on this machine: .*, then try again\.$"
    ):
        find(lambda _: None)


def test_packages_start_no_service_while_they_install(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"

    with install.no_services(policy):
        assert subprocess.run([policy, "postgresql", "start"], check=False).returncode == 101
    assert not policy.exists()


def test_somebody_elses_policy_on_services_is_left_alone(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 0\n")

    with install.no_services(policy):
        assert policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert policy.exists()


def test_a_folder_of_tools_is_found_through_path(tmp_path: Path) -> None:
    for name in ("rabbitmq-server", "rabbitmqctl", "epmd", "initdb", "postgres", "psql"):
        (tmp_path / name).touch(0o755)

    assert install.find_tools(path=f"/nowhere:{tmp_path}", known=False) == install.Tools(
        tmp_path, tmp_path / "epmd", tmp_path
    )


def test_what_a_killed_test_run_left_is_swept_away(private_stack: Stack) -> None:
    """The last test of this stack."""
    ended = subprocess.Popen(["sleep", "0"])
    gone = Process.of(ended.pid)
    ended.wait()
    born = gone.born if gone else "never seen"
    (private_stack.directory / "owner").write_text(json.dumps({"pid": ended.pid, "born": born}))

    sweep()

    assert not private_stack.directory.exists()
    assert processes_in(private_stack.directory) == []


def test_without_room_in_memory_the_servers_of_tests_live_on_the_disk() -> None:
    assert servers._folders(room=1 << 60) == [Path(tempfile.gettempdir())]


def test_each_test_has_a_database_and_a_virtual_host_of_its_own(stack: Stack) -> None:
    assert new_database(stack, migrated=False) != new_database(stack, migrated=False)
    pool = VhostPool(stack.broker)
    names = [pool.take() for _ in range(30)]
    pool.close()

    assert len(set(names)) == 30
    with pika.BlockingConnection(pika.URLParameters(stack.broker.url_of(names[-1]))) as connection:
        connection.channel().queue_declare("mine", durable=True, arguments={"x-queue-type": "quorum"})
    assert stack.broker.queues(vhost=names[-1]) == [{"name": "mine", "messages": 0}]
    assert stack.broker.queues(vhost=names[0]) == []


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert not ports.is_free(port)
    assert ports.is_free(port)


def test_a_process_may_outlive_the_one_that_launched_it_without_a_word(tmp_path: Path) -> None:
    program = (
        "import os, pathlib; from deploy.local.process import launch;"
        f"where = pathlib.Path({str(tmp_path)!r});"
        "print(launch(['sleep', '60'], environment=os.environ, folder=where, output=where / 'log').pid)"
    )
    launcher = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    left = Process.of(int(launcher.stdout))
    assert left is not None
    left.stop()
    assert launcher.stderr == ""
