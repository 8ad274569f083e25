"""The one thread that runs prompts, in the order of the queue, and may die for good as the measured one does."""

from __future__ import annotations

import json
import threading
import time

from .faults import Faults
from .files import Folders
from .job import Job, Listeners, Workshop
from .prompts import Memory, Row, history_entry
from .records import Execution


class Worker:
    """Runs the prompts of one server start. Forgets everything with it."""

    def __init__(self, memory: Memory, folders: Folders, faults: Faults, listeners: Listeners) -> None:
        self._workshop = Workshop(memory, folders, faults, listeners)
        self._memory = memory
        self._faults = faults
        self._listeners = listeners
        self._thread = threading.Thread(target=self._work, name="worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _work(self) -> None:
        while True:
            try:
                taken = self._memory.take()
            except TypeError:  # rows that cannot be compared kill the measured worker too
                return
            if taken is None:
                return
            if self._memory.drop_cache:
                self._memory.drop_cache = False
                self._workshop.cache.clear()
            if not self._run(*taken):
                return

    def _run(self, row: Row, execution: Execution) -> bool:
        """Run one prompt to its end; False when that killed the worker."""
        _number, prompt_id, graph, extra_data, _outputs = row
        client_id = extra_data.get("client_id")
        if client_id is not None and not isinstance(client_id, str):
            self._listeners.crash()
            return False
        graph_text = json.dumps(graph)
        text = f"{prompt_id} {graph_text} {json.dumps(extra_data)}"
        failure = self._faults.strikes_prompt("fail_execution", text)
        corrupt = self._faults.strikes_prompt("corrupt_output", text) is not None
        job = Job(self._workshop, row, graph_text, client_id, failure, corrupt)
        job.message("execution_start", {})
        if self._faults.strikes_prompt("freeze", "") is not None:
            return False
        if any("inputs" not in node for node in graph.values()):
            return False  # KeyError outside every guard, also for a node that no output depends on
        outcome = job.run()
        self._listeners.node_is_running(client_id, None)
        self._workshop.tidy_up(job)
        if self._faults.history_lag_seconds:
            time.sleep(self._faults.history_lag_seconds)  # /ws said so already, /history does not know yet
        if self._memory.is_over:
            return False
        execution.images = job.run_facts.saved
        self._memory.records.counts["images_saved"] += job.run_facts.saved
        self._memory.finish(row, outcome, history_entry(row, job.outputs, job.status(), job.meta))
        if client_id is not None:
            self._listeners.tell("executing", {"node": None, "prompt_id": prompt_id}, client_id)
        return True
