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
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from llmpipe.data.files import digest_of
from llmpipe.errors import InputError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
BLOCK_BYTES = 4 << 20
"""What one request to fsspec fetches: row groups and streams are read in pieces of a few MB anyway."""
TRIES = 5
TIMEOUT_S = (10.0, 60.0)
"""To connect, and between two pieces of a body."""
_EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "hf": ("huggingface_hub", "hf")}
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
    match = _URL.match(text)
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


def without_secrets(url: str) -> str:
    """Remove user, password, query and fragment from a URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0]
    if not parts.scheme or not _URL.match(url):
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _words(error: Exception, url: str) -> str:
    """Say what went wrong without the secrets that libraries print."""
    text = str(error).replace(url, without_secrets(url)).replace(quote(url), without_secrets(url))
    return re.sub(r"\?[^\s'\")]*", "", re.sub(r"://[^/\s@]*@", "://", text))[:300] or type(error).__name__


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what requests, fsspec and its back ends raise into an `InputError` that names the URL and what to try."""
    import requests

    scheme = urlsplit(url).scheme
    try:
        yield
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        raise InputError(f"{scheme}:// needs a library that is not installed ({error})", hint=f"pip install 'llmpipe[{extra[1]}]'" if extra else f"fsspec reads {scheme}:// with it") from None
    except FileNotFoundError:
        raise InputError(f"{without_secrets(url)}: no such file") from None
    except (requests.RequestException, OSError, ValueError, EOFError) as error:
        hint = "is there a network, and are the credentials right? Repeat the command when it is back; a folder on disk works without one"
        raise InputError(f"{without_secrets(url)}: cannot be read ({_words(error, url)})", hint=hint) from None
    except Exception as error:
        # botocore, huggingface_hub and other back ends have exception trees of their own, known only where they are installed
        if not type(error).__module__.startswith(("botocore", "aiobotocore", "huggingface_hub", "httpx", "httpcore", "aiohttp", "s3fs", "gcsfs", "adlfs", "google", "azure")):
            raise
        raise InputError(f"{without_secrets(url)}: cannot be read ({_words(error, url)})", hint="is there a network, and are the credentials right?") from None


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
    if scheme in _EXTRAS and importlib.util.find_spec(_EXTRAS[scheme][0]) is None:
        raise ImportError(_EXTRAS[scheme][0])
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


class HttpFile(io.RawIOBase):
    """A file on a web server: read in one response, or from anywhere in it by Range; a broken connection is taken up again.

    Raises `InputError` when the file changes while it is read, or the server fails for good: that stops a run, which goes on
    with the same command, while a broken file is counted and passed over.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        import requests

        self._url, self._session, self._response, self._body = url, requests.Session(), None, None
        self._position = 0
        self.size: int | None = None
        self.etag = self.modified = None
        self._ranges = False
        self._connect()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._ranges and self.size is not None

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if not self.seekable():
            raise io.UnsupportedOperation(f"{without_secrets(self._url)}: the server gives no ranges, so it is read from its beginning only")
        target = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size or 0}[whence] + offset
        if target != self._position:
            self._position = max(0, target)
            self._drop()
        return self._position

    def readinto(self, buffer: Any) -> int:
        for attempt in range(TRIES):
            if self.size is not None and self._position >= self.size:
                return 0
            try:
                if self._body is None:
                    self._connect()
                piece = self._body.read(len(buffer))  # type: ignore[union-attr]
            except _transport_errors() as error:
                problem: Exception = error
            else:
                if piece or self.size is None:
                    buffer[: len(piece)] = piece
                    self._position += len(piece)
                    return len(piece)
                problem = EOFError(f"{self._position} of {self.size} bytes came")
            self._drop()
            if attempt + 1 == TRIES or (self._position and not self._ranges):
                break
            time.sleep(0.2 * 2**attempt)
        with explained(self._url):
            raise OSError(_words(problem, self._url))

    def close(self) -> None:
        if not self.closed:
            self._drop()
            self._session.close()
        super().close()

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response = self._body = None

    def _connect(self) -> None:
        """Ask for the file from the position on. `identity`: a .gz must come as it is, or sizes and ranges mean nothing."""
        headers = {"Accept-Encoding": "identity"}
        if self._position:
            headers["Range"] = f"bytes={self._position}-"
            if self.etag and not self.etag.startswith("W/"):
                headers["If-Range"] = self.etag
        response = self._session.get(self._url, headers=headers, stream=True, timeout=TIMEOUT_S)
        if response.status_code not in (200, 206):
            response.close()
            if response.status_code in (429, 500, 502, 503, 504):
                raise ConnectionError(f"status {response.status_code}")  # tried again
            hint = "are the credentials right, and has a signed URL run out?" if response.status_code in (401, 403) else None
            raise InputError(f"{without_secrets(self._url)}: the server answers with status {response.status_code}", hint=hint)
        etag = response.headers.get("ETag")
        if self._position and response.status_code != 206:
            response.close()
            raise InputError(f"{without_secrets(self._url)}: the file changed while it was read, or the server gives no ranges", hint="repeat the command")
        if not self._position:
            length = response.headers.get("Content-Length", "")
            self.size = int(length) if length.isdigit() else None
            self.etag, self.modified = etag, response.headers.get("Last-Modified")
            self._ranges = response.headers.get("Accept-Ranges", "").lower() == "bytes"
        self._response, self._body = response, response.raw


def _transport_errors() -> tuple[type[Exception], ...]:
    import requests
    import urllib3

    return requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError
