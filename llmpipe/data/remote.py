"""Files that lie behind a URL: list them, tell whether they changed, and read them as a seekable stream.

    place = location("s3://bucket/corpus/")            # a Remote; a Path for anything local, file:// too
    for name, size, version in list_remote(place): ...
    with open_remote("https://host/news.jsonl.gz") as stream: ...

http and https are read here, with Range requests that go on where a connection broke; `s3://`, `memory://`, `hf://` and
what else fsspec knows are read through it. A URL is handed on whole only in memory: what is printed or recorded has
neither user, password nor query.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from llmpipe.data.files import digest_of
from llmpipe.data.http import EXTRAS, URL, HttpFile, explained, without_secrets
from llmpipe.errors import InputError

BLOCK_BYTES = 4 << 20
"""What one request to fsspec fetches: row groups and streams are read in pieces of a few MB anyway."""
_VERSIONS = ("ETag", "etag", "checksum", "md5Hash", "content_md5", "blob_id", "LastModified", "last_modified", "mtime", "updated")


@dataclass(frozen=True, slots=True)
class Remote:
    """A place that is no local path. `str` gives it without secrets; `url` is whole."""

    url: str

    def __str__(self) -> str:
        return without_secrets(self.url)

    def __repr__(self) -> str:  # a dataclass would print the URL
        return f"Remote({self!s})"

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self.url.rstrip('/')}/{name}" if name else self.url)

    def resolve(self) -> Remote:
        return self

    def names_file(self, name: str) -> bool:
        """Whether the URL itself is the file that was listed as `name`."""
        return is_http(self.url) or unquote(self.url.rstrip("/")).rpartition("/")[2] == name or self.url.rstrip("/").rpartition("/")[2] == name


Location = Path | Remote


def location(given: str | Path) -> Location:
    """Read what a user names: `file://` and plain paths are local, `hf://owner/name` is a data set of the hub."""
    text = str(given)
    match = URL.match(text)
    if match is None:
        return Path(text).expanduser()
    if match[1].lower() == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise InputError(f"{text}: file:// URLs name a path on this machine, such as file:///data/news")
        return Path(unquote(parts.path))
    if match[1].lower() == "hf" and text[5:].partition("/")[0] not in ("datasets", "models", "spaces", "buckets"):
        return Remote(f"hf://datasets/{text[5:]}")
    return Remote(text)


# --- listing --------------------------------------------------------------------------------------------------------


def list_remote(place: Remote) -> Iterator[tuple[str, int, str]]:
    """Yield (relative name, bytes, version) of a file or of the files below a folder, by name; hidden ones left out.

    The version is a digest of what the server says of a file (ETag or checksum, else time, with the size), or of its
    content where it says nothing.
    """
    with explained(place.url):
        if is_http(place.url):
            yield _http_entry(place.url)
            return
        fs, root = _filesystem(place.url)
        fs.invalidate_cache()  # a pipeline's process may have listed it before
        info = fs.info(root)
        if info["type"] != "directory":
            yield root.rstrip("/").rpartition("/")[2], int(info.get("size") or 0), _version(fs, root, info)
            return
        prefix = fs._strip_protocol(root).rstrip("/") + "/"
        for path, found in sorted(fs.find(root, detail=True).items()):
            name = path.removeprefix(prefix)
            if found["type"] == "file" and name != path and not any(part in ("", "..") or part.startswith(".") for part in name.split("/")):
                yield name, int(found.get("size") or 0), _version(fs, path, found)


def is_http(url: str) -> bool:
    return urlsplit(url).scheme.lower() in ("http", "https")


def _filesystem(url: str) -> tuple[Any, str]:
    scheme = urlsplit(url).scheme
    if scheme in EXTRAS and importlib.util.find_spec(EXTRAS[scheme][0]) is None:
        raise ImportError(EXTRAS[scheme][0])
    import fsspec

    return fsspec.url_to_fs(url)


def _version(fs: Any, path: str, info: dict[str, Any]) -> str:
    lfs = info.get("lfs")
    said = [str(lfs["sha256"])] if isinstance(lfs, dict) and lfs.get("sha256") else [str(info[k]) for k in _VERSIONS if info.get(k) is not None][:1]
    if said:
        return digest_of(["version", *said, info.get("size")])
    with fs.open(path, "rb") as f:
        return _digest(f)


def _digest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while piece := stream.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def _http_entry(url: str) -> tuple[str, int, str]:
    with HttpFile(url) as stream:
        name = unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2].lstrip(".") or urlsplit(url).hostname or "download"
        said = stream.etag or stream.modified
        if said and stream.size is not None:
            return name, stream.size, digest_of(["version", said, stream.size])
        digest = _digest(stream)  # type: ignore[arg-type]
        return name, stream.tell(), digest


# --- reading --------------------------------------------------------------------------------------------------------


def open_remote(url: str) -> BinaryIO:
    """Open a URL for reading, seekable where its server is."""
    with explained(url):
        if is_http(url):
            file = HttpFile(url)
            stream = io.BufferedReader(file, 1 << 18)
            return stream if file.seekable() else _spooled(stream)  # type: ignore[return-value]
        fs, path = _filesystem(url)
        return io.BufferedReader(_Explained(fs.open(path, "rb", block_size=BLOCK_BYTES), url), 1 << 18)  # type: ignore[arg-type, return-value]


def _spooled(stream: io.BufferedReader) -> BinaryIO:
    """Copy what can be read only once to a file without a name, which goes with its descriptor."""
    copy = tempfile.TemporaryFile()
    with stream:
        shutil.copyfileobj(stream, copy, 1 << 20)
    copy.seek(0)
    return copy  # type: ignore[return-value]


class _Explained(io.RawIOBase):
    """A file of fsspec whose failures are an `InputError`: what a network loses must stop a run, not count as a broken file."""

    def __init__(self, file: Any, url: str) -> None:
        super().__init__()
        self._file, self._url = file, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        with explained(self._url):
            piece = self._file.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
