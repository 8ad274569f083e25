"""What a provider's table may say: how its API is called, read, and asked after a lost answer. See docs/providers.md.

Pure; `table_files` reads them. A table never holds a secret: `${NAME}` stands for a variable of the environment, is
put in when a backend is built (`Table.for_use`), and is shown nowhere.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from shared.domain.errors import DarkroomError
from shared.domain.rate import Rate
from shared.providers import pointers, templates
from shared.providers.table_inputs import Input

_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_METHODS: Final = frozenset({"GET", "POST", "PUT", "DELETE"})
_ABSOLUTE: Final = re.compile(r"(?<= )https://[^/?]+(?=[/?])")


class InvalidTables(DarkroomError):
    """At least one table is wrong; `problems` names every mistake of all of them, and no secret."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class ErrorClass(StrEnum):
    """What an answer that is no success allows next, see shared/domain/errors.py."""

    NOT_SENT = "not_sent"
    RATE_LIMITED = "rate_limited"
    ACCOUNT = "account"
    PERMANENT = "permanent"
    CONTENT_REJECTED = "content_rejected"
    RETRYABLE = "retryable"
    AMBIGUOUS = "ambiguous"
    LOST = "lost"


class JobStatus(StrEnum):
    """What a provider's own word for a job's status means. fetch: the result must be asked for to know."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    FETCH = "fetch"


class Recovery(StrEnum):
    """How the provider can be asked what became of a POST whose answer was lost."""

    OWN_ID = "own_id"  # our key is the job's id: ask for it
    KEY_REPLAYS = "key_replays"  # the same key and body answer with the same job
    KEY_REJECTS = "key_rejects"  # a used key is refused, without the job's id
    LIST_PAYLOAD = "list_payload"  # a list of jobs shows our seed
    LIST_WEAK = "list_weak"  # a list of jobs shows times only: candidates for a person
    CALLBACK = "callback"  # a callback that carries our key brings the id
    NONE = "none"


Phase = Literal["submit", "poll", "fetch", "cancel", "list"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def _is_a_pointer(pointer: str) -> str:
    if problem := pointers.problem(pointer):
        raise ValueError(problem)
    return pointer


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _is_a_request(request: str) -> str:
    method, _, target = request.partition(" ")
    if method not in _METHODS or not (target.startswith("/") or re.fullmatch(r"\{[a-z_]+\}|https://\S+", target)):
        raise ValueError("must be a method and a path, such as GET /tasks/{job_id}")
    return request


def _is_a_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    return pattern


Pointer = Annotated[str, AfterValidator(_is_a_pointer)]
Pointers = Annotated[list[Pointer], BeforeValidator(_as_list)]
Request = Annotated[str, AfterValidator(_is_a_request)]
Requests = Annotated[list[Request], BeforeValidator(_as_list), Field(min_length=1)]
Pattern = Annotated[str, AfterValidator(_is_a_pattern)]
Seconds = Annotated[float, Field(ge=0, le=86400)]


class Auth(_Part):
    """The header that holds our key."""

    header: str
    value: str = Field(repr=False)


class Timeouts(_Part):
    """connect, submit_read, poll_read: longest silence. settle: how long until a new job shows where it is sought."""

    connect_s: float = Field(5, gt=0, le=60)
    submit_read_s: float = Field(30, gt=0, le=1500)
    poll_read_s: float = Field(15, gt=0, le=300)
    settle_s: Seconds = 60


class _Requesting(_Part):
    """A part of a table that names what is asked for; several: the first whose braces can all be filled is taken."""

    request: str | list[str]


class Sending(_Requesting):
    """One way to submit. `{name}` in the request and `$name` in the body stand for inputs."""

    request: Request
    encode: Literal["json", "multipart"] = "json"
    body: dict[str, Any] = Field(default_factory=dict)


class Submit(Sending):
    """with_images -- what is different when the order brings pictures. save -- name -> pointer, kept with the job."""

    headers: dict[str, str] = Field(default_factory=dict)
    with_images: Sending | None = None
    job_id: Pointers = Field(default_factory=list)
    status: Pointer | None = None
    save: dict[str, Pointer] = Field(default_factory=dict)


class Poll(_Requesting):
    request: Requests
    status: Pointer
    map: dict[str, JobStatus] = Field(min_length=1)
    failed_if: Pointer | None = None
    lost_if: Pointer | None = None


class Asking(_Requesting):
    request: Requests


class Images(_Part):
    """Where pictures stand. kind_from -- the field beside it that says which of `kinds` it is."""

    at: Pointer
    kind: Literal["url", "base64"] | None = None
    kind_from: str | None = None
    kinds: dict[str, Literal["url", "base64"]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_its_kind(self) -> Self:
        if (self.kind is None) == (self.kind_from is None) or bool(self.kinds) != (self.kind_from is not None):
            raise ValueError("give either kind, or kind_from with kinds")
        return self


class Result(_Part):
    """empty -- what a success without a picture is. rejected_if -- true when the pictures were blacked out."""

    images: list[Images] = Field(min_length=1)
    empty: Literal[ErrorClass.RETRYABLE, ErrorClass.PERMANENT] = ErrorClass.RETRYABLE
    rejected_if: Pointer | None = None


class Cost(_Part):
    """at_submit and at_end -- where the answers say what the job costs. estimate -- what we reckon when they do not."""

    unit: str = Field(min_length=1, max_length=20)
    estimate: float | None = Field(None, ge=0)
    at_submit: Pointer | None = None
    at_end: Pointer | None = None


class Listing(_Requesting):
    """A list of the account's jobs of one span of time.

    time     -- how {after} and {before} are written: iso, or a pattern of strftime; both are UTC
    seed     -- list_payload: where in a row the seed stands that we sent
    next     -- where the address of the next page stands, if there is one
    proves   -- whether a job that two looks did not find was never made
    """

    request: Request
    rows: Pointers
    job_id: Pointer
    time: str = "iso"
    seed: Pointer | None = None
    next: Pointer | None = None
    proves: bool = False


class Key(_Part):
    """The header in which our key goes with a POST, and for how long the provider remembers it."""

    header: str
    ttl_s: Seconds = 82800


class Callback(_Part):
    """How the provider is asked to call when a job has ended, and how it signs the call. Used where it is switched on.

    query, body -- the parameter of the address, or the fields of the body, that hold our address: $callback_url
    verify      -- None: the call is not signed, so nothing of it is believed
    secret      -- standard_webhooks: what it signs with; of all that holds ${NAME}, only the producer needs it
    keys        -- fal_ed25519: where its public keys are
    job_id      -- where a signed call names the job
    """

    query: str | None = None
    body: dict[str, Any] = Field(default_factory=dict)
    verify: Literal["standard_webhooks", "fal_ed25519"] | None = None
    secret: str | None = Field(None, repr=False)
    keys: str | None = None
    job_id: Pointer | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if (self.query is None) == (not self.body):
            raise ValueError("give either query or body")
        if self.body and {name for name, _ in templates.names_in(self.body)} != {"callback_url"}:
            raise ValueError("body needs $callback_url and no other value")
        if (self.secret is not None) != (self.verify == "standard_webhooks"):
            raise ValueError("secret goes with verify standard_webhooks")
        if (self.keys is not None) != (self.verify == "fal_ed25519"):
            raise ValueError("keys goes with verify fal_ed25519")
        return self

    def for_use(self, environ: Mapping[str, str], *, url: str = "") -> Self:
        """With its secret put in. url -- as for a table. Raises InvalidTables."""
        found = _VARIABLE.findall(self.secret or "")
        if missing := [name for name in found if not environ.get(name)]:
            raise InvalidTables([f"{name} is not set in the environment" for name in missing])
        secret = self.secret and _VARIABLE.sub(lambda name: environ[name[1]].strip(), self.secret)
        keys = re.sub("^https://[^/]+", url, self.keys) if self.keys and url else self.keys
        return self.model_copy(update={"secret": secret, "keys": keys})


class Rule(_Part):
    """What an answer is, when all that the rule names agrees. The first rule that fits decides."""

    code: list[str] = Field(default_factory=list)
    message: Pattern | None = None
    http: list[int] = Field(default_factory=list)
    phase: list[Phase] = Field(default_factory=list)
    is_: ErrorClass = Field(alias="class")

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not (self.code or self.message or self.http):
            raise ValueError("name a code, a message or an http status")
        return self


class Table(_Part):
    """One provider."""

    shape: Literal["sync", "submit_poll"]
    base_url: str
    trusted_hosts: list[str] = Field(default_factory=list)
    auth: Auth
    capacity: int = Field(5, ge=1, le=1000)
    rate: Annotated[Rate, BeforeValidator(Rate.read)] | None = None
    timeouts: Timeouts = Field(default_factory=Timeouts)
    rate_limit_wait_s: float = Field(5, gt=0, le=3600, description="after a 429 that does not say how long")
    retry_after_text: Pattern | None = None
    result_ttl_s: float | None = Field(None, gt=0)
    recovery: Recovery = Recovery.NONE
    on_unknown: Literal["park", "resubmit_once"] = "park"
    key: Key | None = None
    workflow: bool = Field(False, description="orders name a workflow; $graph and $graph_images are made from it")
    error_code: Pointers = Field(default_factory=list)
    error_message: Pointers = Field(default_factory=list)
    inputs: dict[str, Input] = Field(default_factory=dict)
    submit: Submit
    poll: Poll | None = None
    fetch: Asking | None = None
    result: Result
    cost: Cost | None = None
    cancel: Asking | None = None
    listing: Listing | None = Field(None, alias="list")
    callback: Callback | None = None
    errors: list[Rule] = Field(default_factory=list)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if problems := list(_disagreements(self)):
            raise ValueError("; ".join(problems))
        return self

    @property
    def variables(self) -> set[str]:
        """The variables of the environment it needs."""
        texts = (self.base_url, self.auth.value, *self.submit.headers.values())
        return {name for text in texts for name in _VARIABLE.findall(text)}

    @property
    def submit_limit_seconds(self) -> float:
        """A body may begin just before the read time-out and then be silent for as long again."""
        return self.timeouts.connect_s + 2 * self.timeouts.submit_read_s

    def for_use(self, environ: Mapping[str, str], *, url: str = "") -> Self:
        """The table with its variables put in. Raises InvalidTables.

        url -- takes the place of base_url and of every other address in the table, which are then paths below it
        """
        base = url or self.base_url
        needed = self.variables if not url else self.variables - set(_VARIABLE.findall(self.base_url))
        if missing := sorted(name for name in needed if not environ.get(name)):
            raise InvalidTables([f"{name} is not set in the environment" for name in missing])

        def put_in(text: str) -> str:
            return _VARIABLE.sub(lambda found: environ[found[1]].strip(), text)

        ready = self._moved() if url else self
        return ready.model_copy(
            update={
                "base_url": put_in(base).rstrip("/"),
                "auth": Auth(header=self.auth.header, value=put_in(self.auth.value)),
                "submit": ready.submit.model_copy(
                    update={"headers": {name: put_in(text) for name, text in self.submit.headers.items()}}
                ),
            }
        )

    def _moved(self) -> Self:
        """Every request is a path, whatever host the table has it at."""

        def moved(part: _Requesting | None) -> _Requesting | None:
            if part is None:
                return None
            request = part.request
            paths = _ABSOLUTE.sub("", request) if isinstance(request, str) else [_ABSOLUTE.sub("", r) for r in request]
            return part.model_copy(update={"request": paths})

        parts: dict[str, Any] = {name: moved(getattr(self, name)) for name in ("poll", "fetch", "cancel", "listing")}
        sending = self.submit.model_copy(update={"with_images": moved(self.submit.with_images)})
        return self.model_copy(update=parts | {"submit": moved(sending)})

    def problems(self, inputs: Mapping[str, Any]) -> list[str]:
        """One sentence per mistake in an order's inputs. Pure; says nothing of the values themselves."""
        return [f"input {name[:64]} {problem}" for name, problem in self.wrong_inputs(inputs).items()]

    def wrong_inputs(self, inputs: Mapping[str, Any]) -> dict[str, str]:
        """Name of each wrong input -> the end of a sentence that says why. Pure."""
        wrong = {str(name): "is unknown" for name in inputs if name not in self.inputs}
        for name, spec in self.inputs.items():
            if name in inputs:
                problem = spec.problem(inputs[name])
                wrong |= {name: problem} if problem else {}
            elif spec.is_required:
                wrong[name] = "is missing"
        return wrong


def host_and_port(url: str) -> str:
    """`host:port`, also where the URL leaves the port to its scheme. Pure."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


#: Values a body may name that no order gives.
OUR_VALUES: Final = frozenset({"order_seed", "job_key"})
_GRAPH_VALUES: Final = frozenset({"graph", "graph_images"})


def _disagreements(table: Table) -> Iterator[str]:
    """What is wrong although each part is right."""
    if urlsplit(table.base_url).scheme not in ("http", "https") or not urlsplit(table.base_url).hostname:
        yield "base_url must be http://host or https://host"
    if table.shape == "sync" and (table.poll or table.fetch or table.cancel or table.listing):
        yield "a sync provider has no poll, fetch, cancel or list"
    if table.shape == "sync" and table.callback:
        yield "a sync provider calls nobody back"
    if table.recovery is Recovery.CALLBACK and (table.callback is None or table.callback.job_id is None):
        yield "recovery callback needs [callback] with job_id"
    if table.shape == "submit_poll" and (table.poll is None or not table.submit.job_id):
        yield "submit_poll needs poll and submit.job_id"
    if table.poll is not None and (JobStatus.FETCH in table.poll.map.values()) != (table.fetch is not None):
        yield "a status that means fetch and [fetch] go together"
    if (table.recovery in (Recovery.KEY_REPLAYS, Recovery.KEY_REJECTS)) != (table.key is not None):
        yield "[key] goes with recovery key_replays or key_rejects"
    if (table.recovery in (Recovery.LIST_PAYLOAD, Recovery.LIST_WEAK)) != (table.listing is not None):
        yield "[list] goes with recovery list_payload or list_weak"
    if table.listing is not None and (table.recovery is Recovery.LIST_PAYLOAD) != (table.listing.seed is not None):
        yield "list.seed goes with recovery list_payload"
    if table.recovery is Recovery.OWN_ID and table.shape == "sync":
        yield "a sync provider cannot be asked for an id"
    yield from _unknown_names(table)


def _unknown_names(table: Table) -> Iterator[str]:
    known = set(table.inputs) | OUR_VALUES | (_GRAPH_VALUES if table.workflow else set())
    for where, sending in (("submit", table.submit), ("submit.with_images", table.submit.with_images)):
        if sending is None:
            continue
        try:
            used = list(templates.names_in(sending.body))
        except ValueError as error:
            yield f"{where}.body: {error}"
            continue
        for name, is_optional in used:
            if name not in known:
                yield f"{where}.body: ${name} is no input"
            elif name in table.inputs and not is_optional and not table.inputs[name].is_sure(where != "submit"):
                yield f"{where}.body: ${name} may be missing, so write ${name}?"
        for name in templates.places_in(sending.request) - known:
            yield f"{where}.request: {{{name}}} is no input"
    saved = set(table.submit.save) | {"job_id", "job_key"} | set(table.inputs)
    for where, asking in (("poll", table.poll), ("fetch", table.fetch), ("cancel", table.cancel)):
        for request in asking.request if asking is not None else ():
            for name in templates.places_in(request) - saved:
                yield f"{where}.request: {{{name}}} is neither saved nor an input"
    if table.listing is not None:
        for name in templates.places_in(table.listing.request) - {"after", "before"} - set(table.inputs):
            yield f"list.request: {{{name}}} is neither after, before nor an input"
