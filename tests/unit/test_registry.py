"""The backends file: defaults, and every mistake at once."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from shared.domain.rate import Rate
from shared.providers.comfyui import ComfyUI
from shared.providers.inputs import Pictures
from shared.providers.registry import BackendConfig, InvalidBackends, Tools, build, load_backends, load_fallbacks
from shared.providers.table_files import load_tables
from shared.providers.workflow import Workflows
from tests.integration.api_lab import a_job


def _file(directory: Path, text: str) -> Path:
    path = directory / "backends.toml"
    path.write_text(text)
    return path


GOOD = '[[backend]]\nname = "gpu-1"\nadapter = "comfyui"\nurl = "http://127.0.0.1:8188/"\n'


def test_a_backend_needs_three_lines(tmp_path: Path) -> None:
    (backend,) = load_backends(_file(tmp_path, GOOD))
    assert backend == BackendConfig(
        name="gpu-1", adapter="comfyui", pool="comfyui", url="http://127.0.0.1:8188", capacity=2, max_run_seconds=None
    )


@pytest.mark.parametrize(("text", "rate"), [("10/s", Rate(10, 1.0)), ("300/m", Rate(300, 60.0))])
def test_a_rate_is_starts_per_second_or_minute(tmp_path: Path, text: str, rate: Rate) -> None:
    (backend,) = load_backends(_file(tmp_path, f'{GOOD}rate = "{text}"\n'))
    assert backend.rate == rate


def test_a_configured_backend_becomes_a_provider(tmp_path: Path) -> None:
    (backend,) = load_backends(_file(tmp_path, GOOD))
    provider = build(backend, Tools(workflows=Workflows({}), pictures=Pictures()))
    assert isinstance(provider, ComfyUI)
    assert provider.submit_limit_seconds > 60


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('url = "ftp://host"', "must be http://host:port"),
        ('url = "http://"', "must be http://host:port"),
        ('url = "http://user:secret@host:1"', "must hold no credentials"),
        ('url = "http://host:99999"', "out of range"),
        ('url = "http://h"\ncapacity = 0', "capacity"),
        ('url = "http://h"\nmax_run_seconds = -1', "max_run_seconds"),
        ('url = "http://h"\ncolour = "red"', "colour"),
        ('url = "http://h"\npool = "Big Pool"', "pool"),
        *[
            (f'url = "http://h"\nrate = {rate}', "such as 10/s")
            for rate in ("10", '"0/s"', '"5/h"', '"-1/s"', '"1/s\\n"')
        ],
    ],
)
def test_a_wrong_line_is_named_and_no_secret_shown(tmp_path: Path, line: str, sentence: str) -> None:
    path = _file(tmp_path, f'[[backend]]\nname = "a"\nadapter = "comfyui"\n{line}\n')
    with pytest.raises(InvalidBackends) as caught:
        load_backends(path)
    (problem,) = caught.value.problems
    assert problem.startswith("backend a: ")
    assert sentence in problem
    assert "secret" not in problem


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    text = 'speed = 1\n[[backend]]\nname = "A"\nadapter = "fax"\n' + GOOD + GOOD
    with pytest.raises(InvalidBackends) as caught:
        load_backends(_file(tmp_path, text))
    text = str(caught.value)
    for part in ("unknown key speed", "backend A: name", "adapter: no such adapter", "url", "gpu-1 is there 2 times"):
        assert part in text


def test_more_than_twenty_backends_are_too_many_labels(tmp_path: Path) -> None:
    text = "".join(GOOD.replace("gpu-1", f"gpu-{number}") for number in range(21))
    with pytest.raises(InvalidBackends, match="21 backends are more than 20"):
        load_backends(_file(tmp_path, text))


@pytest.mark.parametrize("text", ["", "backend = 3", "[[backend]\n"])
def test_a_file_without_backends_is_a_mistake(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidBackends):
        load_backends(_file(tmp_path, text))
    with pytest.raises(InvalidBackends):
        load_backends(tmp_path / "missing.toml")


def test_a_provider_is_told_where_to_call_only_where_that_is_switched_on(tmp_path: Path) -> None:
    lines = '[[backend]]\nname = "{0}"\nadapter = "http"\nprovider = "replicate"\npool = "{0}"\n'
    quiet, calling = load_backends(
        _file(tmp_path, lines.format("quiet") + lines.format("calling") + "callbacks = true\n")
    )
    assert (quiet.callbacks, calling.callbacks) == (False, True)

    def body_of(backend: BackendConfig, callback_url: str | None) -> bytes:
        tools = Tools(
            workflows=Workflows({}),
            pictures=Pictures(),
            tables=load_tables(),
            environ={"REPLICATE_API_TOKEN": "k"},
            callback_url=callback_url,
        )
        kind = SimpleNamespace(name=backend.name, adapter=backend.kind, url=backend.url)
        return bytes(build(kind, tools).prepare(a_job({"model": "a/b", "input": {}})).body["content"])

    assert b'"webhook":"https://shop.example/x/callbacks/replicate/' in body_of(calling, "https://shop.example/x/")
    assert b"webhook" not in body_of(quiet, None)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ('adapter = "http"\nprovider = "openai_images"\ncallbacks = true', "calls nobody back"),
        ('adapter = "comfyui"\nurl = "http://h"\ncallbacks = true', "for adapter http"),
    ],
)
def test_who_cannot_call_back_is_not_asked_to(tmp_path: Path, lines: str, sentence: str) -> None:
    with pytest.raises(InvalidBackends, match=sentence):
        load_backends(_file(tmp_path, f'[[backend]]\nname = "a"\n{lines}\n'))


TWO = """
[[backend]]
name = "a"
adapter = "comfyui"
url = "http://a"
[[backend]]
name = "b"
adapter = "http"
provider = "fal"
"""


def test_a_pool_may_have_others_after_it(tmp_path: Path) -> None:
    path = _file(tmp_path, TWO + '[fallback]\ncomfyui = ["fal"]\n')
    assert len(load_backends(path)) == 2
    assert load_fallbacks(path) == {"comfyui": ["fal"]}
    assert load_fallbacks(_file(tmp_path, TWO)) == {}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('comfyui = ["spare"]', "no backend has the pool 'spare'"),
        ('spare = ["fal"]', "no backend has the pool 'spare'"),
        ("comfyui = []", "a list of 1 to 4 pools"),
        ('comfyui = "fal"', "a list of 1 to 4 pools"),
        ("comfyui = [7]", "a list of 1 to 4 pools"),
        ('comfyui = ["fal", "comfyui"]', "names one twice"),
    ],
)
def test_a_wrong_fallback_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    with pytest.raises(InvalidBackends, match=sentence):
        load_backends(_file(tmp_path, f"{TWO}[fallback]\n{line}\n"))


def test_the_canary_needs_two_lines_and_no_server(tmp_path: Path) -> None:
    (backend,) = load_backends(_file(tmp_path, '[[backend]]\nname = "canary"\nadapter = "canary"\n'))
    assert (backend.pool, backend.url, backend.kind) == ("canary", "", "canary")
    tools = Tools(workflows=Workflows({}), pictures=Pictures())
    row = SimpleNamespace(name="canary", adapter=backend.kind, url=backend.url)
    assert build(row, tools).problems(None, {}) == []
    assert build(row, tools).problems("demo", {}) != []


@pytest.mark.parametrize(
    "text",
    [
        '[[backend]]\nname = "other"\nadapter = "canary"\n',
        '[[backend]]\nname = "canary"\nadapter = "canary"\npool = "comfyui"\n',
        '[[backend]]\nname = "canary"\nadapter = "canary"\nurl = "http://127.0.0.1:1"\n',
        GOOD.replace("gpu-1", "canary"),
        GOOD + 'pool = "canary"\n',
    ],
)
def test_the_name_and_the_pool_canary_are_the_canarys(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidBackends, match="canary"):
        load_backends(_file(tmp_path, text))
