"""What became of a POST whose answer nobody has: each provider can be asked in a way of its own, or cannot.

own_id        ask for our key; a job that stays absent for the settling time was never made
key_replays   the same POST again answers with the same job, as long as the provider remembers the key
key_rejects   one repeat: it makes the job, or is refused because the first one did
list_payload  look for our seed in the jobs of that time
list_weak     name the jobs of that time for a person to choose from
callback      wait for the callback, which brings the id
none          nothing can be learned
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

from shared.providers import pointers
from shared.providers.base import Accepted, Gone, Job, JobState, Repeat, Unclear
from shared.providers.table import Listing, Recovery, Table

#: Clocks differ: a list is asked for so many seconds more on both sides.
_MARGIN_SECONDS: Final = 30.0
#: Candidates named for a person.
_NAMED: Final = 10
#: Pages of a list that are read; with more of them an absence proves nothing.
_PAGES: Final = 20


class Api(Protocol):
    """What recovering needs of an HttpApi."""

    name: str
    table: Table

    def state_of(self, job: Job) -> JobState | None: ...
    def list_url(self, values: Mapping[str, str]) -> str: ...
    def listed(self, url: str) -> Any: ...


def seed_of(job: Job) -> int:
    """The seed written into the request: anybody can derive it again. Pure."""
    return provider_seed(job.seed)


def provider_seed(seed: int) -> int:
    """As an API is given it: every one takes 31 bits. Pure."""
    return seed % 2**31


def recover(api: Api, job: Job) -> Accepted | Gone | Repeat | Unclear:
    """See shared.providers.base.Provider.recover. Raises ProviderAway."""
    sent = job.sent
    if sent is None or (sent.posts == 0 and job.provider_job_id is None):
        return Gone()  # posts are counted before they leave
    if job.provider_job_id is not None:
        return Accepted(job.provider_job_id, job.handle)
    settle = api.table.timeouts.settle_s
    match api.table.recovery:
        case Recovery.OWN_ID:
            return _by_own_id(api, job, settle)
        case Recovery.KEY_REPLAYS:
            key = api.table.key
            if key is not None and sent.age_seconds < key.ttl_s:
                return Repeat(_told(api, job, "it may be sent again under the same key"))
            return unclear(api, job, "the key under which it was sent is too old to be sent again")
        case Recovery.KEY_REJECTS:
            if sent.posts < 2:
                return Repeat(_told(api, job, "it may be sent again under the same key"))
            return unclear(api, job, "it was sent again under the same key")
        case Recovery.LIST_PAYLOAD | Recovery.LIST_WEAK:
            return _by_list(api, job, settle)
        case Recovery.CALLBACK:
            if sent.age_seconds < settle:
                return Unclear("a callback is waited for", ask_in=settle - sent.age_seconds)
            return unclear(api, job, f"no callback came within {settle:g} s")
        case Recovery.NONE:
            return unclear(api, job, "this provider cannot be asked")


def unclear(api: Api, job: Job, searched: str) -> Repeat | Unclear:
    """It will never be known. Whether one more POST is worth a second bill, the table decides."""
    assert job.sent is not None  # noqa: S101 - nothing is unclear before something was sent
    told = _told(api, job, searched)
    if api.table.on_unknown == "resubmit_once" and job.sent.posts < 2:
        return Repeat(told, may_double=True)
    return Unclear(told)


def _by_own_id(api: Api, job: Job, settle: float) -> Accepted | Gone | Unclear:
    assert job.sent is not None  # noqa: S101 - see recover
    state = api.state_of(job)
    if state is None:
        return Unclear("its id was asked for, without an answer that says anything", ask_in=settle)
    if not isinstance(state, Gone):
        return Accepted(str(job.job_key))
    if job.sent.looks == 0:
        return Unclear("its id was asked for and is not there yet", ask_in=settle)
    return Gone()


def _by_list(api: Api, job: Job, settle: float) -> Accepted | Gone | Repeat | Unclear:
    listing, sent = api.table.listing, job.sent
    assert listing is not None  # noqa: S101 - the table was checked
    assert sent is not None  # noqa: S101 - see recover
    assert sent.first_at is not None  # noqa: S101 - something was sent
    after = sent.first_at - timedelta(seconds=_MARGIN_SECONDS)
    before = sent.now + timedelta(seconds=_MARGIN_SECONDS)
    ids, is_whole = _listed(api, listing, job.inputs, after, before)
    where = f"{len(ids)} jobs of that time were listed"
    if listing.seed is None:
        named = f"; it may be one of: {', '.join(id_ for _, id_ in ids[:_NAMED])}" if ids else ""
        return unclear(api, job, where + named)
    ours = [id_ for row, id_ in ids if pointers.first(row, [listing.seed]) == seed_of(job)]
    if ours:
        return Accepted(ours[0])
    if sent.looks == 0:
        return Unclear(f"{where}, none with seed {seed_of(job)}", ask_in=settle)
    # A job whose input the provider has thrown away, or that somebody else made, may be ours for all that is known.
    seedless = [id_ for row, id_ in ids if pointers.first(row, [listing.seed]) is None]
    if listing.proves and is_whole and not seedless:
        return Gone()
    why = f"these show no seed: {', '.join(seedless[:_NAMED])}" if seedless else "one that waits may not be listed"
    return unclear(api, job, f"{where}, twice, none with seed {seed_of(job)}; {why}")


def listed_seeds(
    api: Api, inputs: Mapping[str, Any], after: datetime, before: datetime
) -> tuple[list[tuple[str, Any]], bool]:
    """The id and the seed of each job that the provider lists for this time, and whether these are all of them.

    inputs -- of an order, since some lists are asked for by model

    Raises ProviderAway.
    """
    listing = api.table.listing
    if listing is None or listing.seed is None:
        return [], False
    ids, is_whole = _listed(api, listing, inputs, after, before)
    return [(id_, pointers.first(row, [listing.seed])) for row, id_ in ids], is_whole


def _listed(
    api: Api, listing: Listing, inputs: Mapping[str, Any], after: datetime, before: datetime
) -> tuple[list[tuple[Any, str]], bool]:
    """Each row with the id of its job."""
    values = {name: value for name, value in inputs.items() if isinstance(value, str)}
    url = api.list_url(values | {"after": _written(after, listing), "before": _written(before, listing)})
    rows, is_whole = _pages(api, listing, url)
    ids = [(row, str(found)) for row in rows if (found := pointers.first(row, [listing.job_id])) is not None]
    return ids, is_whole


def _pages(api: Api, listing: Listing, url: str) -> tuple[list[Any], bool]:
    """The rows of the list, and whether these are all of them."""
    rows: list[Any] = []
    for _ in range(_PAGES):
        body = api.listed(url)
        rows += [row for pointer in listing.rows for found in pointers.found(body, pointer) for row in _rows(found)]
        following = pointers.first(body, [listing.next]) if listing.next is not None else None
        if not following:
            return rows, True
        if not isinstance(following, str) or not following.startswith(("http://", "https://")):
            break
        url = following
    return rows, False


def _rows(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []


def _written(moment: datetime, listing: Listing) -> str:
    utc = moment.astimezone(UTC)
    return utc.strftime("%Y-%m-%dT%H:%M:%SZ" if listing.time == "iso" else listing.time)


def _told(api: Api, job: Job, searched: str) -> str:
    """For the operator who has to decide: who, when, and what was searched."""
    sent = job.sent
    assert sent is not None  # noqa: S101 - see unclear
    began = "?" if sent.first_at is None else f"{sent.first_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    return (
        f"{api.name}: sent {sent.posts} time{'s' if sent.posts != 1 else ''} from {began} UTC on, looked for until"
        f" {sent.now.astimezone(UTC):%H:%M:%S}; {searched}"
    )
