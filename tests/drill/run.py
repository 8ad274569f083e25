"""Runs drills on one private stack, in several systems side by side."""

import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.drill.lane import Lane, Report
from tests.drill.matrix import Drill
from tests.e2e.worker import end_all
from tests.servers import temporary_stack

#: Systems at work at the same time: while one waits for a lease to end, the other one has the processor.
LANES = 2


def run(drills: Sequence[Drill], told: Callable[[Report], object], lanes: int = LANES) -> tuple[list[Report], Path]:
    """A report of each, in their order, and the folder with the logs of what went wrong.

    told -- of each as it ends, from several threads

    A KeyboardInterrupt ends all servers at once, and whatever is being drilled with them.
    """
    folder = Path(tempfile.mkdtemp(prefix="darkroom-drill-"))
    waiting: queue.SimpleQueue[Drill] = queue.SimpleQueue()
    for drill in drills:
        waiting.put(drill)
    reports: dict[Drill, Report] = {}
    failures: list[BaseException] = []

    def work() -> None:
        lane = Lane(stack, folder)
        try:
            while not failures:
                drill = waiting.get_nowait()
                reports[drill] = lane.run(drill)
                if not failures:
                    told(reports[drill])
        except queue.Empty:
            return
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            failures.append(error)
        finally:
            lane.close()

    with temporary_stack() as stack:
        names = [f"lane-{n}" for n in range(min(lanes, len(drills)))]
        threads = [threading.Thread(target=work, name=name, daemon=True) for name in names]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt as interrupt:  # nobody waits for the lanes: what they wait for may never come now
            failures.append(interrupt)
            end_all()
            shutil.rmtree(folder, ignore_errors=True)
            raise
    if failures:
        raise failures[0]
    if all(report.is_kept for report in reports.values()):
        shutil.rmtree(folder, ignore_errors=True)
    return [reports[drill] for drill in drills], folder
