"""Every source by name reads its data set as it lies on disks: each picture with its own caption, and nothing else."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import made_sets
import pytest
from compositions import plain
from made_sets import COUNT, SETS, words

from microdit.build import build
from microdit.data.sources.captioned import CaptionedImage, Found, Ignored, Source, Unwanted

MORE: dict[str, Callable[[Path], list[str]]] = {
    "sa1b with a plain tar": partial(made_sets.sa1b_tars, captions="SA1B_caption.tar"),
    "sa1b with a folder": partial(made_sets.sa1b_tars, captions="captions"),
    "mds packed": partial(made_sets.mds, zstd=True),
}
PICTURES = {made_sets.picture(number, kind): number for kind in ("jpeg", "webp") for number in range(COUNT)}
FIVE = [f"other words {number}" for number in range(4)]


def source_of(name: str, *overrides: str) -> Source:
    return build(plain(f"source={name}", *overrides, config="prepare")["source"], Source, "source")


def everything(source: Source) -> list[Found]:
    return [*(item for shard in range(len(source.shards())) for item in source.read(shard)), *source.beside()]


@pytest.mark.parametrize("name", [*SETS, *MORE])
def test_every_picture_has_its_own_caption(tmp_path: Path, name: str) -> None:
    overrides = (SETS | MORE)[name](tmp_path / "set")
    found = everything(source_of(name.partition(" ")[0], *overrides))
    captions = {PICTURES[item.image]: list(item.captions) for item in found if isinstance(item, CaptionedImage)}
    assert set(captions) == set(range(COUNT))
    assert all(words(number) in told[0] for number, told in captions.items())
    several = {"textcaps": FIVE, "coco_2014": FIVE, "kohya": ["other words"]}.get(name, [])
    assert captions[1][1:] == [f"{text} of 1" for text in several]
    others = [item for item in found if not isinstance(item, CaptionedImage)]
    told = {"diffusiondb": {Unwanted: 1, Ignored: 1}, "huggingface": {Ignored: 1}}.get(name, {})
    assert {type(item): sum(isinstance(one, type(item)) for one in others) for item in others} == told


@pytest.mark.parametrize("name", SETS)
def test_a_source_by_name_asks_for_what_it_needs(name: str) -> None:
    with pytest.raises(Exception, match=r"source\.path="):
        plain(f"source={name}", config="prepare")


def test_what_journeydb_shows_may_be_its_caption_or_another_one(tmp_path: Path) -> None:
    overrides = made_sets.journeydb(tmp_path / "set")
    source = source_of("journeydb", *overrides, "source.caption_column=[prompt,Task2.Caption]")
    first = everything(source)[0]
    assert isinstance(first, CaptionedImage)
    assert first.captions == [words(0), "what 0 shows"]


def test_scores_leave_rows_out(tmp_path: Path) -> None:
    source = source_of("huggingface", *made_sets.huggingface(tmp_path / "set"), "source.least={score: 2}")
    kept = [item for item in everything(source) if isinstance(item, CaptionedImage)]
    assert [PICTURES[item.image] for item in kept] == [2, 3, 4, 5]
