"""The backends file, and which adapter serves which backend.

[[backend]]
name = "gpu-1"
adapter = "comfyui"
url = "http://10.0.0.5:8188"
capacity = 2                # jobs in flight: one running, one waiting
# pool = "comfyui"          # default: the adapter's name
# max_run_seconds = 1800    # default: the setting
# rate = "300/m"            # starts per second (s) or minute (m), over all workers; default: no limit
"""

import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shared.domain.errors import DarkroomError
from shared.domain.messages import Name
from shared.domain.rate import Rate
from shared.providers.base import KnownJob, Provider
from shared.providers.comfyui import ComfyUI, ignore
from shared.providers.comfyui_http import Observe, Timings
from shared.providers.comfyui_jobs import known_jobs
from shared.providers.inputs import Pictures
from shared.providers.workflow import Workflows

#: Backends appear as a label in metrics.
MAX_BACKENDS: Final = 20


class InvalidBackends(DarkroomError):
    """The backends file is wrong; `problems` names every mistake in it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class Backend(Protocol):
    """What `build` needs to know; a BackendConfig and a row of `backends` both do."""

    @property
    def name(self) -> str: ...
    @property
    def adapter(self) -> str: ...
    @property
    def url(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What adapters are made with, shared by all of them."""

    workflows: Workflows
    pictures: Pictures
    timings: Timings = field(default_factory=Timings)
    observe: Observe = ignore
    #: Told of each answer with a job state we do not know.
    unknown_state: Callable[[], None] = lambda: None


def _comfyui(backend: Backend, tools: Tools) -> Provider:
    return ComfyUI(
        backend.name,
        backend.url,
        tools.workflows,
        tools.pictures,
        timings=tools.timings,
        observe=tools.observe,
        unknown_state=tools.unknown_state,
    )


ADAPTERS: Final[Mapping[str, Callable[[Backend, Tools], Provider]]] = {"comfyui": _comfyui}


#: How an adapter's server is asked for all jobs it knows; adapters that cannot list any are missing.
LISTS: Final[Mapping[str, Callable[[str], Sequence[KnownJob]]]] = {"comfyui": known_jobs}


class BackendConfig(BaseModel):
    """One server or provider account."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Name
    adapter: str
    pool: Name = ""
    url: str
    capacity: int = Field(2, ge=1, le=1000, description="jobs in flight there, over all workers")
    max_run_seconds: float | None = Field(None, gt=0, description="bounds one job; None: the setting")
    rate: Rate | None = Field(None, description="starts there per second or minute, over all workers; None: no limit")

    @model_validator(mode="before")
    @classmethod
    def _pool_is_the_adapter(cls, values: Any) -> Any:
        if isinstance(values, dict) and "pool" not in values and "adapter" in values:
            return {**values, "pool": values["adapter"]}
        return values

    @field_validator("adapter")
    @classmethod
    def _is_known(cls, adapter: str) -> str:
        if adapter not in ADAPTERS:
            raise ValueError(f"no such adapter; there are: {', '.join(sorted(ADAPTERS))}")
        return adapter

    @field_validator("rate", mode="before")
    @classmethod
    def _is_a_rate(cls, rate: Any) -> Rate:
        return Rate.read(rate)

    @field_validator("url")
    @classmethod
    def _is_plain_http(cls, url: str) -> str:
        parts = urlsplit(url)  # raises ValueError for a broken one
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError("must be http://host:port or https://host:port")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("must hold no credentials, query or fragment")
        return url.rstrip("/")


def load_backends(path: Path) -> tuple[BackendConfig, ...]:
    """Every backend of the file, in its order. Raises InvalidBackends with every mistake in it."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidBackends([f"{path.name} cannot be read: {error}"]) from error
    tables = values.pop("backend", [])
    problems = [f"unknown key {key}" for key in values]
    backends: list[BackendConfig] = []
    if not isinstance(tables, list) or not tables:
        raise InvalidBackends([*problems, f"{path.name} has no [[backend]]"])
    if len(tables) > MAX_BACKENDS:
        problems.append(f"{len(tables)} backends are more than {MAX_BACKENDS}")
    for number, table in enumerate(tables, start=1):
        try:
            backends.append(BackendConfig.model_validate(table))
        except ValidationError as error:
            name = table.get("name") if isinstance(table, dict) else None
            problems += [_sentence(number, name, item["loc"], item["msg"]) for item in error.errors()]
    names = Counter(str(table["name"]) for table in tables if isinstance(table, dict) and "name" in table)
    problems += [f"backend {name} is there {count} times" for name, count in names.items() if count > 1]
    if problems:
        raise InvalidBackends(problems)
    return tuple(backends)


def build(backend: Backend, tools: Tools) -> Provider:
    """The provider of one backend. Raises InvalidBackends for an adapter this version does not have."""
    adapter = ADAPTERS.get(backend.adapter)
    if adapter is None:
        raise InvalidBackends([f"backend {backend.name}: no adapter {backend.adapter}"])
    return adapter(backend, tools)


def _sentence(number: int, name: Any, location: Sequence[int | str], message: str) -> str:
    place = ".".join(str(part) for part in location)
    return f"backend {name or number}: {f'{place}: ' if place else ''}{message.removeprefix('Value error, ')}"
