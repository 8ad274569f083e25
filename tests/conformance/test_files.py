"""Pictures in and out: what real servers do with uploads, file names and reads."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from tests.conformance.photos import a_photo, last_message, photo_graph, picture, put_photo
from tests.conformance.simulated import Simulated, solid, workflow


def test_the_photo_workflow_really_scales_and_inverts(either: Simulated) -> None:
    target = io.BytesIO()
    Image.new("RGB", (300, 100), (10, 20, 30)).save(target, "PNG")
    put_photo(either, target.getvalue())
    either.run(photo_graph(), extra_data={"extra_pnginfo": {"order": {"name": "Ann"}}})
    got = picture(either, "result_00001_.png")
    assert (got.size, got.getpixel((5, 5))) == ((512, 512), (245, 235, 225))
    assert json.loads(got.info["prompt"]) == photo_graph()  # customer text travels inside the file
    assert json.loads(got.info["order"]) == {"name": "Ann"}


def test_a_batch_takes_the_size_of_its_first_picture(either: Simulated) -> None:
    graph = workflow("batch_of_images")
    graph["2"]["inputs"]["width"] = 40
    graph["4"]["inputs"]["filename_prefix"] = "orders/o-1/result"
    either.run(graph)
    found = [picture(either, f"result_{number:05}_.png") for number in (1, 2, 3)]
    assert {each.size for each in found} == {(128, 128)}
    assert [each.getpixel((0, 0)) for each in found] == [(255, 0, 0), (255, 0, 0), (0, 255, 0)]


def test_counters_go_on_from_the_highest_and_reuse_deleted_numbers(either: Simulated) -> None:
    folder = either.directory / "output/orders/o-1"
    folder.mkdir(parents=True)
    (folder / "a_7_00001_.png").touch()
    assert either.run(solid(1, "orders/o-1/a"))["outputs"]["3"]["images"][0]["filename"] == "a_00008_.png"
    (folder / "a_00008_.png").unlink()
    assert either.run(solid(2, "orders/o-1/a"))["outputs"]["3"]["images"][0]["filename"] == "a_00008_.png"


def test_width_and_height_in_a_prefix_are_expanded(either: Simulated) -> None:
    images = either.run(solid(1, "orders/%width%x%height%/r"))["outputs"]["3"]["images"]
    assert images[0]["subfolder"] == "orders/64x64"


def test_an_upload_is_read_when_the_prompt_runs(either: Simulated) -> None:
    put_photo(either, a_photo())
    blocked = either.busy()
    prompt_id = either.submit(photo_graph())
    (either.directory / "input/orders/p/input.png").unlink()
    either.post("/interrupt", json={"prompt_id": blocked})
    assert last_message(either.finished(prompt_id)) == "execution_error"


@pytest.mark.parametrize(
    ("name", "fields", "status"),
    [
        ("x.png", {"subfolder": ".."}, 400),
        ("x.png", {"subfolder": "/etc"}, 400),
        ("../x.png", {}, 400),
        ("no/such/x.png", {}, 500),
        ("x" * 300, {}, 500),
        ("x.png", {"type": "bogus"}, 500),
        ("x.svg", {}, 200),
    ],
)
def test_uploads_are_placed_or_refused(modern: Simulated, name: str, fields: dict[str, str], status: int) -> None:
    assert put_photo(modern, b"", name, **fields).status_code == status


def test_an_upload_without_a_file_is_a_400(either: Simulated) -> None:
    assert either.post("/upload/image", json={"image": "x"}).status_code == 400
    assert either.post("/upload/image", files={"other": ("x.png", b"x")}).status_code == 400


def test_an_identical_upload_is_not_rewritten(either: Simulated) -> None:
    put_photo(either, b"one")
    stats = either.stats()
    path = either.directory / "input/orders/p/input.png"
    before = path.stat().st_mtime_ns
    assert put_photo(either, b"one").json()["name"] == "input.png"
    assert path.stat().st_mtime_ns == before
    after = either.stats()
    assert (after["uploads"] - stats["uploads"], after["uploads_stored"] - stats["uploads_stored"]) == (1, 0)


def test_view_serves_parts_heads_and_unchanged_files(either: Simulated) -> None:
    either.run(solid())
    query = {"filename": "result_00001_.png", "subfolder": "orders/o-1"}
    whole = either.get("/view", params=query)
    part = either.get("/view", params=query, headers={"Range": "bytes=0-7"})
    assert (part.status_code, part.content) == (206, b"\x89PNG\r\n\x1a\n")
    assert part.headers["Content-Range"] == f"bytes 0-7/{len(whole.content)}"
    head = either.http.head(f"{either.url}/view", params=query, timeout=5)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(whole.content))
    unchanged = either.get("/view", params=query, headers={"If-None-Match": whole.headers["Etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    again = either.get("/view", params={**query, "preview": "webp;50"})
    assert Image.open(io.BytesIO(again.content)).format == "WEBP"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({}, 404),
        ({"filename": ""}, 400),
        ({"filename": "/x.png"}, 400),
        ({"filename": "x.png", "type": "bogus"}, 400),
        ({"filename": "orders/o-1/result_00001_.png"}, 404),
    ],
)
def test_view_refuses_what_it_must(modern: Simulated, query: dict[str, str], status: int) -> None:
    modern.run(solid())
    assert modern.get("/view", params=query).status_code == status


def test_modern_hands_out_active_files_as_downloads(modern: Simulated) -> None:
    put_photo(modern, b"<svg/>", "x.svg")
    answer = modern.get("/view", params={"filename": "x.svg", "subfolder": "orders/p", "type": "input"})
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"].startswith("attachment")
