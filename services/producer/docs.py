"""The OpenAPI document as one page to read. It runs no script: nothing from elsewhere may see a token typed here."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

HEADERS: Final = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { border-top: 1px solid #ccc; padding-top: 1.5rem; margin-top: 2.5rem; }
code, pre { font: 14px/1.4 ui-monospace, monospace; background: #f4f4f4; border-radius: 3px; }
code { padding: 0.1rem 0.3rem; }
pre { padding: 0.8rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid #ddd; padding: 0.3rem 0.8rem 0.3rem 0; vertical-align: top; }
"""


def docs_page(document: Mapping[str, Any]) -> str:
    """One section per operation: what it does, what it takes, every answer with an example. Pure."""
    models = document["components"]["schemas"]
    sections = [
        part
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        for part in _operation(f"{method.upper()} {path}", operation, models)
    ]
    about = document["info"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(about["title"])}</title>'
        f"<style>{_STYLE}</style><h1>{escape(about['title'])} {escape(about['version'])}</h1>"
        f'{_text(about["description"])}<p>For programs: <a href="openapi.json">openapi.json</a></p>'
        f"{''.join(sections)}</html>"
    )


def _operation(place: str, operation: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[str]:
    yield f'<h2 id="{escape(operation["operationId"])}">{escape(operation["summary"])}</h2>'
    yield f"<p><code>{escape(place)}</code></p>{_text(operation['description'])}"
    if parameters := operation.get("parameters"):
        rows = [
            (parameter["name"], f"{parameter['in']}. {parameter.get('description', '')}") for parameter in parameters
        ]
        yield _table(rows)
    if body := operation.get("requestBody"):
        yield from _examples("Body", body.get("content", {}), models)
    yield "<h3>Answers</h3>"
    yield _table([(status, answer["description"]) for status, answer in operation["responses"].items()])
    for status, answer in operation["responses"].items():
        yield from _examples(status, answer.get("content", {}), models)


def _examples(what: str, content: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[str]:
    for media_type, shape in content.items():
        for name, example in _of_shape(shape, models):
            text = example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False)
            title = " ".join(filter(None, [what, media_type, name]))
            yield f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _of_shape(shape: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Its own examples, or else those of the model it refers to; each with its name."""
    if "example" in shape:
        yield "", shape["example"]
    for name, example in shape.get("examples", {}).items():
        yield name, example["value"]
    model = shape.get("schema", {})
    model = models.get(model.get("$ref", "").rpartition("/")[2], model)
    for example in model.get("examples", []):
        yield "", example


def _text(markdown: str) -> str:
    """Paragraphs, with `code` as such."""
    paragraphs = escape(markdown).split("\n\n")
    return "".join(f"<p>{_code(paragraph)}</p>" for paragraph in paragraphs)


def _code(text: str) -> str:
    return "".join(f"<code>{part}</code>" if n % 2 else part for n, part in enumerate(text.split("`")))


def _table(rows: list[tuple[str, str]]) -> str:
    lines = [f"<tr><td><code>{escape(name)}</code><td>{_code(escape(text))}" for name, text in rows]
    return f"<table>{''.join(lines)}</table>"
