"""WebDataset tars as img2dataset writes them: KEY.(jpg|png|webp|...) with KEY.txt or KEY.json, local or by URL."""

import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import fsspec
from braceexpand import braceexpand

from microdit.data.shards.remote import RemoteFileError, check_protocol, is_remote, links_in, local_copy
from microdit.data.shards.tars import TarError, TarMember, json_bytes, tar_members, write_tar
from microdit.data.sources.captioned import (
    LARGEST_FILE,
    CaptionedImage,
    NoCaptionError,
    Source,
    Unreadable,
    captions_beside,
)
from microdit.kinds import Pictures

PART = re.compile(r"\.(jpg|jpeg|jfif|png|webp|gif|bmp|tif|tiff|avif|heic|heif|txt|json)$", re.IGNORECASE)
MOST_TARS = 1_000_000
RANGE = re.compile(r"\{(-?\d+|[a-zA-Z])\.\.(-?\d+|[a-zA-Z])")
CAPTION_PARTS = ("txt", "json")


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
                found += [str(tar) for tar in sorted(Path(path).glob("*.tar"))]
            else:
                found += sorted(filesystem.glob(path)) if "*" in one else [path]
    missing = [tar for tar in found if not is_remote(tar) and not Path(tar).is_file()]
    if missing or not found:
        raise FileNotFoundError(
            f"{missing[0] if missing else location}: there is no tar. Give a folder of .tar files, or their URLs, such "
            'as source.path="https://HOST/{00000..00099}.tar"'
        )
    return found


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
    """Captioned pictures in tars; every tar is one input shard.

    `path`: a folder of tars, a file, a pattern with {000..123} or *, a URL, or a list of these. `caption_column`: the
    key of the caption in the `.json`, where there is no `.txt` (a list there holds several captions for one picture).
    """

    def __init__(
        self, path: Pictures | Sequence[Pictures], caption_column: str = "caption", download_folder: str | None = None
    ) -> None:
        self.locations = [path] if isinstance(path, str) else list(path)
        self.caption_column = caption_column
        self.download_folder = Path(download_folder or tempfile.gettempdir())
        self._tars: list[str] | None = None

    @property
    def identity(self) -> Mapping[str, object]:
        return {"kind": "webdataset", "path": self.locations, "caption_column": self.caption_column}

    def shards(self) -> list[str]:
        return self.tars()

    def tars(self) -> list[str]:
        """The location of every tar. FileNotFoundError where one is missing, or a location means none."""
        if self._tars is None:
            self._tars = [tar for location in self.locations for tar in expand(location)]
        return self._tars

    def read(self, shard: int) -> Iterator[CaptionedImage | Unreadable]:
        with local_copy(self.tars()[shard], self.download_folder) as path:
            yield from pictures_in(path, self.tars()[shard], self.caption_column)


def pictures_in(tar: Path, name: str, caption_column: str = "caption") -> Iterator[CaptionedImage | Unreadable]:
    """Everything in one local tar, `name` to those who read of it."""
    samples: dict[str, dict[str, TarMember]] = {}
    damage = None
    try:
        for member in tar_members(tar):
            if found := PART.search(member.name):
                samples.setdefault(member.name[: found.start()], {})[found.group(1).lower()] = member
    except TarError as error:
        damage = str(error).replace(str(tar), name)
    with tar.open("rb") as file:
        for key, parts in samples.items():
            yield picture_of(key, parts, file.fileno(), caption_column)
    if damage is not None:
        yield Unreadable(Path(name).name, f"damaged tar, what lies behind is lost: {damage}")


def picture_of(
    key: str, parts: dict[str, TarMember], descriptor: int, caption_column: str
) -> CaptionedImage | Unreadable:
    """One picture of an open tar, by the suffixes of its files."""
    pictures = [member for part, member in parts.items() if part not in CAPTION_PARTS]
    if not pictures:
        return Unreadable(key, "no picture beside the caption")
    if (largest := max(member.length for member in parts.values())) > LARGEST_FILE:
        return Unreadable(key, f"it has {largest:,} bytes, more than any picture")
    text, record = (content(descriptor, parts[part]) if part in parts else None for part in CAPTION_PARTS)
    try:
        captions = captions_beside(text, record, caption_column)
    except NoCaptionError as error:
        return Unreadable(key, str(error))
    return CaptionedImage(key, content(descriptor, pictures[0]), captions)


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
