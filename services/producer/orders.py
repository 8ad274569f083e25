"""An order as it comes in: read from bytes, and every mistake in it with the field it is in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from shared.domain.canary_order import CANARY_POOL
from shared.domain.errors import DarkroomError
from shared.domain.messages import MAX_ORDER_BYTES, Choice, Order, order_placed
from shared.domain.mistakes import WHOLE, Mistake, mistakes_in
from shared.providers.registry import BackendConfig
from shared.providers.table import Table
from shared.providers.workflow import Workflows

#: The adapter whose jobs are always workflows of ours.
_TAKES_WORKFLOWS: Final = "comfyui"


class BadOrder(DarkroomError):
    """Not an order. is_json -- whether it could be read as JSON at all."""

    def __init__(self, mistakes: Sequence[Mistake], *, is_json: bool = True) -> None:
        super().__init__("; ".join(map(str, mistakes)))
        self.mistakes = tuple(mistakes)
        self.is_json = is_json


class TooLarge(BadOrder):
    """More bytes than anybody may send."""

    def __init__(self) -> None:
        super().__init__([Mistake(WHOLE, f"has more than {MAX_ORDER_BYTES} bytes; send pictures as addresses")])


class KeysDiffer(DarkroomError):
    """The order came with one idempotency key and holds another."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What can be ordered here.

    pools  -- name -> adapter that serves it
    tables -- name of a pool -> the table of the API provider that serves it
    """

    pools: Mapping[str, str]
    workflows: Workflows
    tables: Mapping[str, Table] = field(default_factory=dict)

    @classmethod
    def of(cls, backends: Sequence[BackendConfig], tables: Mapping[str, Table], workflows: Workflows) -> Self:
        """What these backends serve."""
        of_pools = {backend.pool: tables[backend.provider] for backend in backends if backend.provider is not None}
        open_to_all = {b.pool: b.adapter for b in backends if b.pool != CANARY_POOL}
        return cls(open_to_all, workflows, of_pools)

    def needs_workflow(self, pool: str) -> bool:
        table = self.tables.get(pool)
        return self.pools[pool] == _TAKES_WORKFLOWS if table is None else table.workflow

    def mistakes(self, order: Order) -> list[Mistake]:
        """An unknown pool or workflow, and inputs outside of their bounds, in each pool it names. Pure."""
        if not order.pools:
            return self._mistakes_there(order.choices()[0])
        return [
            Mistake(f"pools.{number}.{mistake.field}", mistake.message)
            for number, choice in enumerate(order.choices())
            for mistake in self._mistakes_there(choice)
        ]

    def _mistakes_there(self, said: Choice) -> list[Mistake]:
        if said.pool not in self.pools:
            return [Mistake("pool", f"is unknown; there are: {_list(self.pools)}")]
        if not self.needs_workflow(said.pool) and said.workflow is None:
            table = self.tables.get(said.pool)
            wrong = table.wrong_inputs(said.inputs) if table is not None else {}
            return [Mistake(f"inputs.{name[:64]}", why) for name, why in wrong.items()]
        workflow = self.workflows.get(said.workflow)
        if workflow is None:
            why = "is missing" if said.workflow is None else "is unknown"
            return [Mistake("workflow", f"{why}; there are: {_list(self.workflows.names())}")]
        return [Mistake(f"inputs.{name[:64]}", why) for name, why in workflow.wrong_inputs(said.inputs).items()]


def read_order(raw: bytes) -> Order:
    """The order in one JSON object. Raises BadOrder with every wrong field, TooLarge."""
    if len(raw) > MAX_ORDER_BYTES:
        raise TooLarge
    try:
        order = Order.model_validate_json(raw)
    except ValidationError as error:
        raise bad_order(error) from None
    if len(order_placed(order).body) > MAX_ORDER_BYTES:  # 1e15 comes out as 1000000000000000.0
        raise TooLarge
    return order


def with_key(raw: bytes, key: str) -> bytes:
    """The order with the key that came beside it, where it names none itself. Raises KeysDiffer.

    What is no JSON object stays as it is: `read_order` says what is wrong with it.
    """
    try:
        fields = from_json(raw)
    except ValueError:
        return raw
    if not isinstance(fields, dict):
        return raw
    own = fields.setdefault("idempotency_key", key)
    if isinstance(own, str) and own != key:
        raise KeysDiffer(f"the header says {key!r}, the body says {own!r}")
    return to_json(fields, inf_nan_mode="constants")


def bad_order(error: ValidationError) -> BadOrder:
    """Every mistake that pydantic found, in our words."""
    is_json = all(problem["type"] != "json_invalid" for problem in error.errors())
    return BadOrder(mistakes_in(error), is_json=is_json)


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
