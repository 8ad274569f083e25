"""The OpenAPI document as one page to read. It runs no script: nothing from elsewhere may see a token typed here."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

HEADERS: Final = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8885; --ground: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { border-top: 1px solid var(--line); padding-top: 1.5rem; margin-top: 2.5rem; }
code, pre { font: 14px/1.4 ui-monospace, monospace; background: var(--ground); border-radius: 3px; }
code { padding: 0.1rem 0.3rem; overflow-wrap: anywhere; }
pre { padding: 0.8rem; overflow-x: auto; }
details { margin: 0.3rem 0; }
table { border-collapse: collapse; width: 100%; margin-bottom: 0.8rem; }
td { border-top: 1px solid var(--line); padding: 0.3rem 0.8rem 0.3rem 0; vertical-align: top; }
td:first-child { width: 11rem; }
@media (max-width: 40rem) { td:first-child { width: 9rem; } }
"""


def docs_page(document: Mapping[str, Any]) -> str:
    """One section per operation: what it does, what it takes, every answer with an example. Pure."""
    models = document["components"]["schemas"]
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    contents = [
        f'<li><a href="#{escape(operation["operationId"])}">{escape(operation["summary"])}</a>'
        f" <code>{escape(place)}</code>"
        for place, operation in operations
    ]
    sections = [part for place, operation in operations for part in _operation(place, operation, models)]
    about = document["info"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(about["title"])}</title>'
        f"<style>{_STYLE}</style><h1>{escape(about['title'])} {escape(about['version'])}</h1>"
        f'{_text(about["description"])}<p>For programs: <a href="openapi.json">openapi.json</a></p>'
        f"<ul>{''.join(contents)}</ul>{''.join(sections)}</html>"
    )


def _operation(place: str, operation: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[str]:
    yield f'<h2 id="{escape(operation["operationId"])}">{escape(operation["summary"])}</h2>'
    yield f"<p><code>{escape(place)}</code></p>{_text(operation['description'])}"
    if parameters := operation.get("parameters"):
        yield "<h3>Parameters</h3>"
        yield _table(
            [(parameter["name"], f"{parameter['description']} ({parameter['in']})") for parameter in parameters]
        )
    if body := operation.get("requestBody"):
        yield "<h3>Body</h3>"
        yield _table(list(_fields(body["content"]["application/json"]["schema"], models)))
        yield from _examples("Example", body["content"], models)
    answers = sorted(operation["responses"].items())
    yield "<h3>Answers</h3>"
    yield _table([(status, answer["description"]) for status, answer in answers])
    for status, answer in answers:
        yield from _examples(status, answer.get("content", {}), models)


def _fields(schema: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The fields of a body, each with what it is for and whether it must be there."""
    schema = models.get(schema.get("$ref", "").rpartition("/")[2], schema)
    for name, field in schema["properties"].items():
        about = field.get("description", "")
        if "default" in field and field["default"] is not None:
            about += f" (`{json.dumps(field['default'])}` when left out)"
        yield name, f"required; {about}" if name in schema.get("required", []) else about


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
