"""What a person decides about an order whose outcome nobody knows: send it again, or give it up.

The third way, naming the provider's job that exists after all, is shared/database/adopt.py. Of any number of people
who decide about the same order at once, one does; the CLI and the console call the same functions.
"""

from services.ops.closing import Closed, Closing, close
from services.ops.replay import Item, Replayer, Result
from shared.database.letter_states import Deed
from shared.database.letters import LetterFilter, Letters
from shared.database.replays import Outcome
from shared.domain.task import Reason, Status, Task


def submit_again(letters: Letters, replayer: Replayer, task: Task, by_whom: str, why: str) -> Item | str:
    """failed -> pending, as a new attempt that may be paid for beside the first; a sentence when nothing was done.

    Raises DatabaseAway: it may have worked, and a second call then says so.
    """
    letter = _letter(letters, task)
    if isinstance(letter, str):
        return letter
    (item,) = replayer.replay([letter], by_whom, why, despite={Outcome.OUTCOME_UNKNOWN})
    return item.why if item.result is Result.REFUSED else item


def give_up(letters: Letters, task: Task, by_whom: str, why: str) -> Closed | str:
    """The order stays failed and its letter is closed; a sentence when nothing was done. Raises DatabaseAway."""
    letter = _letter(letters, task)
    if isinstance(letter, str):
        return letter
    (closed,) = close(letters, Deed.DISCARD, [letter], by_whom, why)
    return closed.why if closed.result is Closing.REFUSED else closed


def _letter(letters: Letters, task: Task) -> int | str:
    """The open letter about the row's last attempt, or why there is nothing to decide."""
    if task.status is not Status.FAILED or task.reason != Reason.OUTCOME_UNKNOWN:
        return f"it is {task.status}{f' ({task.reason})' if task.reason else ''}: its outcome is not in doubt"
    found = letters.page(LetterFilter(task_id=task.id, reason=Reason.OUTCOME_UNKNOWN, state=None))
    of_attempt = [letter for letter in found if letter.attempt == task.attempt]
    if not of_attempt:
        return "its dead letter is not recorded yet; try again in a moment"
    if of_attempt[-1].state != "open":
        return f"already {of_attempt[-1].state} by {of_attempt[-1].closed_by}"
    return of_attempt[-1].id
