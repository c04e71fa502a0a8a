"""Files at http:// and https:// (RFC 9110: ranges, conditional requests)."""

from __future__ import annotations

import base64
import errno
import re
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urlsplit, urlunsplit

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError, ResponseError, SSLError

from .addresses import printable_address
from .client import Body, Interrupted, Version, changed, is_strong, refused
from .connections import connections_to
from .shutdown import Shutdown

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0  # without any byte
_MOST_REDIRECTS = 10
_PIECE_BYTES = 1 << 18  # at most; fewer, if fewer are there
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
_NUMBERS = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 410: errno.ENOENT}
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})")
# A time is only as good as a tag if the file cannot have changed again within its second
# (RFC 9110, section 8.8.2.2).
_LEAST_AGE = timedelta(seconds=1)


class HttpClient:
    """Reads one file from a server over HTTP; see :class:`.client.Client`.

    Proxies are those of the environment (`https_proxy`, `no_proxy`). User and password may stand
    in the address.
    """

    def __init__(self, address: str, shutdown: Shutdown) -> None:
        """`shutdown`: ends what requests wait for. Raises OSError: the address is none of HTTP."""
        self._name = printable_address(address)
        try:
            parts = urlsplit(address)
            host, self._headers = parts.netloc.rpartition("@")[2], {"Accept-Encoding": "identity"}
            if parts.username is not None:
                secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
                token = base64.b64encode(secret.encode()).decode()  # in UTF-8, as of RFC 7617
                self._headers["Authorization"] = f"Basic {token}"
            self._url = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
            self._pool = connections_to(parts.scheme.lower(), parts.hostname or "", shutdown)
        except ValueError as error:  # of a port, of brackets, of a proxy
            raise refused(self._name, f"cannot be read: {error}") from error

    def open(self, start: int, stop: int, version: Version | None = None) -> Body:
        """Ask for bytes; see :class:`.client.Client`."""
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        if version is not None and version.validator:
            headers["If-Range"] = version.validator
        response = self._response(headers)
        return self._checked_body(response, start, stop, version)

    def open_if_changed(self, version: Version, stop: int) -> Body | None:
        """Ask for the file if it changed; see :class:`.client.Client`."""
        if is_strong(version.etag):
            part = f"bytes=0-{stop - 1}"
            response = self._response({"If-None-Match": version.etag, "Range": part})
            if response.status == 304:
                response.close()
                return None
            body = self._checked_body(response, 0, stop, None)
        else:  # If-Modified-Since would take a file that was replaced by an older one for the same
            body = self.open(0, 1, version)
        if not body.version.matches(version):
            return body
        body.close()
        return None

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()

    def _response(self, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        """Send a request; return the answer, of which only the head was read."""
        redirects = urllib3.Retry(
            total=None, connect=0, read=0, status=0, other=0, redirect=_MOST_REDIRECTS,
            raise_on_status=False, respect_retry_after_header=False,
        )  # fmt: skip
        try:
            return self._pool.request(
                "GET",
                self._url,
                headers=self._headers | headers,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
                retries=redirects,
                preload_content=False,
                decode_content=False,
            )
        except (HTTPError, OSError, ValueError) as error:
            cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
            if _is_permanent(cause):
                reason = _message(cause).replace(self._url, self._name)
                raise refused(self._name, f"cannot be read: {reason}") from error
            raise Interrupted(_message(cause)) from error

    def _checked_body(
        self, response: urllib3.BaseHTTPResponse, start: int, stop: int, version: Version | None
    ) -> Body:
        """Return the body of an answer to a request for a range, if the answer is a good one."""
        try:
            if response.status == 206:
                return self._partial(response, start, stop)
            if response.status == 200:
                return self._whole(response)
            if response.status == 416:
                return self._unsatisfied(response, version)
            raise self._failure(response)
        except BaseException:
            response.close()
            raise

    def _partial(self, response: urllib3.BaseHTTPResponse, start: int, stop: int) -> Body:
        text = response.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(text)
        if match is None or match[1] is None:
            reason = f"the server answers with a part of unknown place (Content-Range: {text!r})"
            raise refused(self._name, reason)
        first, end, size = int(match[1]), int(match[2]) + 1, int(match[3])
        if first != start or not first < end <= min(stop, size):
            reason = f"the server answers with bytes {first}-{end - 1}/{size}"
            raise refused(self._name, f"{reason} where {start}-{stop - 1} were asked for")
        length = _length(response)
        if length is not None and length != end - first:
            reason = f"the server announces {length} bytes for a part of {end - first}"
            raise refused(self._name, reason)
        version = self._version(response, size)
        return _HttpBody(response, version, first, end, has_ranges=bool(version.validator))

    def _whole(self, response: urllib3.BaseHTTPResponse) -> Body:
        size = _length(response)
        if size is None:
            raise refused(self._name, "the server does not say how long the file is")
        version = self._version(response, size)
        has_ranges = response.headers.get("Accept-Ranges", "").strip().lower() == "bytes"
        return _HttpBody(response, version, 0, size, has_ranges and bool(version.validator))

    def _unsatisfied(self, response: urllib3.BaseHTTPResponse, version: Version | None) -> Body:
        """Return the empty body of an empty file; else the file has become too short."""
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is not None and int(match[3]) == 0:
            return _HttpBody(response, self._version(response, 0), 0, 0, has_ranges=True)
        raise self._failure(response) if version is None else changed(self._name)

    def _failure(self, response: urllib3.BaseHTTPResponse) -> Exception:
        """Return what to raise of a status that brings no bytes."""
        reason = f"the server answers {response.status} {response.reason or ''}".rstrip()
        if response.status in _TEMPORARY:
            return Interrupted(reason, _wait(response.headers.get("Retry-After", "")))
        return refused(self._name, reason, _NUMBERS.get(response.status, errno.EIO))

    def _version(self, response: urllib3.BaseHTTPResponse, size: int) -> Version:
        headers = response.headers
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise refused(self._name, "the server compresses the file, though it should not")
        etag, modified = headers.get("ETag", "").strip(), headers.get("Last-Modified", "").strip()
        settled = _age(modified, headers.get("Date", "")) >= _LEAST_AGE
        validator = etag if is_strong(etag) else modified if settled else ""
        return Version(size, etag, modified, validator)


class _HttpBody:
    """An answer, read as it comes; see :class:`.client.Body`."""

    def __init__(
        self,
        response: urllib3.BaseHTTPResponse,
        version: Version,
        position: int,
        stop: int,
        has_ranges: bool,
    ) -> None:
        self.version = version
        self.position = position
        self.stop = stop
        self.has_ranges = has_ranges
        self._response = response

    def read(self) -> bytes:
        size = min(_PIECE_BYTES, self.stop - self.position)
        if size == 0:
            return b""
        try:
            data = self._response.read1(size)
        except (HTTPError, OSError) as error:
            raise Interrupted(_message(error)) from error
        if not data:
            left = self.stop - self.position
            raise Interrupted(f"the connection ended {left} bytes before the end of the answer")
        self.position += len(data)
        return data

    def close(self) -> None:
        if self.position < self.stop:
            self._response.close()  # with its connection, on which more would come
        self._response.release_conn()


def _length(response: urllib3.BaseHTTPResponse) -> int | None:
    """Return Content-Length; None if there is none that can be used."""
    text = response.headers.get("Content-Length", "")
    chunked = "Transfer-Encoding" in response.headers  # which wins (RFC 9112, section 6.3)
    return int(text) if re.fullmatch(r"\d{1,18}", text) and not chunked else None


def _age(modified: str, date: str) -> timedelta:
    """Return how long before an answer the file was changed; negative if nobody can know."""
    try:
        times = [parsedate_to_datetime(text) for text in (modified, date)]
        return times[1] - times[0]
    except (TypeError, ValueError, OverflowError):  # a zone may have twenty digits
        return timedelta(-1)


def _wait(text: str) -> float | None:
    """Return the seconds that Retry-After asks for, as a number or as a time."""
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, OverflowError):  # a zone may have twenty digits
        return None


def _is_permanent(cause: BaseException) -> bool:
    """Return whether what prevents an answer would do so again."""
    if isinstance(cause, SSLError):
        return any(isinstance(value, ssl.SSLCertVerificationError) for value in cause.args)
    return isinstance(cause, ValueError | ResponseError)  # a bad address; a circle of redirects


def _message(error: BaseException) -> str:
    """Return the message of an error without the object that urllib3 begins some with."""
    return re.sub(r"^(<[^>]*>|\w+\([^)]*\)): ", "", str(error)) or type(error).__name__
