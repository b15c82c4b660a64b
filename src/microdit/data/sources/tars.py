"""WebDataset tars as img2dataset writes them: KEY.(jpg|png|webp|...) with KEY.txt or KEY.json, local or by URL."""

import bz2
import gzip
import lzma
import math
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import fsspec
from braceexpand import braceexpand

from microdit.data.shards.remote import RemoteFileError, check_protocol, is_remote, links_in, local_copy
from microdit.data.shards.tars import TarError, TarMember, json_bytes, tar_members, write_tar
from microdit.data.sources.below import files_below, hidden, state_of
from microdit.data.sources.captioned import (
    CAPTION_SUFFIX,
    LARGEST_FILE,
    CaptionedImage,
    Found,
    Ignored,
    NoCaptionError,
    Source,
    Unreadable,
    captions_beside,
    check_caption_suffix,
)
from microdit.data.sources.folder import (
    TABLES,
    by_bare_name,
    caption_identity,
    is_picture,
    near_names,
    no_picture,
    not_part_of,
)
from microdit.files import room_for, size_of_file
from microdit.kinds import Copied

MOST_TARS = 1_000_000
RANGE = re.compile(r"\{(-?\d+|[a-zA-Z])\.\.(-?\d+|[a-zA-Z])")
# img2dataset's statistics lie beside each tar.
BESIDE_A_TAR = re.compile(r"(_stats)?\.(json|parquet|idx|index)$")
TAR_NAME = re.compile(r"(?P<stem>.*?)\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2?|txz)$", re.IGNORECASE | re.DOTALL)
# What compressed files begin with, and what reads them.
COMPRESSED: Mapping[bytes, Callable[..., BinaryIO]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}  # type: ignore[assignment]
ZSTANDARD = b"\x28\xb5\x2f\xfd"
MOST_TIMES, ALWAYS_ROOM, PIECE = 100, 1 << 26, 1 << 20  # of its size, or bytes, may a tar unpack to; bytes at a time


def expand(location: str) -> list[str]:
    """The tars that a location means: a folder, a pattern with {000..123} or *, one file; local or remote (there what
    has neither `.tar` nor a query in its name is a folder).

    FileNotFoundError where it means none, RemoteFileError where a remote folder cannot be listed.
    """
    found: list[str] = []
    # Before they are written out, which takes memory for each of them.
    many = ValueError(f"{location[:200]} means more than {MOST_TARS:,} tars")
    numbers = [[ord(end) if end.isalpha() else int(end) for end in ends] for ends in RANGE.findall(location)]
    if math.prod(1 + abs(last - first) for first, last in numbers) > MOST_TARS:
        raise many
    if 2 ** min(64, location.count("{")) * max(1, location.count(",")) > MOST_TARS and "," in location:
        raise many
    for one in braceexpand(location, escape=False):
        if is_remote(one) or "::" in one:
            check_protocol(one)
            is_file = "*" not in one and (".tar" in one or "?" in one)
            found += [one] if is_file else listed(one if "*" in one else f"{one.rstrip('/')}/*.tar")
        else:
            filesystem, path = fsspec.core.url_to_fs(one)
            if Path(path).is_dir():
                found += [str(Path(path) / tar) for tar in tars_below(Path(path))[0]]
            else:
                found += sorted(filesystem.glob(path)) if "*" in one else [path]
    missing = [tar for tar in found if not is_remote(tar) and not Path(tar).is_file()]
    if missing or not found:
        raise FileNotFoundError(
            f"{missing[0] if missing else location}: there is no tar{instead_of_tars(location)}. Give a folder of .tar "
            'files, or their URLs, such as source.path="https://HOST/{00000..00099}.tar"'
        )
    return found


def tars_below(folder: Path) -> tuple[list[str], list[Unreadable | Ignored]]:
    """The names of all tars below a folder, in order, and what else lies there."""
    files, others = files_below(folder)
    tars = {name: found["stem"] for name in files if (found := TAR_NAME.match(name))}
    stems = set(tars.values())
    others += (
        Ignored(name, "no tar, which source=webdataset reads")
        for name in files
        if name not in tars and BESIDE_A_TAR.sub("", name) not in stems
    )
    return sorted(tars, key=lambda name: Path(name).parts), others


def instead_of_tars(location: str) -> str:
    """What lies in a local folder without tars, with the source that reads it."""
    if is_remote(location) or not Path(location).is_dir():
        return ""
    names = [item.key for item in tars_below(Path(location))[1] if isinstance(item, Ignored)]
    ways = {
        "source=folder": is_picture,
        "source=table, which reads one such file": lambda name: name.lower().endswith(TABLES),
        "no source: MDS shards, of MosaicML Streaming, are not read here": lambda name: name.lower().endswith(".mds"),
    }
    for way, fits in ways.items():
        if there := next(filter(fits, names), None):
            return f", but {there}, for which there is {way}"
    return ""


def listed(pattern: str) -> list[str]:
    """The URLs that a pattern with * matches. RemoteFileError where the server cannot be asked, or * stands in the name
    of a folder of a web server."""
    page, _, name = pattern.rpartition("/")
    try:
        if page.startswith(("http://", "https://")):
            if "*" in page:
                raise RemoteFileError("over http a * may stand in the name of the file alone")
            matching = re.compile(re.escape(f"{page}/") + "[^/]*".join(map(re.escape, name.split("*"))))
            return [*filter(matching.fullmatch, links_in(f"{page}/"))]
        filesystem, path = fsspec.core.url_to_fs(pattern)
        return [filesystem.unstrip_protocol(match) for match in sorted(filesystem.glob(path))]
    except ImportError as error:
        raise RemoteFileError(
            f"{pattern} needs a library that is not installed ({error}): install the extra `remote`"
        ) from error
    except FileNotFoundError:
        return []
    except Exception as error:  # every filesystem has errors of its own
        if isinstance(error.__cause__, FileNotFoundError):
            return []
        raise RemoteFileError(f"{pattern} cannot be listed: {type(error).__name__}: {error}") from error


class TarSource(Source):
    """Captioned pictures in tars, also compressed ones; every tar is one input shard.

    `path`: a folder of tars, however deep, a file, a pattern with {000..123} or *, a URL, or a list of these. Captions
    are found as `FolderSource` finds them; `caption_column` and `caption_suffix` are as there.
    """

    def __init__(
        self,
        path: Copied | Sequence[Copied],
        caption_column: str | None = None,
        download_folder: str | None = None,
        caption_suffix: str = CAPTION_SUFFIX,
    ) -> None:
        check_caption_suffix(caption_suffix)
        self.locations = [path] if isinstance(path, str) else list(path)
        self.caption_column, self.caption_suffix = caption_column, caption_suffix
        self.download_folder = Path(download_folder or tempfile.gettempdir())
        self._tars: list[str] | None = None

    @property
    def identity(self) -> Mapping[str, object]:
        captions = caption_identity(self.caption_column, self.caption_suffix)
        return {"kind": "webdataset", "path": self.locations, **captions}

    def place(self) -> Path | None:
        path = Path(self.locations[0]).expanduser()
        return path if len(self.locations) == 1 and path.exists() else None

    def shards(self) -> list[str]:
        return self.tars()

    def tars(self) -> list[str]:
        """The location of every tar. FileNotFoundError where one is missing, or a location means none."""
        if self._tars is None:
            found = dict.fromkeys(tar for location in self.locations for tar in expand(location))
            self._tars = [*found]  # those that several locations mean once
        return self._tars

    def beside(self) -> Sequence[Unreadable | Ignored]:
        local = (Path(one).expanduser() for one in self.locations if not is_remote(one))
        return [item for folder in local if folder.is_dir() for item in tars_below(folder)[1]]

    def state(self, shard: int) -> str:
        tar = self.tars()[shard]
        return "" if is_remote(tar) else state_of([Path(tar.removeprefix("file://"))])

    def read(self, shard: int) -> Iterator[Found]:
        tar = self.tars()[shard]
        with local_copy(tar, self.download_folder) as path:
            try:
                with unpacked(path, self.download_folder) as plain:
                    yield from pictures_in(plain, tar, self.caption_column, self.caption_suffix)
            except CompressedTarError as error:
                yield Unreadable(Path(tar).name, str(error))


class CompressedTarError(ValueError):
    """A compressed tar cannot be unpacked; the message says why, and what to do."""


@contextmanager
def unpacked(tar: Path, folder: Path) -> Iterator[Path]:
    """A tar without its compression for as long as the block runs, in a new folder in `folder`; one that has none, as
    it is. CompressedTarError where it cannot be had, NoRoomError where the disk is full."""
    with tar.open("rb") as file:
        start = file.read(8)
    if start.startswith(ZSTANDARD):
        raise CompressedTarError("it is compressed with zstd, which is not read here: unpack it first (zstd -d)")
    opened = next((opener for magic, opener in COMPRESSED.items() if start.startswith(magic)), None)
    if opened is None:
        yield tar
        return
    room = max(ALWAYS_ROOM, MOST_TIMES * size_of_file(tar))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=folder) as mine:
        plain = Path(mine) / "file"
        with room_for(plain), plain.open("wb") as target, opened(tar, "rb") as source:
            try:
                while piece := source.read(PIECE):
                    room -= len(piece)
                    if room < 0:
                        raise CompressedTarError(f"it is compressed, and unpacks to over {MOST_TIMES} times its size")
                    target.write(piece)
            except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                target.flush()  # what came before is read; the end that is lacking is told as that of any tar
        yield plain


def pictures_in(
    tar: Path, name: str, caption_column: str | None = None, caption_suffix: str = CAPTION_SUFFIX
) -> Iterator[Found]:
    """Everything in one local tar, `name` to those who read of it."""
    members: dict[str, TarMember] = {}
    others: list[Unreadable | Ignored] = []
    damage = None
    try:
        for member in tar_members(tar):
            if why := hidden(member.name):
                others.append(Ignored(member.name, why))
                continue
            if member.name in members:
                others.append(Ignored(member.name, "another of this name comes later in the tar and is read instead"))
            members[member.name] = member
    except TarError as error:
        damage = str(error).replace(str(tar), name)
    pictures = [one for one in members if is_picture(one)]
    near = by_bare_name(one for one in members if not is_picture(one))
    first = {os.path.splitext(one)[0]: one for one in reversed(pictures)}
    with tar.open("rb") as file:
        for one in pictures:
            stem = os.path.splitext(one)[0]
            # Several pictures under a key have the same captions; the first is called by the key.
            key = stem if first[stem] == one else one
            parts = [part_of(members, stem, suffix) for suffix in (caption_suffix, ".json")]
            item = picture_of(key, members[one], parts, file.fileno(), caption_column, caption_suffix)
            if isinstance(item, Unreadable) and not any(parts):
                expected = f"{stem}{caption_suffix}", f"{stem}.json"
                told = near_names(one, near, expected)
                item = Unreadable(key, f"{item.reason}; {told}") if told else item
            yield item
    yield from others
    alone: dict[str, str] = {}
    for one in not_part_of(members, pictures, caption_suffix):
        stem, suffix = os.path.splitext(one)
        if suffix.lower() in (CAPTION_SUFFIX, caption_suffix, ".json"):
            alone.setdefault(stem, one)
        else:
            yield Ignored(one, no_picture(one))
    yield from (Unreadable(stem, "no picture beside the caption") for stem in alone)
    if damage is not None:
        yield Unreadable(Path(name).name, f"damaged tar, what lies behind is lost: {damage}")


def part_of(members: Mapping[str, TarMember], stem: str, suffix: str) -> TarMember | None:
    """The file with this suffix, in small or in capital letters, beside a picture."""
    for spelling in (suffix, suffix.upper()):
        if found := members.get(f"{stem}{spelling}"):
            return found
    return None


def picture_of(
    key: str,
    picture: TarMember,
    parts: Sequence[TarMember | None],
    descriptor: int,
    caption_column: str | None,
    caption_suffix: str,
) -> CaptionedImage | Unreadable:
    """One picture of an open tar, with the text and the `.json` beside it."""
    if (largest := max(part.length for part in (picture, *parts) if part)) > LARGEST_FILE:
        return Unreadable(key, f"it has {largest:,} bytes, more than any picture")
    text, record = (part and content(descriptor, part) for part in parts)
    try:
        captions = captions_beside(text, record, caption_column, caption_suffix)
    except NoCaptionError as error:
        return Unreadable(key, str(error))
    return CaptionedImage(key, content(descriptor, picture), captions)


def content(descriptor: int, member: TarMember) -> bytes:
    """The bytes of a file in an open tar."""
    return os.pread(descriptor, member.length, member.offset)


def write_pictures(file: BinaryIO, pictures: Iterable[CaptionedImage]) -> int:
    """Writes PNG pictures with their captions as a tar that TarSource reads, as img2dataset would; several captions go
    to the `.json`. Returns their number."""

    def fields(item: CaptionedImage) -> dict[str, str | bytes]:
        found: dict[str, str | bytes] = {"__key__": item.key, "png": item.image, "txt": item.captions[0].encode()}
        return found if len(item.captions) == 1 else found | {"json": json_bytes({"caption": list(item.captions)})}

    return write_tar(file, map(fields, pictures))
