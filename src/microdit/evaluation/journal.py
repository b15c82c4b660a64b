"""Files of verdicts that grow by a JSON line as soon as one is known, and are read again by whoever goes on."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from microdit.files import damaged, sealed, size_of_file, unsealed, write_whole
from microdit.kinds import check_kind

Line = TypeVar("Line")


def kept_lines(path: Path, kind: type[Line], cure: str) -> list[Line]:
    """What is in a file, a line each, oldest first; a last line that was cut off when its process was killed is taken
    away. Raises DamagedFileError, which ends with `cure`, for any other line that is not of the `kind`, or not as it
    was written (of lines by older versions nobody can tell)."""
    if not path.exists() or not size_of_file(path):
        return []
    *lines, cut_off = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
            check_kind(content, dict[str, Any], "it:")
            content = unsealed(content)
            check_kind(content, kind, "it:")
        except (ValueError, RecursionError) as error:
            raise damaged(path, ValueError(f"line {number}: {error}"), cure) from error
        found.append(content)
    if cut_off:
        write_whole(path, as_lines(map(sealed, found)))
    return found


def as_lines(contents: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(content) + "\n" for content in contents)
