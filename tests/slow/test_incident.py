"""`make incident`: the alert fires and resolves, and no order is lost."""

import re
import subprocess
import sys

from tests.e2e.worker import ROOT


def test_a_server_that_dies_is_told_of_and_taken_back_and_loses_no_order() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "deploy.incident"], cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    seen = re.findall(r"^(\d+):(\d\d)  (\w+) +(.+)$", run.stdout, re.MULTILINE)
    steps = [
        next(place for place, (_, _, who, what) in enumerate(seen) if who == expected and said in what)
        for expected, said in (
            ("we", "kill gpu-2"),
            ("Prometheus", "BackendDown gpu-2 is firing"),
            ("Alertmanager", "firing BackendDown"),
            ("we", "start gpu-2 again"),
            ("Alertmanager", "resolved BackendDown"),
        )
    ]
    assert steps == sorted(steps), run.stdout
    minutes, seconds = map(int, seen[-1][:2])
    assert minutes * 60 + seconds < 300
