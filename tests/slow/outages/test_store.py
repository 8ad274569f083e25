"""The store of the pictures is full, or takes no writes."""

import errno
import io
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Build
from tests.e2e.outage import SETTINGS, assert_all_made_once, await_unready, nobody_dies, under_way
from tests.e2e.system import System
from tests.waiting import eventually


class Disk:
    """The folder of the pictures. As root on a machine that lets us mount: a small file system of its own.

    Elsewhere one whose folder a file takes the place of: nothing can be written either, whoever tries.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
        self.is_small = subprocess.run(mount, capture_output=True, check=False).returncode == 0

    def fill(self) -> None:
        """To the last byte."""
        if not self.is_small:
            self.refuse_writes()
            return
        with (self.folder / "ballast").open("wb", buffering=0) as ballast:
            while write(ballast, 512):
                pass

    def empty(self) -> None:
        if self.is_small:
            (self.folder / "ballast").unlink()
        else:
            self.take_writes()

    def refuse_writes(self) -> None:
        """Files that are open for writing, of which there are none for long, would be in the way of the remount."""
        if self.is_small:
            eventually(lambda: self._remount("ro"), within=20, what="read-only")
        else:
            self.folder.rename(self._aside)
            self.folder.touch()

    def take_writes(self) -> None:
        if self.is_small:
            assert self._remount("rw")
        else:
            self.folder.unlink()
            self._aside.rename(self.folder)

    def close(self) -> None:
        if self.is_small:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    @property
    def _aside(self) -> Path:
        return self.folder.with_name("aside")

    def _remount(self, how: str) -> bool:
        command = ["mount", "-o", f"remount,{how}", str(self.folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def write(file: io.FileIO, count: int) -> bool:
    """False: there is no space left."""
    try:
        return file.write(bytes(count)) == count
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    disk = Disk(tmp_path_factory.mktemp("disk") / "pictures")
    yield disk
    disk.close()


@pytest.fixture(scope="module")
def system(disk: Disk, build: Build) -> Iterator[System]:
    system = build(gpus=2, settings={**SETTINGS, "ARTIFACTS_URL": disk.folder.as_uri()})
    system.start(submitters=2, pollers=2)
    yield system
    system.stop()  # before the disk goes


def outage(system: System, begin: Callable[[], None], end: Callable[[], None]) -> None:
    """Orders wait with their pictures at the servers, which get nothing new; afterwards nothing is made again."""
    orders = under_way(system)
    pollers = system.living("poller")
    with nobody_dies(system):
        begin()
        for gpu in system.gpus:
            gpu.heal()
        await_unready(pollers, "store", within=30)
        assert all(worker.is_ready() for worker in system.workers if worker not in pollers)
        slots = sum(gpu.capacity for gpu in system.gpus)
        eventually(lambda: system.statuses(orders).get("processing", 0) == slots, within=30, what="all slots are taken")
        waiting = system.statuses(orders)
        assert waiting["pending"] >= 1
        assert "failed" not in waiting
        end()
        assert_all_made_once(system, orders)


def test_a_full_disk_delays_orders_and_costs_no_second_picture(system: System, disk: Disk) -> None:
    outage(system, disk.fill, disk.empty)


def test_a_disk_that_takes_no_writes_delays_orders_and_costs_no_second_picture(system: System, disk: Disk) -> None:
    outage(system, disk.refuse_writes, disk.take_writes)


def test_pollers_over_their_quota_delay_orders_and_cost_no_second_picture(system: System) -> None:
    """A limit on the size of files, whoever runs this; it hits the pollers' own logs, too, and they live with it."""
    pollers = system.living("poller")

    def limit(bytes_: int) -> None:
        for poller in pollers:
            resource.prlimit(poller.process.pid, resource.RLIMIT_FSIZE, (bytes_, resource.RLIM_INFINITY))

    outage(system, lambda: limit(1), lambda: limit(resource.RLIM_INFINITY))
