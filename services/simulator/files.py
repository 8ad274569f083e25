"""The three folders: where an upload lands, what /view shows, which name a saved picture gets."""

from __future__ import annotations

import hashlib
import io
import mimetypes
import os
import re
import shutil
from datetime import datetime
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from PIL import Image

from .wire import Request, Response, http_date

_KINDS: Final = ("input", "output", "temp")
_ANNOTATION: Final = re.compile(r" \[(input|output|temp)\]$")
#: Types a browser would run; the modern server hands them out as downloads only.
_ACTIVE_TYPES: Final = frozenset(
    {
        "text/html",
        "text/html-sandboxed",
        "application/xhtml+xml",
        "text/javascript",
        "application/javascript",
        "text/css",
        "image/svg+xml",
        "text/xml",
        "application/xml",
    }
)


class OutsideFolder(Exception):
    """A filename prefix leads out of the folder it belongs to."""


class Folders:
    """`input`, `output` and `temp` under one directory. Two servers may share it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self._of = {kind: self.directory / kind for kind in _KINDS}
        for kind in _KINDS:
            self.of(kind).mkdir(parents=True, exist_ok=True)

    def of(self, kind: str) -> Path:
        return self._of[kind]

    def wipe_temp(self) -> None:
        """As at every start of the real server."""
        shutil.rmtree(self.of("temp"), ignore_errors=True)
        self.of("temp").mkdir(parents=True, exist_ok=True)

    def input_names(self) -> list[str]:
        """Top level only, which is what LoadImage offers as choices."""
        return sorted(entry.name for entry in self.of("input").iterdir() if entry.is_file())

    def locate(self, reference: str) -> Path | None:
        """The file LoadImage means by `subfolder/name`, optionally with ` [output]`; None when it is not there.

        References that lead outside count as missing, as on servers from July 2026 on.
        """
        annotated = _ANNOTATION.search(reference)
        folder = self.of(annotated.group(1) if annotated else "input")
        name = reference[: annotated.start()] if annotated else reference
        path = Path(os.path.normpath(folder / name))
        return path if _is_inside(folder, path) and path.is_file() else None

    def place_to_save(self, prefix: str, kind: str, size: tuple[int, int]) -> tuple[Path, str, str, int]:
        """Folder, name stem, subfolder and first free counter for `filename_prefix`. Creates the folder.

        The counter is one above the highest found by listing the folder, so deleted numbers come back, and
        `a_7_00001_.png` counts as number 7 of the prefix `a`. Raises OutsideFolder.
        """
        prefix = os.path.normpath(_expand(prefix, size))
        subfolder, stem = os.path.dirname(prefix), os.path.basename(prefix)
        folder = Path(os.path.normpath(os.path.join(self.of(kind), subfolder)))
        if not _is_inside(self.of(kind), folder):
            raise OutsideFolder(
                "**** ERROR: Saving image outside the output folder is not allowed.\n"
                f" full_output_folder: {folder}\n         output_dir: {self.of(kind)}\n"
            )
        if _is_made(folder):
            return folder, stem, subfolder, 1
        highest = max((_counter_of(name, stem) for name in os.listdir(folder)), default=0)
        return folder, stem, subfolder, highest + 1


def _is_made(folder: Path) -> bool:
    """The folder exists, and False when it did before."""
    try:
        os.mkdir(folder)
    except FileExistsError:
        return False
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)
    return True


def _is_inside(folder: Path, path: str | Path) -> bool:
    return os.fspath(path) == os.fspath(folder) or os.fspath(path).startswith(f"{folder}{os.sep}")


def _counter_of(name: str, stem: str) -> int:
    start = name[: len(stem) + 1]
    if start != f"{stem}_":
        return 0
    digits = name[len(stem) + 1 :].partition("_")[0]
    return int(digits) if digits.isdigit() else 0


def _expand(prefix: str, size: tuple[int, int]) -> str:
    if "%" not in prefix:
        return prefix
    now = datetime.now().astimezone()
    prefix = prefix.replace("%width%", str(size[0])).replace("%height%", str(size[1]))
    for name in ("year", "month", "day", "hour", "minute", "second"):
        prefix = prefix.replace(f"%{name}%", f"{getattr(now, name):02}")
    return re.sub(r"%date:([^%]*)%", lambda found: _date(found.group(1), now), prefix)


def _date(pattern: str, now: datetime) -> str:
    codes = {"yyyy": "%Y", "MM": "%m", "dd": "%d", "hh": "%H", "mm": "%M", "ss": "%S"}
    return re.sub("yyyy|MM|dd|hh|mm|ss", lambda found: now.strftime(codes[found.group()]), pattern)


def upload(request: Request, folders: Folders) -> tuple[Response, bool]:
    """POST /upload/image: the answer, and whether bytes were written.

    Raises ValueError or OSError where the real handler raises (unknown type, NUL byte, name with a missing
    directory); the caller answers 500.
    """
    fields, image = _multipart(request)
    kind = fields.get("type") or "input"
    if kind not in _KINDS:
        raise ValueError(kind)
    if image is None or not image[0]:
        return Response(400), False
    name, data = image
    base, subfolder = folders.of(kind), fields.get("subfolder", "")
    folder = Path(os.path.normpath(base / os.path.normpath(subfolder)))
    path = Path(os.path.normpath(folder / name))
    if not _is_inside(base, path) or ".." in Path(name).parts or not _is_inside(base, folder):
        return Response(400), False
    folder.mkdir(parents=True, exist_ok=True)
    is_stored = False
    if fields.get("overwrite") in ("true", "1"):
        path.write_bytes(data)
        is_stored = True
    else:
        name, is_stored = _store_beside(folder, name, data)
    return Response.json({"name": name, "subfolder": subfolder, "type": kind}), is_stored


def _store_beside(folder: Path, name: str, data: bytes) -> tuple[str, bool]:
    """Write under the first name of `x.png`, `x (1).png`, ... that is free or holds these very bytes already."""
    stem, extension = os.path.splitext(name)
    candidate, number = name, 1
    while (folder / candidate).exists():
        if hashlib.sha256((folder / candidate).read_bytes()).digest() == hashlib.sha256(data).digest():
            return candidate, False
        candidate = f"{stem} ({number}){extension}"
        number += 1
    (folder / candidate).write_bytes(data)
    return candidate, True


def _multipart(request: Request) -> tuple[dict[str, str], tuple[str, bytes] | None]:
    """Text fields, and name and bytes of the part `image`. Nothing at all when the body is not multipart."""
    content_type = request.headers.get("content-type", "")
    if not content_type.startswith("multipart/form-data"):
        return {}, None
    head = f"Content-Type: {content_type}\r\n\r\n".encode("utf-8", "surrogateescape")
    boundary = BytesParser(policy=HTTP).parsebytes(head).get_boundary()
    if boundary is None:
        raise ValueError("multipart without boundary")
    fields: dict[str, str] = {}
    image = None
    for part in (b"\r\n" + request.body).split(b"\r\n--" + boundary.encode())[1:]:
        if part.startswith(b"--"):
            break
        head, _, data = part.partition(b"\r\n\r\n")
        disposition = Message()
        for line in head.decode("utf-8").splitlines():
            if line.lower().startswith("content-disposition:"):
                disposition["Content-Disposition"] = line.partition(":")[2].strip()
        name = disposition.get_param("name", header="content-disposition")
        filename = disposition.get_filename()
        if name == "image" and filename is not None:
            image = (filename, data)
        elif isinstance(name, str):
            fields[name] = data.decode("utf-8")
    return fields, image


def view(request: Request, folders: Folders, is_modern: bool) -> Response:
    """GET /view: one file of a folder, whole, in part, or drawn anew."""
    query = request.query
    if "filename" not in query:
        return Response(404)
    annotated = _ANNOTATION.search(query["filename"])
    name = query["filename"][: annotated.start()] if annotated else query["filename"]
    if not name or name.startswith("/") or ".." in name:
        return Response(400)
    kind = annotated.group(1) if annotated else query.get("type", "output")
    if kind not in _KINDS:
        return Response(400)
    folder = os.path.normpath(os.path.join(folders.of(kind), query.get("subfolder", "")))
    if not _is_inside(folders.of(kind), folder):
        return Response(403)
    path = Path(folder, os.path.basename(name))
    if not path.is_file():
        return Response(404)
    if "preview" in query:
        return _drawn_anew(path, query["preview"])
    if query.get("channel") in ("rgb", "a"):
        return _channel(path, query["channel"])
    return _file(request, path, is_modern)


def _drawn_anew(path: Path, preview: str) -> Response:
    form, _, quality = preview.partition(";")
    form = form if form in ("webp", "jpeg") else "webp"
    target = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(target, form, quality=int(quality) if quality.isdigit() else 90)
    headers = {"Content-Disposition": f'filename="{path.name}"'}
    return Response(200, target.getvalue(), f"image/{form}", headers)


def _channel(path: Path, channel: str) -> Response:
    target = io.BytesIO()
    with Image.open(path) as picture:
        if channel == "rgb":
            picture.convert("RGB").save(target, "PNG")
        else:
            alpha = picture.convert("RGBA").getchannel("A")
            only = Image.new("RGBA", picture.size)
            only.putalpha(alpha)
            only.save(target, "PNG")
    return Response(200, target.getvalue(), "image/png", {"Content-Disposition": f'filename="{path.name}"'})


def _file(request: Request, path: Path, is_modern: bool) -> Response:
    with path.open("rb", buffering=0) as file:
        stat = os.fstat(file.fileno())
        data = file.read(stat.st_size)
    content_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    disposition = f'filename="{path.name}"'
    if is_modern and content_type in _ACTIVE_TYPES:
        content_type, disposition = "application/octet-stream", f'attachment; filename="{path.name}"'
    etag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
    headers = {
        "Content-Disposition": disposition,
        "Etag": etag,
        "Last-Modified": http_date(int(stat.st_mtime)),
        "Accept-Ranges": "bytes",
    }
    if is_modern:
        headers["X-Content-Type-Options"] = "nosniff"
    if _is_unchanged(request, etag, stat.st_mtime):
        return Response(304, headers=headers)
    wanted = request.headers.get("range")
    if wanted is None:
        return Response(200, data, content_type, headers)
    part = _range(wanted, len(data))
    if part is None:
        return Response(416, headers={"Content-Range": f"bytes */{len(data)}"})
    start, end = part
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
    return Response(206, data[start:end], content_type, headers)


def _is_unchanged(request: Request, etag: str, modified: float) -> bool:
    if "if-none-match" in request.headers:
        named = [each.strip().removeprefix("W/") for each in request.headers["if-none-match"].split(",")]
        return etag in named or "*" in named
    since = request.headers.get("if-modified-since")
    if since is None:
        return False
    try:
        return int(modified) <= parsedate_to_datetime(since).timestamp()
    except ValueError:
        return False


def _range(header: str, size: int) -> tuple[int, int] | None:
    """First and one past the last byte; None when the range cannot be satisfied."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if found is None or not (found.group(1) or found.group(2)):
        return None
    first, last = found.groups()
    if not first:
        return (max(0, size - int(last)), size) if int(last) else None
    start, end = int(first), min(size, int(last) + 1) if last else size
    return (start, end) if start < end else None
