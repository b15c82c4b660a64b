"""Keeping some pictures of a source back for validation, by their names alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from microdit.data.sources.captioned import Found, Ignored, Source, Unreadable
from microdit.kinds import SettingsError


def place_of(key: str) -> float:
    """Where in [0, 1) the picture of this name lies, by its name alone."""
    return int.from_bytes(blake2b(key.encode("utf-8", "backslashreplace"), digest_size=8).digest(), "little") / 2**64


def is_held_out(key: str, share: float) -> bool:
    """Whether the picture of this name belongs to the `share` of all that is kept back."""
    return place_of(key) < share


def check_both_sides(source: Source, share: float) -> None:
    """Raises SettingsError, with a share that will do, where the names of a source are known and this share of it would
    leave one of the two sides without a picture."""
    places = sorted(map(place_of, source.keys() or ()))
    held = sum(place < share for place in places)
    if not places or 0 < held < len(places):
        return
    if len(places) == 1:
        raise SettingsError(
            f"held_out={share}: there is a single picture, which cannot be on both sides. Add pictures, or prepare it "
            "for training alone with held_out=0"
        )
    # In hundredths, where that separates them.
    cut = math.floor(places[0] * 100 + 1) / 100
    enough = cut if any(place >= cut for place in places) else (places[0] + places[1]) / 2
    side = "none is kept for validation" if held == 0 else "none is left to train on"
    raise SettingsError(
        f"held_out={share}: of {len(places)} pictures {side} (their names decide). Type held_out={enough:g}, which "
        f"keeps {sum(place < enough for place in places)} of them for validation, or held_out=0 for none"
    )


class PartOfSource(Source):
    """What is held out of a source, or what remains: a picture stays on its side however the source grows."""

    def __init__(self, source: Source, share: float, held_out: bool) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"the share to hold out must lie in [0, 1), got {share}")
        self.source, self.share, self.held_out = source, share, held_out

    @property
    def identity(self) -> Mapping[str, object]:
        return {**self.source.identity, "part": "held out" if self.held_out else "remaining", "held_out": self.share}

    def place(self) -> Path | None:
        return self.source.place()

    def shards(self) -> list[str]:
        return self.source.shards()

    def read(self, shard: int) -> Iterator[Found]:
        return (item for item in self.source.read(shard) if is_held_out(item.key, self.share) == self.held_out)

    def beside(self) -> Sequence[Unreadable | Ignored]:
        return [item for item in self.source.beside() if is_held_out(item.key, self.share) == self.held_out]

    def keys(self) -> Sequence[str] | None:
        known = self.source.keys()
        return known and [key for key in known if is_held_out(key, self.share) == self.held_out]

    @property
    def encoded(self) -> bool:
        return self.source.encoded

    def state(self, shard: int) -> str:
        return self.source.state(shard)
