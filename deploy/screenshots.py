"""`make screenshots`: pictures of the console's pages for docs/console, light, dark and on a phone.

The pages are those of `make demo DEAD=1` with a plan under way: the same orders and letters each time.
"""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright
from rich.console import Console

from deploy.demo import dead
from deploy.demo.running import post, user_for
from deploy.demo.system import System
from deploy.local.install import chromium
from deploy.local.interrupted import end_with
from deploy.local.problem import StackProblem
from deploy.local.stack import ROOT, Stack
from shared.database.engine import connect
from shared.database.migrate import upgrade
from shared.database.tasks import Tasks
from shared.observe import metrics

FOLDER: Final = ROOT / "docs" / "console"
_DESK: Final[ViewportSize] = {"width": 1200, "height": 800}
_PHONE: Final[ViewportSize] = {"width": 390, "height": 780}
#: The console has few colours, and pictures of few are a third as large.
_COLOURS: Final = 64
_WITHIN_MS: Final = 60_000.0


class Camera:
    """One person's windows, all at the same page: light, dark, and a phone's."""

    def __init__(self, browser: Browser, url: str, name: str, password: str) -> None:
        self.windows = {
            "light": _window(browser, url, _DESK),
            "dark": _window(browser, url, _DESK, dark=True),
            "phone": _window(browser, url, _PHONE),
        }
        self.page = self.windows["light"]
        self.url = url
        self.take("login", "/login")
        for window in self.windows.values():
            window.get_by_label("Name").fill(name)
            window.get_by_label("Password").fill(password)
            window.get_by_role("button", name="Sign in").click()
            window.get_by_role("navigation", name="Main").wait_for()

    def take(self, name: str, path: str = "") -> None:
        """Pictures of the page at `path`, or of where the first window is."""
        path = path or self.page.url.removeprefix(self.url)
        for kind, window in self.windows.items():
            window.goto(path, wait_until="load")
            picture = Image.open(io.BytesIO(window.screenshot())).convert("RGB")
            few = picture.quantize(_COLOURS, dither=Image.Dither.NONE)
            few.save(FOLDER / f"{name}-{kind}.png", optimize=True)


def main() -> int:
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o711)  # as root, PostgreSQL runs as another user and has to get in
        stack = Stack(folder / "stack", say=console.print)
        system = dead.system(stack, folder / "logs", folder / "pictures")
        try:
            stack.up()
            upgrade(stack.database_url)
            system.start(simulated_seconds=0.05)
            tasks = Tasks(connect(stack.database_url), "demo", metrics.build("producer"))
            orders = dead.kill(system, stack, tasks, dead.Counts(), console)
            FOLDER.mkdir(parents=True, exist_ok=True)
            for old in FOLDER.glob("*.png"):  # other files there are nobody's pictures
                old.unlink()
            with _browser() as browser:
                _pictures(Camera(browser, system.console, *user_for(stack)), system, str(orders[0].task_id))
        finally:
            system.stop()
            stack.down(wipe=True)
    pictures = list(FOLDER.glob("*.png"))
    total = sum(file.stat().st_size for file in pictures)
    console.print(f"{len(pictures)} pictures, {total / 1000:.0f} kB, in {FOLDER.relative_to(ROOT)}")
    return 0


def _pictures(camera: Camera, system: System, completed: str) -> None:
    """What an operator sees at night, from the first page to the end of a plan."""
    page = camera.page
    for name in ("letters", "orders", "backends"):
        camera.take(name, f"/{name}")
    camera.take("order", f"/orders/{completed}")
    page.goto("/letters")
    page.get_by_role("link", name="cannot have").or_(page.get_by_role("link", name="can have")).first.click()
    page.get_by_role("link", name="can have").last.click()
    camera.take("letter")
    page.get_by_role("link", name="Edit and replay").click()
    camera.take("edit")
    page.goto("/")
    expect(page.get_by_text("dead letters wait")).to_be_visible(timeout=_WITHIN_MS)  # the exporter has looked
    camera.take("overview", "/")

    post(f"{system.simulators[2]}/_sim/faults", {"clear": True})
    page.goto("/letters")
    page.get_by_role("link", name="Allocation on device").click()
    camera.take("group")
    page.get_by_label("of this list, and none that").check()
    page.get_by_role("button", name="Plan a replay").click()
    camera.take("plan")
    page.get_by_label("Letters per second").fill("20")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_text("completed").nth(1)).to_be_visible(timeout=_WITHIN_MS)
    camera.take("progress")
    expect(page.get_by_text("150 of 150 ended")).to_be_visible(timeout=_WITHIN_MS)
    camera.take("plans", "/plans")
    camera.take("audit", "/audit")


def _window(browser: Browser, url: str, size: ViewportSize, *, dark: bool = False) -> Page:
    context = browser.new_context(base_url=url, viewport=size, color_scheme="dark" if dark else "light")
    return context.new_page()


@contextmanager
def _browser() -> Iterator[Browser]:
    """As root, Chromium's sandbox does not run; it visits nothing but the console."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium(lambda _: None), args=arguments)
        yield browser
        browser.close()


if __name__ == "__main__":
    end_with(main, StackProblem)
