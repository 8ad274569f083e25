"""A person's browser: it keeps all that pages asked for, complained about or popped up, for `well_behaved`."""

from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request, ViewportSize

PASSWORD = "correct horse battery"
DESK: ViewportSize = {"width": 1280, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
#: A page and what it shows come at once; a busy machine is given time.
LIMIT_MS = 15_000


class Visit:
    """One window of a person of their own, nobody signed in.

    requests   -- every address that was asked for, by whatever part of a page
    complaints -- errors and warnings of the browser: broken scripts, what the content security policy stopped
    dialogs    -- what popped up, which nothing here ever should without being asked to
    """

    def __init__(
        self, browser: Browser, url: str, *, size: ViewportSize = DESK, dark: bool = False, scripts: bool = True
    ) -> None:
        self.url = url
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.dialogs: list[str] = []
        self._context = browser.new_context(
            base_url=url,
            viewport=size,
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            java_script_enabled=scripts,
        )
        self._context.set_default_timeout(LIMIT_MS)
        self._context.on("request", self._requested)
        self._context.on("console", self._said)
        self._context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self._context.on("dialog", self._popped_up)
        self.page: Page = self._context.new_page()

    def sign_in(self, name: str, to: str = "/") -> None:
        """By the form, as a person does."""
        self.page.goto(to)
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("navigation", name="Main").wait_for()

    def scrolls_sideways(self) -> bool:
        """Whether the page is wider than its window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))

    def well_behaved(self) -> None:
        """Nothing left this host, no script failed or was stopped, nothing popped up."""
        here = urlsplit(self.url).netloc
        left = [url for url in self.requests if urlsplit(url).netloc != here]
        assert self.requests
        assert not left, left
        assert not self.complaints, self.complaints
        assert not self.dialogs, self.dialogs

    def close(self) -> None:
        self._context.close()

    def _requested(self, request: Request) -> None:
        if not request.url.startswith("data:"):
            self.requests.append(request.url)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.text} at {message.location.get('url')}")

    def _popped_up(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()
