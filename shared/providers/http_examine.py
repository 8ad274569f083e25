"""Looks at an API provider without asking it anything: a question that proves something would cost money."""

from collections.abc import Iterator, Mapping

from shared.domain.finding import Finding, Verdict
from shared.providers.table import InvalidTables, Table


def examine_api(name: str, table: Table, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether its table can be used with the environment of this process."""
    about = f"backend {name}"
    try:
        ready = table.for_use(environ)
    except InvalidTables as error:
        yield Finding(about, Verdict.FAIL, "; ".join(error.problems), "give submitters and pollers the variable")
        return
    yield Finding(about, Verdict.OK, f"{ready.base_url}, with a key; only an order shows whether it is taken")
