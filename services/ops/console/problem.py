"""What the console refuses, as a page that says why."""


class Refused(Exception):
    """Nothing was done. text -- a sentence for the person"""

    def __init__(self, status: int, title: str, text: str) -> None:
        super().__init__(f"{title}: {text}")
        self.status = status
        self.title = title
        self.text = text


class NotSignedIn(Exception):
    """Nobody's request, or one of somebody whose session is over."""


def not_found(what: str, advice: str = "The address may be mistyped, or it was removed.") -> Refused:
    return Refused(404, f"No such {what}", advice)
