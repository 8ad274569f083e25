"""`make bench`: what darkroom costs and how quick it is, beside the naive way of doing the same. About five minutes.

Private servers on free loopback ports, simulated ComfyUI servers, everything on this machine. The table goes to the
terminal, all numbers to .local/bench.json; docs/speed.md says how to read them, and what a run depends on.

    python -m benchmarks [--only waits,speed,slow_commits,overhead,gpu,many,letters,plans] [--orders 3000]
"""

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.gpu import measure_gpu, measure_many
from benchmarks.letters import measure_letters
from benchmarks.orders import NotFinished
from benchmarks.overhead import measure_overhead
from benchmarks.plans import measure_plans
from benchmarks.throughput import measure_speed
from benchmarks.waits import measure_waits
from deploy.local.children import NotStarted
from deploy.local.interrupted import end_with
from deploy.local.problem import StackProblem
from deploy.local.stack import ROOT, Stack

_PARTS: Final = ("waits", "speed", "slow_commits", "overhead", "gpu", "many", "letters", "plans")
_MEMORY_AFTER: Final = 5000
#: What a disk behind a network adds to a commit on a local one.
_SLOWER_MS: Final = 2.0
_GPU_ORDERS: Final = 160
_IN_FLIGHT: Final = 2000
_HOLD_SECONDS: Final = 10.0
_LETTERS: Final = 10_000
_PLAN_SECONDS: Final = 4.0

#: Row of the table: name, path into the results, unit, what is expected (None: only shown).
_ROWS: Final[tuple[tuple[str, str, str, tuple[str, float] | None], ...]] = (
    ("orders per second, zero-time jobs", "speed.throughput.orders_per_second", "", None),
    ("  naive, same job, same run", "speed.naive.orders_per_second", "", None),
    ("  darkroom / naive", "speed.ratio", "x", (">=", 3.5)),
    ("    in the worst of three rounds", "speed.least", "x", None),
    ("    in the best", "speed.most", "x", None),
    ("  without start and tail", "speed.throughput.orders_per_second_middle", "", None),
    ("  naive, without start and tail", "speed.naive.orders_per_second_middle", "", None),
    ("  cores that had nothing to do", "speed.throughput.idle_cores", "", None),
    ("  naive", "speed.naive.idle_cores", "", None),
    ("one write forced to this disk (fdatasync)", "waits.fdatasync_ms", "ms", None),
    ("  one commit", "waits.commit_ms", "ms", None),
    ("  one confirm of a quorum queue", "waits.confirm_ms", "ms", None),
    ("with each commit made 2 ms slower, one commit", "slow_commits.commit_ms", "ms", None),
    ("  orders per second", "slow_commits.throughput.orders_per_second", "", None),
    ("  naive", "slow_commits.naive.orders_per_second", "", None),
    ("  darkroom / naive", "slow_commits.ratio", "x", None),
    ("    in the worst of three rounds", "slow_commits.least", "x", None),
    ("    in the best", "slow_commits.most", "x", None),
    ("CPU per order: submitter", "speed.throughput.cpu_ms_per_order.submitter", "ms", None),
    ("CPU per order: poller", "speed.throughput.cpu_ms_per_order.poller", "ms", None),
    ("CPU per order: ops", "speed.throughput.cpu_ms_per_order.ops", "ms", None),
    ("CPU per order: broker", "speed.throughput.cpu_ms_per_order.broker", "ms", None),
    ("CPU per order: database", "speed.throughput.cpu_ms_per_order.database", "ms", None),
    ("CPU seconds per 1,000 orders in all", "speed.throughput.cpu_ms_per_order_total", "s", ("<=", 3.5)),
    ("  naive", "speed.naive.cpu_ms_per_order_total", "s", None),
    ("  and the simulators apart", "speed.throughput.cpu_ms_per_order_simulators", "s", None),
    ("  reads of ComfyUI per order", "speed.throughput.reads_per_order", "", None),
    ("counts, observations and gauges per order", "overhead.calls_per_order", "", None),
    ("  their part of an order's CPU time", "overhead.percent", "%", ("<=", 3)),
    ("  and of that of our processes", "overhead.percent_of_ours", "%", None),
    ("memory after 5,000 orders: submitter", "speed.memory.memory_megabytes.submitter", "MB", ("<=", 150)),
    ("memory after 5,000 orders: poller", "speed.memory.memory_megabytes.poller", "MB", ("<=", 150)),
    ("memory after 5,000 orders: ops", "speed.memory.memory_megabytes.ops", "MB", ("<=", 150)),
    ("GPU idle while there is work", "gpu.idle_percent", "%", ("<=", 4)),
    ("queue depth of a server, highest", "gpu.queue_depth_max", "", ("<=", 2)),
    ("completion noticed after, p50", "gpu.lag_p50_seconds", "s", ("<=", 0.2)),
    ("completion noticed after, p99", "gpu.lag_p99_seconds", "s", None),
    ("reads of ComfyUI per order", "gpu.reads_per_order", "", ("<=", 3)),
    ("jobs made twice", "gpu.jobs_made_twice", "", ("<=", 0)),
    ("in flight together", "many.in_flight", "", (">=", 0.98 * _IN_FLIGHT)),
    ("  cores busy while they wait", "many.busy_cores_while_held_total", "", None),
    ("  completion noticed after, p50", "many.lag_p50_seconds_while_held", "s", None),
    ("  completion noticed after, longest", "many.lag_max_seconds_while_held", "s", None),
    ("  all ended after", "many.drain_seconds", "s", None),
    ("  longest wait to be noticed meanwhile", "many.lag_max_seconds_while_draining", "s", None),
    ("  peak memory: submitter", "many.peak_memory_megabytes.submitter", "MB", ("<=", 150)),
    ("  peak memory: poller", "many.peak_memory_megabytes.poller", "MB", ("<=", 150)),
    ("  jobs made twice", "many.jobs_made_twice", "", ("<=", 0)),
    (f"{_LETTERS:,} dead letters recorded after", "letters.ingest_seconds", "s", ("<=", 30)),
    ("  counted wrongly in their groups", "letters.miscounted", "", ("<=", 0)),
    ("plan of 10,000 letters made and previewed in", "plans.preview_seconds", "s", ("<=", 2)),
    ("  letters sent per second", "plans.sent_per_second", "", (">=", 95)),
    ("  sent twice", "plans.sent_twice", "", ("<=", 0)),
    ("  orders of another queue, alone: p50", "plans.latency_alone_p50_seconds", "s", None),
    ("  and meanwhile: p50", "plans.latency_meanwhile_p50_seconds", "s", None),
    ("  meanwhile / alone", "plans.latency_ratio", "x", ("<=", 1.2)),
)


def main() -> int:
    arguments = _parser().parse_args()
    only = arguments.only.split(",")
    console = Console()
    folder = ROOT / ".local" / "bench"
    stack = Stack(folder, say=lambda text: console.print(f"[dim]{text}[/dim]"))
    stack.down(wipe=True)  # what an interrupted run left
    shutil.rmtree(folder, ignore_errors=True)
    measured: dict[str, Callable[[], dict[str, Any]]] = {
        "waits": lambda: measure_waits(stack),
        "speed": lambda: measure_speed(stack, folder, arguments.orders, _MEMORY_AFTER),
        "slow_commits": lambda: measure_speed(stack, folder, arguments.orders // 2, commit_delay_ms=_SLOWER_MS),
        "overhead": lambda: measure_overhead(stack, folder, max(200, arguments.orders // 3)),
        "gpu": lambda: measure_gpu(stack, folder, _GPU_ORDERS),
        "many": lambda: measure_many(stack, folder, _IN_FLIGHT, _HOLD_SECONDS),
        "letters": lambda: measure_letters(stack, folder, _LETTERS),
        "plans": lambda: measure_plans(stack, folder, _PLAN_SECONDS),
    }
    results: dict[str, Any] = {}
    began = time.monotonic()
    try:
        stack.up()
        for name in only:
            console.print(f"[dim]measuring: {name}[/dim]")
            results[name] = measured[name]()
    finally:
        stack.down(wipe=True)
    if "gpu" in results:
        results["gpu"]["idle_percent"] = 100 * results["gpu"]["idle_share"]
    results["machine"] = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
    results["seconds"] = time.monotonic() - began
    target = ROOT / ".local" / "bench.json"
    target.write_text(json.dumps(results, indent=2) + "\n")
    console.print(_table(results))
    others = [results[name]["busy_cores_of_others"] for name in only if "busy_cores_of_others" in results[name]]
    if others:
        console.print(f"Other processes kept {max(others):.1f} of {os.cpu_count()} cores busy meanwhile.")
    console.print(f"All numbers: {target.relative_to(ROOT)}, logs: {folder.relative_to(ROOT)}/*/*.log")
    return 0


def _table(results: Mapping[str, Any]) -> Table:
    table = Table("measured", "value", "expected", title="darkroom bench")
    table.columns[1].justify = table.columns[2].justify = "right"
    for name, path, unit, expected in _ROWS:
        value = _at(results, path)
        if value is None:
            continue
        text = f"{value:.{0 if value == int(value) or value >= 100 else 1 if value >= 20 else 2}f} {unit}".strip()
        if expected is not None:
            sign, limit = expected
            is_met = value >= limit if sign == ">=" else value <= limit
            text = text if is_met else f"[red]{text}[/red]"
        table.add_row(name, text, f"{expected[0]} {expected[1]:g}" if expected else "")
    return table


def _at(results: Mapping[str, Any], path: str) -> float | None:
    found: Any = results
    for step in path.split("."):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(_PARTS), help="parts, separated by commas")
    parser.add_argument("--orders", type=int, default=3000, help="orders of each round of darkroom")
    return parser


if __name__ == "__main__":
    end_with(main, StackProblem, NotStarted, NotFinished)
