"""All five image APIs beside the servers of a System: their shipped tables in a hurry, and orders for each."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from shared.domain.messages import Order
from shared.providers.table_files import CATALOG
from tests.conformance.simulated_apis import SimulatedApis
from tests.conformance.table_lab import ORDERS, PLACES
from tests.e2e.system import an_order

#: The time they take alone is another: a lease of minutes would be waited out for real.
_QUICK: Final = "timeouts = { connect_s = 1, submit_read_s = 2, poll_read_s = 2, settle_s = 1 }"
_numbers = itertools.count(1)


def addresses(apis: SimulatedApis) -> Mapping[str, str]:
    """Where the simulator has each provider."""
    return {name: apis.url + place for name, place in PLACES.items()}


def write_tables(folder: Path) -> Path:
    """The folder with the tables: a value of PROVIDERS_DIR."""
    folder.mkdir()
    for file in CATALOG.glob("*.toml"):
        text = re.sub(r"^timeouts = .*\n", "", file.read_text(), flags=re.MULTILINE)
        (folder / file.name).write_text(re.sub(r"^(shape = .*)$", rf"\1\n{_QUICK}", text, flags=re.MULTILINE))
    return folder


def an_api_order(name: str, **given: Any) -> Order:
    """An order for this provider with words, or a colour, that no other order has. What is given replaces a field."""
    fields = {"workflow": None, **ORDERS[name]}
    return an_order(pool=name, **{**fields, "inputs": _own(fields["inputs"]), **given})


def api_doubles(apis: SimulatedApis) -> Mapping[str, int]:
    """Attempts that an API made twice, by provider. Seeds tell attempts apart; where no seed is taken, words do."""
    return {
        name: apis.stats(place.split("/")[1])["same_words_twice" if name == "openai_images" else "same_seed_twice"]
        for name, place in PLACES.items()
    }


def _own(inputs: Mapping[str, Any]) -> dict[str, Any]:
    number = next(_numbers)
    match inputs:
        case {"color": _}:
            return {"color": number}
        case {"arguments": _}:
            return {**inputs, "arguments": {"prompt": f"lighthouse {number}"}}
        case {"input": _}:
            return {**inputs, "input": {"prompt": f"lighthouse {number}"}}
    return {**inputs, "prompt": f"lighthouse {number}"}
