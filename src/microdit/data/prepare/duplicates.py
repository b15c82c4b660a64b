"""Pictures that look like an earlier one, found by what is lighter than its neighbour in a small copy of each."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from PIL import Image

from microdit.data.sources.captioned import CaptionedImage, Found, Ignored, Source, Unreadable, Unwanted
from microdit.data.sources.images import BrokenImageError, FilteredImageError, rgb_image
from microdit.files import claim
from microdit.progress import Report, silent

SIDE = 16  # of the small copy: as many bits as it has pixels
BYTES = SIDE * SIDE // 8
BANDS = 4  # at least: a band is compared as one number of up to 8 bytes
AT_ONCE = 64  # pictures in memory


class WithoutDuplicates(Source):
    """A source without the pictures that differ in at most `bits` of 256 from an earlier one, wherever that lies.

    Every picture is looked at once before any is encoded, by `pool`; its hash is kept in `folder`, so that jobs share
    the work and the next time costs nothing.
    """

    def __init__(
        self, source: Source, bits: int, folder: Path, pool: Executor, mine: Sequence[int], progress: Report = silent
    ) -> None:
        self.source, self.bits, self.folder = source, bits, folder
        self.pool: Executor | None = pool
        self.mine, self.progress = mine, progress
        self._originals: list[Int64[np.ndarray, " n"]] | None = None
        self._starts: Int64[np.ndarray, " s"] | None = None

    def __getstate__(self) -> dict[str, object]:
        self.originals()  # known before others make the shards
        return {**self.__dict__, "pool": None, "progress": silent}

    @property
    def identity(self) -> Mapping[str, object]:
        return {**self.source.identity, "near_duplicates": self.bits}

    def shards(self) -> list[str]:
        return self.source.shards()

    def beside(self) -> Sequence[Unreadable | Ignored]:
        return self.source.beside()

    def keys(self) -> Sequence[str] | None:
        return self.source.keys()

    def state(self, shard: int) -> str:
        left_out = blake2b(self.originals()[shard].tobytes(), digest_size=8).hexdigest()
        return f"{self.source.state(shard)}{left_out}"

    def read(self, shard: int) -> Iterator[Found]:
        originals = self.originals()[shard]
        for place, item in enumerate(self.source.read(shard)):
            if place < len(originals) and originals[place] >= 0 and isinstance(item, CaptionedImage):
                yield Unwanted(item.key, f"it looks like {self.named(int(originals[place]))}")
            else:
                yield item

    def named(self, number: int) -> str:
        """Where in the source the picture of this number is."""
        assert self._starts is not None
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return f"number {number - int(self._starts[shard])} of {self.shards()[shard]}"

    def originals(self) -> list[Int64[np.ndarray, " n"]]:
        """Of each input shard, for each thing in it the number of the earlier picture that it looks like, else -1."""
        if self._originals is None:
            inputs = range(len(self.shards()))
            others = [number for number in inputs if number not in {*self.mine}]
            for done, number in enumerate([*self.mine, *others]):
                self.progress(done, len(inputs), "looking for pictures that are nearly the same")
                self.hash_shard(number)
            hashes = [np.load(self.path_of(number), allow_pickle=False) for number in inputs]
            sizes = [len(one) for one in hashes]
            self._starts = np.cumsum([0, *sizes])[:-1]
            found = originals_of(np.concatenate([*hashes, np.zeros((0, BYTES), np.uint8)]), self.bits)
            self._originals = np.split(found, np.cumsum(sizes)[:-1]) if sizes else []
        return self._originals

    def path_of(self, number: int) -> Path:
        """Where the hashes of an input shard are kept, as its files are now."""
        state = blake2b(f"{self.shards()[number]} {self.source.state(number)}".encode(), digest_size=8).hexdigest()
        return self.folder / f"{number:05d}-{state}.npy"

    def hash_shard(self, number: int) -> None:
        """Writes the hashes of everything in an input shard, unless they are there."""
        path = self.path_of(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        with claim(path) as partial:
            if partial is None:
                return
            assert self.pool is not None
            items, hashes = self.source.read(number), []
            while batch := list(islice(items, AT_ONCE)):
                hashes += self.pool.map(hash_of, batch)
            with partial.open("r+b") as file:
                np.save(file, np.stack([*hashes, np.zeros(BYTES, np.uint8)])[:-1])


def hash_of(item: Found) -> UInt8[np.ndarray, " bytes"]:
    """A bit for each pixel of a small grey copy: whether it is lighter than the one to its right. Zeros for what is no
    picture, or shows nothing."""
    try:
        if isinstance(item, CaptionedImage):
            grey = rgb_image(item.image, enough_px=8 * SIDE).convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
            levels = np.asarray(grey, np.int16)
            return np.packbits(levels[:, :-1] > levels[:, 1:])
    except (BrokenImageError, FilteredImageError):
        pass  # told when it is read to be encoded
    return np.zeros(BYTES, np.uint8)


def originals_of(hashes: UInt8[np.ndarray, "n bytes"], bits: int) -> Int64[np.ndarray, " n"]:
    """For each hash the first one kept before it that differs in at most `bits`, else -1. A picture that shows nothing
    is like no other.

    Hashes that differ in fewer bits than there are bands are equal in one of these; so only those are compared. Bands
    of zeros, which all pictures with an even border share, do not count.
    """
    pairs: list[np.ndarray] = []
    for columns in np.array_split(np.arange(hashes.shape[1]), max(BANDS, bits + 1)):
        band = as_numbers(hashes[:, columns])
        order = np.argsort(band, kind="stable")
        ends = np.flatnonzero(np.diff(band[order])) + 1
        for group in np.split(order, ends):
            if len(group) < 2 or not band[group[0]]:
                continue
            for place in range(1, len(group)):
                apart = np.bitwise_count(hashes[group[:place]] ^ hashes[group[place]]).sum(axis=1)
                earlier = group[:place][apart <= bits]
                pairs.append(np.stack([np.full(len(earlier), group[place]), earlier], axis=1))
    originals = np.full(len(hashes), -1)
    if pairs:
        for later, earlier in np.unique(np.concatenate(pairs), axis=0).tolist():
            if originals[later] < 0 and originals[earlier] < 0:
                originals[later] = earlier
    return originals


def as_numbers(band: UInt8[np.ndarray, "n few"]) -> UInt64[np.ndarray, " n"]:
    """Rows of up to 8 bytes as one number each."""
    wide = np.zeros((len(band), 8), np.uint8)
    wide[:, : band.shape[1]] = band
    return wide.view("<u8")[:, 0]
