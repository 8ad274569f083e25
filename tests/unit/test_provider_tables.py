"""Provider tables: what may stand in one, every mistake at once, and no secret anywhere."""

import re
from pathlib import Path

import pytest

from shared.providers import pointers, templates
from shared.providers.table import InvalidTables, Table
from shared.providers.table_files import load_tables, read_tables

GOOD = """
[provider.mine]
shape = "submit_poll"
base_url = "https://api.example/v1"
auth = { header = "Authorization", value = "Bearer ${MY_KEY}" }
[provider.mine.inputs]
prompt = { type = "string" }
size = { type = "string", optional = true }
[provider.mine.submit]
request = "POST /jobs"
job_id = "/id"
body = { prompt = "$prompt", size = "$size?" }
[provider.mine.poll]
request = "GET /jobs/{job_id}"
status = "/status"
map = { done = "succeeded" }
[provider.mine.result]
images = [{ at = "/images/*", kind = "url" }]
"""


def mine(text: str = GOOD) -> Table:
    return read_tables(text, "mine.toml")["mine"]


def problems_of(text: str) -> str:
    with pytest.raises(InvalidTables) as caught:
        read_tables(text, "mine.toml")
    return str(caught.value)


def test_the_five_shipped_tables_are_sound() -> None:
    assert sorted(load_tables()) == ["dashscope", "fal", "openai_images", "replicate", "runpod_comfyui"]


def test_a_table_of_ones_own_stands_beside_the_shipped_ones_or_in_the_place_of_one(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(GOOD + GOOD.replace("provider.mine", "provider.fal"))

    tables = load_tables(tmp_path)

    assert tables["mine"].base_url == tables["fal"].base_url == "https://api.example/v1"
    assert len(tables) == 6


def test_every_mistake_of_every_file_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(GOOD.replace('shape = "submit_poll"', 'shape = "sideways"\ncolour = 1'))
    (tmp_path / "b.toml").write_text("nothing = true")
    (tmp_path / "c.toml").write_text("[provider")

    with pytest.raises(InvalidTables) as caught:
        load_tables(tmp_path)

    text = str(caught.value)
    for part in (
        "a.toml: provider mine: shape",
        "mine: colour",
        "b.toml: unknown key nothing",
        "c.toml cannot be read",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('job_id = "/id"', 'job_id = "id"', "must begin with /"),
        ('job_id = "/id"', "", "submit_poll needs poll and submit.job_id"),
        ('"GET /jobs/{job_id}"', '"/jobs"', "must be a method and a path"),
        ('"GET /jobs/{job_id}"', '"GET /jobs/{number}"', "{number} is neither saved nor an input"),
        ('"$prompt"', '"$promt"', "$promt is no input"),
        ('"$prompt"', '"$two words"', "names no value"),
        ('"$size?"', '"$size"', "$size may be missing, so write $size?"),
        ('done = "succeeded"', 'done = "finished"', "poll.map.done"),
        ('done = "succeeded"', 'done = "fetch"', "a status that means fetch and [fetch] go together"),
        ('kind = "url"', 'kind = "url", kind_from = "type"', "give either kind"),
        ("https://api.example", "api.example", "base_url must be"),
        ('type = "string" }', 'type = "string", min = 1 }', "min and max are for numbers"),
        ("[provider.mine.inputs]", 'recovery = "list_weak"\n[provider.mine.inputs]', "[list] goes with recovery"),
        ("[provider.mine.inputs]", 'recovery = "key_replays"\n[provider.mine.inputs]', "[key] goes with recovery"),
        ("[provider.mine.inputs]", 'rate = "fast"\n[provider.mine.inputs]', "such as 10/s"),
        ("[provider.mine.result]", '[[provider.mine.errors]]\nclass = "lost"\n[provider.mine.result]', "name a code"),
        (
            "[provider.mine.result]",
            '[[provider.mine.errors]]\nmessage = "("\nclass = "lost"\n[provider.mine.result]',
            "is no regular expression",
        ),
    ],
)
def test_a_wrong_line_is_named(old: str, new: str, sentence: str) -> None:
    assert old in GOOD
    assert sentence in problems_of(GOOD.replace(old, new, 1))


def test_a_key_written_into_the_file_by_mistake_is_not_repeated_in_the_sentence() -> None:
    text = problems_of(GOOD.replace('value = "Bearer ${MY_KEY}"', 'vaule = "Bearer sk-live-1"'))
    assert "auth.vaule" in text
    assert "sk-live-1" not in text


def test_variables_are_put_in_when_the_table_is_used_and_shown_nowhere() -> None:
    ready = mine().for_use({"MY_KEY": " sk-live-1\n"})

    assert ready.auth.value == "Bearer sk-live-1"
    assert "sk-live-1" not in f"{ready!r} {ready}"


def test_an_address_of_the_backend_s_takes_the_place_of_every_one_in_the_table() -> None:
    fal = load_tables()["fal"]
    moved = fal.for_use({"FAL_KEY": "k"}, url="http://127.0.0.1:1/fal/")

    assert moved.listing is not None
    assert fal.listing is not None
    assert moved.base_url == "http://127.0.0.1:1/fal"
    assert moved.listing.request.startswith("GET /v1/models/requests/by-endpoint?endpoint_id={model}&")
    assert fal.for_use({"FAL_KEY": "k"}).listing == fal.listing


def test_every_missing_variable_is_named() -> None:
    text = GOOD.replace("https://api.example", "https://${MY_HOST}")
    with pytest.raises(InvalidTables, match=re.escape("MY_HOST is not set")) as caught:
        mine(text).for_use({})
    assert len(caught.value.problems) == 2


def test_an_order_s_inputs_are_checked_by_name_type_and_bounds() -> None:
    openai = load_tables()["openai_images"]

    assert openai.wrong_inputs({"model": "m", "prompt": "p"}) == {}
    assert openai.wrong_inputs({"model": 3, "colour": 1, "images": ["ftp://x"], "output_format": "gif"}) == {
        "colour": "is unknown",
        "model": "must be text",
        "prompt": "is missing",
        "images": "must be an http, https or file address",
        "output_format": "must be one of png, jpeg, webp",
    }


@pytest.mark.parametrize("model", ["../admin", "a//b", "/a", "a/./b", "a/..", "a b", "a?b=c", "a#b"])
def test_a_model_s_name_cannot_lead_elsewhere(model: str) -> None:
    fal = load_tables()["fal"]
    assert fal.wrong_inputs({"model": model, "arguments": {}}) == {"model": "must be a name such as owner/model"}


def test_values_keep_their_type_and_optional_ones_leave_no_trace() -> None:
    template = {"a": "$n", "b": {"c": "$missing?"}, "d": ["$n", "$missing?"], "...": "$more", "n": 1}
    values = {"n": {"x": [1, None]}, "more": {"n": 2, "e": "$n"}}

    assert templates.filled(template, values) == {
        "a": {"x": [1, None]},
        "b": {},
        "d": [{"x": [1, None]}],
        "n": 1,  # what the table says itself wins
        "e": "$n",  # a value is never read as a template
    }


def test_pointers_find_through_lists_and_objects_and_leave_nulls_out() -> None:
    document = {"a": [{"b": 1}, {"b": None}, {"c": 2}, 3], "x/y": {"~": 4}}
    assert pointers.found(document, "/a/*/b") == [1]
    assert pointers.found(document, "/a/2/c") == [2]
    assert pointers.found(document, "/x~1y/~0") == [4]
    assert pointers.found(document, "/a/9/b") == []
    assert pointers.first(document, ["/nope", "/a/*/c"]) == 2
