"""Files that several processes may want to make: each appears once, and whole, whoever is killed on the way. And small
files that may be damaged, or made by somebody else: what they hold is text and numbers, of a size that fits."""

import difflib
import errno
import fcntl
import itertools
import json
import os
import re
import stat
import unicodedata
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from microdit.kinds import SettingsError, check_kind

Described = TypeVar("Described")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSALS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.ENOLCK)
LARGEST_SETTINGS = 1 << 20  # bytes; what is written here is a thousand times smaller
LARGEST_YAML = 1 << 18  # bytes, of which each may be a value, and takes a hundred times as long as one of JSON
CHECKSUM = "crc32"
SEALED = "# Written by microdit; its checksum is the last line."
LAST_LINE = re.compile(rf"^# {CHECKSUM} ([0-9a-f]{{8}})$\n?\Z", re.MULTILINE)
BY_HAND = "if you changed it yourself, remove"
MOST_COMPARED = 10_000  # names of a folder, with one that is not in it
DEEPEST, MOST_DIGITS = 60, 1000
MOST_CHARACTERS = 16 * LARGEST_YAML  # once every alias stands for what it repeats; a value is one at least


class NoRoomError(OSError):
    """A file does not fit on its disk; the message names it and says what to do."""


def is_refusal(error: BaseException) -> bool:
    """Whether there is a `refusal_in` an error."""
    return refusal_in(error) is not None


def refusal_in(error: BaseException) -> OSError | None:
    """The system's word that it did not let us look, which says nothing about what is there; torch has it in a text of
    its own. None for any other error."""
    if isinstance(error, OSError):
        return error if error.errno in REFUSALS else None
    said = errno.ENOMEM if isinstance(error, MemoryError) else None
    number = next((each for each in REFUSALS if str(error).endswith(f"{os.strerror(each)} ({each})")), said)
    return None if number is None else OSError(number, str(error) or os.strerror(number))


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """While the block runs, the system's word that a disk is full becomes a NoRoomError that names `path`, and that a
    folder lies where a file belongs an OSError that names both."""
    try:
        yield
    except IsADirectoryError as error:
        raise OSError(
            f"{path} cannot be written: {error.filename2 or error.filename} is a folder, and nothing else than a file "
            "belongs there: remove it"
        ) from error
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise NoRoomError(
            f"{path} cannot be written: {error.strerror}. Make room and run the same command again, what is complete "
            "is kept"
        ) from error


def folder_within(root: Path, folder: Path) -> Path:
    """Makes a folder below ROOT, and returns it. SettingsError where a link on its way leads out of ROOT, which may be
    a link itself: what it leads to is what its name means."""
    target = os.path.realpath(folder)
    if not Path(target).is_relative_to(os.path.realpath(root)):
        raise SettingsError(
            f"{folder} leads to {target}, and what is made below {root} stays there: name that place itself, or put "
            f"a folder in the place of the link ({root} may be a link)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def opened_alone(path: str | Path, flags: int) -> int:
    """The descriptor of a file that is written in place, or made. OSError where its name is a link, or the file has
    another name as well: whoever has it under that one did not ask for it."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o666)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        os.close(descriptor)
        raise OSError(f"{path} is a second name of another file (a hard link); put a copy in its place, or remove it")
    return descriptor


@contextmanager
def alone_in(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """While the block runs no other thread or process is in one for the same folder or file, opened with these `flags`,
    and if it may be written as `opened_alone`.

    The lock is on the folder or file itself, so none is left behind, and it ends with its process.
    """
    descriptor = os.open(path, flags) if flags == os.O_RDONLY else opened_alone(path, flags)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        # Said aloud: a process that was forked meanwhile shares the lock, and closing the file here would not end it.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def near_path(path: Path) -> str:
    """What is said of a path that is not there: what lies nearby and may be meant; "" where nothing does."""
    missing, above = path, path.parent
    while not above.is_dir():
        if above.exists():
            return f"; {above} is a file, and no folder"
        if above == above.parent:
            return ""
        missing, above = above, above.parent
    try:
        names = sorted(os.listdir(above))
    except OSError:
        return ""
    alike = [name for name in names if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", missing.name)]
    stripped = [name for name in names if name.strip() == missing.name.strip()]
    near = alike or stripped or difflib.get_close_matches(missing.name, names[:MOST_COMPARED], n=1)
    if near:
        return f"; did you mean {above / near[0] / path.relative_to(missing)}?"
    return f"; {above} is there, and has no {missing.name}" if above != Path() else ""


class InUseError(ValueError):
    """Another process writes to this folder; the message says which folder, and what to do."""


@contextmanager
def only_writer(folder: Path, held: str) -> Iterator[None]:
    """While the block runs no other process is in one for FOLDER/HELD, a folder that is made if it is not there.

    The lock ends with its process, however that ends. Raises InUseError at once where another process holds it.
    """
    place = folder / held
    place.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise InUseError(
            f"{folder} is in use: another process trains there now. Wait until it has ended, or choose another folder "
            "(hydra.run.dir=..., hydra.sweep.dir=...)"
        ) from error
    finally:
        os.close(descriptor)


def new_folder(path: Path) -> Path:
    """Makes a folder that nobody else has: `path`, or where that is taken PATH-2, PATH-3, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        mine = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            mine.mkdir()
        except FileExistsError:
            continue
        return mine
    raise AssertionError("there are always more numbers")


@contextmanager
def claim(path: Path) -> Iterator[Path | None]:
    """The temporary path to write `path` under; it gets its name when the block ends well. None when `path` is there.

    A second process waits for the first, and then finds the file there or, if the first was killed, starts it anew.
    NoRoomError where the disk is full.
    """
    partial = partial_name(path)
    if path.exists():
        yield None
        return
    with room_for(path), alone_in(partial, os.O_RDWR | os.O_CREAT) as descriptor:
        if path.exists():
            # Written by the one we waited for; what lies under the temporary name now is empty.
            partial.unlink(missing_ok=True)
            yield None
            return
        os.ftruncate(descriptor, 0)
        yield partial
        os.fsync(descriptor)
        os.replace(partial, path)


def partial_name(path: Path, writer: str = "") -> Path:
    """Where a file or folder is until it is complete: beside its place, under a name that nobody looks for. `writer`
    tells those apart who write the same file at once."""
    return path.with_name(f".{path.name}{writer}.partial")


@contextmanager
def replacing(path: Path, mode: str = "w", writer: str = "", **options: Any) -> Iterator[Any]:
    """A new file to write, which takes the place of `path` when the block ends well, and is gone when it does not.

    What lies under its temporary name, a link that waits there included, is removed and never written through. Two
    processes that write the same file at once need different `writer`s. NoRoomError where the disk is full.
    """
    partial = partial_name(path, writer)
    with room_for(path):
        partial.unlink(missing_ok=True)
    try:
        with room_for(path):
            with open(partial, mode.replace("w", "x"), **options) as file:
                yield file
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def appending(path: Path, **options: Any) -> Iterator[Any]:
    """A file to add to, made if it is not there. OSError where it is not this file alone, as `opened_alone`."""
    with open(path, "a", opener=opened_alone, **options) as file:
        yield file


def write_whole(path: Path, text: str, writer: str = "") -> None:
    """Write a small file so that it is never seen half written, as `replacing` does.

    What is no UTF-8 in the name of a file is written as an escape, which JSON reads back as it was.
    """
    with replacing(path, writer=writer, encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def write_json(path: Path, content: Mapping[str, Any], writer: str = "") -> None:
    """Writes an object whole, with its checksum, which `read_json` compares and takes away again."""
    text = json.dumps(sealed(content), indent=2)
    write_whole(path, f"{text}\n", writer)


def write_yaml(path: Path, content: Mapping[str, Any], writer: str = "") -> None:
    """Writes settings whole, with their checksum as the last line, which `read_yaml` compares."""
    text = f"{SEALED}\n{yaml.safe_dump(dict(content), sort_keys=False)}"
    write_whole(path, f"{text}# {CHECKSUM} {zlib.crc32(text.encode()):08x}\n", writer)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """An object with its checksum, as JSON has it."""
    return {**content, CHECKSUM: checksum_of(content)}


def unsealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object without its checksum, if it has one. ValueError where that is of another."""
    content = dict(content)
    told = content.pop(CHECKSUM, None)
    nameless = any(isinstance(value, str) and value.startswith(f"{CHECKSUM} ") for value in content.values())
    if nameless or (told is not None and told != checksum_of(content)):
        raise ValueError(f"its checksum is another; {BY_HAND} the value {CHECKSUM}")
    return content


def checksum_of(content: Mapping[str, Any]) -> str:
    """The CRC-32 of an object as JSON, whatever the order of its names; known as one even if its name is damaged."""
    return f"{CHECKSUM} {zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


class DamagedFileError(ValueError):
    """A small file that does not hold what it should: the message names it, the place in it, and the way out."""


def read_json(path: Path, cure: str, largest: int = LARGEST_SETTINGS) -> dict[str, Any]:
    """The object in a JSON file of at most so many bytes. DamagedFileError, which ends with `cure`, for anything else;
    OSError as `open`."""
    try:
        content = json.loads(small_text(path, cure, largest))
        characters_in(content, {})
        return unsealed(a_dictionary(content, path, cure))
    except (ValueError, RecursionError) as error:
        raise damaged(path, error, cure) from error


def read_described(path: Path, kind: type[Described], cure: str, largest: int = LARGEST_SETTINGS) -> Described:
    """The dataclass whose values are in a JSON file. DamagedFileError and OSError as `read_json`, also where a value is
    lacking, unknown or of another kind."""
    content = read_json(path, cure, largest)
    try:
        check_kind(content, kind, f"{path}:")
    except SettingsError as error:
        raise DamagedFileError(f"{error}; {cure}") from error
    return kind(**content)


def read_yaml(path: Path, cure: str) -> dict[str, Any]:
    """The mapping in a YAML file, plain values only. DamagedFileError, which ends with `cure`, for anything else, also
    for one whose aliases stand for more than could be meant; OSError as `open`."""
    try:
        text = small_text(path, cure, LARGEST_YAML)
        check_seal(text)
        content = yaml.load(text, PlainLoader)
        if characters_in(content, {}) > MOST_CHARACTERS:
            raise ValueError("its aliases repeat more than settings can hold")
    except (yaml.YAMLError, ValueError, RecursionError, LookupError, ArithmeticError) as error:
        raise damaged(path, error, cure) from error
    return a_dictionary(content, path, cure)


PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")


class PlainLoader(yaml.SafeLoader):
    """YAML as far as settings need it: names, lists, texts, numbers. No merging of mappings, no numbers to the base of
    sixty, no dates, sets or pairs, some of which cost more than they are long."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML has it
        first: [(tag, pattern) for tag, pattern in found if tag.rpartition(":")[2] in PLAIN]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in PLAIN
    }

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if (":" in value or len(value) > MOST_DIGITS) and node.tag.rpartition(":")[2] in ("int", "float"):
            raise ValueError("it holds a number to the base of sixty, or of too many digits")
        return value


def check_seal(text: str) -> None:
    """Raises ValueError where the last line tells of another text, or is gone. What was written by older versions, or
    by hand, has neither first nor last line."""
    found = LAST_LINE.search(text)
    if found is None and not text.startswith(SEALED):
        return
    if found is None:
        raise ValueError("its end is missing")
    if int(found[1], 16) != zlib.crc32(text[: found.start()].encode()):
        raise ValueError(f"its checksum is another; {BY_HAND} the first and the last line")


def small_text(path: Path, cure: str, largest: int = LARGEST_SETTINGS) -> str:
    """What is in a file of at most so many bytes. DamagedFileError for a larger one, or what is no UTF-8; OSError as
    `open`."""
    if (size := size_of_file(path)) > largest:
        raise DamagedFileError(f"{path} has {size:,} bytes, which no such file needs; {cure}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, error, cure) from error


def size_of_file(path: Path) -> int:
    """The bytes of a file. OSError where it is no ordinary one: a pipe or a device, which reading would not end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is no ordinary file (but a folder, a pipe or a device), and one belongs there")
    return found.st_size


def damaged(path: Path, error: Exception, cure: str) -> DamagedFileError:
    if isinstance(error, DamagedFileError):
        return error
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:  # without the file's own words
        reason = f"line {error.problem_mark.line + 1}: {error.problem}"
    return DamagedFileError(f"{path} is damaged ({reason}); {cure}")


def a_dictionary(content: Any, path: Path, cure: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} is damaged (it holds no settings, but a {type(content).__name__}); {cure}")
    return content


def characters_in(content: Any, counted: dict[int, int], depth: int = 0) -> int:
    """How much there is if each alias is written out: the characters of texts, and one for each value. ValueError for
    one that holds itself, is nested more deeply than settings are, or has names that are no texts."""
    if not isinstance(content, dict | list):
        return 1 + (len(content) if isinstance(content, str) else 0)
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    if isinstance(content, dict) and (nameless := [name for name in content if not isinstance(name, str)]):
        raise ValueError(f"{nameless[0]!r} is no text, as a name is; put it in quotes")
    if counted.setdefault(id(content), -1) < 0:
        inside = [*content, *content.values()] if isinstance(content, dict) else content
        total = 1
        for value in inside:
            if counted.get(id(value)) == -1:
                raise ValueError("one of its aliases holds itself")
            total += characters_in(value, counted, depth + 1)
        counted[id(content)] = total
    return counted[id(content)]
