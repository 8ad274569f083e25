"""Two ComfyUI servers write their pictures into one folder, and one of them forgets what it made."""

import io

import pytest
from PIL import Image

from shared.domain.messages import Order
from shared.storage import Artifacts
from tests.e2e.conftest import Build
from tests.e2e.outage import SETTINGS, assert_all_made_once, attempts_beyond_one, nobody_dies, under_way
from tests.e2e.system import System


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    system = build(gpus=2, settings=SETTINGS, one_disk=True)
    system.start(submitters=2, pollers=2)
    return system


def colour_of(system: System, order: Order) -> int:
    """Of the picture that was kept for an order."""
    [artifact] = system.tasks.artifacts([order.task_id])[order.task_id]
    store = Artifacts(system.settings["DARKROOM_ARTIFACTS_URL"])
    with Image.open(io.BytesIO(store.read(artifact.key))) as picture:
        red, green, blue = picture.convert("RGB").getpixel((0, 0))
    return (red << 16) + (green << 8) + blue


def test_two_servers_that_share_their_output_folder_never_give_an_order_the_picture_of_another(
    system: System,
) -> None:
    orders = under_way(system)
    with nobody_dies(system):
        for gpu in system.gpus:
            gpu.restart()  # from here on the files of either may be found by asking the other
        assert_all_made_once(system, orders)
        assert attempts_beyond_one(system, orders) <= sum(gpu.capacity for gpu in system.gpus)
    for order in orders:
        assert colour_of(system, order) == 0xFFFFFF - order.inputs["color"]
