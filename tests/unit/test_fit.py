"""Numbers that must fit together: which of them are failures, which warnings, and what is said about them."""

from pathlib import Path

import pytest
import yaml

from shared.config import Settings
from shared.domain.fit import (
    CONNECTIONS,
    CONSOLE_CONNECTIONS,
    OVERFLOW,
    READINESS,
    ack_timeout_findings,
    connection_findings,
    drain_findings,
    lease_findings,
    prefetch_findings,
)

ROOT = Path(__file__).parents[2]
LIMITS = {"gpu-1": 40.0, "gpu-2": 100.0}


@pytest.mark.parametrize(("lease", "expected"), [(300, ["ok", "ok"]), (102, ["ok", "fail"]), (42, ["fail", "fail"])])
def test_a_lease_is_longer_than_one_submission_to_each_backend(lease: float, expected: list[str]) -> None:
    assert [finding.verdict for finding in lease_findings(lease, LIMITS)] == expected


@pytest.mark.parametrize(("hold", "verdict"), [(600, "skipped"), (1699, "skipped"), (1700, "fail")])
def test_a_permit_is_in_hand_for_less_than_the_broker_waits(hold: float, verdict: str) -> None:
    (finding,) = ack_timeout_findings(hold, LIMITS)
    assert finding.verdict == verdict
    assert f"{hold + 100:.0f} s" in finding.found


@pytest.mark.parametrize(
    ("slots", "submitters", "verdict", "said"),
    [
        (10, 0, "ok", "one submitter may hold 10"),
        (11, 1, "warn", "1 submitter may hold 10"),
        (30, 3, "ok", "3 submitters may hold 30"),
        (31, 3, "warn", "3 submitters may hold 30"),
    ],
)
def test_the_permits_of_all_submitters_fill_the_slots(slots: int, submitters: int, verdict: str, said: str) -> None:
    (finding,) = prefetch_findings("comfyui", slots=slots, prefetch=10, submitters=submitters)
    assert finding.verdict == verdict
    assert said in finding.found
    assert verdict == "ok" or finding.advice.startswith(f"run {-(-slots // 10)} submitters")


def test_each_process_is_given_all_the_connections_it_may_open() -> None:
    one_of_each = sum(count + OVERFLOW + READINESS for count in CONNECTIONS.values())
    one_of_each += CONSOLE_CONNECTIONS + OVERFLOW
    needed = one_of_each + 2 * (CONNECTIONS["submitter"] + OVERFLOW + READINESS)
    (enough,) = connection_findings(needed, {"submitter": 3})
    (too_few,) = connection_findings(needed - 1, {"submitter": 3, "poller": 0})
    assert (enough.verdict, too_few.verdict) == ("ok", "warn")
    assert "3 submitter, 1 poller" in too_few.found


def test_compose_gives_workers_the_grace_that_the_doctor_asks_for() -> None:
    drain = Settings.model_fields["drain_seconds"].default
    (finding,) = drain_findings(drain)
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert "15 s above" in finding.advice
    for name in CONNECTIONS:
        grace = float(services[name]["stop_grace_period"].removesuffix("s"))
        assert grace >= float(services[name]["environment"]["DARKROOM_DRAIN_SECONDS"]) + 15
        assert grace >= drain + 15
