"""Files of verdicts that grow by a JSON line as soon as one is known, and are read again by whoever goes on."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

from microdit.evaluation.sharing import Ranks
from microdit.files import alone_in, appending, damaged, sealed, size_of_file, unsealed, write_whole
from microdit.kinds import check_kind

Line = TypeVar("Line", bound=Mapping[str, Any])


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


class Journal(Generic[Line]):
    """Verdicts by their `key`: those that are `kept`, to which each rank adds its own. What is not kept is dealt out to
    the ranks in the order in which it is first asked for, so that all have to ask for the same."""

    def __init__(self, kept: Mapping[str, Line], file: TextIO, ranks: Ranks):
        self.known, self.file, self.ranks = dict(kept), file, ranks
        self.added: dict[str, Line] = {}
        self.asked: set[str] = set()

    def is_own(self, key: str) -> bool:
        """Whether this is to be found out by this rank: nobody has, and nobody was told to before."""
        if key in self.known or key in self.asked:
            return False
        self.asked.add(key)
        return self.ranks.has(len(self.asked) - 1)

    def add(self, line: Line) -> None:
        """Keeps what this rank has found out."""
        self.file.write(as_lines([sealed(line)]))
        self.file.flush()
        self.added[line["key"]] = line

    def all(self) -> dict[str, Line]:
        """What is known, by all ranks together."""
        for added in self.ranks.gathered(self.added):
            self.known |= added
        return self.known


@contextmanager
def shared_journal(path: Path, kind: type[Line], cure: str, ranks: Ranks) -> Iterator[Journal[Line]]:
    """A file of verdicts that the ranks of this command add to together; another command waits. Each rank writes to a
    file of its own, which joins the first one's when the block ends, or when the next begins where one was killed.

    Raises DamagedFileError as `kept_lines`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ranks.held_by_first(lambda: alone_in(path.parent)):
        kept = ranks.of_first(lambda: joined_lines(path, kind, cure))
        own = path if ranks.leads else path.with_name(f"{path.stem}.rank_{ranks.rank}{path.suffix}")
        with appending(own, encoding="utf-8") as file:
            yield Journal({line["key"]: line for line in kept}, file, ranks)
        ranks.gathered(None)  # until all have written
        if ranks.count > 1:
            ranks.of_first(lambda: len(joined_lines(path, kind, cure)))


def joined_lines(path: Path, kind: type[Line], cure: str) -> list[Line]:
    """What is in the file of the first rank, once it holds what the others found out as well."""
    lines = kept_lines(path, kind, cure)
    others = sorted(path.parent.glob(f"{path.stem}.rank_*{path.suffix}"))
    if more := [line for other in others for line in kept_lines(other, kind, cure)]:
        lines += more
        write_whole(path, as_lines(map(sealed, lines)))
    for other in others:
        other.unlink()
    return lines
