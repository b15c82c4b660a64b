"""Torch's files, looked at before torch reads them: one takes no more memory than it is long, and runs nothing.

A torch file is a zip archive of one pickle and of the tensors' bytes, nothing packed. Which members a zip archive has
can be told twice, and two readers may believe different places: only archives that tell one thing are read.
"""

import pickletools
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import torch

# The end of a zip archive as torch writes it: the directory's own end in 64 bits, where that is, and the same in 32.
END_64 = struct.Struct("<4sQHHLLQQQQ")
PLACE_64 = struct.Struct("<4sLQL")
END = struct.Struct("<4sHHHHLLH")
ENTRY = struct.Struct("<4sHHHHHHLLLHHHHHLL")
HEADER = struct.Struct("<4sHHHHHLLLHH")
IN_64_BITS = 0xFFFFFFFF
LONGEST_DIRECTORY = 1 << 28  # bytes; hundreds of thousands of tensors
LONGEST_LIST, LIST_PER_MEMBER = 1 << 20, 1 << 12  # bytes; a tensor takes 200, and so does the name of a parameter
MOST_STEPS = 5_000_000  # of reading it: a tensor takes about 30; each may be an object in memory
MEMBER = re.compile(
    r"data\.pkl|data/\d{1,9}|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
)
DEEPEST_TUPLE, MOST_PARTS_AGAIN = 16, 64
NAMES = {
    *("collections OrderedDict", "torch Size", "torch.serialization _get_layout"),
    *(f"torch._utils _rebuild_{kind}" for kind in ("tensor_v2", "tensor_v3", "parameter")),
}
# What makes something of nothing, or names things in a way that is not looked at here.
REFUSED = {
    *("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"),
    *("BYTEARRAY8", "STACK_GLOBAL", "NEXT_BUFFER", "EMPTY_SET"),
}


class Member(NamedTuple):
    """A file in an archive: its bytes are `size` from `start` on."""

    name: str
    start: int
    size: int


def check_torch_file(path: Path) -> None:
    """Raises ValueError for a file that torch does not write, or that would be more in memory than on the disk."""
    with path.open("rb") as file:
        check_torch_archive(file, 0, path.stat().st_size)


def check_torch_archive(file: BinaryIO, start: int, length: int) -> None:
    """The same for `length` bytes of a file from `start` on, which are an archive of their own."""
    found = members(file, start, length)
    folder = found[0].name.partition("/")[0] if found else ""
    for member in found:
        first, _, name = member.name.partition("/")
        if first != folder or not MEMBER.fullmatch(name):  # torch finds members whatever their capitals are
            raise ValueError(f"it has a member {member.name!r}, which torch does not write")
    pickles = [member for member in found if member.name == f"{folder}/data.pkl"]
    if len(pickles) != 1:
        raise ValueError(f"it has {len(pickles)} lists of tensors, and a torch file has one")
    if pickles[0].size > LONGEST_LIST + LIST_PER_MEMBER * len(found):
        raise ValueError(
            f"its list of tensors has {pickles[0].size:,} bytes, and {len(found)} members need no such one"
        )
    file.seek(pickles[0].start)
    check_pickle(file.read(pickles[0].size))


def members(file: BinaryIO, start: int, length: int) -> list[Member]:
    """All members of an archive; ValueError where two of them share bytes, or anything is said twice and differs."""
    end = start + length
    signature, *numbers, comment = unpack(END, file, end - END.size)
    if signature != b"PK\5\6" or comment:
        raise ValueError("it is no torch file, or not all of it")
    _, _, _, count, size, offset = numbers
    directory_end = end - END.size
    place: tuple[Any, ...] = (b"",)
    if length > END.size + PLACE_64.size:
        place = unpack(PLACE_64, file, directory_end - PLACE_64.size)
    if place[0] == b"PK\6\7":
        directory_end = directory_end - PLACE_64.size - END_64.size
        signature, rest, *_, count_64, size_64, offset_64 = unpack(END_64, file, directory_end)
        if signature != b"PK\6\6" or rest != END_64.size - 12 or place[2] != directory_end - start:
            raise ValueError("its directory has two ends")
        short = ((count, 0xFFFF, count_64), (size, IN_64_BITS, size_64), (offset, IN_64_BITS, offset_64))
        if any(said not in (unsaid, meant) for said, unsaid, meant in short):
            raise ValueError("its directory is told of twice, and differently")
        count, size, offset = count_64, size_64, offset_64
    if start + offset + size != directory_end or size > LONGEST_DIRECTORY:
        raise ValueError("its directory does not end where it should")
    file.seek(start + offset)
    found = sorted(entries(file, file.read(size), start), key=lambda member: member.start)
    if len(found) != count or len({member.name for member in found}) != count:
        raise ValueError("its directory does not list what it says")
    ends = [member.start for member in found[1:]] + [start + offset]
    if any(member.start + member.size > end for member, end in zip(found, ends, strict=True)):
        raise ValueError("its members overlap")
    return found


def entries(file: BinaryIO, directory: bytes, start: int) -> Iterator[Member]:
    """What a directory lists, each with the place of its bytes behind its own header."""
    at = 0
    while at < len(directory):
        fields = ENTRY.unpack_from(directory, at)
        signature, _, _, flags, packing, _, _, _, packed, size, named, more, said, *_, place = fields
        if signature != b"PK\1\2":
            raise ValueError("its directory is damaged")
        name = directory[at + ENTRY.size : at + ENTRY.size + named]
        extra = directory[at + ENTRY.size + named : at + ENTRY.size + named + more]
        at += ENTRY.size + named + more + said
        size, packed, place = in_64_bits(extra, size, packed, place)
        if packing or flags & 1 or size != packed:
            raise ValueError("it is a packed archive, which torch does not write")
        header = unpack(HEADER, file, start + place)
        if header[0] != b"PK\3\4" or header[3] or file.read(header[9]) != name:
            raise ValueError("a member is not what its directory says")
        yield Member(name.decode(errors="replace"), start + place + HEADER.size + header[9] + header[10], size)


def in_64_bits(extra: bytes, *numbers: int) -> list[int]:
    """Those of `numbers` that 32 bits could not tell, from an entry's extra field; the others as they are."""
    at, long = 0, b""
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            long = extra[at + 4 : at + 4 + size]
        at += 4 + size
    told = [value for (value,) in struct.iter_unpack("<Q", long[: len(long) // 8 * 8])]
    missing = sum(number == IN_64_BITS for number in numbers)
    if missing > len(told):
        raise ValueError("its directory is damaged")
    rest = iter(told)
    return [next(rest) if number == IN_64_BITS else number for number in numbers]


def unpack(layout: struct.Struct, file: BinaryIO, at: int) -> tuple[Any, ...]:
    """The fields that lie there; ValueError where the file has none."""
    if at < 0:
        raise ValueError("it is no torch file, or not all of it")
    file.seek(at)
    found = file.read(layout.size)
    if len(found) < layout.size:
        raise ValueError("it is no torch file, or not all of it")
    return layout.unpack(found)


def check_pickle(pickled: bytes) -> None:
    """Raises ValueError for a pickle that names anything but tensors and plain values, or makes much of little."""
    for operation, argument in operations(pickled):
        if operation in REFUSED:
            raise ValueError(f"it uses {operation}, which torch does not write")
        if operation == "GLOBAL" and not is_of_tensors(str(argument)):
            raise ValueError(f"it names {printable(str(argument).replace(' ', '.'))}, and tensors alone are read")
    check_growth(pickled)


def operations(pickled: bytes) -> Iterator[tuple[str, Any]]:
    """What a pickle does, step by step, without doing it. ValueError where it is damaged or does too much."""
    try:
        for step, (operation, argument, _) in enumerate(pickletools.genops(pickled)):
            if step > MOST_STEPS:
                raise ValueError(
                    f"its list of tensors takes over {MOST_STEPS:,} steps to read, and no network needs them"
                )
            yield operation.name, argument
    except (LookupError, struct.error, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"its list of tensors is damaged ({error})") from error


class Made(NamedTuple):
    """What a pickle has made, as far as its size matters: how deep tuples lie in it, how many parts it has, and whether
    it was made before (`again`)."""

    depth: int = 0
    parts: int = 1
    again: bool = False
    worst: int = 0  # parts of the largest thing in it that was made before


ONE = Made()


def check_growth(pickled: bytes) -> None:
    """Raises ValueError for a pickle whose few bytes become much: by remembering what it made and using it again, or by
    tuples in tuples, which are looked at once for each way that leads to them."""
    stack: list[Made | None] = []  # None: a mark
    remembered: dict[int, Made] = {}

    def pop_to_mark() -> list[Made]:
        found = []
        while (top := stack.pop()) is not None:
            found.append(top)
        return found

    try:
        for operation, given_argument, _ in pickletools.genops(pickled):
            name, argument = operation.name, cast(Any, given_argument)
            if name == "MARK":
                stack.append(None)
            elif name.startswith(("TUPLE", "EMPTY_TUPLE")):
                count = int(name[5:] or -1) if name.startswith("TUPLE") else 0
                inner = pop_to_mark() if count < 0 else [part for part in (stack.pop() for _ in range(count)) if part]
                depth = 1 + max((part.depth for part in inner), default=0)
                if depth > DEEPEST_TUPLE:
                    raise ValueError("it has tuples in tuples, deeper than torch writes")
                worst = max([part.parts for part in inner if part.again] + [part.worst for part in inner], default=0)
                stack.append(Made(depth, len(inner) + sum(part.parts for part in inner), worst=worst))
            elif name.endswith("GET"):
                stack.append(remembered[int(argument)]._replace(again=True))
            elif name.endswith("PUT") or name == "MEMOIZE":
                top = stack[-1]
                if top is not None:
                    remembered[len(remembered) if name == "MEMOIZE" else int(argument)] = top
            elif name in ("REDUCE", "NEWOBJ"):
                given = stack.pop()
                stack.pop()
                if given is None or given.again or given.worst > MOST_PARTS_AGAIN:
                    raise ValueError("it makes something anew of what it made before, which torch does not")
                stack.append(Made(parts=MOST_PARTS_AGAIN))
            else:
                before, after = operation.stack_before, operation.stack_after
                if pickletools.stackslice in before:
                    gathered = pop_to_mark()
                    for _ in before[: before.index(pickletools.markobject)]:
                        stack.pop()
                    made = Made(parts=1 + len(gathered))
                else:
                    for _ in before:
                        stack.pop()
                    made = ONE
                stack += [made] * len(after)
    except (LookupError, struct.error, UnicodeDecodeError, OverflowError, AttributeError) as error:
        raise ValueError(f"its list of tensors is damaged ({error})") from error


def printable(text: str) -> str:
    """Without what would tell a terminal to do something."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def is_of_tensors(named: str) -> bool:
    module, _, name = named.partition(" ")
    if module == "torch" and name.isidentifier():
        kind = getattr(torch, name, None)
        return name.endswith("Storage") or isinstance(kind, torch.dtype) or named in NAMES
    return named in NAMES
