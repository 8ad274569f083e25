"""Starts one simulated ComfyUI server on loopback: queue, history, files, /ws, and faults a test can switch on.

    python -m services.simulator --port 8188
        [--host 127.0.0.1] [--generation modern|legacy] [--seconds-per-image 0.2] [--startup-seconds 0]
        [--directory DIR] [--max-upload-size 100] [--seed N]

`--port 0` takes a free one. When connections are accepted, one line `listening on http://127.0.0.1:PORT` goes to
stdout. SIGTERM and SIGINT end it with exit code 0. DIR holds `input/`, `output/` and `temp/`; without it a temporary
folder is used and removed at the end. Two servers may share a DIR. `--seconds-per-image` is the GPU time waited
for every picture an output node yields (none for a cached node). `--startup-seconds` refuses connections for so long
first, as the real server does for about 25 s.

It answers as the measured server does (0.33.0 as modern, 0.3.64 as legacy) and really draws the pictures of graphs
made of LoadImage, EmptyImage, ImageScale, ImageInvert, ImageBatch, RepeatImageBatch, SaveImage and PreviewImage. The
SDXL nodes are known to validation and /object_info only: no checkpoint is installed. `LabPreview` stands in for a
sampler: it waits in three steps and emits `progress` and a preview picture per step.

Faults: `POST /_sim/faults` with a JSON object. Each key replaces that fault, null removes it, `{"clear": true}`
removes all first. The answer, and `GET /_sim/faults`, is `{"faults": {name: setting}, "hits": {name: count}}`.
An unknown name or field answers 400 with `{"error": sentence}` and changes nothing. `/_sim/*` is never faulted or
logged; while connections are refused it is refused too. When `refuse` or `restart` is answered, the port is closed.

    refuse             {"seconds": 3}         listening socket closed at once, open connections reset: ECONNREFUSED
                                              for so long, then the same port opens. Memory is kept
    restart            {"down_seconds": 0}    as after a kill: queue, history, cache and number gone, temp/ wiped,
                                              input/ and output/ kept, refused for so long; thaws a frozen worker
    freeze             true                   the worker stops for good: what it takes next stays in queue_running,
                                              HTTP goes on. Removing the fault does not thaw it, a restart does
    answer_500         {"paths", "queue"}     plain text 500. queue true: the call is carried out first (prompt
                                              queued, upload stored); false (default): it is not
    drop_after_accept  {"paths"}              carried out, then the connection is reset without an answer
    drop_before_read   {"paths"}              reset once the headers are there: nothing is carried out
    slow               {"seconds", "paths", "before"}   the answer is held back; carried out at once, or after the
                                              wait when "before" is true; in both cases also if the client has left
    garbage            {"paths", "kind"}      "html" (default): 200 text/html, not carried out. "cut_json": first half
                                              of the real answer, well framed. "cut_body": Content-Length of the
                                              whole, half the body, then the connection closes
    fail_execution     {"match", "exception_type", "message"}   prompts whose id, graph or extra_data, as
                                              json.dumps writes them, contain `match` ("" = all) end in
                                              execution_error. Default RuntimeError; "torch.OutOfMemoryError" is what
                                              a full GPU says
    corrupt_output     {"match"}              SaveImage writes half of each file of such a prompt; still success
    history_lag_seconds  0.005                number: from execution_success on /ws to the entry in /history
    seconds_per_image    0.2                  number: as the option, from the next picture on

    `paths`: exact paths without query and /api prefix, or with a trailing * ("/view", "/history/*", "/api/jobs*");
    default ["/prompt"], for slow every path. `methods`: list, default every method, save that "/prompt" means
    POST /prompt only (GET /prompt is the load signal). `times`: how often it may still strike, null (default) = until
    removed; the setting shown counts down and the fault goes at 0.
    `probability`: chance per candidate, default 1. `times` and `probability` work for every fault with paths or match.
    Of each such fault several may be given in a list; the first that fits strikes.
    Looked at in this order: drop_before_read, slow, garbage html, answer_500, drop_after_accept, garbage cut.

Statistics: `GET /_sim/stats` (`?log=0` without the log, `?executions=0` without the list). They belong to the
tester: a restart keeps them. All moments are `time.monotonic()` of the machine, comparable between processes.

    {"generation", "directory", "now", "started_at",
     "starts": 1,                        1 + restarts
     "calls": {"POST /prompt": n, "GET /history/*": n, ...},  answered or dropped, by route, without /api
     "statuses": {"200": n, ...},        0 = connection dropped without an answer
     "prompts_accepted", "prompts_rejected", "prompts_executed",   executed: left the worker, also cached ones
     "prompts_cached", "prompts_failed", "prompts_interrupted", "prompts_deleted", "prompts_lost",
     "images_saved", "uploads", "uploads_stored",                   uploads answered 200 / written to disk
     "queue_remaining", "max_queue_remaining",                      running + pending, now and highest ever
     "busy_seconds", "idle_seconds", "down_seconds", "worker_alive",
     "duplicates": {prompt_id: times accepted, when more than once},
     "executions": [{"prompt_id", "number", "accepted_at", "started_at", "ended_at", "outcome", "images"}],
     "log": [{"t", "method", "path", "status", "prompt_id"}]}       last 50 000 calls, path with query; prompt_id
                                                                    (POST /prompt only) is the one queued, else null

`executions` is in the order of acceptance; outcome is pending, running, success, cached, error, interrupted, deleted
(taken out of the queue) or lost (by a restart); `images` counts the files the run wrote to output/.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
from pathlib import Path

from .options import Options
from .server import Server


def main() -> int:
    """Parse the command line and serve until told to stop; returns the exit code."""
    arguments = _parser().parse_args()
    with contextlib.ExitStack() as stack:
        directory = arguments.directory
        if directory is None:
            # The worker thread may still write while we leave, hence errors are ignored.
            temporary = tempfile.TemporaryDirectory(prefix="simulator-", ignore_cleanup_errors=True)
            directory = Path(stack.enter_context(temporary))
        options = Options(
            directory=directory,
            generation=arguments.generation,
            host=arguments.host,
            port=arguments.port,
            seconds_per_image=arguments.seconds_per_image,
            startup_seconds=arguments.startup_seconds,
            max_upload_megabytes=arguments.max_upload_size,
            seed=arguments.seed,
        )
        return asyncio.run(_serve(options))


async def _serve(options: Options) -> int:
    server = Server(options)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.end)
    if await server.open(options.startup_seconds):
        print(f"listening on http://{options.host}:{server.port}", flush=True)
    return await server.wait()


def _parser() -> argparse.ArgumentParser:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m services.simulator", description=about)
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--generation", choices=["modern", "legacy"], default="modern")
    parser.add_argument("--seconds-per-image", type=float, default=0.2, help="GPU time per picture of an output node")
    parser.add_argument("--startup-seconds", type=float, default=0.0, help="refuse connections for so long first")
    parser.add_argument("--directory", type=Path, help="holds input/, output/ and temp/; default: removed at the end")
    parser.add_argument("--max-upload-size", type=float, default=100, help="largest body in MB")
    parser.add_argument("--seed", type=int, help="makes faults with a probability repeatable")
    return parser


if __name__ == "__main__":
    sys.exit(main())
