"""Which misbehaviour is switched on, how often it may still strike and how often it did.

The reference of names and fields is the docstring of `__main__`. Rules are read by the event loop (requests) and by the
worker thread (prompts), so every access holds one lock.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

Setting = dict[str, Any]

#: Faults of any server, with the fields each takes and their defaults. `times` None means until removed.
SHAPES: Final[dict[str, Setting]] = {
    "refuse": {"seconds": 1.0},
    "answer_500": {"paths": ["/prompt"], "methods": None, "queue": False, "times": None, "probability": 1.0},
    "drop_after_accept": {"paths": ["/prompt"], "methods": None, "times": None, "probability": 1.0},
    "drop_before_read": {"paths": ["/prompt"], "methods": None, "times": None, "probability": 1.0},
    "slow": {"seconds": 1.0, "paths": ["*"], "methods": None, "before": False, "times": None, "probability": 1.0},
    "garbage": {"paths": ["/prompt"], "methods": None, "kind": "html", "times": None, "probability": 1.0},
}
#: Those of ComfyUI alone.
COMFYUI_SHAPES: Final[dict[str, Setting]] = {
    "restart": {"down_seconds": 0.0},
    "fail_execution": {
        "match": "",
        "exception_type": "RuntimeError",
        "message": "simulated failure",
        "times": None,
        "probability": 1.0,
    },
    "corrupt_output": {"match": "", "times": None, "probability": 1.0},
    "freeze": {},
}
_ACTIONS: Final = ("refuse", "restart")  # done once by the server, never kept
_GARBAGE_KINDS: Final = ("html", "cut_json", "cut_body")


class BadFault(ValueError):
    """The body of a faults request asks for something that does not exist. Nothing was changed."""


class Faults:
    """The switched-on faults of one simulator.

    numbers -- settings that are one number each, with their defaults
    shapes  -- faults of this kind of server, beside SHAPES
    """

    def __init__(
        self, numbers: Mapping[str, float], seed: int | None = None, shapes: Mapping[str, Setting] | None = None
    ) -> None:
        self._lock = threading.Lock()
        self._random = random.Random(seed)
        self._shapes = {**SHAPES, **(shapes or {})}
        self._defaults = dict(numbers)
        self._numbers = dict(self._defaults)
        self._rules: dict[str, list[Setting]] = {}
        self._hits: Counter[str] = Counter()

    @property
    def seconds_per_image(self) -> float:
        return self._numbers["seconds_per_image"]

    @property
    def history_lag_seconds(self) -> float:
        return self._numbers["history_lag_seconds"]

    def describe(self) -> dict[str, Any]:
        """The answer of GET /_sim/faults."""
        with self._lock:
            shown: dict[str, Any] = {
                name: rules[0] if len(rules) == 1 else rules for name, rules in self._rules.items()
            }
            return {"faults": {**shown, **self._numbers}, "hits": dict(self._hits)}

    def change(self, body: object) -> list[tuple[str, Setting]]:
        """Take over a POST /_sim/faults body; returns the actions (refuse, restart) the server has to carry out now.

        Raises BadFault before anything is changed.
        """
        if not isinstance(body, dict):
            raise BadFault("the body must be a JSON object of faults")
        actions: list[tuple[str, Setting]] = []
        numbers: dict[str, float] = {}
        rules: dict[str, list[Setting]] = {}
        for name, value in body.items():
            if name == "clear":
                continue
            if name in self._defaults:
                numbers[name] = self._defaults[name] if value is None else _number(name, value)
            elif name in _ACTIONS:
                if value is not None:
                    actions.append((name, self._complete(name, value)))
            elif name in self._shapes:
                several = value if isinstance(value, list) else [value]
                rules[name] = [self._complete(name, one) for one in several if one not in (None, False)]
            else:
                raise BadFault(
                    f"there is no fault called {name!r}; known: {', '.join([*self._shapes, *self._defaults])}"
                )
        with self._lock:
            if body.get("clear"):
                self._rules.clear()
                self._numbers = dict(self._defaults)
            self._numbers.update(numbers)
            self._rules.update(rules)
            self._rules = {name: left for name, left in self._rules.items() if left}
        return actions

    def strikes(self, name: str, method: str, path: str, **wanted: object) -> Setting | None:
        """The setting of fault `name` when it hits this request now, which uses up one of its times."""
        if name not in self._rules:
            return None
        return self._take(name, lambda rule: _covers(rule, method, path) and _holds(rule, wanted))

    def strikes_prompt(self, name: str, text: str) -> Setting | None:
        """Like `strikes`, for faults that choose prompts by a substring of `text`."""
        if name not in self._rules:
            return None
        return self._take(name, lambda rule: rule.get("match", "") in text)

    def count(self, name: str) -> None:
        """One more hit of a fault that is carried out elsewhere."""
        with self._lock:
            self._hits[name] += 1

    def thaw(self) -> None:
        """A restart ends `freeze`; the other faults outlive it."""
        with self._lock:
            self._rules.pop("freeze", None)

    def _complete(self, name: str, value: object) -> Setting:
        """The setting with its defaults filled in, every field checked."""
        if value is True or value in (None, False):
            value = {}
        if not isinstance(value, dict):
            raise BadFault(f"{name} takes an object, not {value!r}")
        shape = self._shapes[name]
        unknown = sorted(set(value) - set(shape))
        if unknown:
            raise BadFault(f"{name} has no field {', '.join(unknown)}; known: {', '.join(shape) or 'none'}")
        setting: Setting = {**shape, **value}
        for field in ("seconds", "down_seconds", "probability"):
            if field in setting:
                setting[field] = _number(f"{name}.{field}", setting[field])
        times = setting.get("times")
        if times is not None and (isinstance(times, bool) or not isinstance(times, int) or times < 1):
            raise BadFault(f"{name}.times must be a whole number above 0 or null, not {times!r}")
        for field in ("paths", "methods"):
            listed = setting.get(field)
            if listed is not None and not (isinstance(listed, list) and all(isinstance(each, str) for each in listed)):
                raise BadFault(f"{name}.{field} must be a list of strings, not {listed!r}")
        for field in ("match", "exception_type", "message"):
            if field in setting and not isinstance(setting[field], str):
                raise BadFault(f"{name}.{field} must be a string, not {setting[field]!r}")
        if name == "garbage" and setting["kind"] not in _GARBAGE_KINDS:
            raise BadFault(f"garbage.kind must be one of {', '.join(_GARBAGE_KINDS)}, not {setting['kind']!r}")
        return setting

    def _take(self, name: str, is_hit: Any) -> Setting | None:
        with self._lock:
            for rule in self._rules.get(name, ()):
                if not is_hit(rule) or self._random.random() >= rule.get("probability", 1.0):
                    continue
                self._hits[name] += 1
                found = dict(rule)
                if rule.get("times") is not None:
                    rule["times"] -= 1
                    if rule["times"] <= 0:
                        self._rules[name].remove(rule)
                        if not self._rules[name]:
                            del self._rules[name]
                return found
        return None


def _covers(rule: Setting, method: str, path: str) -> bool:
    for pattern in rule["paths"]:
        if path.startswith(pattern[:-1]) if pattern.endswith("*") else path == pattern:
            # GET /prompt is the load signal before every POST /prompt; a test that says "/prompt" means the POST.
            methods = rule["methods"] or (["POST"] if pattern == "/prompt" else [method])
            return method in methods
    return False


def _holds(rule: Mapping[str, Any], wanted: Mapping[str, object]) -> bool:
    return all(rule[field] == value for field, value in wanted.items())


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise BadFault(f"{name} must be a number, 0 or more, not {value!r}")
    return float(value)
