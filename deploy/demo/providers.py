"""`make demo PROVIDERS=1`: ComfyUI and five image APIs side by side. One says "too fast", three lose an answer.

Of a lost answer replicate can be asked, and the order goes on; dashscope and OpenAI cannot, and a person decides.
"""

import json
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deploy.demo.orders import demo_orders
from deploy.demo.running import (
    COPIES,
    all_as_expected,
    dead_letters,
    duplicates,
    eventually,
    follow,
    post,
    publish,
    sheet_of,
)
from deploy.demo.system import API_PLACES, System
from deploy.local.stack import Stack
from shared.database.engine import connect
from shared.database.tasks import Tasks
from shared.domain.messages import Order
from shared.domain.task import Reason, Status, Task
from shared.observe import metrics
from shared.providers.table_files import load_tables

_COMFYUI_ORDERS: Final = 8
_WORDS: Final = ("a lighthouse in fog", "two foxes, woodcut", "a bakery at dawn", "rain on a tin roof, watercolour")
#: POSTs that fal answers with 429, and the APIs that lose one answer each after the job was made.
_TOO_FAST: Final = 3
_LOSING: Final = ("openai", "dashscope", "replicate")
_UNKNOWN: Final = 2


def api_orders(run: str) -> list[Order]:
    """Four orders for each API, and two for the one that runs a ComfyUI of ours. Their keys start with `run`."""
    wanted: list[tuple[str, dict[str, Any]]] = []
    for words in _WORDS:
        wanted += [
            ("openai_images", {"inputs": {"model": "gpt-image-1", "prompt": words}}),
            ("dashscope", {"inputs": {"model": "wan2.2-t2i-flash", "prompt": words}}),
            ("fal", {"inputs": {"model": "fal-ai/flux/dev", "arguments": {"prompt": words}}}),
            ("replicate", {"inputs": {"model": "black-forest-labs/flux-schnell", "input": {"prompt": words}}}),
        ]
    wanted += [("runpod_comfyui", {"workflow": "solid-invert", "inputs": {"color": c}}) for c in (0x336699, 0x996633)]
    return [
        Order(idempotency_key=f"{run}-api-{number:02}", pool=pool, **fields)
        for number, (pool, fields) in enumerate(wanted, start=1)
    ]


def show(console: Console, stack: Stack, system: System, pictures: Path) -> bool:
    """Run the orders, print what became of them and what the APIs saw; True when every number is what it must be."""
    run = f"demo-{uuid.uuid4().hex[:8]}"
    for_apis = api_orders(run)
    orders = [*demo_orders(run)[:_COMFYUI_ORDERS], *for_apis]
    drop = [{"paths": [f"/{name}/*"], "methods": ["POST"], "times": 1} for name in _LOSING]
    post(
        f"{system.apis}/_sim/faults",
        {"rate_limited": {"paths": ["/fal/*"], "times": _TOO_FAST}, "drop_after_accept": drop},
    )
    tasks = Tasks(connect(stack.database_url), "demo", metrics.build("producer"))
    begun = time.monotonic()
    publish(stack, orders)
    rows = follow(console, tasks, orders)
    seconds = time.monotonic() - begun
    letters = eventually(lambda: dead_letters(stack), _UNKNOWN)
    stopped = eventually(lambda: duplicates(system), len(orders))
    kept = tasks.artifacts(rows)
    sheet = sheet_of(orders, kept, pictures)
    seen = _stats(system)
    apis: Mapping[str, Any] = seen["apis"]
    failed = [row for row in rows.values() if row.status is Status.FAILED]
    completed = sum(row.status is Status.COMPLETED for row in rows.values())
    _print_apis(console, rows.values(), seen)
    fine = all_as_expected(
        console,
        {
            "orders": (len(rows), len(orders)),
            "messages": (len(orders) * COPIES, len(orders) * COPIES),
            "duplicates stopped": (stopped, len(orders)),
            "completed": (completed, len(orders) - _UNKNOWN),
            "dead letters": (letters, _UNKNOWN),
            "their reason": (", ".join(sorted({str(row.reason) for row in failed})), str(Reason.OUTCOME_UNKNOWN)),
            "orders for APIs": (len(for_apis), len(for_apis)),
            "jobs the APIs made": (sum(api["jobs"] for api in apis.values()), len(for_apis)),
            "double POSTs": (sum(api["same_words_twice"] for api in apis.values()), 0),
        },
        {"pictures": sum(len(artifacts) for artifacts in kept.values()), "seconds": f"{seconds:.1f}"},
    )
    for row in failed:
        _print_choices(console, row)
    console.print(f"\nPictures       {pictures}\nContact sheet  {sheet}\nLogs           {stack.directory / 'logs'}")
    console.print(
        "\nNext: `KEEP=1 make demo PROVIDERS=1` leaves all of it running, so that you can decide;"
        "\ndocs/providers.md says which providers can be asked about a lost answer, and how to add one."
    )
    return fine


def _stats(system: System) -> dict[str, Any]:
    with urllib.request.urlopen(f"{system.apis}/_sim/stats?log=0", timeout=5) as answer:  # noqa: S310 - our own loopback address
        found: dict[str, Any] = json.load(answer)
        return found


def _print_apis(console: Console, rows: Iterable[Task], seen: Mapping[str, Any]) -> None:
    """What the providers counted beside what became of their orders."""
    table = Table(title="What the APIs saw")
    for heading in ("provider", "orders", "POSTs", "429", "answers lost", "jobs", "completed", "unknown"):
        table.add_column(heading, justify="left" if heading == "provider" else "right", no_wrap=heading == "provider")
    for provider, place in API_PLACES.items():
        api = place.split("/")[1]
        posts = sum(
            count
            for call, count in seen["calls"].items()
            if call.startswith(f"POST /{api}/") and not call.endswith("/cancel")
        )
        ours = Counter(row.status for row in rows if row.pool == provider)
        refused, lost = _TOO_FAST if api == "fal" else 0, int(api in _LOSING)
        ended = (ours[Status.COMPLETED], ours[Status.FAILED])
        numbers = (ours.total(), posts, refused, lost, seen["apis"][api]["jobs"], *ended)
        table.add_row(provider, *map(str, numbers))
    console.print(table)


def _print_choices(console: Console, row: Task) -> None:
    """What is known of a doubt, and what an operator can do about it."""
    console.print(f"\n[yellow]{row.idempotency_key}[/yellow] {row.reason}: {escape(row.detail or '')}")
    key = row.idempotency_key
    choices = [
        (f'adopt {key} --job ID --why "seen in its console"', "the job is there: wait for its picture"),
        (f'submit-again {key} --why "not in its console"', "it is not: one POST more"),
        (f'give-up {key} --why "no longer wanted"', "the order stays failed"),
    ]
    has_jobs = load_tables()[row.pool].shape == "submit_poll"  # the other shape has nothing that one could wait for
    for command, when in choices if has_jobs else choices[1:]:
        console.print(f"  .venv/bin/darkroom order {command}   [dim]{when}[/dim]", soft_wrap=True)
