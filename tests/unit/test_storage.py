"""A picture is stored whole or not at all, storing it twice is storing it once, and nobody else's error gets out."""

import asyncio
import hashlib
import io
import os
import resource
import threading
import time
import uuid
from pathlib import Path

import pytest
from PIL import Image

from shared.domain.errors import StorageAway
from shared.pictures import BrokenPicture
from shared.storage import Artifacts

TASK = uuid.UUID("2f1d6c1e-6a0b-4f0e-9d0c-0d5a4b6f7a11")


def picture(kind: str = "PNG", side: int = 40) -> io.BytesIO:
    file = io.BytesIO()
    Image.effect_noise((side, side // 2), 50).save(file, kind)
    file.seek(0)
    return file


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=["folder", "file URL", "memory"])
def artifacts(request, tmp_path):
    return Artifacts({"folder": str(tmp_path), "file URL": tmp_path.as_uri(), "memory": "memory://"}[request.param])


def test_a_stored_picture_is_described_by_its_stored_bytes(artifacts):
    kept = artifacts.put(TASK, 2, 0, picture())
    data = artifacts.read(kept.key)
    assert kept.key == f"{TASK}/2/0.png"
    assert (kept.index, kept.media_type, kept.width, kept.height) == (0, "image/png", 40, 20)
    assert kept.bytes == len(data)
    assert kept.sha256 == hashlib.sha256(data).hexdigest() == artifacts.digest(kept.key)
    assert artifacts.open(kept.key).read() == data


def test_a_jpeg_is_stored_as_one(artifacts):
    kept = artifacts.put(TASK, 1, 3, picture("JPEG"))
    assert (kept.key, kept.media_type) == (f"{TASK}/1/3.jpg", "image/jpeg")


def test_storing_twice_is_storing_once(tmp_path):
    artifacts = Artifacts(str(tmp_path))
    file = picture()
    first = artifacts.put(TASK, 1, 0, file)
    file.seek(0)
    assert artifacts.put(TASK, 1, 0, file) == first
    assert files_in(tmp_path) == [first.key]


def test_attempts_and_pictures_have_places_of_their_own(artifacts):
    keys = {artifacts.put(TASK, attempt, index, picture()).key for attempt in (1, 2) for index in (0, 1)}
    assert len(keys) == 4


def test_a_picture_exists_only_with_the_bytes_it_had(artifacts):
    kept = artifacts.put(TASK, 1, 0, picture())
    assert artifacts.exists(kept.key)
    assert artifacts.exists(kept.key, kept.sha256)
    assert not artifacts.exists(kept.key, "0" * 64)
    assert not artifacts.exists(f"{TASK}/9/0.png")
    assert not artifacts.exists(f"{TASK}/9/0.png", kept.sha256)


@pytest.mark.parametrize("key", [f"{TASK}/9/0.png", "../secret", f"{TASK}/../../etc/passwd", "/etc/passwd", ""])
def test_a_picture_that_is_not_there_is_not_an_outage(artifacts, key):
    for question in (artifacts.read, artifacts.open, artifacts.digest):
        with pytest.raises(FileNotFoundError):
            question(key)
    assert not artifacts.exists(key)


def test_a_broken_picture_is_not_stored(tmp_path):
    with pytest.raises(BrokenPicture):
        Artifacts(str(tmp_path)).put(TASK, 1, 0, io.BytesIO(picture().getvalue()[:-20]))
    assert files_in(tmp_path) == []


def test_a_file_beyond_the_limit_is_refused_unread(monkeypatch, tmp_path):
    monkeypatch.setattr("shared.storage.MAX_PICTURE_BYTES", 100)
    with pytest.raises(BrokenPicture, match="more than 100 bytes"):
        Artifacts(str(tmp_path)).put(TASK, 1, 0, picture())


def test_a_missing_folder_is_made_with_odd_signs_in_its_name(tmp_path):
    folder = tmp_path / "new" / "with space & 100%"
    kept = Artifacts(folder.as_uri()).put(TASK, 1, 0, picture())
    assert files_in(folder) == [kept.key]


def test_a_disk_that_takes_no_more_is_an_outage_and_leaves_no_half_picture(tmp_path):
    artifacts = Artifacts(str(tmp_path))
    file = picture(side=400)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageAway):
            artifacts.put(TASK, 1, 0, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_in(tmp_path) == []
    file.seek(0)
    assert artifacts.exists(artifacts.put(TASK, 1, 0, file).key)


def test_a_picture_that_was_deleted_before_it_is_settled_must_be_written_again(tmp_path):
    artifacts = Artifacts(str(tmp_path))
    written = artifacts.write(TASK, 1, 0, picture())
    (tmp_path / written.key).unlink()

    with pytest.raises(StorageAway):
        artifacts.settle([written])


def test_pictures_are_settled_side_by_side_each_with_all_its_folders(tmp_path, monkeypatch):
    artifacts = Artifacts(str(tmp_path))
    written = [artifacts.write(uuid.uuid4(), 1, 0, picture()) for _ in range(3)]
    others = threading.Barrier(3)
    forced = []

    def sync(handle: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{handle}"))
        forced.append(place)
        if place.is_file():
            others.wait(5)  # the disk takes its time until all of them are with it

    monkeypatch.setattr("shared.storage.os.fsync", sync)
    artifacts.settle(written)

    files = [tmp_path / one.key for one in written]
    assert set(forced[:3]) == set(files)
    assert set(forced[3:]) == {tmp_path, *(file.parent for file in files), *(file.parent.parent for file in files)}


def test_what_a_killed_process_left_half_written_is_swept_by_the_next_write(tmp_path):
    artifacts = Artifacts(str(tmp_path))
    folder = tmp_path / str(TASK) / "1"
    folder.mkdir(parents=True)
    old, fresh = folder / "0.png#1", folder / "0.png#2"
    for half in (old, fresh):
        half.write_bytes(b"half")
    os.utime(old, (time.time() - 3600,) * 2)
    kept = artifacts.put(TASK, 1, 0, picture())
    assert files_in(tmp_path) == [kept.key, f"{kept.key}#2"]  # the fresh one may be another worker's


def test_a_file_where_the_folder_should_be_is_an_outage(tmp_path):
    artifacts = Artifacts(str(tmp_path))
    (tmp_path / str(TASK)).write_text("in the way")
    with pytest.raises(StorageAway):
        artifacts.put(TASK, 1, 0, picture())
    with pytest.raises(StorageAway):
        Artifacts(str(tmp_path / str(TASK)))


def test_a_folder_that_vanished_is_an_outage_and_not_a_missing_picture(tmp_path):
    folder = tmp_path / "volume"
    artifacts = Artifacts(str(folder))
    folder.rmdir()
    with pytest.raises(StorageAway, match="gone"):
        artifacts.exists(f"{TASK}/1/0.png")


@pytest.mark.parametrize("url", ["file://relative/folder", "ftp://host/x", "s3://"])
def test_a_url_that_means_nothing_is_refused_at_the_start(url):
    with pytest.raises(ValueError, match="artifact store"):
        Artifacts(url)


def test_pictures_are_durable_also_while_the_interpreter_ends_and_its_pools_take_nothing(tmp_path, monkeypatch):
    artifacts = Artifacts(str(tmp_path))
    written = artifacts.write(TASK, 1, 0, picture())
    forced = []
    monkeypatch.setattr("shared.storage.os.fsync", lambda it: forced.append(Path(os.readlink(f"/proc/self/fd/{it}"))))
    artifacts._syncing.shutdown()
    artifacts.settle([written])
    file = tmp_path / written.key
    assert forced == [file, file.parent, file.parent.parent, tmp_path]


def test_a_cloud_store_that_does_not_answer_is_an_outage(monkeypatch):
    monkeypatch.setattr("shared.storage._RETRY", {"max_retries": 0})
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    artifacts = Artifacts("s3://bucket/prefix")
    for call in (lambda: artifacts.put(TASK, 1, 0, picture()), lambda: artifacts.exists(f"{TASK}/1/0.png")):
        with pytest.raises(StorageAway) as caught:
            call()
        assert "hunter2" not in str(caught.value)
        assert "\n" not in str(caught.value)


def streamed(artifacts: Artifacts, key: str, size: int, wanted: range) -> bytes:
    async def read() -> bytes:
        return b"".join([piece async for piece in await artifacts.stream(key, size, wanted)])

    return asyncio.run(read())


def test_a_stream_has_the_wanted_bytes_and_no_others(artifacts):
    kept = artifacts.put(TASK, 1, 0, picture(side=900))  # several pieces
    data = artifacts.read(kept.key)
    assert len(data) > 300_000
    for wanted in (range(len(data)), range(1), range(10, 20), range(len(data) - 5, len(data))):
        assert streamed(artifacts, kept.key, kept.bytes, wanted) == data[wanted.start : wanted.stop]


def test_a_stream_of_what_is_not_there_or_another_size_never_begins(artifacts, tmp_path):
    kept = artifacts.put(TASK, 1, 0, picture())
    for key, size in ((kept.key, kept.bytes + 1), (f"{TASK}/1/9.png", kept.bytes), ("../secret", kept.bytes)):
        with pytest.raises(FileNotFoundError):
            streamed(artifacts, key, size, range(10))


def test_a_stream_from_a_store_that_is_gone_says_so(tmp_path):
    artifacts = Artifacts(str(tmp_path / "pictures"))
    kept = artifacts.put(TASK, 1, 0, picture())
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    with pytest.raises(StorageAway):
        streamed(artifacts, kept.key, kept.bytes, range(10))


def test_a_store_works_until_a_picture_could_not_be_stored_and_again_as_soon_as_one_could(tmp_path):
    folder = tmp_path / "pictures"
    artifacts = Artifacts(str(folder))
    assert artifacts.works() == (True, "")
    folder.rename(tmp_path / "away")
    folder.touch()
    with pytest.raises(StorageAway):
        artifacts.put(TASK, 1, 0, picture())
    works, why = artifacts.works()
    assert not works
    assert why

    folder.unlink()
    (tmp_path / "away").rename(folder)

    assert artifacts.works() == (True, "")
    assert files_in(folder) == []
    artifacts.put(TASK, 1, 0, picture())


def test_of_a_removed_task_nothing_is_left_and_of_others_everything(artifacts):
    other = uuid.uuid4()
    gone = [artifacts.put(TASK, attempt, index, picture()) for attempt in (1, 2) for index in (0, 1)]
    kept = artifacts.put(other, 1, 0, picture())
    artifacts.remove([TASK, uuid.uuid4()])
    artifacts.remove([TASK])
    assert not any(artifacts.exists(one.key) for one in gone)
    assert artifacts.exists(kept.key)


def test_what_a_killed_process_left_half_written_goes_with_its_task(tmp_path):
    artifacts = Artifacts(str(tmp_path))
    key = artifacts.put(TASK, 1, 0, picture()).key
    (tmp_path / f"{key}#1").write_bytes(b"half")
    artifacts.remove([TASK])
    assert list(tmp_path.iterdir()) == []


def test_from_a_volume_that_is_not_mounted_nothing_is_taken_for_removed(tmp_path):
    artifacts = Artifacts(str(tmp_path / "volume"))
    (tmp_path / "volume").rmdir()
    with pytest.raises(StorageAway):
        artifacts.remove([TASK])
