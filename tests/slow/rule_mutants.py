"""Alert rules that are a little wrong, to see whether the unit tests of the rules notice."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

#: A comparison with a number. One that only keeps a division from dividing by nothing is not a threshold.
_COMPARED: Final = re.compile(r"(>=|<=|==|!=|>|<)\s*(\d+(?:\.\d+)?)(?!\d*[smhd])")
_GUARDED_DIVISION: Final = re.compile(r"> 0\)")
_AGGREGATED: Final = re.compile(r"\b(max|sum)(?= by|\()")
_GROUPED: Final = re.compile(r"\b((?:max|sum)) by \([^)]*\) ?(?=\()")
_JOINED: Final = re.compile(r"\b(and|unless|or)\b")
_OTHER: Final = {"max": "sum", "sum": "max"}
_OPPOSITE: Final = {"==": "!=", "!=": "=="}


def mutants(rule: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What was changed, and the rule with that change: a threshold, an aggregation, a guard or the wait. Pure."""
    expression = rule["expr"]
    for text, what in _expressions(expression):
        yield what, {**rule, "expr": text}
    for wait in ("for", "keep_firing_for"):
        if wait in rule:
            yield f"without `{wait}: {rule[wait]}`", {name: value for name, value in rule.items() if name != wait}


def _expressions(text: str) -> Iterator[tuple[str, str]]:
    guards = {match.start() for match in _GUARDED_DIVISION.finditer(text)}
    thresholds = [match for match in _COMPARED.finditer(text) if match.start() not in guards]
    for place, match in enumerate(thresholds, start=1):
        sign, number = match[1], float(match[2])
        if sign in _OPPOSITE:
            changes = [(_OPPOSITE[sign], number)]
        elif number == 0:
            changes = [(sign, 1.0)]
        else:
            changes = [(sign, number * 2), (sign, number / 2)]
        for new_sign, value in changes:
            replaced = f"{new_sign} {value:g}"
            yield _with(text, match, replaced), f"threshold {place}, `{match[0]}`, is `{replaced}`"
    for place, match in enumerate(_AGGREGATED.finditer(text), start=1):
        yield _with(text, match, _OTHER[match[1]]), f"aggregation {place} is {_OTHER[match[1]]}"
    for place, match in enumerate(_GROUPED.finditer(text), start=1):
        yield _with(text, match, match[1]), f"grouping {place}, `{match[0].strip()}`, is gone"
    starts = [match.start() for match in _JOINED.finditer(text) if _depth(text, match.start()) == 0]
    for place, start in enumerate(starts):
        end = starts[place + 1] if place + 1 < len(starts) else len(text)
        yield text[:start] + text[end:], f"without `{' '.join(text[start:end].split())}`"


def _with(text: str, match: re.Match[str], replaced: str) -> str:
    return text[: match.start()] + replaced + text[match.end() :]


def _depth(text: str, end: int) -> int:
    return text.count("(", 0, end) - text.count(")", 0, end)
