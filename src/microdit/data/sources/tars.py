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
from microdit.data.shards.tars import TarError, TarMember, json_bytes, write_tar
from microdit.data.sources.archives import Archive, PackedError, Tar, opened
from microdit.data.sources.below import files_below, hidden, state_of
from microdit.data.sources.captioned import (
    LARGEST_FILE,
    CaptionedImage,
    Found,
    Ignored,
    Picture,
    Source,
    Unreadable,
    Unwanted,
)
from microdit.data.sources.captions import CAPTION_SUFFIX, Bounds, Lines, NoCaptionError
from microdit.data.sources.elsewhere import Words, caption_list
from microdit.data.sources.folder import TABLES, by_bare_name, is_picture, near_names, no_picture, not_part_of
from microdit.data.sources.images import FilteredImageError
from microdit.files import near_path
from microdit.kinds import Copied

MOST_TARS = 1_000_000
RANGE = re.compile(r"\{(-?\d+|[a-zA-Z])\.\.(-?\d+|[a-zA-Z])")
# img2dataset's statistics lie beside each tar.
BESIDE_A_TAR = re.compile(r"(_stats)?\.(json|parquet|idx|index)$")
TAR_NAME = re.compile(r"(?P<stem>.*?)\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2?|txz|zip)$", re.IGNORECASE | re.DOTALL)


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
        near = near_path(Path(missing[0])) if missing else ""
        told = f"{missing[0] if missing else location}: there is no tar{instead_of_tars(location) or near}"
        raise FileNotFoundError(
            f"{told}. Give a folder of .tar "
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
        "source=huggingface, where they hold pictures, or source=table": lambda name: name.lower().endswith(".parquet"),
        "source=table, which reads one such file": lambda name: name.lower().endswith(TABLES),
        "source=mds": lambda name: name.lower().endswith((".mds", ".mds.zstd")),
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
    """Captioned pictures in tars, also compressed ones, and zips; every one is one input shard.

    `path`: a folder of them, however deep, a file, a pattern with {000..123} or *, a URL, or a list of these. Captions
    are found as `FolderSource` finds them, and the other settings are as there.
    """

    def __init__(
        self,
        path: Copied | Sequence[Copied],
        caption_column: str | Sequence[str] | None = None,
        download_folder: str | None = None,
        caption_suffix: str = CAPTION_SUFFIX,
        caption_lines: Lines = "joined",
        captions: Copied | None = None,
        image_column: str | None = None,
        least: Bounds = None,
        most: Bounds = None,
    ) -> None:
        self.locations = [path] if isinstance(path, str) else list(path)
        self.download_folder = Path(download_folder or tempfile.gettempdir())
        elsewhere = caption_list(captions, image_column, caption_column, caption_suffix, least, most)
        self.words = Words(caption_column, caption_suffix, caption_lines, least or {}, most or {}, elsewhere)
        self._tars: list[str] | None = None

    @property
    def identity(self) -> Mapping[str, object]:
        return {"kind": "webdataset", "path": self.locations, **self.words.identity}

    def place(self) -> Path | None:
        path = Path(self.locations[0]).expanduser()
        return path if len(self.locations) == 1 and path.exists() else None

    def shards(self) -> list[str]:
        return self.tars()

    def tars(self) -> list[str]:
        """The location of every tar. FileNotFoundError where one is missing, or a location means none."""
        if self._tars is None:
            elsewhere = self.words.elsewhere
            found = dict.fromkeys(tar for location in self.locations for tar in expand(location))
            # Those that several locations mean once, and none that holds the captions.
            self._tars = [tar for tar in found if not (elsewhere and elsewhere.is_part(Path(tar)))]
            if elsewhere:
                elsewhere.read()
        return self._tars

    def beside(self) -> Sequence[Unreadable | Ignored]:
        local = (Path(one).expanduser() for one in self.locations if not is_remote(one))
        others = ((folder, item) for folder in local if folder.is_dir() for item in tars_below(folder)[1])
        elsewhere = self.words.elsewhere
        return [item for folder, item in others if not (elsewhere and elsewhere.is_part(folder / item.key))]

    def state(self, shard: int) -> str:
        tar = self.tars()[shard]
        told = self.words.elsewhere.state() if self.words.elsewhere else ""
        return told + ("" if is_remote(tar) else state_of([Path(tar.removeprefix("file://"))]))

    def read(self, shard: int) -> Iterator[Found]:
        tar = self.tars()[shard]
        with local_copy(tar, self.download_folder) as path:
            try:
                with opened(path, self.download_folder) as archive:
                    yield from items_in(archive, tar, str(path), self.words)
            except PackedError as error:
                yield Unreadable(Path(tar).name, str(error))
            except TarError as error:  # of a zip, of which nothing can be read without its directory
                yield Unreadable(Path(tar).name, f"damaged zip: {str(error).replace(str(path), tar)}")


def pictures_in(tar: Path, name: str) -> Iterator[Picture]:
    """Everything in one local tar without compression, `name` to those who read of it."""
    with tar.open("rb") as file:
        yield from items_in(Tar(tar, file), name, str(tar), Words())


def items_in(archive: Archive, name: str, path: str, words: Words) -> Iterator[Picture]:
    """Everything in one archive at a local path, `name` to those who read of it."""
    members: dict[str, TarMember] = {}
    others: list[Unreadable | Ignored] = []
    damage = None
    try:
        for member in archive.members():
            if why := hidden(member.name):
                others.append(Ignored(member.name, why))
                continue
            if member.name in members:
                others.append(Ignored(member.name, "another of this name comes later in the tar and is read instead"))
            members[member.name] = member
    except TarError as error:
        damage = str(error).replace(path, name)
    pictures = [one for one in members if is_picture(one)]
    near = by_bare_name(one for one in members if not is_picture(one))
    if words.elsewhere:
        words.elsewhere.tell_apart(pictures)
    first = {os.path.splitext(one)[0]: one for one in reversed(pictures)}
    for one in pictures:
        stem = os.path.splitext(one)[0]
        # Several pictures under a key have the same captions; the first is called by the key.
        key = stem if first[stem] == one else one
        parts = [None if words.elsewhere else part_of(members, stem, suffix) for suffix in (words.suffix, ".json")]
        item = picture_of(key, members[one], parts, archive, words)
        if isinstance(item, Unreadable) and not any(parts) and not words.elsewhere:
            told = near_names(one, near, (f"{stem}{words.suffix}", f"{stem}.json"))
            item = Unreadable(key, f"{item.reason}; {told}") if told else item
        yield item
    yield from others
    alone: dict[str, str] = {}
    for one in not_part_of(members, pictures, words.suffix):
        stem, suffix = os.path.splitext(one)
        if not words.elsewhere and suffix.lower() in (CAPTION_SUFFIX, words.suffix, ".json"):
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
    key: str, picture: TarMember, parts: Sequence[TarMember | None], archive: Archive, words: Words
) -> CaptionedImage | Unreadable | Unwanted:
    """One picture of an open archive, with the text and the `.json` beside it."""
    if (largest := max(part.length for part in (picture, *parts) if part)) > LARGEST_FILE:
        return Unreadable(key, f"it has {largest:,} bytes, more than any picture")
    try:
        text, record = (part and archive.content(part) for part in parts)
        captions = words.of(picture.name, text, record)
        return CaptionedImage(key, archive.content(picture), captions)
    except FilteredImageError as error:
        return Unwanted(key, str(error))
    except (NoCaptionError, TarError) as error:
        return Unreadable(key, str(error))


def write_pictures(file: BinaryIO, pictures: Iterable[CaptionedImage]) -> int:
    """Writes PNG pictures with their captions as a tar that TarSource reads, as img2dataset would; several captions go
    to the `.json`. Returns their number."""

    def fields(item: CaptionedImage) -> dict[str, str | bytes]:
        found: dict[str, str | bytes] = {"__key__": item.key, "png": item.image, "txt": item.captions[0].encode()}
        return found if len(item.captions) == 1 else found | {"json": json_bytes({"caption": list(item.captions)})}

    return write_tar(file, map(fields, pictures))
