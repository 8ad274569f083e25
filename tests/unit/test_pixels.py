"""However many threads bring pictures, the pixels of few are in memory at a time."""

import io
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from PIL import Image

from shared import pictures
from shared.pixels import Room
from shared.providers import picture


class Caller:
    """A thread that takes room and keeps it until told."""

    def __init__(self, room: Room, pixels: int) -> None:
        self.has_room, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._take, args=(room, pixels), daemon=True)
        self._thread.start()

    def _take(self, room: Room, pixels: int) -> None:
        with room.taken(pixels):
            self.has_room.set()
            self._done.wait(30)

    def leave(self) -> None:
        self._done.set()
        self._thread.join(30)


@pytest.fixture
def callers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def enters(callers: ExitStack, room: Room, pixels: int) -> Caller:
    caller = Caller(room, pixels)
    callers.callback(caller.leave)
    return caller


def test_what_fits_goes_side_by_side_and_what_does_not_waits(callers: ExitStack) -> None:
    room = Room(100)
    first, second = enters(callers, room, 60), enters(callers, room, 40)
    assert first.has_room.wait(10)
    assert second.has_room.wait(10)
    third = enters(callers, room, 50)
    assert not third.has_room.wait(0.2)
    first.leave()
    assert third.has_room.wait(10)


def test_a_picture_larger_than_the_room_is_decoded_alone_and_small_ones_do_not_pass_it_by(callers: ExitStack) -> None:
    room = Room(100)
    first = enters(callers, room, 10)
    assert first.has_room.wait(10)
    large = enters(callers, room, 101)
    assert not large.has_room.wait(0.2)
    small = enters(callers, room, 10)
    assert not small.has_room.wait(0.2)
    first.leave()
    assert large.has_room.wait(10)
    assert not small.has_room.wait(0.2)
    large.leave()
    assert small.has_room.wait(10)


def test_room_is_free_again_after_a_broken_picture() -> None:
    room = Room(10)
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"), room.taken(10):
            raise ValueError("broken")


def a_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("module", [pictures, picture])
def test_inputs_and_results_wait_for_room(module: object, monkeypatch: pytest.MonkeyPatch, callers: ExitStack) -> None:
    room = Room(700)
    monkeypatch.setattr(module, "ROOM", room)
    other = enters(callers, room, 101)
    assert other.has_room.wait(10)
    read = threading.Event()

    def look() -> None:
        if module is pictures:
            pictures.verified(a_png())
        else:
            picture.re_encode(a_png(), max_pixels=1000)
        read.set()

    threading.Thread(target=look, daemon=True).start()
    assert not read.wait(0.3)
    other.leave()
    assert read.wait(10)
