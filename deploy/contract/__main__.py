"""Writes docs/messages and refreshes docs/upstream.md."""

import json
from pathlib import Path
from typing import Final

from deploy.contract.asyncapi import document
from deploy.contract.page import with_examples
from deploy.contract.schemas import schemas

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"


def generated() -> dict[Path, str]:
    """Every generated file with the text it must have."""
    values = {**schemas(), "asyncapi": document()}
    files = {
        DOCS / "messages" / f"{name}.json": json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        for name, value in values.items()
    }
    page = DOCS / "upstream.md"
    return {**files, page: with_examples(page.read_text(), lambda name: (DOCS / "examples" / name).read_text())}


def main() -> None:
    """Files of messages that are gone are removed."""
    wanted = generated()
    for path in set((DOCS / "messages").glob("*.json")) - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
