"""Files behind URLs, such as s3://bucket/a.jpg, through fsspec, which is imported when the first one is given."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, NamedTuple

REMEDY = "check the address, your credentials and the network"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(?:::[A-Za-z0-9+.-]+)*://")  # one letter is a drive of Windows
_CHAINED = re.compile(r"[^/]*::|.*::[A-Za-z0-9+.-]+://")
_WEB = ("http", "https")
_ASKED_AT_ONCE, _ASKED_TOGETHER = 16, 1024
# Rather what changes with the content than the time: a listing and a single answer may give it in ms and in s.
_TAGS = ("ETag", "etag", "e_tag", "Content-MD5", "Digest", "Last-Modified")
_TIMES = ("LastModified", "last_modified", "mtime", "modified", "updated", "created")


class UrlError(ValueError):
    """A URL that is not taken. The message names it without anything that could be secret."""


class RemoteError(OSError):
    """What kept a URL from being listed or read."""


class Entry(NamedTuple):
    """What there is at a URL. size: in bytes, None where the server does not say. version: changes with the content.

    version is a number: a hash of the ETag, or the time of change in ns, or 0 where neither is known.
    """

    url: str
    folder: bool
    size: int | None
    version: int

    @property
    def status(self) -> tuple[int, int]:
        """What a file that did not change has again."""
        return self.size or 0, self.version


def is_url(path: object) -> bool:
    """Whether this is a URL, and no path of a file system."""
    return isinstance(path, str) and _URL.match(path) is not None


def without_file_protocol(path: str) -> str:
    """A path as it is; of file:///a.jpg, the path."""
    return re.sub("^(file|local)://", "", path)


def checked(url: str) -> str:
    """The URL as it is written everywhere: its protocol in lower case, without a slash at its end.

    Raises UrlError for one that would take a secret into tables and journal, whose path names no file below its
    bucket or server, or whose protocol is unknown or needs a package that is not installed.
    """
    protocol, _, rest = url.partition("://")
    protocol, rest = protocol.lower(), rest.rstrip("/")
    rest = rest.lstrip("/") if protocol == "memory" else rest
    server, *parts = rest.split("/")
    shown = f"{protocol}://{server.rpartition('@')[2].partition(':')[0].partition('?')[0]}/…"
    if _CHAINED.match(url):
        raise UrlError(f"{shown}: chained URLs (::) are not read; give that of the folder or file itself")
    if _holds_secret(protocol, server, rest):
        raise UrlError(
            f"{shown}: a user, a password or a query (?…) in a URL would stand in tables and journal; give credentials "
            "in the environment, or in the configuration files of fsspec"
        )
    if {"", ".", ".."} & set(parts[1:] if parts[:1] == [""] else parts):
        raise UrlError(f"{url}: has an empty part (//), . or .. in its path, after which no result could be named")
    _driver(f"{protocol}://{server}")
    return f"{protocol}://{rest}"


def _holds_secret(protocol: str, server: str, rest: str) -> bool:
    user, at, host = server.rpartition("@")
    port = host.rpartition(":")[2] if ":" in host and not host.endswith("]") else "0"
    if (at and (":" in user or protocol in _WEB)) or not port.isdigit():  # abfs://container@account has no secret
        return True
    return "?" in rest and (protocol in _WEB or re.search(r"\?[^/]*=", rest) is not None)


def _driver(url: str) -> Any:
    """The class of fsspec for a URL. Raises UrlError."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        return fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise UrlError(f"{url}: {protocol}:// is no protocol that fsspec knows; check the address") from None
    except ImportError as error:
        raise UrlError(f"{url}: needs a package that is not installed: {error}") from None


def filesystem(url: str) -> tuple[Any, str]:
    """The file system, and the name of a URL in it. fsspec keeps it, and knows which of them threads may share."""
    import fsspec

    kind = _driver(url)
    options = kind._get_kwargs_from_urls(url)
    return fsspec.filesystem(url.partition("://")[0], **options), str(kind._strip_protocol(url))


@contextmanager
def listing(url: str) -> Iterator[tuple[Any, str]]:
    """As filesystem, without what fsspec remembers of earlier listings; of a large archive it would keep GiB."""
    files, path = filesystem(url)
    files.invalidate_cache()
    try:
        yield files, path
    finally:
        files.invalidate_cache()


def info(url: str) -> Entry:
    """What there is at a URL. Raises FileNotFoundError, RemoteError."""
    with reaching():
        files, path = filesystem(url)
        return _entry(url, files.info(path))


def infos(urls: Sequence[str]) -> Iterator[Entry | None]:
    """What there is at each of many URLs of one server, asked for at the same time; None where it cannot be said."""
    if not urls:
        return
    with reaching():
        at_once = _ASKED_AT_ONCE if filesystem(urls[0])[0].async_impl else 1
    with ThreadPoolExecutor(at_once, "info") as pool:
        for first in range(0, len(urls), _ASKED_TOGETHER):  # so that an interrupt does not wait for all of them
            yield from pool.map(_info_or_none, urls[first : first + _ASKED_TOGETHER])


def _info_or_none(url: str) -> Entry | None:
    try:
        return info(url)
    except OSError:
        return None


def find(url: str) -> Iterator[Entry]:
    """All files below a folder, in no order, from one listing. Raises FileNotFoundError, RemoteError."""
    with reaching(), listing(url) as (files, path):
        found = files.find(f"{path}/" if url.startswith("http") else path, detail=True)
    while found:
        name, entry = found.popitem()  # and forgotten as it is read
        if not name.endswith("/") and name != path:
            yield _entry(_below(url, path, name), entry)


def match(pattern: str) -> list[Entry]:
    """Files and folders that a glob matches, in order. Raises RemoteError."""
    with reaching(), listing(pattern) as (files, path):
        try:
            found = files.glob(path, detail=True)
        except FileNotFoundError:
            found = {}
    root = re.split(r"[*?\[]", path, maxsplit=1)[0]
    start = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return [_entry((start + name[len(root) :]).rstrip("/"), entry) for name, entry in sorted(found.items())]


def read(url: str, end: int | None = None) -> bytes:
    """The file, or its first ``end`` bytes (all of them from a server that gives no parts).

    Raises FileNotFoundError, RemoteError.
    """
    with reaching():
        files, path = filesystem(url)
        return bytes(files.cat_file(path) if end is None else files.cat_file(path, start=0, end=end))


def read_unsized(url: str, limit: int) -> bytes:
    """At most ``limit`` bytes of a file of which the server does not say how long it is.

    Raises FileNotFoundError, RemoteError.
    """
    with reaching():
        files, path = filesystem(url)
        content = bytearray()
        with files.open(path, "rb") as file:
            while len(content) < limit and (more := file.read(min(2**20, limit - len(content)))):
                content += more
        return bytes(content)


def _below(url: str, path: str, name: str) -> str:
    """The URL of a file below a folder, both by the names that the file system gives them."""
    return (url if url.endswith("/") else f"{url}/") + name[len(path) :].removeprefix("/")


def _entry(url: str, found: dict[str, Any]) -> Entry:
    size = found.get("size")
    known = isinstance(size, int) and size >= 0
    return Entry(url, found.get("type") == "directory", size if known else None, _version(found))


def _version(found: dict[str, Any]) -> int:
    for key in (*_TAGS, *_TIMES):
        value = found.get(key)
        with suppress(ArithmeticError, ValueError, OSError):  # not a number, or a year beyond the range of clocks
            if isinstance(value, datetime):
                return int(value.timestamp() * 1e6) * 1000
            if isinstance(value, int | float):
                return int(value * 1e9)
        if value:
            tag = str(value).strip('"').encode("utf-8", "surrogatepass")
            return int.from_bytes(hashlib.sha256(tag).digest()[:8], "big") >> 1
    return 0


@contextmanager
def reaching() -> Iterator[None]:
    """Let whatever a driver raises be FileNotFoundError or RemoteError."""
    try:
        yield
    except (MemoryError, UrlError, RemoteError):
        raise
    except FileNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, OSError | TimeoutError) or getattr(cause, "status", 404) not in (404, 410):
            raise RemoteError(_words(cause)) from error  # fsspec calls a web server that is down a missing file
        raise
    except Exception as error:  # drivers raise what the libraries below them do: of botocore, aiohttp, paramiko …
        raise RemoteError(_words(error)) from error


def _words(error: BaseException | None) -> str:
    """The first line of what a driver says, without users, passwords and queries of addresses in it."""
    if isinstance(error, TimeoutError) and not str(error).strip():
        return "the server did not answer in time"
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    text = re.sub(r"\?[^\s\"']*", "?…", re.sub(r"//[^/\s@\"']*@", "//…@", text))[:300]
    return f"permission denied ({text})" if isinstance(error, PermissionError) else text
