"""The story of one order in the order it happened, and as a waterfall for a terminal. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from shared.database.history import Action, Attempt, LostRace, Move, Story
from shared.domain.task import Status
from shared.terminal import duration, printable

_BAR: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened. seconds -- since the order's row was made."""

    at: datetime
    seconds: float
    what: str
    text: str
    attempt: int | None = None
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Stay:
    """One status and how long the order was in it; the last one reaches until now unless it is final."""

    status: str
    begin: float
    end: float


def events_of(story: Story) -> list[Event]:
    """Everything that happened, the oldest first."""
    return sorted(_events(story), key=lambda event: event.at)


def _events(story: Story) -> Iterator[Event]:
    born = _born(story)

    def event(at: datetime, what: str, text: str, attempt: int | None = None, by: str | None = None) -> Event:
        return Event(at=at, seconds=(at - born).total_seconds(), what=what, text=text, attempt=attempt, by=by)

    for move in story.moves:
        yield event(move.at, "move", _move_text(move), move.attempt, move.actor)
    for race in story.lost_races:
        yield event(race.at, "lost race", _race_text(race), race.attempt, race.actor)
    for attempt in story.attempts:
        yield from (event(at, "attempt", text, attempt.attempt) for at, text in _attempt_texts(attempt))
    for number, at, picture in story.artifacts:
        yield event(at, "picture", f"{picture.key} {picture.width}x{picture.height} {picture.bytes} bytes", number)
    for letter in story.letters:
        text = f"letter {letter.id}, {letter.stage}: {letter.reason}: {letter.detail}"
        yield event(letter.at, "dead letter", text, letter.attempt)
    for action in story.actions:
        yield event(action.at, "person", _action_text(action), by=action.by_whom)


def stays_of(story: Story) -> list[Stay]:
    """How long the order was in each status, in order."""
    born = _born(story)
    begins = [(move.at - born).total_seconds() for move in story.moves]
    now = (story.task.now - born).total_seconds()
    ends = [*begins[1:], begins[-1] if story.task.status.is_final else max(now, begins[-1])] if begins else []
    return [Stay(move.to_status, begin, end) for move, begin, end in zip(story.moves, begins, ends, strict=True)]


def waterfall(story: Story, events: Sequence[Event]) -> str:
    """Statuses as bars over time, then every event with its moment."""
    stays = stays_of(story)
    whole = max((stay.end for stay in stays), default=0.0)
    lines = [f"{stay.status:<11} {_bar(stay, whole)} {_length(stay)}".rstrip() for stay in stays]
    lines.append("")
    for event in events:
        attempt = f"#{event.attempt}" if event.attempt else ""
        by = f"  by {event.by}" if event.by else ""
        lines.append(f"{'+' + duration(event.seconds):>10}  {event.what:<11} {attempt:<3} {printable(event.text)}{by}")
    return "\n".join(lines)


def _bar(stay: Stay, whole: float) -> str:
    scale = _BAR / whole if whole > 0 else 0.0
    begin = min(_BAR - 1, int(stay.begin * scale))
    length = max(1, min(_BAR - begin, round((stay.end - stay.begin) * scale)))
    return (" " * begin + "█" * length).ljust(_BAR)


def _length(stay: Stay) -> str:
    return "" if Status(stay.status).is_final else duration(stay.end - stay.begin)


def _born(story: Story) -> datetime:
    return story.moves[0].at if story.moves else story.task.created_at


def _move_text(move: Move) -> str:
    way = f"{move.from_status} → {move.to_status}" if move.from_status else f"→ {move.to_status}"
    place = f" on {move.backend}" if move.backend else ""
    return f"{way}{place}{f' ({move.reason})' if move.reason else ''}"


def _race_text(race: LostRace) -> str:
    why = f" ({race.reason})" if race.reason else ""
    again = f" at attempt {race.found_attempt}" if race.found_attempt != race.attempt else ""
    return (
        f"wanted {race.expected_status} → {race.wanted_status}{why} from version {race.expected_version}, found"
        f" {race.found_status}{again} in version {race.found_version}: changed nothing"
    )


def _action_text(action: Action) -> str:
    detail = action.detail
    pool, backend = detail.get("to_pool"), detail.get("to_backend")
    to = ", ".join([*([f"pool {pool}"] if pool else []), *([f"{backend} alone"] if backend else [])])
    # The reason of a redirected letter is what its order died of.
    why = detail.get("why") if to else detail.get("reason") or detail.get("why")
    return f"{action.action}{f' to {to}' if to else ''}{f': {why}' if why else ''}"


def _attempt_texts(attempt: Attempt) -> Iterator[tuple[datetime, str]]:
    yield attempt.started_at, f"begun on {attempt.backend}, job key {attempt.job_key}"
    if attempt.posted_at:
        yield attempt.posted_at, "sent to the provider" + (f", {attempt.posts} times" if attempt.posts > 1 else "")
    if attempt.accepted_at:
        yield attempt.accepted_at, f"accepted as {attempt.provider_job_id}"
    if attempt.ended_at:
        cost = f", cost {attempt.cost_actual:g} {attempt.cost_unit}" if attempt.cost_actual is not None else ""
        yield attempt.ended_at, f"ended: {attempt.outcome}{f': {attempt.detail}' if attempt.detail else ''}{cost}"
