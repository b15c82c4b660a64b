"""MDS shards are read as MosaicML's library writes them, and what is damaged is told, whatever the damage."""

import json
import random
from pathlib import Path
from typing import Any

import made_sets
import pytest
from made_sets import COUNT, words

from microdit.data.sources.captioned import CaptionedImage, Found, Unreadable
from microdit.data.sources.mds import MdsSource
from microdit.files import DamagedFileError
from microdit.kinds import SettingsError


def everything(source: MdsSource) -> list[Found]:
    return [*(item for shard in range(len(source.shards())) for item in source.read(shard)), *source.beside()]


def test_folders_with_an_index_each_are_read_as_one(tmp_path: Path) -> None:
    for name in ("0", "1"):
        made_sets.mds(tmp_path / name)
    found = everything(MdsSource(str(tmp_path)))
    assert [item.key for item in found][:: COUNT - 1] == [
        "0/shard.00000/000000",
        "0/shard.00000/000005",
        "1/shard.00000/000004",
    ]


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_gives_no_wrong_caption(tmp_path: Path, seed: int) -> None:
    made_sets.mds(tmp_path)
    path, chance = tmp_path / "shard.00000.mds", random.Random(seed)
    content = bytearray(path.read_bytes())
    if seed % 3 == 0:
        del content[chance.randrange(len(content)) :]
    else:
        for _ in range(3):  # where the numbers are
            content[chance.randrange(4 * (COUNT + 2) + 20)] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    found = everything(MdsSource(str(tmp_path)))
    assert found
    for item in found:
        if isinstance(item, CaptionedImage) and item.image in made_pictures():
            assert item.captions == [words(made_pictures()[item.image])]


def made_pictures() -> dict[bytes, int]:
    return {made_sets.picture(number): number for number in range(COUNT)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"column_names": ["a", "a", "b", "c"]}, "contradict each other"),
        ({"column_sizes": []}, "contradict each other"),
        ({"column_encodings": ["str", "int32", "pil", "int32"]}, "column 'jpg' is encoded as pil, and jpeg or png"),
        ({"raw_data": {"basename": "../x", "bytes": 1}}, "no file below the folder"),
        ({"raw_data": {"basename": "gone.mds", "bytes": 1}}, "names gone.mds, which is not there"),
        ({"samples": -1}, "samples must be a whole number"),
        ({"format": "json"}, "format must be mds"),
    ],
)
def test_an_index_that_cannot_be_meant_is_told_before_a_shard_is_read(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    made_sets.mds(tmp_path)
    content = json.loads((tmp_path / "index.json").read_text())
    content["shards"][0] |= change
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises((SettingsError, FileNotFoundError), match=said):
        MdsSource(str(tmp_path)).shards()


def test_a_shard_that_is_named_many_times_is_read_never(tmp_path: Path) -> None:
    made_sets.mds(tmp_path)
    content = json.loads((tmp_path / "index.json").read_text())
    content["shards"] *= 1000
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=r"\.mds is named more than once by an index\.json"):
        MdsSource(str(tmp_path)).shards()


def test_what_is_no_folder_of_shards_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no index\.json"):
        MdsSource(str(tmp_path)).shards()
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(DamagedFileError, match=r"index\.json is damaged"):
        MdsSource(str(tmp_path)).shards()
    made_sets.mds(tmp_path)
    with pytest.raises(SettingsError, match=r"has no column 'text', only .*; set source\.caption_column"):
        MdsSource(str(tmp_path), caption_column="text").shards()


def test_a_sample_more_or_less_than_promised_is_told(tmp_path: Path) -> None:
    made_sets.mds(tmp_path)
    content = json.loads((tmp_path / "index.json").read_text())
    content["shards"][0]["samples"] = COUNT + 1
    (tmp_path / "index.json").write_text(json.dumps(content))
    (told,) = everything(MdsSource(str(tmp_path)))
    assert isinstance(told, Unreadable)
    assert f"holds {COUNT} samples, and its index promises {COUNT + 1}" in told.reason
