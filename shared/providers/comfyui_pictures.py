"""The pictures of jobs at a ComfyUI server, into files that spill to the disk when they are large."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final, cast

from shared.domain.errors import ProviderAway, ProviderRejected
from shared.domain.task import Reason
from shared.observe.crash import CrashPoint, crash_point
from shared.providers.comfyui_http import Server

#: Pictures up to this size stay in memory while they are handed on.
_SPOOL_BYTES: Final = 4 * 2**20

#: Where it stands among all, its names, its file, and how its download ended: size, None for gone, what was raised.
_Came = tuple[int, Mapping[str, Any], BinaryIO, int | Exception | None]


def fetched(server: Server, outputs: Sequence[Mapping[str, Any]], max_bytes: int) -> Iterator[BinaryIO]:
    """See ComfyUI.fetch."""
    for output in outputs:
        file = _spooled()
        try:
            found = server.download(_names(output), file, max_bytes)
        except ValueError as error:
            file.close()
            raise _refused(error) from error
        except BaseException:
            file.close()
            raise
        yield _at_its_start(output, file, found)


def fetched_together(
    server: Server, outputs: Sequence[Sequence[Mapping[str, Any]]], max_bytes: int
) -> Iterator[list[tuple[int, Sequence[BinaryIO] | Exception]]]:
    """See FetchesTogether.fetch_together."""
    files = [(place, output, _spooled()) for place, ours in enumerate(outputs) for output in ours]
    left = [len(ours) for ours in outputs]
    came: list[list[_Came]] = [[] for _ in outputs]
    yield [(place, []) for place, count in enumerate(left) if not count]  # nothing was made
    for ended in server.download_each([(_names(output), file) for _, output, file in files], max_bytes):
        whole = []
        for at, found in ended:
            place, output, file = files[at]
            came[place].append((at, output, file, found))
            left[place] -= 1
            if not left[place]:
                whole.append((place, _of_one_job(sorted(came[place], key=lambda one: one[0]))))
        yield whole


def _names(output: Mapping[str, Any]) -> Mapping[str, str]:
    return {key: str(output[key]) for key in ("filename", "subfolder", "type")}


def _spooled() -> BinaryIO:
    return cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES))


def _refused(error: ValueError) -> ProviderRejected:
    return ProviderRejected(str(error), reason=Reason.NO_OUTPUTS)


def _at_its_start(output: Mapping[str, Any], file: BinaryIO, size: int | None) -> BinaryIO:
    """A file at its start. Raises FileNotFoundError."""
    if size is None:
        file.close()
        raise FileNotFoundError(f"{output['subfolder']}/{output['filename']} is gone")
    crash_point(CrashPoint.PICTURE_FETCHED)
    file.seek(0)
    return file


def _of_one_job(
    files: Sequence[_Came],
) -> Sequence[BinaryIO] | Exception:
    """The files of one job, or the first of what went wrong with them."""
    try:
        for _, _, _, found in files:
            if isinstance(found, ValueError):
                raise _refused(found) from found
            if isinstance(found, Exception):
                raise found
        return [
            _at_its_start(output, file, found) for _, output, file, found in files if not isinstance(found, Exception)
        ]
    except (ProviderAway, ProviderRejected, FileNotFoundError) as error:
        for _, _, file, _ in files:
            file.close()
        return error
