"""What a browser makes of a page: its elements, and the text a person reads."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from benchmarks.console_pages import routes_of

#: Elements without an end.
_VOID = frozenset({"br", "hr", "img", "input", "link", "meta", "rect"})


@dataclass
class Page:
    """elements -- name and attributes, in order; text -- what is not inside <head>, <script> or <style>"""

    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""

    def all(self, name: str) -> list[dict[str, str]]:
        return [attributes for element, attributes in self.elements if element == name]

    @property
    def links(self) -> list[str]:
        return [attributes["href"] for attributes in self.all("a")]

    @property
    def posts(self) -> list[str]:
        return [form["action"] for form in self.all("form") if form.get("method") == "post"]

    @property
    def attributes(self) -> set[str]:
        return {name for _, attributes in self.elements for name in attributes}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"head", "script", "style"} & set(self._open):
            self.page.text += data


def read(html: str) -> Page:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.page


def posts_of(app: Any) -> set[str]:
    """The path of every form."""
    return {route.path for route in routes_of(app) if "POST" in route.methods}
