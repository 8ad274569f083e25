"""The demo's 24 orders: photographs, three workflows, one order nobody can start and one that breaks on the way."""

from pathlib import Path
from typing import Any, Final

from shared.domain.messages import Order

PHOTOS: Final = Path(__file__).resolve().parents[1] / "photos"
#: A colour no other order uses; the simulated servers are told to fail on it.
BROKEN_COLOUR: Final = 0xBAD0DE
UNKNOWN_WORKFLOW: Final = "oil-painting"
COUNT: Final = 24


def demo_orders(run: str) -> list[Order]:
    """COUNT orders whose keys start with `run`, so that every run of the demo is new to the system."""
    photos = sorted(PHOTOS.glob("*.jpg"))
    wanted: list[tuple[str, dict[str, Any]]] = []
    for photo in photos:
        url = photo.as_uri()
        for width in (256, 384, 512):
            wanted.append(("photo-invert", {"photo": url, "width": width, "height": width}))
        wanted.append(("photo-batch", {"photo": url, "width": 320, "height": 320, "copies": 2}))
    colours = [0x336699, 0x996633, 0x339966, 0x993366, 0x669933, 0x663399]
    wanted += [("solid-invert", {"color": colour}) for colour in colours]
    wanted.append(("solid-invert", {"color": BROKEN_COLOUR}))
    wanted.append((UNKNOWN_WORKFLOW, {"photo": photos[0].as_uri()}))
    return [
        Order(
            idempotency_key=f"{run}-{number:02}",
            order_id=f"{run}-order-{number:02}",
            pool="comfyui",
            workflow=workflow,
            inputs=inputs,
            metadata={"customer": "demo"},
        )
        for number, (workflow, inputs) in enumerate(wanted, start=1)
    ]
