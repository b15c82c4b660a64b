"""Small files are written whole and read back as they were, or not at all; folders and files have one owner."""

import json
import multiprocessing
import os
import random
import unicodedata
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from folders_at_once import hold, take_folders
from hypothesis import given
from hypothesis import strategies as st

from microdit.files import (
    DamagedFileError,
    InUseError,
    claim,
    near_path,
    only_writer,
    read_json,
    read_yaml,
    replacing,
    write_json,
    write_whole,
    write_yaml,
)
from microdit.runs.metrics import read_rows

CONTENT = {"seed": 3, "model": {"dim": 64, "ratios": [0.5, 1.0]}, "name": "a run, 50 % [of] it", "none": None}
FORMATS = {"a.json": (write_json, read_json), "a.yaml": (write_yaml, read_yaml)}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", range(60))
def test_any_damage_is_named_with_the_cure_or_changes_nothing(tmp_path, name, seed):
    (write, read), path, chance = FORMATS[name], tmp_path / name, random.Random(seed)
    write(path, CONTENT)
    content = bytearray(path.read_bytes())
    kind = chance.choice(["flip", "truncate", "swap"])
    if kind == "flip":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind == "truncate":
        del content[chance.randrange(len(content)) :]
    else:
        a, b = (chance.randrange(len(content)) for _ in range(2))
        content[a], content[b] = content[b], content[a]
    path.write_bytes(content)
    try:
        found = read(path, "do this")
    except DamagedFileError as error:
        found, told = CONTENT, str(error)
    else:
        told = f"{path} do this"
    assert found == CONTENT
    assert str(path) in told
    assert told.endswith("do this")


@pytest.mark.parametrize("name", FORMATS)
def test_what_has_no_checksum_is_read_as_it_is(tmp_path, name):
    dump = json.dumps if name.endswith("json") else yaml.safe_dump
    (tmp_path / name).write_text(dump(CONTENT))
    assert FORMATS[name][1](tmp_path / name, "") == CONTENT


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.floats(allow_nan=False) | st.text(), st.lists)))
def test_whatever_was_written_is_read(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("a") / "a.json"
    content.pop("crc32", None)
    write_json(path, content)
    assert read_json(path, "") == content


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "a: &a [1]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
        + "".join(f"c{n}: &c{n} [{', '.join([f'*c{n - 1}' if n else '*b'] * 9)}]\n" for n in range(9)),
        f"a: &a {'x' * 200_000}\nb: [{', '.join(['*a'] * 1_000)}]",
        f"a: &a {'x' * 200_000}\nb:\n" + "  - {? *a : 1}\n" * 1_000,
        "a: &a\n  b: *a\n",
        "!!python/object/apply:os.system ['true']",
        "a: !!pairs [k: '${oc.env:HOME}']",
        "a: !!set {b}",
        "a: 1:1:1:1",
        "a: !!int ''",
        f"a: 0x{'F' * 5_000}",
        "a0: &a0 {b: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60)),
        "- 1\n- 2\n",
        "\x00\x01",
    ],
    ids=[
        "deep",
        "aliases",
        "text",
        "name",
        "itself",
        "python",
        "pairs",
        "set",
        "sixty",
        "int",
        "digits",
        "merges",
        "list",
        "binary",
    ],
)
def test_yaml_that_is_no_settings_is_refused_before_it_takes_memory(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(DamagedFileError, match=r"a\.yaml is damaged"):
        read_yaml(tmp_path / "a.yaml", "")


def test_yaml_that_takes_a_minute_to_read_is_not_read(tmp_path):
    (tmp_path / "a.yaml").write_text(f"a: [{'1,' * 140_000}]")
    with pytest.raises(DamagedFileError, match="280,005 bytes, which no such file needs; mend it"):
        read_yaml(tmp_path / "a.yaml", "mend it")


def test_a_file_larger_than_any_settings_is_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DamagedFileError, match="1,099,511,627,776 bytes"):
        read_json(tmp_path / "a.json", "")


def test_a_link_that_waits_under_a_temporary_name_is_not_written_through(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("precious")
    (tmp_path / ".a.json.partial").symlink_to(mine)
    write_whole(tmp_path / "a.json", "{}")
    assert (mine.read_text(), (tmp_path / "a.json").read_text()) == ("precious", "{}")


@pytest.mark.parametrize("name", [".a.partial", "a"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match=f"a cannot be written: .*/{name} is a folder, .* remove it"):
        write_whole(tmp_path / "a", "new")
    with nullcontext() if name == "a" else pytest.raises(OSError, match="is a folder"), claim(tmp_path / "a"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_is_not_finished_leaves_the_old_file_and_nothing_else(tmp_path):
    write_whole(tmp_path / "a", "old")

    def interrupted():
        with replacing(tmp_path / "a") as file:
            file.write("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_eight_processes_take_two_hundred_folders_and_none_twice(tmp_path):
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        taken = [one for found in pool.starmap(take_folders, [(tmp_path, 25)] * 8) for one in found]
    assert len({*taken}) == len(taken) == len(list(tmp_path.iterdir())) == 200


def test_a_folder_has_one_writer_until_that_process_ends(tmp_path):
    spawned = multiprocessing.get_context("spawn")
    held, release = spawned.Event(), spawned.Event()
    holder = spawned.Process(target=hold, args=(tmp_path, held, release))
    holder.start()
    assert held.wait(60)
    with pytest.raises(InUseError, match=f"{tmp_path} is in use"), only_writer(tmp_path, "checkpoints"):
        pass
    os.kill(holder.pid, 9)
    holder.join()
    with only_writer(tmp_path, "checkpoints"):
        pass


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("read", [lambda path: read_json(path, ""), lambda path: read_yaml(path, ""), read_rows])
def test_what_would_never_end_is_not_read(tmp_path, kind, read):
    path = tmp_path / "a"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="no ordinary file"):
        read(path)


@pytest.mark.parametrize("depth", [100, 900, 100_000])
def test_json_that_is_nested_more_deeply_than_settings_is_named(tmp_path, depth):
    (tmp_path / "a.json").write_text('{"a":' * depth + "1" + "}" * depth)
    with pytest.raises(DamagedFileError, match="nested"):
        read_json(tmp_path / "a.json", "")


@pytest.mark.parametrize(
    ("there", "asked", "said"),
    [
        ("photos/", "fotos", "did you mean {root}/photos?"),
        ("runs/first/checkpoints/", "rums/first/checkpoints", "did you mean {root}/runs/first/checkpoints?"),
        (unicodedata.normalize("NFD", "fête/"), unicodedata.normalize("NFC", "fête"), "did you mean {root}/f"),
        ("photos /", "photos", "did you mean {root}/photos ?"),
        ("photos/", "photos/zzz", "{root}/photos is there, and has no zzz"),
        ("photos", "photos/a", "{root}/photos is a file, and no folder"),
        ("photos/", "qqqqqq", "{root} is there, and has no qqqqqq"),
    ],
)
def test_what_lies_near_a_path_that_is_not_there(tmp_path: Path, there: str, asked: str, said: str):
    place = tmp_path / there
    if there.endswith("/"):
        place.mkdir(parents=True)
    else:
        place.write_text("")
    assert said.format(root=tmp_path) in near_path(tmp_path / asked)


def test_nothing_near_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert near_path(Path("nowhere")) == ""
