"""Five bad hours: what goes wrong from when to when, and which alert says so in which minutes."""

from typing import Final

from deploy.prometheus.story.world import BEGIN, Fault, Trouble, World

MINUTES: Final = 300
STEP_SECONDS: Final = 60
END: Final = BEGIN + MINUTES * 60
#: One of the two ComfyUI servers; half of all orders of the pool; the only poller; the broker's disk.
FAULTS: Final = (
    Fault(Trouble.LOST, 60, 95, "gpu-2"),
    Fault(Trouble.BROKEN, 130, 140, "comfyui"),
    Fault(Trouble.STUCK, 160, 182),
    Fault(Trouble.ALARM, 250, 258),
)
#: Somebody has found the broken workflow and discards the letters.
DECIDED: Final = (155,)


def incident() -> str:
    """The five hours as Prometheus would have scraped them, in OpenMetrics' format."""
    return World(FAULTS, MINUTES, STEP_SECONDS, decided=DECIDED).text()
