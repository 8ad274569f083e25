"""Where finished pictures are kept: a local folder, S3, Google or Azure, told apart by the URL alone."""

import hashlib
import io
import os
import re
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, MemoryStore, ObjectStore, from_url

from shared.domain.errors import StorageAway
from shared.domain.messages import Artifact
from shared.observe.crash import CrashPoint, crash_point
from shared.observe.logs import redacted
from shared.pictures import BrokenPicture, verified

__all__ = ["MAX_PICTURE_BYTES", "Artifacts", "BrokenPicture"]

#: Bytes of one picture; a backstop, the download has a limit of its own.
MAX_PICTURE_BYTES: Final = 128 * 1024 * 1024

#: A store that is away must be noticed before the lease of the row is over.
_RETRY: Final[Any] = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
_CLIENT: Final[Any] = {"timeout": "30s", "connect_timeout": "5s"}

#: Bytes per piece of a stream: enough to keep a link busy, little enough for many slow readers at once.
_PIECE_BYTES: Final = 256 * 1024

#: The only keys this module makes; anything else names no picture of ours.
_KEY: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/\d{1,9}/\d{1,9}\.(png|jpg)", re.ASCII)

#: More than so many at a time are not quicker.
_SYNCS_AT_ONCE: Final = 8

#: LocalStore writes to `<key>#<n>` and renames. One that is older was left by a process that was killed.
_ABANDONED_AFTER_SECONDS: Final = 30.0


class Artifacts:
    """The artifact store at `url`. Safe to use from many threads.

    url -- a folder (plain path or file:///…), s3://bucket/prefix, gs://…, az://…, or memory:// for tests. Keys and
           regions come from the environment variables that each cloud's own tools read.

    Raises ValueError when the URL cannot be used, StorageAway when the folder cannot be made.
    """

    def __init__(self, url: str) -> None:
        self._folder = _folder_of(url)
        self._store = _store_for(url, self._folder)
        self._last_put_failed = False
        self._syncing = ThreadPoolExecutor(_SYNCS_AT_ONCE, thread_name_prefix="sync")

    def put(self, task_id: uuid.UUID, attempt: int, index: int, file: BinaryIO) -> Artifact:
        """`write` and `settle` of one picture."""
        artifact = self.write(task_id, attempt, index, file)
        self.settle([artifact])
        return artifact

    def write(self, task_id: uuid.UUID, attempt: int, index: int, file: BinaryIO) -> Artifact:
        """The picture in `file` is whole, stripped of its words and stored; `settle` must follow before a row says so.

        Storing it again changes nothing. Raises BrokenPicture: nothing was stored. StorageAway: no half picture stands
        under the key; write it again.
        """
        data = file.read(MAX_PICTURE_BYTES + 1)
        if len(data) > MAX_PICTURE_BYTES:
            raise BrokenPicture(f"the file has more than {MAX_PICTURE_BYTES} bytes")
        picture = verified(data)
        key = f"{task_id}/{attempt}/{index}.{picture.extension}"
        attributes: dict[str, str] | None = None if self._folder else {"Content-Type": picture.media_type}
        with self._noted(), self._away("put", key):
            try:
                obstore.put(self._store, key, picture.data, attributes=attributes, use_multipart=False)
            except (FileNotFoundError, NotFoundError) as error:
                raise StorageAway(f"put {key}: {_first_line(error)}") from error
        crash_point(CrashPoint.PICTURE_WRITTEN)
        return Artifact(
            index=index,
            key=key,
            sha256=hashlib.sha256(picture.data).hexdigest(),
            bytes=len(picture.data),
            media_type=picture.media_type,
            width=picture.width,
            height=picture.height,
        )

    def settle(self, written: Sequence[Artifact]) -> None:
        """What was written survives a power cut. Raises StorageAway: write all of it again.

        Together and side by side, since a disk takes hardly longer over many files than over one: 16 pictures take
        0.2 ms each, one file after the other 1.9 and the same CPU time (ext4, 2 cores, 300-byte files, the best of 12
        tries; 0.8 and 11 in the middle, with a load of 25).
        """
        if self._folder is not None:
            with self._noted(), self._away("settle", f"{len(written)} pictures"):
                try:
                    self._make_durable(self._folder, [artifact.key for artifact in written])
                except FileNotFoundError as error:  # somebody tidied up
                    raise StorageAway(f"settle: {_first_line(error)}") from error
        crash_point(CrashPoint.PICTURE_STORED)

    def works(self) -> tuple[bool, str]:
        """Whether pictures can be stored, and why not: as the last `put` found, and after a failed one as a probe."""
        if self._last_put_failed:
            try:
                self.probe()
            except StorageAway as error:
                return False, str(error)
            self._last_put_failed = False
        return True, ""

    def probe(self) -> None:
        """Write, read and delete a small object. Raises StorageAway, and nothing is left behind."""
        key = f"probe-{uuid.uuid4().hex}"
        with self._away("probe", key):
            try:
                obstore.put(self._store, key, b"probe", use_multipart=False)
                if obstore.get(self._store, key).bytes().to_bytes() != b"probe":
                    raise OSError("it gave back something else")
            finally:
                with suppress(NotFoundError, FileNotFoundError):
                    obstore.delete(self._store, key)

    def remove(self, task_ids: Iterable[uuid.UUID]) -> None:
        """Nothing of these tasks is stored any more, whether rows named it or not. Raises StorageAway: do it again."""
        for task_id in task_ids:
            with self._away("delete", str(task_id)):
                if self._folder is not None:
                    with suppress(FileNotFoundError):
                        shutil.rmtree(self._folder / str(task_id))
                    if not self._folder.is_dir():  # a volume that is not mounted keeps what it holds
                        raise FileNotFoundError(str(self._folder))
                    continue
                for found in obstore.list(self._store, f"{task_id}/"):
                    obstore.delete(self._store, [one["path"] for one in found])

    def open(self, key: str) -> BinaryIO:
        """The stored picture as a file. Raises FileNotFoundError, StorageAway."""
        return io.BytesIO(self.read(key))

    def read(self, key: str) -> bytes:
        """The bytes of the stored picture. Raises FileNotFoundError, StorageAway."""
        with self._away("read", key):
            return obstore.get(self._store, _ours(key)).bytes().to_bytes()

    async def stream(self, key: str, size: int, wanted: range) -> AsyncIterator[bytes]:
        """Some bytes of the stored picture, in pieces, for as many readers at once as there are; no thread waits.

        size -- of the whole, as the row has it

        Raises FileNotFoundError, also when what is stored has another size, and StorageAway; later pieces only that.
        """
        with self._away("read", key):
            found = await obstore.get_async(self._store, _ours(key), options={"range": (wanted.start, wanted.stop)})
            if found.meta["size"] != size:
                raise FileNotFoundError(f"{key} has {found.meta['size']} bytes")
        return self._pieces(key, found.stream(min_chunk_size=_PIECE_BYTES))

    async def _pieces(self, key: str, stored: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        with self._away("read", key):
            async for piece in stored:
                yield bytes(piece)

    def exists(self, key: str, sha256: str | None = None) -> bool:
        """Whether a picture is stored there, with exactly these bytes when `sha256` is given. Raises StorageAway."""
        try:
            if sha256 is not None:
                return self.digest(key) == sha256
            with self._away("look for", key):
                obstore.head(self._store, _ours(key))
        except FileNotFoundError:
            return False
        return True

    def digest(self, key: str) -> str:
        """SHA-256 (hex) of the stored bytes, read again from the store. Raises FileNotFoundError, StorageAway."""
        with self._away("read", key):
            seen = hashlib.sha256()
            for chunk in obstore.get(self._store, _ours(key)).stream():
                seen.update(chunk)
            return seen.hexdigest()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except StorageAway:
            self._last_put_failed = True
            raise
        self._last_put_failed = False

    @contextmanager
    def _away(self, what: str, key: str) -> Iterator[None]:
        """Everything that goes wrong is StorageAway, but a picture that is not there."""
        try:
            yield
        except (FileNotFoundError, NotFoundError) as error:
            if self._folder is not None and not self._folder.is_dir():  # a volume that is not mounted holds nothing
                raise StorageAway(f"{what} {key}: the folder of the pictures is gone") from error
            raise FileNotFoundError(f"no picture {key}") from error
        except (BaseError, OSError) as error:
            raise StorageAway(f"{what} {key}: {_first_line(error)}") from error

    def _make_durable(self, folder: Path, keys: Sequence[str]) -> None:
        """Force files and their names to the disk, the files first: with them goes most of the rest."""
        paths = [os.path.join(folder, *key.split("/")) for key in keys]
        attempts = list(dict.fromkeys(map(os.path.dirname, paths)))
        tasks = dict.fromkeys(map(os.path.dirname, attempts))
        for places in (paths, [*attempts, *tasks, str(folder)]):
            self._sync_all(places)
        for attempt in attempts:
            _sweep(attempt)

    def _sync_all(self, places: Sequence[str]) -> None:
        """Side by side. Raises what one of them raised, an OSError."""
        portions = [places[first::_SYNCS_AT_ONCE] for first in range(min(_SYNCS_AT_ONCE, len(places)))]
        try:
            for _ in self._syncing.map(_sync, portions):
                pass
        except RuntimeError:  # the interpreter is ending and its pools take nothing more, but a handler is at work
            _sync(places)


def _sync(places: Sequence[str]) -> None:
    """These files and folders are on the disk."""
    for place in places:
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sweep(attempt: str) -> None:
    """Delete what a process that was killed left half written beside the pictures of an attempt."""
    for half in (os.path.join(attempt, name) for name in os.listdir(attempt) if "#" in name):
        with suppress(OSError):  # somebody else swept it
            if time.time() - os.stat(half).st_mtime > _ABANDONED_AFTER_SECONDS:
                os.unlink(half)


def _folder_of(url: str) -> Path | None:
    """The folder a plain path or file URL means, None for every other URL."""
    if "://" not in url:
        return Path(url).expanduser().resolve()
    parts = urlsplit(url)
    if parts.scheme != "file":
        return None
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ValueError("a file URL of the artifact store needs three slashes and an absolute path: file:///…")
    return Path(unquote(parts.path)).resolve()


def _store_for(url: str, folder: Path | None) -> ObjectStore:
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return LocalStore(folder)
        except (BaseError, OSError) as error:
            raise StorageAway(f"the folder of the pictures cannot be made: {_first_line(error)}") from error
    if url.startswith("memory:"):
        return MemoryStore()
    try:
        return from_url(url, client_options=_CLIENT, retry_config=_RETRY)
    except (BaseError, OSError, ValueError) as error:
        raise ValueError(f"the artifact store cannot be used: {_first_line(error)}") from error


def _ours(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise FileNotFoundError(f"no picture {key[:100]}")
    return key


def _first_line(error: Exception) -> str:
    """What happened, without the address's query string and the dump of the library's own structures behind it."""
    return redacted(str(error).partition("\n")[0], 300)
