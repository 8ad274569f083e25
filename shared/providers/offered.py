"""What each pool of the backends file takes from an order, told without making a provider."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from shared.providers.registry import BackendConfig
from shared.providers.table import Table
from shared.providers.workflow import Workflows


@dataclass(frozen=True, slots=True)
class Offered:
    """tables -- by pool; a pool of ComfyUI servers has none, and takes workflows"""

    pools: frozenset[str]
    tables: Mapping[str, Table]
    workflows: Workflows

    @classmethod
    def of(cls, backends: Sequence[BackendConfig], tables: Mapping[str, Table], workflows: Workflows) -> Self:
        of_pools = {backend.pool: tables[backend.provider] for backend in backends if backend.provider is not None}
        return cls(frozenset(backend.pool for backend in backends), of_pools, workflows)

    def problems(self, pool: str, workflow: str | None, inputs: Mapping[str, Any]) -> Sequence[str]:
        """A sentence for each mistake in what an order says to this pool; none: it can be started there. Pure."""
        if pool not in self.pools:
            return [f"no backend of the backends file serves pool {pool!r}; there are: {', '.join(sorted(self.pools))}"]
        table = self.tables.get(pool)
        if table is None or table.workflow:
            return self.workflows.problems(workflow, inputs)
        return table.problems(inputs)
