import dataclasses
import io
import json
import os
import random
import resource
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from caption_texts import caption_texts
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from microdit.data.prepare.foreign import NoLatentsError, index_foreign
from microdit.data.shards import reader
from microdit.data.shards.columns import ColumnsError, open_columns, write_columns
from microdit.data.shards.corruption import CorruptSampleError
from microdit.data.shards.description import LatentDescription, MismatchError, read_description
from microdit.data.shards.index import IndexMissingError, ShardIndex, index_folder, index_shard
from microdit.data.shards.tars import TarError, npy_bytes, tar_members
from microdit.data.stream.opening import open_mix

FIELDS = ("caption", "caption_1")
LATENTS, CAPTION = np.ones((4, 2, 2), np.float16), np.ones((5, 8), np.float16)


@pytest.fixture
def described(tmp_path: Path, write_folder: Callable[..., Path]) -> Path:
    return write_folder(tmp_path / "data", [3])


def write_tar(path: Path, files: dict[str, bytes], tar_format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def keys(path: Path) -> list[str]:
    columns = index_shard(path)
    ends = columns["key_ends"].tolist()
    return [bytes(columns["keys"][start:end]).decode() for start, end in zip([0, *ends], ends, strict=False)]


def whole_sample(key: str, number: float = 1) -> dict[str, bytes]:
    return {
        f"{key}.latents_32.npy": npy_bytes(LATENTS * np.float16(number)),
        f"{key}.caption.npy": npy_bytes(CAPTION * np.float16(number)),
        f"{key}.json": b'{"caption": "some words"}',
    }


def test_the_index_can_be_made_anew_from_the_tars_alone(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(tmp_path / "data", [3, 0, 4], captions=2)
    written = (folder / "index.npz").read_bytes()
    (folder / "index.npz").unlink()
    shutil.rmtree(folder / "index")
    assert index_folder(folder)[0] == 7
    assert (folder / "index.npz").read_bytes() == written


@pytest.mark.parametrize(
    "key", ["./000", "with.dots.in.it", "a/folder/0001", "./a.b/c.d", "x" * 150, "f" * 90 + "/" + "g" * 120, "žluť/ok"]
)
@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_kind_are_read(tmp_path: Path, key: str, tar_format: int) -> None:
    write_tar(tmp_path / "00000.tar", whole_sample("first", 2) | whole_sample(key, 3), tar_format)
    index_foreign(tmp_path)
    assert ShardIndex(tmp_path / "index.npz").key(1) == key.removeprefix("./")
    stream = open_mix(
        [{"name": "data", "folder": str(tmp_path)}],
        resolution_px=32,
        seed=0,
        autoencoder="a",
        text_encoder="t",
        shuffle=False,
    )
    batch = stream.__getitems__([0, 1])
    assert batch["latents"][:, 0, 0, 0].tolist() == [2, 3]
    assert batch["captions"][:, 0, 0].tolist() == [2, 3]
    assert caption_texts(stream, [1]) == ["some words"]


def test_the_fields_of_a_sample_may_lie_apart(tmp_path: Path) -> None:
    first, second = whole_sample("a", 2), whole_sample("b", 3)
    by_field = {name: content for pair in zip(first.items(), second.items(), strict=True) for name, content in pair}
    assert keys(write_tar(tmp_path / "00000.tar", by_field)) == ["a", "b"]
    columns = index_shard(tmp_path / "00000.tar")
    assert (columns["caption.npy/offset"] > 0).all()
    assert (columns["latents_32.npy/shape"] == [4, 2, 2]).all()


def test_folders_links_and_other_files_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, kind in (("dir", tarfile.DIRTYPE), ("link.json", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "elsewhere"
            tar.addfile(member)
        for name, content in {"a.jpg": b"x", ".json": b"{}", **whole_sample("a")}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert keys(tmp_path / "00000.tar") == ["a"]


def test_a_field_that_comes_twice_is_refused(tmp_path: Path) -> None:
    files = whole_sample("a") | {"./a.json": b"{}"}
    with pytest.raises(TarError, match=r"00000\.tar: holds 'a\.json' twice"):
        index_shard(write_tar(tmp_path / "00000.tar", files))


def test_more_fields_than_any_sample_has_are_refused(tmp_path: Path) -> None:
    """A column of each takes a place in every row: 2,500 of them are quadratic."""
    (tmp_path / "many").mkdir()
    write_tar(tmp_path / "many" / "00000.tar", {f"{i}.latents_{i}.npy": b"" for i in range(300)})
    with pytest.raises(TarError, match=r"many/00000\.tar: more than 250 different fields, such as latents_"):
        index_folder(tmp_path / "many")
    (tmp_path / "apart").mkdir()
    for number in range(3):
        fields = {f"a.latents_{100 * number + i}.npy": b"" for i in range(100)}
        write_tar(tmp_path / "apart" / f"{number}.tar", fields)
    with pytest.raises(TarError, match="apart: more than 250"):
        index_folder(tmp_path / "apart")


def test_a_field_larger_than_any_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A file with holes is small on the disk, whatever it says."""
    tar = write_tar(tmp_path / "00000.tar", whole_sample("a"))
    member = tarfile.TarInfo("b.caption.npy")
    member.size = 1 << 40
    with tar.open("r+b") as file:
        content = file.read().rstrip(b"\0")
        file.seek(-(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)  # in place of the end
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(file.tell() + member.size + 2 * tarfile.BLOCKSIZE)
    with pytest.raises(
        TarError, match=r"00000\.tar: 'b\.caption\.npy' has 1,099,511,627,776 bytes, more than any field"
    ):
        index_shard(tar)
    assert index_folder(tmp_path, "skip")[0] == 1


@pytest.mark.parametrize("resolution", ["0", "032", "99999999999999999999", "\u0663\u0662"])
def test_what_is_no_number_of_pixels_is_no_field(tmp_path: Path, resolution: str) -> None:
    files = whole_sample("a") | {f"a.latents_{resolution}.npy": npy_bytes(LATENTS)}
    write_tar(tmp_path / "00000.tar", files)
    index_foreign(tmp_path)
    index_foreign(tmp_path)
    assert read_description(tmp_path / "dataset.json").resolutions_px == [32]


def test_a_tar_whose_own_name_is_not_utf_8_is_told(tmp_path: Path) -> None:
    write_tar(tmp_path / os.fsdecode(b"gr\xfcn.tar"), whole_sample("a"))
    with pytest.raises(ColumnsError, match=r"is no name in UTF-8, .*: rename it"):
        index_folder(tmp_path)


def test_a_truncated_tar_is_an_error_wherever_it_ends(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", whole_sample("a") | whole_sample("b")).read_bytes()
    end = max(member.offset + member.length for member in tar_members(tmp_path / "whole.tar"))
    for length in [0, 1, 511, 512, 513, *range(1000, end, 357), end]:
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(TarError, match=r"cut\.tar"):
            index_shard(tmp_path / "cut.tar")


def test_what_lies_before_the_damage_can_be_kept(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "00000.tar", whole_sample("a") | whole_sample("b")).read_bytes()
    (tmp_path / "00000.tar").write_bytes(whole[:6000])
    with pytest.raises(TarError, match="on_corrupt=skip"):
        index_folder(tmp_path)
    samples, notes = index_folder(tmp_path, on_corrupt="skip")
    assert samples >= 1
    assert "samples before it are kept" in notes[0]
    assert index_folder(tmp_path, on_corrupt="skip") == (samples, notes), "it is told again"
    with pytest.raises(TarError, match="on_corrupt=skip"):
        index_folder(tmp_path)
    with pytest.raises(ValueError, match="error or skip"):
        index_folder(tmp_path, on_corrupt="maybe")


@pytest.mark.parametrize(
    "header", ["{'descr': '<f2', 'x", "{'descr': '<f2', (", "(" * 100, "[" * 60_000, "{1: 2}", "\x00"]
)
def test_a_header_that_is_no_header_makes_no_array_and_stops_nothing(tmp_path: Path, header: str) -> None:
    damaged = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)
    write_tar(tmp_path / "00000.tar", whole_sample("a") | whole_sample("b") | {"b.latents_32.npy": damaged})
    index_foreign(tmp_path)
    assert ShardIndex(tmp_path / "index.npz").column("latents_32.npy", "dtype").tolist() == [1, 0]


def test_names_that_are_not_utf_8_are_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name, content in whole_sample("gr\xfcn").items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert keys(tmp_path / "00000.tar") == ["gr\\udcfcn"]


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.json"))
    with pytest.raises(TarError, match="uncompressed"):
        index_shard(tmp_path / "00000.tar")


def test_tars_without_latents_point_to_preparing(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", {"a.json": b"{}", "a.jpg": b""})
    with pytest.raises(NoLatentsError, match="source=webdataset"):
        index_foreign(tmp_path)


def test_a_tar_that_the_index_does_not_know_is_named(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(tmp_path / "data", [3])
    write_tar(folder / "later.tar", whole_sample("later"))
    source = [{"name": "data", "folder": str(folder)}]
    with pytest.raises(MismatchError, match=r"later\.tar.*python prepare\.py index="):
        open_mix(source, resolution_px=32, seed=0, autoencoder="small", text_encoder="short")


def test_a_folder_without_its_description_names_the_command(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(tmp_path / "data", [3])
    for content in ("{", '{"name": "x"}', None):
        (folder / "dataset.json").unlink()
        if content is not None:
            (folder / "dataset.json").write_text(content)
        with pytest.raises(MismatchError, match=r"dataset\.json.*python prepare\.py index="):
            open_mix(
                [{"name": "d", "folder": str(folder)}], resolution_px=32, seed=0, autoencoder="a", text_encoder="t"
            )


def test_any_changed_byte_of_an_index_is_found_or_harmless(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(tmp_path / "data", [3, 2])
    whole, chance = (folder / "index.npz").read_bytes(), random.Random(0)
    settings: dict = {"resolution_px": 32, "seed": 0, "autoencoder": "small", "text_encoder": "short", "shuffle": False}
    clean = open_mix([{"name": "d", "folder": str(folder)}], **settings).__getitems__(range(5))
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= chance.randrange(1, 256)
        (folder / "index.npz").write_bytes(damaged)
        with suppress(ColumnsError, CorruptSampleError, MismatchError):
            found = open_mix([{"name": "d", "folder": str(folder)}], **settings).__getitems__(range(5))
            assert torch.equal(found["latents"], clean["latents"])
            assert torch.equal(found["captions"], clean["captions"])


SETTINGS: dict = {"resolution_px": 32, "seed": 0, "autoencoder": "small", "text_encoder": "short"}
OTHER_COLUMNS = {
    "wider": lambda column: np.stack([column] * 2),
    "single": lambda column: np.array(column.flat[0]),
    "numbers": lambda column: np.full(column.shape, 0.5),
    "texts": lambda column: np.full(column.shape, "a"),
    "short": lambda column: column[:-1],
    "other order": lambda column: (
        column.astype(column.dtype.newbyteorder()) if column.dtype.itemsize > 1 else column[1:]
    ),
    "below zero": lambda column: np.full(column.shape, -5, column.dtype) if column.dtype.kind == "i" else column[1:],
}


# Keys name samples in messages, and nothing is read by them.
ONLY_NAMED = [("key_ends", "below zero"), *(("keys", change) for change in ("short", "other order", "below zero"))]


@pytest.mark.parametrize("change", OTHER_COLUMNS)
def test_a_column_of_another_kind_is_named_or_its_samples_are(
    tmp_path: Path, write_folder: Callable[..., Path], change: str
) -> None:
    folder = write_folder(tmp_path / "data", [3, 2])
    columns = {name: np.array(column) for name, column in open_columns(folder / "index.npz").items()}
    for name, column in columns.items():
        if name.startswith("latents_64"):
            continue  # of a resolution that is not asked for
        write_columns(folder / "index.npz", (columns | {name: OTHER_COLUMNS[change](column)}).items())
        refused = pytest.raises((ColumnsError, CorruptSampleError, MismatchError), match=r"index\.npz|0\.tar")
        with nullcontext() if (name, change) in ONLY_NAMED else refused:
            stream = open_mix([{"name": "d", "folder": str(folder)}], **SETTINGS)
            for key in range(5):
                stream.sources[0].reader.record(key)
            stream.__getitems__(range(50))


def test_captions_whose_places_are_damaged_are_told_and_no_others_taken(
    tmp_path: Path, write_folder: Callable[..., Path]
) -> None:
    folder = write_folder(tmp_path / "data", [8], captions=3)
    columns = {name: np.array(column) for name, column in open_columns(folder / "index.npz").items()}
    columns["caption_2.npy/offset"] |= np.int64(-(2**63))
    write_columns(folder / "index.npz", columns.items())
    stream = open_mix([{"name": "d", "folder": str(folder)}], **SETTINGS)
    with pytest.raises(CorruptSampleError, match=r"caption_2\.npy: the index is damaged, nothing lies there"):
        stream.__getitems__(range(8))


def test_a_description_that_is_no_file_is_told_otherwise_than_one_that_is_lacking(described: Path) -> None:
    (described / "dataset.json").unlink()
    os.mkfifo(described / "dataset.json")
    with pytest.raises(OSError, match=r"dataset\.json is no ordinary file"):
        index_foreign(described)


@pytest.mark.parametrize("name", ["../secret.tar", "/etc/passwd", "a/../../b.tar", "..", "", "a\0b.tar", "other"])
def test_a_shard_that_is_no_tar_beside_the_index_is_refused(
    tmp_path: Path, write_folder: Callable[..., Path], name: str
) -> None:
    folder = write_folder(tmp_path / "data", [3])
    columns = dict(open_columns(folder / "index.npz")) | {"shards": np.array([name])}
    write_columns(folder / "index.npz", columns.items())
    with pytest.raises(ColumnsError, match=r"index\.npz names the shard"):
        ShardIndex(folder / "index.npz")


def test_names_of_shards_that_are_no_characters_are_refused(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(tmp_path / "data", [3])
    no_characters = np.full(2, 0xFFFFFFFF, np.uint32).view("<U2")
    write_columns(folder / "index.npz", (dict(open_columns(folder / "index.npz")) | {"shards": no_characters}).items())
    with pytest.raises(ColumnsError, match="no text"):
        ShardIndex(folder / "index.npz")


def test_a_shard_that_would_never_end_is_not_read(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(tmp_path / "data", [3])
    (folder / "00000.tar").unlink()
    os.mkfifo(folder / "00000.tar")
    with pytest.raises(CorruptSampleError, match="no ordinary file"):
        open_mix([{"name": "d", "folder": str(folder)}], **SETTINGS)[0]
    with pytest.raises(OSError, match="no ordinary file"):
        index_folder(folder)


def test_a_part_of_another_kind_is_made_anew(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(tmp_path / "data", [3])
    part = folder / "index" / "00000.npz"
    whole = part.read_bytes()
    for other in ({"shards": np.array(["../a.tar"])}, {"shard_rows": np.array(3)}, {"damage": np.array("x")}):
        write_columns(part, ({name: np.array(c) for name, c in open_columns(part).items()} | other).items())
        index_folder(folder)
        assert part.read_bytes() == whole


DESCRIBED = st.sampled_from([None, True, 0, -1, 10**300, 0.5, "a", "\x1b", [], [None], [[1]], {}, {"a": {"b": []}}])


@hypothesis.settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([one.name for one in dataclasses.fields(LatentDescription)]), value=DESCRIBED)
@example(name="resolutions_px", value=5)
@example(name="caption_width", value=10**6)
def test_whatever_a_description_says_is_read_or_refused_with_its_folder(
    described: Path, name: str, value: object
) -> None:
    told = json.loads((described / "dataset.json").read_text())
    other = described.parent / "other.json"
    other.write_text(json.dumps(told | {name: value}))
    message = str(described)
    try:
        read_description(other)
        (described / "dataset.json").write_text(other.read_text())
        open_mix([{"name": "d", "folder": str(described)}], **SETTINGS, shuffle=False).__getitems__(range(3))
    except (MismatchError, CorruptSampleError) as error:
        message = str(error)
    finally:
        (described / "dataset.json").write_text(json.dumps(told))
    assert str(described) in message or str(other) in message or "captions of d" in message


def test_a_description_names_the_key_of_another_kind(described: Path) -> None:
    told = json.loads((described / "dataset.json").read_text())
    (described / "other.json").write_text(json.dumps(told | {"resolutions_px": 5}))
    with pytest.raises(
        MismatchError,
        match=r"other\.json: resolutions_px must be a list .* whole number, got 5; delete",
    ):
        read_description(described / "other.json")


def test_the_description_is_of_all_captions_and_of_tars_that_came_later(tmp_path: Path) -> None:
    def tar(name: str, lengths: tuple[int, ...]) -> None:
        captions = {f"a.{field}.npy": npy_bytes(CAPTION[:n]) for field, n in zip(FIELDS, lengths, strict=False)}
        write_tar(tmp_path / name, {"a.latents_32.npy": npy_bytes(LATENTS), **captions})

    told = []
    for name, lengths in (("0.tar", (3,)), ("1.tar", (3, 2)), ("2.tar", (5,))):
        tar(name, lengths)
        index_foreign(tmp_path)
        found = read_description(tmp_path / "dataset.json")
        told.append((found.shards, found.samples, found.caption_length, found.caption_storage))
    assert told == [(1, 1, 3, "full"), (2, 2, 3, "trimmed"), (3, 3, 5, "trimmed")]


def test_what_tars_do_not_tell_is_kept_when_they_are_indexed_again(
    tmp_path: Path, write_folder: Callable[..., Path]
) -> None:
    folder = write_folder(tmp_path / "data", [3])
    before = read_description(folder / "dataset.json")
    write_tar(folder / "later.tar", whole_sample("later"))
    index_foreign(folder)
    assert read_description(folder / "dataset.json") == dataclasses.replace(before, samples=4, shards=2)


@pytest.mark.parametrize("rows", [[1 << 62] * 4 + [3], [-1, 4], [1 << 63 - 1, 1]])
def test_rows_of_shards_that_add_up_to_no_number_of_rows_are_refused(
    tmp_path: Path, write_folder: Callable[..., Path], rows: list[int]
) -> None:
    folder = write_folder(tmp_path / "data", [3])
    of_shards = {
        "shards": np.array([f"{number}.tar" for number in range(len(rows))]),
        "shard_rows": np.array(rows, np.int64),
        "shard_bytes": np.ones(len(rows), np.int64),
    }
    write_columns(folder / "index.npz", (dict(open_columns(folder / "index.npz")) | of_shards).items())
    with pytest.raises(ColumnsError, match="contradicts itself"):
        ShardIndex(folder / "index.npz")


def test_a_folder_without_index_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(IndexMissingError, match=r"python prepare\.py index="):
        ShardIndex(tmp_path / "index.npz")


def test_indexing_again_reads_only_what_changed(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(tmp_path / "data", [3, 3])
    parts = {path: path.stat().st_mtime_ns for path in (folder / "index").glob("*.npz")}
    write_tar(folder / "00001.tar", whole_sample("new"))
    assert index_folder(folder)[0] == 4
    changed = [path.name for path, time in parts.items() if path.stat().st_mtime_ns != time]
    assert changed == ["00001.npz"]


@contextmanager
def room_for_files(more: int) -> Iterator[None]:
    """While the block runs, so many more files may be open than there are now."""
    before, free = resource.getrlimit(resource.RLIMIT_NOFILE), [os.dup(0) for _ in range(more + 1)]
    for number in free:  # what other tests hold open may lie between them
        os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_many_shards_are_indexed_and_read_with_few_files_open(
    tmp_path: Path, write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "data", [1] * 60)
    (folder / "index.npz").unlink()
    monkeypatch.setattr(reader, "OPEN_SHARDS", 4)
    with room_for_files(20):
        assert index_folder(folder) == (60, [])
        stream = open_mix([{"name": "d", "folder": str(folder)}], **SETTINGS, shuffle=False)
        assert stream.__getitems__(range(60))["latents"][:, 0, 0, 0].tolist() == list(range(60))


def test_a_file_that_the_system_does_not_open_is_not_called_damaged(
    tmp_path: Path, write_folder: Callable[..., Path]
) -> None:
    folder = write_folder(tmp_path / "data", [1])
    with room_for_files(0), pytest.raises(OSError, match="Too many open files"):
        ShardIndex(folder / "index.npz")


def test_columns_are_mapped_and_not_loaded(tmp_path: Path) -> None:
    written = {
        "numbers": np.arange(10),
        "rows": np.arange(12, dtype=np.int32).reshape(4, 3),
        "none": np.zeros(0),
        "names": np.array(["a", "bc"]),
    }
    write_columns(tmp_path / "columns.npz", written.items())
    read = open_columns(tmp_path / "columns.npz")
    assert str(tmp_path / "columns.npz") in Path("/proc/self/maps").read_text()
    assert not read["numbers"].flags.writeable
    with np.load(tmp_path / "columns.npz", allow_pickle=False) as by_numpy:
        for name, column in written.items():
            assert np.array_equal(read[name], column)
            assert np.array_equal(by_numpy[name], column)


def test_damaged_columns_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    write_columns(tmp_path / "columns.npz", [("numbers", np.arange(100))])
    whole = (tmp_path / "columns.npz").read_bytes()
    (tmp_path / "columns.npz").write_bytes(whole[:-50])
    with pytest.raises(ColumnsError, match=r"columns\.npz"):
        open_columns(tmp_path / "columns.npz")
    np.savez_compressed(tmp_path / "columns.npz", numbers=np.arange(100))
    with pytest.raises(ColumnsError, match="compressed"):
        open_columns(tmp_path / "columns.npz")
    np.savez(tmp_path / "columns.npz", objects=np.array([{}], dtype=object))
    with pytest.raises(ColumnsError):
        open_columns(tmp_path / "columns.npz")
