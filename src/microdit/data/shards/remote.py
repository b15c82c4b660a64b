"""Files that live elsewhere (http, s3, ... through fsspec), through a bounded local cache that several processes
share."""

import logging
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import blake2b
from html import unescape
from io import FileIO
from pathlib import Path
from typing import TypeVar
from urllib.parse import urljoin

import fsspec

from microdit.files import alone_in, partial_name

PROTOCOLS = ("https", "http", "s3", "gs", "gcs", "az", "abfs", "hf")
ATTEMPTS = 8
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 30.0
SILENCE_S = 60.0
SLOWEST = 10_000  # bytes a second, on average, once a fetch takes longer than a silence may
LARGEST_FETCHED = 1 << 36  # bytes of a file whose size nobody told
LARGEST_LISTING = 1 << 24
LINK = re.compile(r"""\bhref\s{0,9}=\s{0,9}["']([^"'<>]{1,4096})["']""", re.IGNORECASE)
FETCH_THREADS = 4
KEPT_BYTES = 1 << 62
OURS = re.compile(r"[0-9a-f]{16}-")  # begins the name of every file in a cache, see FileCache._path
Content = TypeVar("Content")
log = logging.getLogger(__name__)


class RemoteFileError(OSError):
    """A remote file could not be had; the message names it, the cause, and how often it was tried."""


class UnfitFileError(ValueError):
    """A remote file is another than its name says; the message names its address and says what to do."""


def is_remote(location: str) -> bool:
    """Whether a location is a URL rather than a local path."""
    return "://" in location and not location.startswith("file://")


def check_protocol(url: str) -> None:
    """Raises RemoteFileError where something else than a file on a server is meant: fsspec also knows protocols that
    reach into archives and repositories, or run what others run."""
    protocol, _, rest = url.partition("://")
    if protocol not in PROTOCOLS or "::" in url or "://" in rest:
        raise RemoteFileError(f"{url} is not read: addresses begin with {', '.join(f'{p}://' for p in PROTOCOLS)}")


def join(folder: str, name: str) -> str:
    """The location of a file in a folder, local or remote."""
    return f"{folder.rstrip('/')}/{name}"


def options_for(url: str) -> dict[str, object]:
    """What fsspec is told beyond the URL: over http, to give up on silence but not on size, and to unpack nothing: a
    file is as it is sent, or it may be a million times as large."""
    if not url.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout  # of the extra `remote`; nothing else needs it

    timeout = ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
    as_it_is = {"timeout": timeout, "auto_decompress": False, "headers": {"Accept-Encoding": "identity"}}
    return {"client_kwargs": as_it_is}


class Bounds(fsspec.Callback):
    """Told of each piece of a file that is fetched: ends what is larger than it may be, or hardly comes."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self.most_bytes, self.started = most_bytes, time.monotonic()

    def relative_update(self, inc: int = 1) -> None:
        """Counts a piece of so many bytes. OSError where they are too many, or too few for the time."""
        super().relative_update(inc)
        seconds = time.monotonic() - self.started
        if self.value > self.most_bytes:
            raise OSError(
                f"more than the {self.most_bytes:,} bytes that it may have; an index may have cache_gigabytes"
            )
        if seconds > SILENCE_S and self.value < SLOWEST * seconds:
            raise OSError(f"only {self.value:,} bytes came in {seconds:.0f} s")


def fetch(url: str, target: Path, expected_bytes: int | None = None, most_bytes: int = LARGEST_FETCHED) -> None:
    """Copy a remote file to `target`, trying again with growing waits. A file of another size than expected, or of more
    than `most_bytes`, is a failure.

    RemoteFileError at once where the file does not exist, else after the last attempt. `target` may be left half
    written.
    """
    check_protocol(url)
    wait, cause = FIRST_WAIT_S, "never tried"
    for attempt in range(1, ATTEMPTS + 1):
        try:
            filesystem, path = fsspec.core.url_to_fs(url, **options_for(url))
            filesystem.get_file(
                path, str(target), callback=Bounds(most_bytes if expected_bytes is None else expected_bytes)
            )
            size = target.stat().st_size
            if expected_bytes in (None, size):
                return
            cause = f"got {size} bytes where {expected_bytes} were expected"
        except FileNotFoundError as error:
            raise RemoteFileError(f"{url} does not exist") from error
        except ImportError as error:
            raise RemoteFileError(
                f"{url} needs a library that is not installed ({error}): install the extra `remote`"
            ) from error
        except Exception as error:  # every filesystem has errors of its own; all that may pass are tried again
            cause = f"{type(error).__name__}: {error}"
        if attempt < ATTEMPTS:
            time.sleep(wait * (0.5 + random.random()))  # so that many readers do not come back all at once
            wait = min(2 * wait, LONGEST_WAIT_S)
    raise RemoteFileError(f"{url} could not be fetched in {ATTEMPTS} attempts; the last: {cause}")


@contextmanager
def local_copy(location: str, folder: Path, most_bytes: int = LARGEST_FETCHED) -> Iterator[Path]:
    """A file under a local path for as long as the block runs; a remote one is fetched into a new folder in `folder`
    and then removed."""
    if not is_remote(location):
        yield Path(location.removeprefix("file://"))
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetched-", dir=folder) as mine:
        fetch(location, Path(mine) / "file", most_bytes=most_bytes)
        yield Path(mine) / "file"


def links_in(page: str) -> list[str]:
    """The addresses to which a web page that lists files leads, in order of the alphabet, each once. RemoteFileError
    where it cannot be had."""
    with local_copy(page, Path(tempfile.gettempdir()), LARGEST_LISTING) as path:
        links = LINK.findall(path.read_text(encoding="utf-8", errors="replace"))
    return sorted({urljoin(page, unescape(link)) for link in links})


class FileCache:
    """Remote files in a local folder of at most `max_bytes`, the least recently used out first.

    Any number of processes may share the folder: each file is fetched by one of them, under a temporary name, while the
    others wait. A file that is open stays readable when it is thrown out. Files of other names are somebody else's.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._ahead: dict[str, Future[None]] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def local(self, url: str, expected_bytes: int | None = None, most_bytes: int = LARGEST_FETCHED) -> Path:
        """The local path of a remote file, fetched if it is not there. RemoteFileError where it cannot be had, or is
        larger than the cache."""
        if (expected_bytes or 0) > self.max_bytes:
            raise RemoteFileError(
                f"{url} has {expected_bytes:,} bytes, as its index says, and the cache {self.folder} holds "
                f"{self.max_bytes:,}: make that larger (cache_gigabytes)"
            )
        path = self._path(url)
        if self._present(path, expected_bytes):
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = partial_name(path)
        with alone_in(self.folder / f".{path.name}.lock", os.O_RDWR | os.O_CREAT):
            if not self._present(path, expected_bytes):
                self._make_room(expected_bytes or 0)
                partial.unlink(missing_ok=True)
                fetch(url, partial, expected_bytes, most_bytes)
                os.replace(partial, path)
        self._make_room(0, keep=path)
        return path

    def kept(self, url: str, read: Callable[[Path], Content], most_bytes: int) -> Content:
        """What `read` makes of a small file that is not thrown out while it can be read, such as an index.

        UnfitFileError where `read` raises ValueError: then it is thrown out. RemoteFileError where it cannot be had.
        """
        path = FileCache(self.folder / "kept", KEPT_BYTES).local(url, most_bytes=min(most_bytes, self.max_bytes))
        try:
            return read(path)
        except ValueError as error:
            path.unlink(missing_ok=True)
            raise UnfitFileError(
                f"{url} is not the file that it should be ({error.__cause__ or error}). It is thrown out of the cache: "
                "look at what the server sends there, and run the same command again"
            ) from error

    def fetch_ahead(self, urls: Iterable[tuple[str, int | None]]) -> None:
        """Start fetching (url, bytes) in the background, in this order; what is under way already is not started
        twice."""
        if self._process != os.getpid():  # threads do not live on in a forked process
            self._ahead, self._threads, self._process = {}, None, os.getpid()
        wanted = dict(urls)
        for url in [url for url, future in self._ahead.items() if url not in wanted]:
            self._ahead.pop(url).cancel()
        for url, expected_bytes in wanted.items():
            if url not in self._ahead:
                self._threads = self._threads or ThreadPoolExecutor(FETCH_THREADS, "fetch-ahead")
                self._ahead[url] = self._threads.submit(self._try, url, expected_bytes)

    def _try(self, url: str, expected_bytes: int | None) -> None:
        # Whoever needs the file will meet the error, with all its attempts, and say so.
        with suppress(RemoteFileError):
            self.local(url, expected_bytes)

    def _path(self, url: str) -> Path:
        name = url.rpartition("/")[2].partition("?")[0]
        return self.folder / f"{blake2b(url.encode(), digest_size=8).hexdigest()}-{name}"

    def _present(self, path: Path, expected_bytes: int | None) -> bool:
        try:
            if expected_bytes not in (None, path.stat().st_size):
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _make_room(self, incoming: int, keep: Path | None = None) -> None:
        """Throw out the least recently used files until `incoming` bytes fit."""
        files = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                if OURS.match(path.name) and path.is_file():
                    status = path.stat()
                    files.append((status.st_mtime_ns, status.st_size, path))
        total = incoming + sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_ahead": {}, "_threads": None}


class RemoteShards:
    """Shards in a remote folder, by way of a cache."""

    distant = True

    def __init__(self, folder: str, names: Sequence[str], sizes: Sequence[int], cache: FileCache) -> None:
        self.folder, self.names, self.sizes, self.cache = folder, names, sizes, cache

    def open(self, shard: int) -> FileIO:
        """A shard by its number, open for reading, fetched if need be. RemoteFileError where it cannot be had."""
        url = join(self.folder, self.names[shard])
        for _ in range(ATTEMPTS):
            # Another process or thread may throw the file out before it is open; once open, it stays readable.
            with suppress(FileNotFoundError):
                return FileIO(self.cache.local(url, self.sizes[shard]))
        raise RemoteFileError(
            f"{url} is thrown out of the cache {self.cache.folder} before it is read: make that larger"
        )

    def ahead(self, shards: Sequence[int]) -> None:
        """Fetch these shards in the background, as far as they fit into the cache together."""
        room, wanted = self.cache.max_bytes, []
        for shard in shards:
            room -= self.sizes[shard]
            if room >= 0:
                wanted.append((join(self.folder, self.names[shard]), self.sizes[shard]))
        self.cache.fetch_ahead(wanted)
