"""Keeping some pictures of a source back for validation, by their names alone."""

from collections.abc import Iterator, Mapping
from hashlib import blake2b

from microdit.data.sources.captioned import CaptionedImage, Source, Unreadable


def is_held_out(key: str, share: float) -> bool:
    """Whether the picture of this name belongs to the `share` of all that is kept back."""
    return (
        int.from_bytes(blake2b(key.encode("utf-8", "backslashreplace"), digest_size=8).digest(), "little")
        < share * 2**64
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

    def shards(self) -> list[str]:
        return self.source.shards()

    def read(self, shard: int) -> Iterator[CaptionedImage | Unreadable]:
        return (item for item in self.source.read(shard) if is_held_out(item.key, self.share) == self.held_out)
