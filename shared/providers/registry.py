"""The backends file, and which adapter serves which backend.

[[backend]]
name = "gpu-1"
adapter = "comfyui"
url = "http://10.0.0.5:8188"
capacity = 2                # jobs in flight: one running, one waiting
# pool = "comfyui"          # default: the adapter's name
# max_run_seconds = 1800    # default: the setting
# rate = "300/m"            # starts per second (s) or minute (m), over all workers; default: no limit

[[backend]]
name = "wan"
adapter = "http"
provider = "dashscope"      # a table of shared/providers/catalog or DARKROOM_PROVIDERS_DIR
# pool = "dashscope"        # default: the provider's name
# url, capacity, rate, on_unknown: default: what the table says
# callbacks = true          # has it call DARKROOM_CALLBACK_URL when a job has ended; default: false

[[backend]]
name = "canary"             # an order every minute through everything, see docs/runbooks.md#probefailing
adapter = "canary"

[fallback]                  # for orders that name one pool: what is tried after it, see docs/providers.md
comfyui = ["runpod_comfyui"]
"""

import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from shared.domain.canary_order import CANARY_POOL
from shared.domain.errors import DarkroomError
from shared.domain.messages import MAX_POOLS, Name
from shared.domain.rate import Rate
from shared.providers.base import KnownJob, Provider
from shared.providers.canary import Canary
from shared.providers.comfyui import ComfyUI, ignore
from shared.providers.comfyui_http import Observe, Timings
from shared.providers.comfyui_jobs import known_jobs
from shared.providers.http_api import HttpApi
from shared.providers.inputs import Pictures
from shared.providers.table import InvalidTables, Table, host_and_port
from shared.providers.table_files import load_tables
from shared.providers.workflow import Workflows

#: Backends appear as a label in metrics.
MAX_BACKENDS: Final = 20
_HTTP: Final = "http"
_COMFYUI_CAPACITY: Final = 2


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
    #: Makes what fetches an API's pictures, given the one `host:port` that may be on a private network: its own.
    results: Callable[[str], Pictures] = lambda own: Pictures(private_hosts=[own])
    tables: Mapping[str, Table] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: What the backends file says of a backend instead of its table.
    on_unknown: Literal["park", "resubmit_once"] | None = None
    #: Where an API calls back, without the names of provider and job; None: nowhere.
    callback_url: str | None = None


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


def _http(backend: Backend, tools: Tools) -> Provider:
    provider = backend.adapter.partition(":")[2]
    table = tools.tables.get(provider)
    if table is None:
        raise InvalidBackends([f"backend {backend.name}: no table for provider {provider!r}"])
    try:
        ready = table.for_use(tools.environ, url="" if backend.url == table.base_url else backend.url)
    except InvalidTables as error:
        raise InvalidBackends([f"backend {backend.name}: {problem}" for problem in error.problems]) from error
    if tools.on_unknown is not None:
        ready = ready.model_copy(update={"on_unknown": tools.on_unknown})
    return HttpApi(
        backend.name,
        ready,
        workflows=tools.workflows,
        inputs=tools.pictures,
        results=tools.results(host_and_port(ready.base_url)),
        observe=tools.observe,
        unknown_state=tools.unknown_state,
        callback_url=f"{tools.callback_url.rstrip('/')}/callbacks/{provider}" if tools.callback_url else None,
    )


def _canary(backend: Backend, tools: Tools) -> Provider:
    del backend, tools
    return Canary()


ADAPTERS: Final[Mapping[str, Callable[[Backend, Tools], Provider]]] = {
    "comfyui": _comfyui,
    _HTTP: _http,
    CANARY_POOL: _canary,
}


#: How an adapter's server is asked for all jobs it knows; adapters that cannot list any are missing.
LISTS: Final[Mapping[str, Callable[[str], Sequence[KnownJob]]]] = {"comfyui": known_jobs}


class BackendConfig(BaseModel):
    """One server or provider account."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Name
    adapter: str
    provider: Name | None = Field(None, description="http: whose table is read")
    pool: Name = ""
    url: str = Field("", validate_default=True)
    capacity: int = Field(_COMFYUI_CAPACITY, ge=1, le=1000, description="jobs in flight there, over all workers")
    max_run_seconds: float | None = Field(None, gt=0, description="bounds one job; None: the setting")
    rate: Rate | None = Field(None, description="starts there per second or minute, over all workers; None: no limit")
    on_unknown: Literal["park", "resubmit_once"] | None = Field(
        None, description="http: instead of what the table says"
    )

    callbacks: bool = Field(False, description="http: have it call DARKROOM_CALLBACK_URL when a job has ended")

    @model_validator(mode="before")
    @classmethod
    def _pool_has_a_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and "pool" not in values and "adapter" in values:
            is_http = values["adapter"] == _HTTP and "provider" in values
            return {**values, "pool": values["provider"] if is_http else values["adapter"]}
        return values

    @model_validator(mode="after")
    def _has_what_its_adapter_needs(self) -> Self:
        if self.adapter == _HTTP:
            if self.provider is None:
                raise ValueError("provider is missing")
            return self
        if self.adapter == CANARY_POOL and (self.name, self.pool, self.url) != (CANARY_POOL, CANARY_POOL, ""):
            raise ValueError("the canary's name and pool are canary, and it has no url")
        if CANARY_POOL in (self.name, self.pool) and self.adapter != CANARY_POOL:
            raise ValueError("the name and the pool canary are the canary's")
        if self.provider is not None or self.on_unknown is not None or self.callbacks:
            raise ValueError("provider, on_unknown and callbacks are for adapter http")
        return self

    @property
    def kind(self) -> str:
        """The adapter as the table `backends` keeps it, where nobody has the file."""
        return self.adapter if self.provider is None else f"{self.adapter}:{self.provider}"

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
    def _is_plain_http(cls, url: str, info: ValidationInfo) -> str:
        if not url and info.data.get("adapter") in (_HTTP, CANARY_POOL):
            return url  # its table says where it is, or it is nowhere
        parts = urlsplit(url)  # raises ValueError for a broken one
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError("must be http://host:port or https://host:port")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("must hold no credentials, query or fragment")
        return url.rstrip("/")


def load_backends(path: Path, tables: Mapping[str, Table] | None = None) -> tuple[BackendConfig, ...]:
    """Every backend of the file, in its order, with what its table says where it says nothing itself.

    tables -- None: the shipped ones

    Raises InvalidBackends with every mistake in it.
    """
    known = load_tables() if tables is None else tables
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidBackends([f"{path.name} cannot be read: {error}"]) from error
    tables = values.pop("backend", [])
    fallbacks = values.pop("fallback", {})
    problems = [f"unknown key {key}" for key in values]
    backends: list[BackendConfig] = []
    if not isinstance(tables, list) or not tables:
        raise InvalidBackends([*problems, f"{path.name} has no [[backend]]"])
    if len(tables) > MAX_BACKENDS:
        problems.append(f"{len(tables)} backends are more than {MAX_BACKENDS}")
    for number, table in enumerate(tables, start=1):
        try:
            backends.append(_filled_in(table, known))
        except ValidationError as error:
            name = table.get("name") if isinstance(table, dict) else None
            problems += [_sentence(number, name, item["loc"], item["msg"]) for item in error.errors()]
        except InvalidBackends as error:
            problems += [f"backend {table['name']}: {problem}" for problem in error.problems]
    names = Counter(str(table["name"]) for table in tables if isinstance(table, dict) and "name" in table)
    problems += [f"backend {name} is there {count} times" for name, count in names.items() if count > 1]
    problems += _wrong_fallbacks(fallbacks, {backend.pool for backend in backends})
    if problems:
        raise InvalidBackends(problems)
    return tuple(backends)


def load_fallbacks(path: Path) -> dict[str, list[str]]:
    """The pools that are tried after a pool, by its name, from a file that `load_backends` has taken."""
    found: dict[str, list[str]] = tomllib.loads(path.read_text(encoding="utf-8")).get("fallback", {})
    return found


def _wrong_fallbacks(fallbacks: Any, pools: Collection[str]) -> list[str]:
    if not isinstance(fallbacks, dict):
        return ["fallback must be a table of pools"]
    wrong = []
    for pool, others in fallbacks.items():
        named = [pool, *others] if isinstance(others, list) and others else []
        if not named or not all(isinstance(name, str) for name in named) or not 2 <= len(named) <= MAX_POOLS:
            wrong.append(f"fallback {pool}: must be a list of 1 to {MAX_POOLS - 1} pools")
            continue
        if len(set(named)) < len(named):
            wrong.append(f"fallback {pool}: names one twice")
        wrong += [f"fallback {pool}: no backend has the pool {name!r}" for name in named if name not in pools]
    return wrong


def _filled_in(values: Any, tables: Mapping[str, Table]) -> BackendConfig:
    backend = BackendConfig.model_validate(values)
    if backend.provider is None:
        return backend
    table = tables.get(backend.provider)
    if table is None:
        raise InvalidBackends([f"provider: no table for it; there are: {', '.join(sorted(tables))}"])
    if backend.callbacks and table.callback is None:
        raise InvalidBackends(["callbacks: this provider calls nobody back"])
    from_table = {"url": table.base_url, "capacity": table.capacity, "rate": table.rate}
    left_out = {key: value for key, value in from_table.items() if key not in backend.model_fields_set}
    return backend.model_copy(update=left_out)


def build(backend: Backend, tools: Tools) -> Provider:
    """The provider of one backend.

    Raises InvalidBackends for an adapter or a provider this version does not have, and for variables that are not set.
    """
    adapter = ADAPTERS.get(backend.adapter.partition(":")[0])
    if adapter is None:
        raise InvalidBackends([f"backend {backend.name}: no adapter {backend.adapter}"])
    return adapter(backend, tools)


def _sentence(number: int, name: Any, location: Sequence[int | str], message: str) -> str:
    place = ".".join(str(part) for part in location)
    return f"backend {name or number}: {f'{place}: ' if place else ''}{message.removeprefix('Value error, ')}"
