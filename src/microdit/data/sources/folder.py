"""A folder of pictures, however deep, each with its caption beside it: NAME.jpg with NAME.txt or NAME.json."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from microdit.data.sources.below import files_below, hidden, state_of
from microdit.data.sources.captioned import (
    CaptionedImage,
    Found,
    Ignored,
    Source,
    Unreadable,
    Unwanted,
    check_shard_size,
    content_of,
)
from microdit.data.sources.captions import CAPTION_SUFFIX, Bounds, Lines, NoCaptionError
from microdit.data.sources.elsewhere import Words, caption_list
from microdit.data.sources.images import SUFFIXES, FilteredImageError
from microdit.files import near_path
from microdit.kinds import Copied

TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".json")
LISTINGS_KEPT = 64  # of folders with pictures without captions


class FolderSource(Source):
    """Captioned pictures below `path`, in the order of their names, `shard_size` of them to an input shard.

    NAME`caption_suffix` holds one caption, or with `caption_lines` separate one a line; NAME.json an object with
    "caption", a text or a list of texts. Where both are there, see `captions_beside`. With a `caption_column` the
    captions are those in that column of the `.json`, or in several. `captions`: a file, folder or tar that has them
    instead, see `CaptionList`, with the name of the picture in its `image_column`. `least` and `most`: what numbers
    told of a picture, by column, may be; others are left out.
    """

    def __init__(
        self,
        path: Copied,
        caption_column: str | Sequence[str] | None = None,
        shard_size: int = 2_000,
        caption_suffix: str = CAPTION_SUFFIX,
        caption_lines: Lines = "joined",
        captions: Copied | None = None,
        image_column: str | None = None,
        least: Bounds = None,
        most: Bounds = None,
    ) -> None:
        check_shard_size(shard_size)
        self.path, self.shard_size = Path(path).expanduser(), shard_size
        elsewhere = caption_list(captions, image_column, caption_column, caption_suffix, least, most)
        self.words = Words(caption_column, caption_suffix, caption_lines, least or {}, most or {}, elsewhere)
        self._found: tuple[list[Path], list[Unreadable | Ignored]] | None = None
        self._listings: dict[Path, tuple[Mapping[str, list[str]], list[str]]] = {}

    @property
    def identity(self) -> Mapping[str, object]:
        names = {"path": str(self.path.resolve()), "shard_size": self.shard_size}
        return {"kind": "folder", **names, **self.words.identity, "pictures": len(self.pictures())}

    def place(self) -> Path:
        return self.path

    def pictures(self) -> list[Path]:
        """Every picture in the folder, by its path in it."""
        return self.found()[0]

    def beside(self) -> Sequence[Unreadable | Ignored]:
        return self.found()[1]

    def keys(self) -> Sequence[str]:
        return [self.key_of(picture) for picture in self.pictures()]

    def key_of(self, picture: Path) -> str:
        return picture.relative_to(self.path).as_posix()

    def found(self) -> tuple[list[Path], list[Unreadable | Ignored]]:
        """The pictures, and whatever else lies below the folder and is no part of one."""
        if self._found is None:
            if not self.path.is_dir():
                near = "" if self.path.exists() else near_path(self.path)
                raise FileNotFoundError(
                    f"{self.path} is no folder. Give the folder of your pictures: source.path=FOLDER{near}"
                )
            files, others = files_below(self.path)
            pictures = [name for name in files if is_picture(name)]
            alone, elsewhere = not_part_of(files, pictures, self.words.suffix), self.words.elsewhere
            if elsewhere:
                alone = (name for name in alone if not elsewhere.is_part(self.path / name))
                others += elsewhere.without_picture(pictures)
            others += (Ignored(name, no_picture(name)) for name in alone)
            self._found = sorted(self.path / name for name in pictures), others
        return self._found

    def shards(self) -> list[str]:
        if not self.pictures():
            raise FileNotFoundError(f"{self.path} holds no pictures (.jpg, .png, .webp, ...){self.instead()}")
        return [f"pictures from {first}" for first in range(0, len(self.pictures()), self.shard_size)]

    def instead(self) -> str:
        """What a folder without pictures has, if it is one that another source reads."""
        names = [item.key for item in self.beside()]
        archives, tables = (".tar", ".tgz", ".tar.gz", ".zip"), (".csv", ".tsv", ".jsonl")
        for suffixes, source in ((archives, "webdataset"), (tables, "table"), ((".parquet",), "huggingface")):
            if there := [name for name in names if name.lower().endswith(suffixes)]:
                path = self.path / there[0] if source == "table" else self.path
                return f", but {there[0]}: try source={source} source.path={path}"
        return f", but {len(names):,} other things, such as {', '.join(names[:3])}" if names else ""

    def of_shard(self, shard: int) -> list[Path]:
        return self.pictures()[shard * self.shard_size : (shard + 1) * self.shard_size]

    def state(self, shard: int) -> str:
        if self.words.elsewhere:
            return self.words.elsewhere.state() + state_of(self.of_shard(shard))
        suffixes = (self.words.suffix, ".json")
        return state_of([path for one in self.of_shard(shard) for path in (one, *caption_files(one, suffixes))])

    def read(self, shard: int) -> Iterator[Found]:
        for picture in self.of_shard(shard):
            key = self.key_of(picture)
            try:
                captions = self.words.of(key, *self.beside_picture(picture))
                yield CaptionedImage(key, content_of(picture), captions)
            except FilteredImageError as error:
                yield Unwanted(key, str(error))
            except NoCaptionError as error:
                yield Unreadable(key, f"{error}{'' if self.words.elsewhere else self.near(picture)}")
            except OSError as error:
                yield Unreadable(key, f"cannot be read: {error}")

    def beside_picture(self, picture: Path) -> tuple[bytes | None, bytes | None]:
        """The text file and the `.json` beside a picture, None where there is none or neither is read."""
        if self.words.elsewhere:
            return None, None
        text, record = (
            content_of(path) if (path := named_like(picture, suffix)) else None
            for suffix in (self.words.suffix, ".json")
        )
        return text, record

    def near(self, picture: Path) -> str:
        """What lies near a picture without a caption and may be meant as one."""
        expected = (f"{picture.stem}{self.words.suffix}", f"{picture.stem}.json")
        if near := near_names(picture.name, self.listing(picture.parent)[0], expected):
            return f"; {near}"
        for folder in (picture.parent, *picture.parent.parents):
            if tables := self.listing(folder)[1]:
                columns = "file_name", "text"
                if not tables[0].lower().startswith("metadata."):  # as the Hugging Face hub's imagefolder has it
                    columns = "COLUMN", "COLUMN"
                return (
                    f"; {folder / tables[0]} may hold the captions. A .csv, .tsv, .jsonl or .parquet is read with "
                    f"source=table source.path={folder / tables[0]} source.image_column={columns[0]} "
                    f"source.caption_column={columns[1]}"
                )
            if folder == self.path:
                break
        return ""

    def listing(self, folder: Path) -> tuple[Mapping[str, list[str]], list[str]]:
        """What a folder has beside pictures: by name without suffix, and its tables; nothing where it is unreadable."""
        if folder not in self._listings:
            if len(self._listings) >= LISTINGS_KEPT:
                self._listings.clear()
            try:
                names = sorted(name for name in os.listdir(folder) if not hidden(name))
            except PermissionError:
                names = []
            others = [*not_part_of(names, filter(is_picture, names), self.words.suffix)]
            tables = [name for name in others if name.lower().endswith(TABLES)]
            self._listings[folder] = by_bare_name(name for name in names if not is_picture(name)), tables
        return self._listings[folder]


def is_picture(name: str) -> bool:
    """Whether a name is that of a picture."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def no_picture(name: str) -> str:
    """Why a file that belongs to no picture is none."""
    suffix = PurePosixPath(name).suffix
    if suffix.lower() in (CAPTION_SUFFIX, ".json"):
        return f"a {suffix} without a picture of its name"
    return f"{suffix} is no suffix of a picture" if suffix else "its name has no suffix of a picture"


def not_part_of(names: Iterable[str], pictures: Iterable[str], suffix: str = CAPTION_SUFFIX) -> Iterator[str]:
    """Those names that are no picture's, nor of what lies beside one: NAME.anything, NAME.jpg.anything, or NAME with
    the suffix of captions."""
    stems = {form for one in pictures for form in (bare(one), unicodedata.normalize("NFC", one))}

    def is_part(name: str) -> bool:
        if bare(name) in stems:
            return True
        return name.lower().endswith(suffix.lower()) and bare(f"{name[: -len(suffix)]}.x") in stems

    return (name for name in names if not is_picture(name) and not is_part(name))


def bare(name: str) -> str:
    """A name without its suffix, its letters with accents spelt in one way."""
    return unicodedata.normalize("NFC", os.path.splitext(name)[0])


def by_bare_name(names: Iterable[str]) -> Mapping[str, list[str]]:
    """Names by what they are without their last suffix or their last two, whether in small or in capital letters."""
    found = defaultdict(list)
    for name in names:
        for short in dict.fromkeys((bare(name), bare(bare(name)))):
            found[short.casefold()].append(name)
    return found


def near_names(picture: str, others: Mapping[str, list[str]], expected: Sequence[str]) -> str:
    """Which of the other names, as `by_bare_name` has them, come near that of a picture's caption, and what to do; ""
    where none does."""
    stem = os.path.splitext(picture)[0]
    near = [*others.get(bare(picture).casefold(), ()), *others.get(bare(f"{picture}.x").casefold(), ())]
    near = [name for name in near if name not in expected]
    for name in near:
        if name.startswith(f"{stem}."):
            suffix = name[len(stem) :]
            return f"{name} lies beside it: if such files are the captions, source.caption_suffix={suffix}"
    return f"{near[0]} lies beside it and differs in its letters: rename it to {expected[0]}" if near else ""


def caption_files(picture: Path, suffixes: Iterable[str]) -> list[Path]:
    """Where the captions of a picture may lie: those suffixes in small and in capital letters."""
    stem = os.path.splitext(picture.name)[0]
    return [picture.parent / f"{stem}{spelling}" for one in suffixes for spelling in dict.fromkeys((one, one.upper()))]


def named_like(picture: Path, suffix: str) -> Path | None:
    """The file with this suffix beside a picture, in small or in capital letters, also where its letters with accents
    are spelt in the other way; None without one."""
    for path in caption_files(picture, [suffix]):
        if os.path.exists(path):  # also where the name is longer than the system takes
            return path
        if not path.name.isascii():
            for form in ("NFC", "NFD"):
                if os.path.exists(other := path.with_name(unicodedata.normalize(form, path.name))):
                    return other
    return None
