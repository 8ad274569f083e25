"""The example files of docs/examples inside docs/upstream.md, so that what is read is what the tests run. Pure."""

import re
from collections.abc import Callable

_INCLUDED = re.compile(
    r"(?P<begin><!-- include (?P<name>[\w.-]+) -->\n).*?(?P<end><!-- /include -->\n)", re.DOTALL | re.ASCII
)
_LANGUAGES = {"py": "python", "mjs": "javascript", "sh": "sh", "json": "json"}


def with_examples(page: str, read: Callable[[str], str]) -> str:
    """The page with the present text of each file it includes. read -- file name -> its text"""

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        fence = f"```{_LANGUAGES[name.rpartition('.')[2]]}\n{read(name)}```\n"
        return found["begin"] + fence + found["end"]

    return _INCLUDED.sub(block, page)
