"""Five bad hours, replayed through a real Prometheus: which of our alerts fires from which minute to which."""

from functools import cache
from typing import Final

import pytest

from deploy.prometheus.story.blocks import served
from deploy.prometheus.story.firing import Firing, firings, spans
from deploy.prometheus.story.incident import END, FAULTS, STEP_SECONDS, incident
from deploy.prometheus.story.world import BEGIN, Trouble

#: first minute, last minute, alert, what it is about
TABLE: Final = """
     62   94  BackendDown        gpu-2
     71   96  BackendErrors      gpu-2
     78  125  BacklogOld         comfyui
     79  300  OrderSlowBurn3d    comfyui
     90  143  OrderSlowBurn6h    comfyui
     94  120  OrderSlowBurn1h    comfyui
    132  146  DeadLetterSpike
    134  300  OrderErrorBurn3d   comfyui
    140  154  DeadLettersOpen    execution_failed check
    162  181  LoopHung           poller schedule
    165  181  ProbeFailing       canary
    165  181  RowsOverdue        poll
    170  199  BacklogOld         openai_images
    170  236  BacklogOld         comfyui
    178  181  Stalled            comfyui
    178  181  Stalled            openai_images
    180  194  BacklogVeryOld     openai_images
    180  209  BacklogVeryOld     comfyui
    184  255  OrderSlowBurn6h    comfyui
    187  300  OrderSlowBurn3d    openai_images
    189  193  OrderSlowBurn1h    openai_images
    191  232  OrderSlowBurn1h    comfyui
    251  257  BrokerAlarm
    251  257  BrokerBlocked      ops
    251  257  BrokerBlocked      poller
    251  257  BrokerBlocked      producer
    251  257  BrokerBlocked      submitter
    252  257  FollowUpsLate
    252  261  PublishErrorBurn1h
    252  300  PublishErrorBurn3d
    253  286  PublishErrorBurn6h
    254  257  ProbeFailing       canary
    255  257  RowsOverdue        poll
    267  268  OrderSlowBurn1h    comfyui
"""
#: Look back over hours, so they go on about what is over: tickets.
_LONG: Final = ("OrderErrorBurn3d", "OrderSlowBurn3d", "PublishErrorBurn3d")


@cache
def fired() -> list[Firing]:
    with served(incident(), rules_seconds=STEP_SECONDS, begin=BEGIN, end=END) as url:
        return firings(url, BEGIN, END, step_seconds=30)


def during(trouble: Trouble) -> list[Firing]:
    """What begins while it lasts."""
    (fault,) = (fault for fault in FAULTS if fault.trouble is trouble)
    return [firing for firing in fired() if fault.begin <= firing.first < fault.end]


def test_each_alert_fires_in_its_minutes_and_no_other_does() -> None:
    shown = [f"{f.first:>7} {f.last:>4}  {f.alert:<18} {f.about}".rstrip() for f in fired()]
    assert shown == TABLE.strip("\n").splitlines()


def test_calm_hours_are_silent() -> None:
    assert min(firing.first for firing in fired()) >= min(fault.begin for fault in FAULTS)
    after = [firing for firing in fired() if firing.last > 295 and firing.alert not in _LONG]
    assert after == []
    between = [firing for firing in fired() if firing.first in range(100, 130)]
    assert between == []


def test_a_lost_server_and_a_broken_workflow_touch_no_other_pool() -> None:
    for trouble in (Trouble.LOST, Trouble.BROKEN):
        assert during(trouble)
        assert all("openai" not in firing.about for firing in during(trouble))


@pytest.mark.parametrize(
    ("trouble", "alert", "within_minutes"),
    [
        (Trouble.LOST, "BackendDown", 3),
        (Trouble.BROKEN, "DeadLetterSpike", 5),
        (Trouble.STUCK, "LoopHung", 4),
        (Trouble.ALARM, "BrokerAlarm", 2),
    ],
)
def test_a_trouble_is_named_soon_after_it_began(trouble: Trouble, alert: str, within_minutes: int) -> None:
    (fault,) = (fault for fault in FAULTS if fault.trouble is trouble)
    named = [firing for firing in during(trouble) if firing.alert == alert]
    assert named
    assert named[0].first - fault.begin <= within_minutes


@pytest.mark.parametrize(
    ("moments", "wait", "keep", "expected"),
    [
        ([], 0, 0, []),
        ([30], 0, 0, [(30, 30)]),
        ([30, 60, 90], 60, 0, [(90, 90)]),
        ([30, 60], 60, 0, []),
        ([0, 30, 120, 150], 30, 0, [(30, 30), (150, 150)]),
        ([0, 30, 120, 150], 30, 90, [(30, 240)]),
        ([0, 60, 90], 30, 0, [(90, 90)]),
    ],
    ids=["never", "at once", "after a while", "too short", "twice", "kept on", "pending again"],
)
def test_an_alert_waits_and_is_kept_as_prometheus_does(
    moments: list[int], wait: int, keep: int, expected: list[tuple[int, int]]
) -> None:
    assert list(spans(moments, 30, wait, keep)) == expected
