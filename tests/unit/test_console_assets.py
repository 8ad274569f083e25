"""What the console sends to a browser is what it says it is."""

import hashlib
import re

from services.ops.console.rendering import STATIC, visible


def test_the_foreign_script_is_the_one_its_note_names() -> None:
    note = (STATIC / "README.md").read_text()
    named = re.search(r"`htmx\.min\.js` .* `([0-9a-f]{64})`", note)

    assert named is not None
    assert hashlib.sha256((STATIC / "htmx.min.js").read_bytes()).hexdigest() == named[1]
    assert (STATIC / "htmx.LICENSE.txt").read_text().startswith("Zero-Clause BSD")


def test_the_sheet_and_the_script_of_ours_ask_no_other_host() -> None:
    for name in ("console.css", "console.js"):
        assert not re.search(r"https?:|@import|url\(", (STATIC / name).read_text()), name


def test_what_cannot_be_seen_is_written_out_and_lines_stay() -> None:
    assert visible("a\u202eb\u200bc\x1b[2J") == "a\\u202eb\\u200bc\\u001b[2J"
    assert visible("one\n\ttwo é 界") == "one\n\ttwo é 界"
