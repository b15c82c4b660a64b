"""The rows of a table: CSV and TSV by lines and quotes, JSONL by lines, Parquet by columns."""

import csv
import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from microdit.files import is_refusal, size_of_file

LONGEST_LINE = 1 << 24  # characters; a hundred captions as long as any have fewer
SURROGATE = re.compile("[\udc80-\udcff]")
LONGEST_SKIPPED = 16  # times as many, of a line that is listed as too long
LONGEST_ROW = 100  # lines of a text in quotes
MOST_TIMES, ALWAYS_ROOM = 100, 1 << 26  # of its size, or bytes, may a table unpack to
TEXT_BYTES = 50  # that a text takes, however short it is
Quoting = Literal["auto", "none"]
Row = Mapping[str, object] | str  # or why it cannot be read
DELIMITERS = {".csv": ",", ".tsv": "\t"}
LARGEST_JSON = 1 << 30  # bytes, of a file that is read as a whole


def lines_of(file: TextIO) -> Iterator[str | None]:
    """The lines of a file; None for one that is longer than any row. ValueError where one does not end."""
    while line := file.readline(LONGEST_LINE):
        if len(line) < LONGEST_LINE or line.endswith("\n"):
            yield line
            continue
        for _ in range(LONGEST_SKIPPED):
            rest = file.readline(LONGEST_LINE)
            if len(rest) < LONGEST_LINE or rest.endswith("\n"):
                break
        else:
            raise ValueError(f"a line has {LONGEST_LINE:,} characters or more, and no end")
        yield None


TOO_LONG = f"its line has {LONGEST_LINE:,} characters or more"


class Separated:
    """How the rows of a CSV or TSV file are told apart: by lines, and by quotes only where these make whole rows of
    whole lines. A caption with a quote too many costs its own row and no other.

    `delimiter` between cells; `quoting`: "none" where quotes are letters like others; `columns`: where the file has no
    first line with their names; `is_image`: whether a text is likely the path of a picture. `found`: the names of
    the columns, once rows are read.
    """

    def __init__(
        self,
        delimiter: str,
        quoting: Quoting,
        columns: Sequence[str] | None,
        image_column: str,
        is_image: Callable[[str], bool],
    ) -> None:
        self.delimiter, self.quoting, self.columns = delimiter, quoting, columns
        self.image_column, self.is_image = image_column, is_image
        self.found: list[str] = []

    def rows(self, path: Path) -> Iterator[Row]:
        """The rows of a file. ValueError for what is no such table."""
        check_encoding(path)
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = lines_of(file)
            if self.columns is None:
                first = next((line for line in lines if line is None or line.strip()), "")
                if first is None:
                    raise ValueError(TOO_LONG)
                columns = self.cells(first) or self.plain(first)
            else:
                columns = list(self.columns)
            if twice := [name for name in columns if columns.count(name) > 1 and name]:
                raise ValueError(f"its first line names the column {twice[0]!r} twice")
            self.found = columns
            place = columns.index(self.image_column) if self.image_column in columns else None
            waiting: deque[str | None] = deque()
            while (line := waiting.popleft() if waiting else next(lines, "")) != "":
                if line is None:
                    yield TOO_LONG
                elif line.strip("\r\n"):
                    cells = self.row(line, len(columns), place, waiting, lines)
                    yield cells if isinstance(cells, str) else dict(zip(columns, cells, strict=True))

    def row(
        self, line: str, count: int, place: int | None, waiting: deque[str | None], lines: Iterator[str | None]
    ) -> list[str] | str:
        """The cells of the row that begins with a line, of those `waiting` and to come; or why there are none."""
        if len(found := self.cells(line)) == count:
            return found
        if self.quoting == "auto" and self.begins_a_text(line):
            whole, alone = line, self.is_row(line, count, place)
            for number in range(LONGEST_ROW):
                if number == len(waiting):
                    waiting.append(next(lines, ""))
                more = waiting[number]
                if not more or len(whole) > LONGEST_LINE:
                    break
                whole += more
                ends = len(found := self.cells(whole)) == count
                # The line that ends a text may look like a row; but not where the one that began it does too.
                if (alone or not ends) and self.is_row(more, count, place):
                    break
                if ends:
                    for _ in range(number + 1):
                        waiting.popleft()
                    return found
        found = self.plain(line)
        if len(found) == count:
            return found
        return (
            f"it has {len(found)} cells where there are {count} columns; put a caption that holds {self.delimiter!r} "
            "in quotes, and double the quotes in it"
        )

    def cells(self, line: str) -> list[str]:
        """The cells of a whole row; [] where its quotes are not those of a table."""
        if '"' not in line or self.quoting == "none":
            return self.plain(line)
        try:
            return next(csv.reader(io.StringIO(line, newline=""), delimiter=self.delimiter, strict=True), [])
        except csv.Error:
            return []

    def plain(self, line: str) -> list[str]:
        return line.rstrip("\r\n").split(self.delimiter)

    def begins_a_text(self, line: str) -> bool:
        """Whether a cell of a line begins with a quote that it does not end."""
        return any(cell.startswith('"') for cell in self.plain(line)) and not self.cells(line)

    def is_row(self, line: str, count: int, place: int | None) -> bool:
        """Whether a line is a row by itself, and not the middle of a text: it names a picture where rows do."""
        found = self.cells(line) or self.plain(line)
        return len(found) == count and (self.delimiter == "\t" or place is None or self.is_image(found[place]))


def check_encoding(path: Path) -> None:
    """Raises ValueError for a file in UTF-16 or UTF-32, of which every row would be broken."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or (b"\0" in start[:16] and start.strip(b"\0")):
        raise ValueError("it is not UTF-8, but looks like UTF-16: save it as UTF-8")


def json_lines(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file; empty lines are none."""
    check_encoding(path)
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        yield from lines_of_json(file)


def lines_of_json(file: TextIO) -> Iterator[Row]:
    """The rows of an open JSONL file."""
    for line in lines_of(file):
        if line is None:
            yield TOO_LONG
        elif SURROGATE.search(line):
            yield "it is not UTF-8; save the table as UTF-8"
        elif line.strip():
            try:
                row = json.loads(line)
                yield row if isinstance(row, dict) else "it is no JSON object"
            except (ValueError, RecursionError) as error:
                yield f"it is no JSON: {error}"


def json_rows(path: Path, name_column: str) -> Iterator[Row]:
    """The rows of a JSON file: of a list of objects, of the one list in an object, of COCO's `annotations` with the
    `images` that they are of, or of an object for each name, which the row then has in `name_column`. ValueError for
    another file."""
    if (size := size_of_file(path)) > LARGEST_JSON:
        raise ValueError(f"it has {size:,} bytes, and is read as a whole: write it as .jsonl, an object a line")
    check_encoding(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if isinstance(content, dict):
        lists = {name: value for name, value in content.items() if isinstance(value, list)}
        if {"images", "annotations"} <= {*lists}:
            images = {str(one.get("id")): one for one in lists["images"] if isinstance(one, dict)}
            for one in lists["annotations"]:
                image = images.get(str(one.get("image_id"))) if isinstance(one, dict) else None
                yield "it is of no image in the file" if image is None else {**image, **one}
            return
        held = [value for value in lists.values() if any(isinstance(one, dict) for one in value)]
        if len(held) == 1:
            content = held[0]
        else:
            rows = ((name, one if isinstance(one, dict) else {"caption": one}) for name, one in content.items())
            content = [{**row, name_column: name} for name, row in rows]
    if not isinstance(content, list):
        raise ValueError(f"it holds a {type(content).__name__}, and no list of objects")
    yield from (row if isinstance(row, dict) else "it is no JSON object" for row in content)


def parquet(path: Path, needed: Sequence[str], numbers: Sequence[str] = ()) -> Iterator[Row]:
    """The `needed` columns of a Parquet file, which hold texts or lists of texts, and `numbers`. ValueError where they
    do not, where they unpack to much more than the file, or where the library for it is not installed."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile, read_metadata
    except ImportError as error:
        raise ValueError(NO_PARQUET) from error
    texts, needed = {*needed}, list(dict.fromkeys([*needed, *numbers]))
    room = max(ALWAYS_ROOM, MOST_TIMES * size_of_file(path))
    try:
        metadata = read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
        if not {*needed} <= {*schema.names}:
            yield dict.fromkeys(schema.names)
            return
        for name in needed:
            if not (holds_texts if name in texts else holds_numbers)(schema.field(name).type):
                kind = str(schema.field(name).type)[:200]
                more = "; for pictures in a table there is source=huggingface" if "bytes" in kind else ""
                raise ValueError(
                    f"its column {name!r} holds {kind}, not {'texts' if name in texts else 'numbers'}{more}"
                )
        columns = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
        mine = [n for n, one in enumerate(columns) if any(one == name or one.startswith(f"{name}.") for name in needed)]
        parts = [metadata.row_group(g).column(n) for g in range(metadata.num_row_groups) for n in mine]
        check_room(room, sum(part.total_uncompressed_size + TEXT_BYTES * part.num_values for part in parts))
        # A text that many rows repeat is unpacked once, and counted before there is one for each of them.
        repeated = [
            columns[n] for n in mine if any(columns[n] == text or columns[n].startswith(f"{text}.") for text in texts)
        ]
        with ParquetFile(path, metadata=metadata, read_dictionary=repeated) as file:
            for batch in file.iter_batches(batch_size=256, columns=list(needed)):
                cells = [batch.column(name) for name in needed]
                room -= sum(unpacked_bytes(cell) for name, cell in zip(needed, cells, strict=True) if name in texts)
                check_room(room)
                for row in zip(*(column.to_pylist() for column in cells), strict=True):
                    yield dict(zip(needed, row, strict=True))
    except (ArrowException, OSError, KeyError) as error:
        if is_refusal(error):
            raise
        raise ValueError(" ".join(str(error).split())) from error


NO_PARQUET = "Parquet needs a library that is not installed: install the extra `tables`"


def holds_numbers(kind: Any) -> bool:
    """Whether a column of this type of Arrow has a number in each row."""
    from pyarrow import types

    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)


def check_room(room: int, taken: int = 0) -> None:
    if taken > room:
        raise ValueError(f"it unpacks to over {MOST_TIMES} times its size, as no list of pictures does")


def holds_texts(kind: Any) -> bool:
    """Whether a column of this type of Arrow has a text, or a list of them, in each row."""
    from pyarrow import types

    inner = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
    inner = inner.value_type if types.is_dictionary(inner) else inner
    return types.is_string(inner) or types.is_large_string(inner)


def unpacked_bytes(column: Any) -> int:
    """How much the texts of a column are, of which each is held once, when there is one for each row."""
    from pyarrow.compute import call_function

    texts = column if hasattr(column, "dictionary") else column.flatten()
    lengths = call_function("binary_length", [texts.dictionary]).take(texts.indices)
    return (call_function("sum", [lengths]).as_py() or 0) + TEXT_BYTES * len(texts)
