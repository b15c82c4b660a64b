"""Where the captions of pictures in folders and archives are: beside them, or elsewhere, in a table, a JSON, a tar or a
folder of texts, found by the pictures' names."""

import json
import os
import sqlite3
import tempfile
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from microdit.data.shards.tars import TarError, TarMember
from microdit.data.sources.archives import PackedError, Tar, opened
from microdit.data.sources.below import files_below, hidden, state_of
from microdit.data.sources.captioned import LARGEST_FILE, Ignored, content_of
from microdit.data.sources.captions import (
    CAPTION_COLUMN,
    CAPTION_SUFFIX,
    Bounds,
    Columns,
    Lines,
    NoCaptionError,
    as_texts,
    bounds,
    captions_beside,
    captions_in,
    check_numbers,
    in_brief,
    names_of,
    text_in,
    told_in,
    value_of,
)
from microdit.data.sources.images import SUFFIXES, FilteredImageError
from microdit.data.sources.rows import DELIMITERS, Row, Separated, json_lines, json_rows, lines_of_json, parquet
from microdit.files import near_path, size_of_file
from microdit.kinds import SettingsError

TABLES = (*DELIMITERS, ".jsonl", ".json", ".parquet")
NAMES_SHOWN = 3
FIELDS = "stem TEXT, folder TEXT, file TEXT, words TEXT, problem TEXT, unwanted INTEGER"


class Told(NamedTuple):
    """What a list says of one picture: `captions`, or the `file` that has them, or why there are none: a `problem`, or
    that it is `unwanted`."""

    name: str
    captions: Sequence[str] = ()
    file: str | None = None
    problem: str | None = None
    unwanted: bool = False


def caption_list(
    path: str | None,
    image_column: str | None,
    columns: Columns | None,
    suffix: str,
    least: Bounds,
    most: Bounds,
) -> "CaptionList | None":
    """The list that a source's settings name; None where they name none. SettingsError for settings without effect."""
    if path is None:
        if image_column is not None:
            raise SettingsError("source.image_column is of source.captions, which names no file of captions here")
        return None
    return CaptionList(Path(path).expanduser(), image_column or "image", columns, suffix, least or {}, most or {})


class CaptionList:
    """The captions of many pictures at `path`, by the names of their files, whatever folder and suffix they have.

    A table (.csv, .tsv, .jsonl, .parquet), or such a file in a tar; a .json that holds a list of objects, those of
    COCO, or an object for each name: `image_column` names the picture, `columns` have its captions. A tar or a folder
    of text files: NAME`suffix` has the caption of NAME.jpg. `least`, `most`: by column, what numbers may be.
    Read once, into a temporary database.
    """

    def __init__(
        self,
        path: Path,
        image_column: str,
        columns: Columns | None,
        suffix: str,
        least: Mapping[str, float],
        most: Mapping[str, float],
    ) -> None:
        self.path, self.image_column, self.columns = path, image_column, columns or CAPTION_COLUMN
        self.suffix, self.least, self.most = suffix, least, most
        self.place = Path(os.path.realpath(path))
        self._database: sqlite3.Connection | None = None
        self._problems: list[str] = []  # of rows that tell of no picture
        self._folders: dict[str, set[str]] = {}  # of the pictures, by a name that some in several folders have
        self._folders_are_named = self._some_are_in_none = False
        self._state: str | None = None

    @property
    def identity(self) -> dict[str, object]:
        """Plain values that say what is read."""
        return {"captions": str(self.path.resolve()), "image_column": self.image_column}

    def is_part(self, path: Path) -> bool:
        """Whether a file is this list, or in it."""
        return Path(os.path.realpath(path)).is_relative_to(self.place)

    def state(self) -> str:
        """A name for the list as it is now."""
        if self._state is None:
            files = [self.path / name for name in files_below(self.path)[0]] if self.path.is_dir() else [self.path]
            self._state = state_of(files)
        return self._state

    def captions_of(self, picture: str) -> list[str]:
        """The captions of the picture with this name, which may have folders before it. NoCaptionError where there are
        none, or other pictures of that name could be meant; FilteredImageError where its numbers leave it out."""
        query = "SELECT folder, file, words, problem, unwanted FROM told WHERE stem = ? ORDER BY rowid"
        folder, stem, file = parts_of(picture, self.suffix)
        rows = self.read().execute(query, (stem,)).fetchall()
        # Where the list has folders, a name without one is not that of a picture in one; where some of its names have
        # none, it names whole paths, and one with a folder is not that of a picture in none.
        fitting = [
            row
            for row in rows
            if fits(folder, row[0])
            and (row[0] or not folder or not self._folders_are_named)
            and (folder or not row[0] or not self._some_are_in_none)
        ]
        for exact in ((folder, file), (folder,)):
            if len({row[:2] for row in fitting}) > 1:
                fitting = [row for row in fitting if row[: len(exact)] == exact] or fitting
        if not fitting:
            others = f", but one in {rows[0][0] or 'no folder'}" if rows else ""
            broken = (
                f"; {len(self._problems)} of its rows cannot be read ({self._problems[0]})" if self._problems else ""
            )
            raise NoCaptionError(f"no caption: {self.path} names no {stem!r}{others}{broken}")
        meant = [one for one in self._folders.get(stem, ()) if fits(one, fitting[0][0])]
        if len({row[:2] for row in fitting}) > 1 or (len(meant) > 1 and fitting[0][0] != folder):
            raise NoCaptionError(f"no caption: several pictures are called {stem!r}, and {self.path} may mean another")
        captions: list[str] = []
        for _, _, words, problem, unwanted in fitting:
            if unwanted:
                raise FilteredImageError(problem)
            captions += self.in_file(words) if problem == IN_FILE else json.loads(words)
        try:
            captions = captions_in([*dict.fromkeys(captions)])
        except ValueError as error:
            raise NoCaptionError(f"no caption: {self.path}: {error}") from error
        if not captions:
            raise NoCaptionError(f"no caption: {self.path}: {fitting[0][3]}")
        return captions

    def in_file(self, name: str) -> list[str]:
        """The caption in a text file of the folder."""
        try:
            return captions_in(" ".join(text_in(content_of(self.path / name)).split()))
        except (OSError, ValueError) as error:
            raise NoCaptionError(f"no caption: {self.path / name} cannot be read: {error}") from error

    def tell_apart(self, pictures: Iterable[str]) -> Collection[str]:
        """From here on the list is asked of these pictures: a name that several of them have is that of none, unless
        the list says in which folder. Returns their names without folders and suffixes."""
        called: dict[str, set[str]] = {}
        for folder, stem, _ in (parts_of(name, self.suffix) for name in pictures):
            called.setdefault(stem, set()).add(folder)
        self._folders = {stem: folders for stem, folders in called.items() if len(folders) > 1}
        return called.keys()

    def without_picture(self, pictures: Iterable[str]) -> list[Ignored]:
        """What the list says of pictures that are not among these, of which it is asked, as one thing."""
        called = self.tell_apart(pictures)
        names = (stem for (stem,) in self.read().execute("SELECT DISTINCT stem FROM told ORDER BY stem"))
        missing = [name for name in names if name not in called]
        if not missing:
            return []
        more = ", ..." if len(missing) > NAMES_SHOWN else ""
        named = ", ".join(missing[:NAMES_SHOWN])
        return [Ignored(self.path.name, f"it names {len(missing)} pictures that are not here ({named}{more})")]

    def read(self) -> sqlite3.Connection:
        """The database of all that the list says. ValueError for what is no such list, FileNotFoundError where it is
        not there."""
        if self._database is None:
            if not self.path.exists():
                raise FileNotFoundError(
                    f"source.captions={self.path}: there is no such file or folder{near_path(self.path)}"
                )
            # A temporary database of this process alone, on the disk where it is large.
            database = sqlite3.connect("", check_same_thread=False)
            database.execute("PRAGMA journal_mode = OFF")
            database.execute(f"CREATE TABLE told ({FIELDS})")
            try:
                database.executemany("INSERT INTO told VALUES (?, ?, ?, ?, ?, ?)", map(self.as_row, self.told()))
            except (TarError, PackedError, ValueError) as error:
                raise ValueError(f"source.captions={self.path} cannot be read: {error}") from error
            database.execute("CREATE INDEX by_stem ON told (stem)")
            self._folders_are_named, self._some_are_in_none = (
                database.execute(f"SELECT EXISTS (SELECT 1 FROM told WHERE folder {sign} '')").fetchone()[0]
                for sign in ("!=", "=")
            )
            if not database.execute("SELECT COUNT(*) FROM told").fetchone()[0]:
                why = f": {self._problems[0]}" if self._problems else ""
                raise ValueError(f"source.captions={self.path} names no picture{why}")
            self._database = database
        return self._database

    def as_row(self, told: Told) -> tuple[str, str, str, str, str | None, bool]:
        """What the database holds of it, as FIELDS."""
        folder, stem, file = parts_of(told.name, self.suffix)
        if told.file is not None:
            return stem, folder, file, told.file, IN_FILE, False
        return stem, folder, file, json.dumps(list(told.captions)), told.problem, told.unwanted

    def told(self) -> Iterator[Told]:
        """All that the list says, in order."""
        if self.path.is_dir():
            names = [name for name in files_below(self.path)[0] if name.lower().endswith(self.suffix.lower())]
            yield from (Told(name, file=name) for name in names)
            return
        suffix = self.path.suffix.lower()
        if suffix not in TABLES:
            yield from self.packed()
            return
        size_of_file(self.path)
        if suffix in DELIMITERS:
            separated = Separated(DELIMITERS[suffix], "auto", None, self.image_column, looks_like_a_picture)
            yield from self.of_rows(separated.rows(self.path))
        elif suffix == ".parquet":
            needed = [self.image_column, *names_of(self.columns)]
            yield from self.of_rows(parquet(self.path, needed, [*self.least, *self.most]))
        else:
            is_lines = suffix == ".jsonl"
            yield from self.of_rows(json_lines(self.path) if is_lines else json_rows(self.path, self.image_column))

    def packed(self) -> Iterator[Told]:
        """What a tar of text files says, or one of .jsonl files."""
        with opened(self.path, Path(tempfile.gettempdir())) as archive:
            for member in archive.members():
                if hidden(member.name):
                    continue
                if member.name.lower().endswith(".jsonl") and isinstance(archive, Tar):
                    with archive.lines_of(member) as file:
                        yield from self.of_rows(lines_of_json(file))
                elif member.name.lower().endswith(self.suffix.lower()):
                    yield self.of_text(member, archive.content(member) if member.length <= LARGEST_FILE else b"")

    def of_text(self, member: TarMember, content: bytes) -> Told:
        try:
            captions = captions_in(" ".join(text_in(content).split()))
            return Told(member.name, captions, problem=None if captions else f"{member.name} is empty")
        except ValueError as error:
            return Told(member.name, problem=f"{member.name} cannot be read: {error}")

    def of_rows(self, rows: Iterable[Row]) -> Iterator[Told]:
        """What the rows of a table say. ValueError where none has the columns."""
        known: dict[str, None] = {}
        wanted = [self.image_column, *names_of(self.columns)]
        found: set[str] = set()
        for number, row in enumerate(rows, start=1):
            if isinstance(row, str):
                self.count(f"row {number}: {row}")
                continue
            found |= {name for name in wanted if name not in found and told_in(row, name) is not None}
            if len(known) < MOST_COLUMNS:
                known |= dict.fromkeys(row)
            name = value_of(row, self.image_column)
            if isinstance(name, int) and not isinstance(name, bool):
                name = str(name)
            if isinstance(name, str) and name.strip():
                yield self.of_row(name, row)
            elif found >= {self.image_column}:
                self.count(f"row {number} names no picture in {self.image_column!r}")
        for name, setting in zip(wanted, ("image_column", *["caption_column"] * len(wanted)), strict=False):
            if known and name not in found:
                raise ValueError(f"it has no column {name!r}, only {list(known)}; set source.{setting}")

    def of_row(self, name: str, row: Mapping[str, object]) -> Told:
        try:
            check_numbers(row, self.least, self.most)
            cells = {column: as_texts(told_in(row, column)) for column in names_of(self.columns)}
            captions = captions_in(cells, self.columns)
            held = ", ".join(f"{in_brief(cell)} in {column!r}" for column, cell in cells.items())
            return Told(name, captions, problem=None if captions else f"its row has {held}, not a text")
        except FilteredImageError as error:
            return Told(name, problem=str(error), unwanted=True)
        except ValueError as error:
            return Told(name, problem=str(error))

    def count(self, problem: str) -> None:
        """Keeps why a row tells of no picture, the first few in words."""
        self._problems.append(problem if len(self._problems) < NAMES_SHOWN else "")

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_database": None}


IN_FILE = "in a file"
MOST_COLUMNS = 50


def looks_like_a_picture(text: str) -> bool:
    """Whether a cell is likely the name of a picture."""
    return os.path.splitext(text)[1].lower() in SUFFIXES or text.startswith(("http://", "https://"))


def parts_of(name: str, suffix: str) -> tuple[str, str, str]:
    """Of the name of a picture, or of its caption: the folders in it, its name without them and its suffix, and with
    it."""
    path = PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/")))
    folder = "/".join(part for part in path.parent.parts if part not in (".", "/"))
    stem, ending = os.path.splitext(path.name)
    if path.name.lower().endswith(suffix.lower()):
        return folder, path.name[: -len(suffix)], path.name
    return folder, stem if ending.lower() in SUFFIXES else path.name, path.name


def fits(folder: str, told: str) -> bool:
    """Whether a picture in a folder may be the one that a list tells of in another: the shorter ends the longer."""
    mine, theirs = ([] if not one else one.split("/") for one in (folder, told))
    common = min(len(mine), len(theirs))
    return common == 0 or mine[-common:] == theirs[-common:]


@dataclass(frozen=True)
class Words:
    """How the captions of a picture are found, and which numbers it must have.

    `column`: of the `.json` beside it, which then alone counts; several of them give several captions. `suffix`: of the
    text file beside it, whose `lines` are one caption or one each. `least` and `most`: by column, what a number told of
    the picture may be. `elsewhere`: where the captions and the numbers are told instead.
    """

    column: Columns | None = None
    suffix: str = CAPTION_SUFFIX
    lines: Lines = "joined"
    least: Mapping[str, float] = field(default_factory=dict)
    most: Mapping[str, float] = field(default_factory=dict)
    elsewhere: CaptionList | None = None

    def __post_init__(self) -> None:
        if not self.suffix or "/" in self.suffix or os.sep in self.suffix:
            raise SettingsError(
                f"source.caption_suffix is how captions' files end, such as .caption, got {self.suffix!r}"
            )
        if self.column is not None and not all(names_of(self.column) or [""]):
            raise SettingsError(f"source.caption_column names a column, or a list of them, got {self.column!r}")

    @property
    def identity(self) -> dict[str, object]:
        """What the identity of a source says of it."""
        several = None if self.column is None or isinstance(self.column, str) else list(self.column)
        more: dict[str, object] = {} if self.column is None or self.elsewhere else {"captions": "of the .json"}
        more |= {} if self.suffix == CAPTION_SUFFIX else {"caption_suffix": self.suffix}
        more |= {} if self.lines == "joined" else {"caption_lines": self.lines}
        more |= self.elsewhere.identity if self.elsewhere else {}
        return {"caption_column": several or self.column or CAPTION_COLUMN, **more, **bounds(self.least, self.most)}

    def of(self, picture: str, text: bytes | None, record: bytes | None) -> list[str]:
        """The captions of a picture of this name, with the text file and the `.json` beside it, None where there is no
        such file. NoCaptionError where there are none, FilteredImageError where its numbers leave it out."""
        if self.elsewhere is not None:
            return self.elsewhere.captions_of(picture)
        captions = captions_beside(text, record, self.column, self.suffix, self.lines)
        if self.least or self.most:
            try:
                told = json.loads(record or b"null")
            except (ValueError, RecursionError):
                told = None
            check_numbers(told, self.least, self.most)
        return captions
