"""Processes that outlive the command which started them, named so that a reused pid is never mistaken for one."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, Signals

_PROC = Path("/proc/self/stat").exists()

#: Children of this very process. They must be waited for once they end, or they stay behind as zombies.
_children: set[int] = set()


@dataclass(frozen=True)
class User:
    """Whom a process runs as, when we are root and it must not be."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Process:
    """A pid and the moment it was born: the pair never comes back, not even after a reboot."""

    pid: int
    born: str

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """The process that has this pid now."""
        born = _born(pid)
        return None if born is None else cls(pid, born)

    @property
    def is_alive(self) -> bool:
        return _born(self.pid) == self.born

    @property
    def pid_was_reused(self) -> bool:
        return _born(self.pid) not in {None, self.born}

    def signal(self, number: Signals) -> None:
        if self.is_alive:
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> bool:
        """True as soon as the process is gone."""
        end = time.monotonic() + seconds
        while self.is_alive:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def stop(self, *steps: tuple[Signals, float]) -> None:
        """Send each signal in turn until the process is gone within that step's seconds; SIGKILL comes last."""
        for number, seconds in (*steps, (SIGKILL, 10.0)):
            self.signal(number)
            if self.wait(seconds):
                return


def launch(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    folder: Path,
    output: Path,
    user: User | None = None,
) -> Process:
    """Start a process in a session of its own, so that Ctrl-C at the terminal does not reach it."""
    with output.open("ab") as log:
        child = subprocess.Popen(
            [str(part) for part in command],
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[] if user else None,
        )
    child.returncode = 0  # `_born` waits for it, if anybody does: it may outlive us, and Popen would complain of that
    _children.add(child.pid)
    return Process(child.pid, _born(child.pid) or "gone at once")


def run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    folder: Path | None = None,
    user: User | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Wait for a short command and hand over its exit status, stdout and stderr."""
    return subprocess.run(
        [str(part) for part in command],
        env=dict(environment),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        user=user.uid if user else None,
        group=user.gid if user else None,
        extra_groups=[] if user else None,
    )


def _born(pid: int) -> str | None:
    """None: no such process, or only its zombie."""
    if pid in _children and _has_ended(pid):
        _children.discard(pid)
        return None
    return _born_by_proc(pid) if _PROC else _born_by_ps(pid)


def _has_ended(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG) != (0, 0)
    except ChildProcessError:  # another thread saw it end
        return True


def _born_by_proc(pid: int) -> str | None:
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = line.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    state, start_ticks = fields[0], fields[19]
    return None if state in "ZX" else f"{boot}/{start_ticks}"


def _born_by_ps(pid: int) -> str | None:
    answer = subprocess.run(["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, start = answer.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else start.strip()
