"""Every setting of the system, read once in `__main__` and passed down as plain values."""

import difflib
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shared.domain.retry import RetryPolicy
from shared.observe.crash import KillAt, read_kill_at

PREFIX: Final = "DARKROOM_"
#: Written by `make up`; KEY=value lines that name the private servers of this checkout.
LOCAL_ENV: Final = Path(".local/env")

_POSTGRES_DRIVER = "postgresql+psycopg2"
_TOKEN_CHARACTERS: Final = 16
#: What RFC 6750 lets a bearer token be made of.
_TOKEN: Final = re.compile(rf"[A-Za-z0-9._~+/-]{{{_TOKEN_CHARACTERS},}}=*")


class SettingsError(Exception):
    """The settings cannot be used. str() is a few plain lines, one per mistake, without any secret."""


def _instance() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class Settings(BaseSettings):
    """One field per environment variable: DARKROOM_DATABASE_URL sets `database_url`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=PREFIX, hide_input_in_errors=True)

    database_url: SecretStr = Field(
        description="the PostgreSQL database; `postgresql://` and `postgres://` are read as `postgresql+psycopg2://`"
    )
    amqp_url: SecretStr = Field(
        description="the RabbitMQ broker, `amqp://` or `amqps://`; several nodes of one cluster are separated by commas"
    )
    backends_file: Path | None = Field(None, description="TOML file that names the backends, one table each")
    providers_dir: Path | None = Field(
        None, description="folder of provider tables of your own, `*.toml`, beside the shipped ones"
    )
    workflows_dir: Path = Field(Path("deploy/workflows"), description="folder of the workflow templates")
    artifacts_url: str = Field(
        "pictures",
        min_length=1,
        description="where pictures are kept: a folder (plain path or `file:///…`), `s3://…`, `gs://…` or `az://…`",
    )
    http_host: str = Field("127.0.0.1", min_length=1, description="address the HTTP interface listens on")
    http_port: int = Field(8080, ge=0, le=65535, description="port of the HTTP interface; 0 takes any free one")
    http_tokens: SecretStr | None = Field(
        None,
        description="bearer tokens of the HTTP interface, separated by commas, any of them is good; without one it"
        " listens on a loopback address only",
    )
    callback_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s?#]+$",
        description="where API providers reach the HTTP interface from outside, such as `https://shop.example/darkroom`;"
        " needed by backends with `callbacks = true`",
    )
    http_read_tokens: SecretStr | None = Field(
        None, description="further bearer tokens, which may look at orders and pictures but not place or cancel"
    )
    console_host: str = Field("127.0.0.1", min_length=1, description="address the web console listens on")
    console_port: int = Field(
        8081, ge=-1, le=65535, description="port of the web console; 0 takes any free one, -1 serves none"
    )
    console_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s/?#]+/?$",
        description="where browsers reach the web console when a proxy stands before it, such as"
        " `https://darkroom.example`; with https its cookie is sent over https alone",
    )
    metrics_host: str = Field("127.0.0.1", min_length=1, description="address of /metrics, /livez and /readyz")
    metrics_port: int = Field(
        9100, ge=-1, le=65535, description="port of /metrics, /livez and /readyz; 0 takes any free one, -1 serves none"
    )
    input_folders: tuple[Path, ...] = Field(
        (), description="folders that `file:` inputs may come from, separated by commas; none by default"
    )
    allow_private_inputs: bool = Field(
        False, description="whether input URLs may lead to private and loopback addresses"
    )
    prefetch_comfyui: int = Field(10, ge=1, le=256, description="deliveries one worker holds of the pool comfyui")
    prefetch_api: int = Field(5, ge=1, le=256, description="deliveries one worker holds per API provider")
    prefetch_intake: int = Field(200, ge=1, le=2000, description="orders one worker holds, and claims in one batch")
    hold_seconds: float = Field(
        600.0, ge=0, le=1500, description="how long a permit waits in hand for a slot; under the broker's ack timeout"
    )
    lease_seconds: float = Field(
        300.0, ge=1, le=3600, description="how long a submitter owns a row it took; longer than one submission may last"
    )
    backend_timeout_seconds: float = Field(
        30.0, gt=0, le=600, description="longest silence of a backend while it takes a POST or an upload"
    )
    input_timeout_seconds: float = Field(30.0, gt=0, le=600, description="longest time one input picture may take")
    check_interval_seconds: float = Field(2.0, gt=0, le=3600, description="time between two looks at a running job")
    schedule_interval_seconds: float = Field(0.5, gt=0, le=60, description="time between two looks for due rows")
    permit_interval_seconds: float = Field(
        3.0, gt=0, le=300, description="time between two rounds that make missing permits again"
    )
    settle_seconds: float = Field(
        2.0, ge=0, le=600, description="how long an absent job must stay absent before that counts as proven"
    )
    max_run_seconds: float = Field(1800.0, gt=0, le=86400, description="longest run of one job at a backend")
    frozen_after_seconds: float = Field(
        60.0, gt=0, le=3600, description="a job that outlives its cancelling by so long means its server is frozen"
    )
    fallback_after_seconds: float = Field(
        60.0,
        ge=0,
        le=86400,
        description="how long an order waits for a pool that takes no work before it goes on in its next one",
    )
    default_deadline_seconds: float = Field(
        86400.0, gt=0, le=30 * 86400, description="time an order has when it names no deadline"
    )
    retry_max_attempts: int = Field(5, ge=1, le=100, description="charged attempts an order has")
    retry_first_seconds: float = Field(10.0, ge=0, le=3600, description="longest wait before the second attempt")
    retry_factor: float = Field(3.0, ge=1, le=10, description="how much longer each further wait may be")
    retry_cap_seconds: float = Field(900.0, ge=0, le=86400, description="longest wait between two attempts")
    drain_seconds: float = Field(30.0, ge=0, le=600, description="time to finish what is in hand after SIGTERM")
    brake_after: int = Field(50, ge=1, description="a consumer that buries so many in a row stops itself")
    confirm_timeout_seconds: float = Field(5.0, gt=0, le=300, description="longest wait for the broker's confirm")
    instance: str = Field(
        default_factory=_instance, min_length=1, max_length=100, description="name of this process in logs and rows"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least level that is logged")
    kill_at: KillAt | None = Field(
        None,
        description="for drills only: the process kills itself (SIGKILL) at this crash point, `name` or `name:nth`;"
        " docs/drill.md names them",
    )

    @property
    def amqp_urls(self) -> list[str]:
        """The brokers to try, in the order they were named. Secret: do not log."""
        return _split(self.amqp_url.get_secret_value())

    @property
    def http_token_values(self) -> list[str]:
        """Secret: do not log."""
        return [] if self.http_tokens is None else _split(self.http_tokens.get_secret_value())

    @property
    def http_read_token_values(self) -> list[str]:
        """Secret: do not log."""
        return [] if self.http_read_tokens is None else _split(self.http_read_tokens.get_secret_value())

    @property
    def retry(self) -> RetryPolicy:
        return RetryPolicy(
            max_charged=self.retry_max_attempts,
            first_seconds=self.retry_first_seconds,
            factor=self.retry_factor,
            cap_seconds=self.retry_cap_seconds,
        )

    @field_validator("database_url", mode="after")
    @classmethod
    def _must_be_postgresql(cls, value: SecretStr) -> SecretStr:
        scheme, separator, rest = value.get_secret_value().strip().partition("://")
        if not separator or scheme not in ("postgres", "postgresql", _POSTGRES_DRIVER):
            raise ValueError("must begin with postgresql://")
        return SecretStr(f"{_POSTGRES_DRIVER}://{rest}")

    @field_validator("amqp_url", mode="after")
    @classmethod
    def _must_be_amqp(cls, value: SecretStr) -> SecretStr:
        urls = _split(value.get_secret_value())
        if not urls or not all(url.startswith(("amqp://", "amqps://")) for url in urls):
            raise ValueError("each address must begin with amqp:// or amqps://")
        return value

    @field_validator("http_tokens", "http_read_tokens", mode="after")
    @classmethod
    def _must_be_hard_to_guess(cls, value: SecretStr | None) -> SecretStr | None:
        tokens = [] if value is None else _split(value.get_secret_value())
        if not all(_TOKEN.fullmatch(token) for token in tokens):
            raise ValueError(f"each token needs {_TOKEN_CHARACTERS} characters or more: letters, digits and -._~+/=")
        return value if tokens else None

    @field_validator("input_folders", mode="before")
    @classmethod
    def _from_a_list(cls, value: Any) -> Any:
        return tuple(_split(value)) if isinstance(value, str) else value

    @field_validator("kill_at", mode="before")
    @classmethod
    def _a_crash_point(cls, value: Any) -> Any:
        return read_kill_at(value) if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_capitals(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _must_agree(self) -> Self:
        if self.retry_cap_seconds < self.retry_first_seconds:
            raise ValueError(f"{PREFIX}RETRY_CAP_SECONDS is less than {PREFIX}RETRY_FIRST_SECONDS")
        if self.max_run_seconds <= self.check_interval_seconds:
            raise ValueError(f"{PREFIX}MAX_RUN_SECONDS is not more than {PREFIX}CHECK_INTERVAL_SECONDS")
        if self.http_read_tokens is not None and self.http_tokens is None:
            raise ValueError(f"{PREFIX}HTTP_READ_TOKENS without {PREFIX}HTTP_TOKENS: nobody could place an order")
        if set(self.http_read_token_values) & set(self.http_token_values):
            raise ValueError(f"a token of {PREFIX}HTTP_READ_TOKENS is one of {PREFIX}HTTP_TOKENS too")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the library's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Values come through `load_settings` alone, so a test's settings never depend on the shell it runs in."""
        return (init_settings,)


def load_settings(environ: Mapping[str, str] | None = None, dotenv: Path | None = LOCAL_ENV) -> Settings:
    """The settings of this process. The environment wins over `dotenv`, a missing file counts as empty.

    environ -- the process's own when None. An empty value counts as not set, as compose files write it.

    A secret may stand in a file instead: DARKROOM_AMQP_URL_FILE names the one that holds `amqp_url`.

    Raises SettingsError naming every mistake at once, a misspelt DARKROOM_ variable with the nearest right one.
    """
    in_file = dotenv_values(dotenv, interpolate=False) if dotenv is not None and dotenv.is_file() else {}
    mistakes: list[str] = []
    ours: dict[str, str] = {}
    for given in (in_file, os.environ if environ is None else environ):
        ours |= _with_files_read({name: value or "" for name, value in given.items()}, mistakes)
    known = {_variable(field): field for field in Settings.model_fields}

    mistakes += [_misspelt(name, list(known)) for name in sorted(ours) if name not in known]
    values = {known[name]: value for name, value in ours.items() if name in known and value}
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        mistakes += [_sentence(problem, values) for problem in error.errors(include_url=False, include_context=False)]
        raise _refusal(mistakes) from None  # the cause would print what the secrets begin with
    if mistakes:
        raise _refusal(mistakes)
    return settings


def _with_files_read(given: Mapping[str, str], mistakes: list[str]) -> dict[str, str]:
    """Our variables among `given`, each ..._FILE of a secret replaced by what its file says."""
    ours = {name: value for name, value in given.items() if name.startswith(PREFIX)}
    for secret in [_variable(name) for name in Settings.model_fields if _is_secret(name)]:
        file = ours.pop(f"{secret}_FILE", "")
        if file and ours.get(secret):
            mistakes.append(f"{secret} and {secret}_FILE are both set: keep one")
        elif file:
            try:
                ours[secret] = Path(file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                mistakes.append(f"{secret}_FILE cannot be read: {error}")
                ours.pop(secret, None)
    return ours


def settings_table() -> str:
    """The settings as a markdown table for the README: variable, default, meaning."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        lines.append(f"| `{_variable(name)}` | {_shown_default(name)} | {field.description} |")
    return "\n".join(lines) + "\n"


def _shown_default(name: str) -> str:
    field = Settings.model_fields[name]
    if field.default_factory is not None:
        return "host name and process id"
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None or field.default == ():
        return "none"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, float):
        return f"`{field.default:g}`"
    return f"`{field.default}`"


def _is_secret(name: str) -> bool:
    return Settings.model_fields[name].annotation in (SecretStr, SecretStr | None)


def _variable(field: str) -> str:
    return PREFIX + field.upper()


def _split(value: str) -> list[str]:
    return [part for part in (part.strip() for part in value.split(",")) if part]


def _refusal(mistakes: list[str]) -> SettingsError:
    return SettingsError("\n".join(["These settings cannot be used:", *(f"  {mistake}" for mistake in mistakes)]))


def _misspelt(name: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"{name} is not a setting" + (f"; did you mean {nearest[0]}?" if nearest else "")


def _sentence(problem: Any, values: Mapping[str, Any]) -> str:
    """One line about one pydantic error. A secret's value is left out, any other is shown."""
    message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if not problem["loc"]:
        return message
    field = str(problem["loc"][0])
    description = Settings.model_fields[field].description
    if problem["type"] == "missing":
        return f"{_variable(field)} is not set: {description}"
    given = "" if _is_secret(field) or field not in values else f" (it is {values[field]!r})"
    return f"{_variable(field)} {message}{given}"
