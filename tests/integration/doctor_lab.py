"""The settings of one installation, for the doctor to look at, and what it finds there."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pika
from pika.adapters.blocking_connection import BlockingChannel

from deploy.local.stack import ROOT
from services.ops.doctor import examine
from shared.broker.topology import topology
from shared.config import load_settings

#: (verdict, sentence) by what they are about.
Findings = dict[str, list[tuple[str, str]]]

#: All of it runs, but for the workers: there are none.
EXPECTED_WITHOUT_WORKERS = {"ack timeout", "drain", "workers", "dead letters"}


class Installation:
    def __init__(self, folder: Path, database_url: str, amqp_url: str) -> None:
        self.folder = folder
        self.settings = {
            "DARKROOM_DATABASE_URL": database_url,
            "DARKROOM_AMQP_URL": amqp_url,
            "DARKROOM_ARTIFACTS_URL": str(folder / "pictures"),
            "DARKROOM_WORKFLOWS_DIR": str(folder / "workflows"),
        }
        for name in ("solid-invert", "photo-invert"):
            self.add_workflow(name)

    def add_workflow(self, name: str) -> Path:
        """The shipped template of that name; returns its folder."""
        return shutil.copytree(ROOT / "deploy" / "workflows" / name, self.folder / "workflows" / name)

    def backends(self, capacity: int = 2, **urls: str) -> None:
        file = self.folder / "backends.toml"
        tables = [
            f'[[backend]]\nname = "{name}"\nadapter = "comfyui"\nurl = "{url}"\ncapacity = {capacity}\n'
            for name, url in urls.items()
        ]
        file.write_text("\n".join(tables))
        self.settings["DARKROOM_BACKENDS_FILE"] = str(file)

    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        with pika.BlockingConnection(pika.URLParameters(self.settings["DARKROOM_AMQP_URL"])) as connection:
            yield connection.channel()

    def declare(self) -> None:
        """What a service does at its start."""
        with self.channel() as channel:
            for queue in topology(["comfyui"]).queues:
                channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))

    def depth(self, queue: str) -> int:
        with self.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).method.message_count)

    def look(self) -> Findings:
        """What the doctor finds, in this process."""
        found: Findings = {}
        for finding in examine(load_settings(self.settings, dotenv=None)):
            found.setdefault(finding.about, []).append((str(finding.verdict), finding.found))
        return found

    def doctor(self, *words: str) -> tuple[int, str]:
        """Exit status and standard output of the command."""
        answer = self._run(*words)
        return answer.returncode, answer.stdout

    def complaint(self, *words: str) -> tuple[int, str]:
        """Exit status and standard error of the command."""
        answer = self._run(*words)
        return answer.returncode, answer.stderr

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        answer = subprocess.run(
            [sys.executable, "-m", "services.cli", "doctor", *words],
            env=os.environ | self.settings | {"PYTHONPATH": str(ROOT)},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert "Traceback" not in answer.stderr
        return answer


def of_json(lines: str) -> Findings:
    found: Findings = {}
    for line in lines.splitlines():
        finding = json.loads(line)
        found.setdefault(finding["about"], []).append((finding["verdict"], finding["found"]))
    return found


def verdicts(found: Findings, *but: str) -> set[str]:
    return {verdict for about, all_of_it in found.items() if about not in but for verdict, _ in all_of_it}
