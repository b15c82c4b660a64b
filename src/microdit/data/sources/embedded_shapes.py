"""The embedded shapes as a source of captioned pictures: drawn, never stored, by number."""

import io
from collections.abc import Iterator, Mapping

from PIL import Image

from microdit.data import shapes
from microdit.data.sources.captioned import CaptionedImage, Source, Unreadable

SCENES_VERSION = 3
"""Raised when the same number gives another picture or caption, so that folders of earlier scenes are refused."""


class ShapesSource(Source):
    """Scenes 0 to `count` - 1 of one domain and split of the embedded shapes, as PNG of `side_px`. `skill_shares`: how
    many ask for each skill, in any unit; None: as `shapes.SKILL_SHARES`."""

    def __init__(
        self,
        domain: str,
        split: str = "train",
        count: int = 10_000,
        side_px: int = 32,
        seed: int = 0,
        shard_size: int = 2_000,
        skill_shares: Mapping[str, float] | None = None,
    ) -> None:
        self.domain, self.split, self.count, self.side_px, self.seed = domain, split, count, side_px, seed
        self.shard_size, self.skill_shares = shard_size, skill_shares

    @property
    def identity(self) -> Mapping[str, object]:
        names = ("domain", "split", "count", "side_px", "seed", "shard_size")
        shares = {} if self.skill_shares is None else {"skill_shares": dict(self.skill_shares)}
        return {"kind": "shapes", "version": SCENES_VERSION} | {name: getattr(self, name) for name in names} | shares

    def shards(self) -> list[str]:
        return [f"scenes from {first}" for first in range(0, self.count, self.shard_size)]

    def read(self, shard: int) -> Iterator[CaptionedImage | Unreadable]:
        first = shard * self.shard_size
        for number in range(first, min(first + self.shard_size, self.count)):
            shares = shapes.SKILL_SHARES if self.skill_shares is None else self.skill_shares
            sample = shapes.sample(self.split, self.domain, number, self.seed, shares)
            file = io.BytesIO()
            Image.fromarray(shapes.render(sample.scene, self.side_px)).save(file, "png", compress_level=1)
            yield CaptionedImage(f"{number:08d}", file.getvalue(), [sample.caption])
