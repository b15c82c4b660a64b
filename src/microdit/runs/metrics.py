"""metrics.csv: one row a logged step, each with its own checksum, because a file that grows has none of the whole."""

import csv
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microdit.files import CHECKSUM, DamagedFileError, size_of_file
from microdit.kinds import shown

STEP = re.compile(r"[0-9]{1,15}")
MOST_ROWS = 1_000_000  # each tenth of ten million steps
CURE = "remove that line: the numbers of its step are lost, and the run goes on"


def with_checksum(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it is written: what it lacks is left empty, which does not count."""
    told = ",".join(f"{name}={value}" for name, value in sorted(row.items()) if value not in (None, ""))
    return {**row, CHECKSUM: f"{CHECKSUM} {zlib.crc32(told.encode()):08x}"}


def read_rows(path: Path, numbers_alone: bool = False) -> list[dict[str, str]]:
    """The rows of a metrics.csv, without their checksums. A last row that a kill cut short is left out.

    Raises DamagedFileError, with the line, for any other row that is not as it was written, and with `numbers_alone`
    for one that holds anything else.
    """
    size_of_file(path)
    rows: list[dict[str, str]] = []
    told = None  # of the newest line, which may be damaged if it is the last one
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            for row in reader:
                if told is not None:
                    raise DamagedFileError(told)
                reason = damage(row, list(reader.fieldnames or []), numbers_alone)
                if reason is None:
                    row.pop(CHECKSUM, None)
                    rows.append(row)
                else:
                    told = f"{path}, line {reader.line_num}, is damaged ({reason}); {CURE}"
                if len(rows) > MOST_ROWS:
                    raise DamagedFileError(f"{path} has over {MOST_ROWS:,} rows, more than a run logs; move it away")
    except (csv.Error, UnicodeDecodeError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}); move it away: the run begins another") from error
    if told is not None and is_whole(path):
        raise DamagedFileError(told)
    return rows


def lost_end(path: Path, steps: int, every: int) -> str | None:
    """What to say where the last rows of a run that has made so many steps, and logs each `every`-th, are not there."""
    newest = max((int(row["step"]) + 1 for row in read_rows(path)), default=0) if path.is_file() else 0
    if newest >= steps - steps % every:
        return None
    return f"{path} ends with step {newest}, and the run has made {steps}: what was logged after that is lost"


def is_whole(path: Path) -> bool:
    """Whether the last line was written to its end."""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return True
        file.seek(-1, 2)
        return file.read() == b"\n"


def is_number(value: str) -> bool:
    """Whether a cell holds a number; an empty one has none to hold."""
    try:
        float(value or 0)
    except ValueError:
        return False
    return True


def damage(row: dict[str, Any], columns: list[str], numbers_alone: bool) -> str | None:
    """What is wrong with a row; None where it is as it was written. Those of older versions have no checksum."""
    if None in row or None in row.values():
        return f"it does not have the {len(columns)} values of the first line"
    if not STEP.fullmatch(row.get("step", "")):
        return "it has no step"
    if not any(value for name, value in row.items() if name not in ("step", CHECKSUM)):
        return "it has no value"
    told = row.get(CHECKSUM)
    if told is None and any(value.startswith(f"{CHECKSUM} ") for value in row.values()):
        return "the names in its first line are others"
    others = [name for name, value in row.items() if name != CHECKSUM and not is_number(value)]
    if numbers_alone and others:
        return f"{others[0]} is {shown(row[others[0]])}, which is no number"
    bare = {name: value for name, value in row.items() if name != CHECKSUM}
    if told is not None and told != with_checksum(bare)[CHECKSUM]:
        return "its checksum is another"
    return None
