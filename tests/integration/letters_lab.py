"""Dead letters beside the console that shows them."""

import re
import uuid
from pathlib import Path

from services.ops.collector import Collector
from shared.database.dead_letters import DeadLetters
from shared.database.letters import LetterFilter, Letters
from shared.domain.task import Reason, Task
from tests.integration.console_lab import Browser, ConsoleLab
from tests.integration.rows_lab import Lab, a_delivery, letter_about


class LettersLab(Lab):
    """The console beside the rows that it shows."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url)
        self.console = ConsoleLab(url, folder)
        self.artifacts = self.console.store
        self.letters = Letters(self.engine)
        self._collector = Collector(DeadLetters(self.engine, "ops@test"), self.metrics)

    def dead(self, reason: Reason = Reason.EXECUTION_FAILED, detail: str = "node 7 broke", **fields: object) -> Task:
        """A failed row and its letter."""
        task = self.failed(reason, detail, **fields)
        self._collector.handle([letter_about(task)])
        return task

    def unreadable(self, body: bytes = b"no order", message_id: str | None = None) -> None:
        """A letter without a row."""
        self._collector.handle([a_delivery(body=body, message_id=message_id or str(uuid.uuid4()))])

    def ids(self, **wanted: str | None) -> list[int]:
        return self.letters.ids(LetterFilter(**wanted))

    def said(self, browser: Browser, path: str) -> str:
        """The message that stands on the page after a form."""
        found = re.search(r'class="said (?:well|ill)".*?</span>\s*(.*?)</p>', browser.get(path).text, re.DOTALL)
        return found[1] if found else ""

    def close(self) -> None:
        self.console.close()
        super().close()
