"""Read a file on a web server as a stream, and say what failed on the way without the secrets in its URL.

    with HttpFile("https://host/news.jsonl.gz?signature=…") as stream: stream.read(100)
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from llmpipe.errors import InputError

TRIES = 5
TIMEOUT_S = (10.0, 60.0)
"""To connect, and between two pieces of a body."""
EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "hf": ("huggingface_hub", "hf")}
"""The library that a scheme needs, and the extra that brings it."""
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def without_secrets(url: str) -> str:
    """Remove user, password, query and fragment from a URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0]
    if not parts.scheme or not URL.match(url):
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def words_of(error: Exception, url: str) -> str:
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
        extra = EXTRAS.get(scheme)
        raise InputError(f"{scheme}:// needs a library that is not installed ({error})", hint=f"pip install 'llmpipe[{extra[1]}]'" if extra else f"fsspec reads {scheme}:// with it") from None
    except FileNotFoundError:
        raise InputError(f"{without_secrets(url)}: no such file") from None
    except (requests.RequestException, OSError, ValueError, EOFError) as error:
        hint = "is there a network, and are the credentials right? Repeat the command when it is back; a folder on disk works without one"
        raise InputError(f"{without_secrets(url)}: cannot be read ({words_of(error, url)})", hint=hint) from None
    except Exception as error:
        # botocore, huggingface_hub and other back ends have exception trees of their own, known only where they are installed
        if not type(error).__module__.startswith(("botocore", "aiobotocore", "huggingface_hub", "httpx", "httpcore", "aiohttp", "s3fs", "gcsfs", "adlfs", "google", "azure")):
            raise
        raise InputError(f"{without_secrets(url)}: cannot be read ({words_of(error, url)})", hint="is there a network, and are the credentials right?") from None


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
            raise OSError(words_of(problem, self._url))

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
