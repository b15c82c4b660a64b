"""Generated pictures that are kept: a tar any WebDataset reader opens, and beside it how they were made.

Numbers are always computed from what is kept here, so that they can be computed again without the network.
"""

import hashlib
import io
import itertools
import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from microdit.data.sources.captioned import CaptionedImage
from microdit.data.sources.images import BrokenImageError, FilteredImageError, rgb_image
from microdit.data.sources.tars import pictures_in, write_pictures
from microdit.files import read_described, replacing, size_of_file, small_text, write_whole

AGAIN = "Delete the tar and evaluate again"
LARGEST_SIDE_PX, LARGEST_SHOWN_PX = 4096, 512
NUMBERS_AT_ONCE = 1 << 28  # in a batch: as many as 256 pictures of 512 px have, and some more


MAKING, HASH = "making.json", ".hash"  # of pictures that are not all drawn yet
LARGEST_MAKING = 1 << 26  # bytes; a hundred thousand prompts have fewer
UNSAID = {"guidance": "captions"}  # by pictures that were kept before there was a choice
Value = str | float | bool | None


class PicturesError(ValueError):
    """Kept pictures that are missing, damaged, or not those that were asked for; the message says which."""


@dataclass(frozen=True)
class Making:
    """How kept pictures were made. `network`: fingerprint of the weights. `label`: what sets these weights apart from
    the default ones (see `Subject`). `sampling`: arguments of LatentDiffusion.generate. One picture a prompt. `tar`:
    hash of the file that they are kept in; "" where an older version wrote it."""

    prompts: list[str]
    sampling: dict[str, Value | list[Value]]
    network: str
    label: list[str]
    tar: str = ""

    def covers(self, wanted: "Making") -> bool:
        """Whether the first pictures are the ones wanted: picture i depends on its prompt, the sampling and i alone."""
        return (
            self.prompts[: len(wanted.prompts)] == wanted.prompts
            and {**UNSAID, **self.sampling} == {**UNSAID, **wanted.sampling}
            and self.network == wanted.network
        )


@dataclass(frozen=True)
class Pictures:
    """The first `count` pictures of a tar, in [0, 1]."""

    tar: Path
    making: Making
    count: int

    def batches(self, size: int = 256) -> Iterator[Float[Tensor, "n 3 h w"]]:
        """All of them in order, `size` at a time. Raises PicturesError for a damaged tar."""
        return (self.opened(batch) for batch in self.in_batches(size))

    def in_batches(self, size: int = 256) -> Iterator[list[CaptionedImage]]:
        """The same, not decoded yet, which `opened` does: whoever opens only some of them has little to do."""
        pixels = next(self.decoded([0])).size
        at_once = min(size, -(-NUMBERS_AT_ONCE // pixels))
        items = self.encoded(range(self.count))
        while batch := list(itertools.islice(items, at_once)):
            yield batch

    def opened(self, batch: Sequence[CaptionedImage]) -> Float[Tensor, "n 3 h w"]:
        """Pictures that were not decoded yet. Raises PicturesError as `decoded`."""
        pixels = np.stack(list(self.of_one_size(batch)))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255

    def decoded(self, chosen: Collection[int]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """The `chosen` pictures, by their numbers in order, all of one size. Raises PicturesError for a damaged tar, or
        one whose pictures are not of its prompts."""
        return self.of_one_size(self.encoded(chosen))

    def encoded(self, chosen: Collection[int]) -> Iterator[CaptionedImage]:
        """The same as they are in the tar."""
        if self.making.tar not in ("", hash_of(self.tar)):
            raise PicturesError(f"{self.tar} is not as it was written, its hash is another. {AGAIN}")
        number = -1
        for number, item in zip(range(max(chosen) + 1), pictures_in(self.tar, str(self.tar)), strict=False):
            if not isinstance(item, CaptionedImage):
                raise PicturesError(f"{self.tar}: {item.key}: {item.reason}. {AGAIN}")
            if number < self.count and as_caption(item.captions[0]) != as_caption(self.making.prompts[number]):
                raise PicturesError(
                    f"{self.tar}: {item.key} is a picture of another prompt than number {number}. {AGAIN}"
                )
            if number in chosen:
                yield item
        if number < max(chosen):
            raise PicturesError(f"{self.tar} holds {number + 1} pictures, not {self.count}. {AGAIN}")

    def of_one_size(self, items: Iterable[CaptionedImage]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        shape = None
        for item in items:
            try:
                pixels = np.asarray(rgb_image(item.image, max_pixels=LARGEST_SIDE_PX**2, formats=["PNG"]))
            except (BrokenImageError, FilteredImageError) as error:
                raise PicturesError(f"{self.tar}: {item.key}: {error}. {AGAIN}") from error
            if max(pixels.shape) > LARGEST_SIDE_PX:
                raise PicturesError(f"{self.tar}: {item.key} has a side of more than {LARGEST_SIDE_PX} px. {AGAIN}")
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise PicturesError(f"{self.tar}: {item.key} is not of {shape[1]} x {shape[0]} px, as others. {AGAIN}")
            yield pixels

    def to_show(self, chosen: Collection[int]) -> UInt8[np.ndarray, "n 3 h w"]:
        """The `chosen` pictures in order, of at most LARGEST_SHOWN_PX a side. Raises PicturesError as `decoded`."""
        shown = []
        for pixels in self.decoded(chosen):
            picture = Image.fromarray(pixels)
            picture.thumbnail((LARGEST_SHOWN_PX, LARGEST_SHOWN_PX))
            shown.append(np.asarray(picture).transpose(2, 0, 1))
        return np.stack(shown)

    def all(self) -> Float[Tensor, "n 3 h w"]:
        """All of them at once."""
        return torch.cat(list(self.batches()))


def kept_making(tar: Path) -> Making | None:
    """How the pictures in `tar` were made; None where there are none."""
    beside = tar.with_suffix(".json")
    if not (tar.is_file() and beside.is_file()):
        return None
    making = read_described(beside, Making, "delete it and the tar beside it, then evaluate again", LARGEST_MAKING)
    if not making.prompts:
        raise PicturesError(f"{beside} names no prompt. Delete it and the tar beside it, then evaluate again")
    return making


def keep(tar: Path, making: Making, batches: Iterable[Float[Tensor, "n 3 h w"]]) -> Pictures:
    """Writes pictures, in [0, 1], as they come: KEY.png and KEY.txt in `tar`, `making` beside it as .json."""
    return keep_encoded(tar, making, as_items((one for batch in batches for one in batch), making.prompts, 0))


def keep_encoded(tar: Path, making: Making, items: Iterable[CaptionedImage]) -> Pictures:
    """The same of pictures that are encoded already."""
    tar.parent.mkdir(parents=True, exist_ok=True)
    beside = tar.with_suffix(".json")
    beside.unlink(missing_ok=True)  # a tar without its .json is not taken for whole
    with replacing(tar, "wb") as file:
        write_pictures(file, items)
    making = replace(making, tar=hash_of(tar))
    write_whole(beside, json.dumps(asdict(making), indent=1) + "\n")
    return Pictures(tar, making, len(making.prompts))


def as_items(
    pictures: Iterable[Float[Tensor, "3 h w"]], prompts: Sequence[str], first: int
) -> Iterator[CaptionedImage]:
    """Pictures with their prompts, encoded; the first is number `first` of its tar."""
    numbered = enumerate(zip(pictures, prompts, strict=True), start=first)
    return (CaptionedImage(f"{number:06d}", png(picture), [prompt]) for number, (picture, prompt) in numbered)


@dataclass(frozen=True)
class Unfinished:
    """Pictures that are being drawn, in a folder beside the `tar` that they will be kept in: a tar a batch, whose hash
    appears beside it when it is whole. Whoever is killed goes on from what is there."""

    tar: Path
    making: Making

    @property
    def folder(self) -> Path:
        return self.tar.with_name(f".{self.tar.stem}.unfinished")

    def begin(self, batches: Sequence[range]) -> list[range]:
        """Which of the `batches` are not there yet. What is there of other pictures is removed."""
        beside = self.folder / MAKING
        there = read_described(beside, Making, f"remove {self.folder}", LARGEST_MAKING) if beside.is_file() else None
        if there is None or there != self.making:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
            write_whole(beside, json.dumps(asdict(self.making), indent=1) + "\n")
        return [batch for batch in batches if not self.path(batch).with_suffix(HASH).is_file()]

    def path(self, batch: range) -> Path:
        return self.folder / f"{batch.start:06d}-{batch.stop:06d}.tar"

    def add(self, batch: range, pictures: Float[Tensor, "n 3 h w"]) -> None:
        """Keeps the pictures of these numbers."""
        with replacing(self.path(batch), "wb") as file:
            write_pictures(file, as_items(pictures, self.making.prompts[batch.start : batch.stop], batch.start))
        write_whole(self.path(batch).with_suffix(HASH), hash_of(self.path(batch)))

    def finish(self, batches: Sequence[range]) -> Making:
        """Puts all batches into the tar, and says how it was made. PicturesError for one that is damaged."""
        items = itertools.chain.from_iterable(self.kept(batch) for batch in batches)
        kept = keep_encoded(self.tar, self.making, items)
        shutil.rmtree(self.folder)
        return kept.making

    def kept(self, batch: range) -> Iterator[CaptionedImage]:
        prompts, path = self.making.prompts[batch.start : batch.stop], self.path(batch)
        written = small_text(path.with_suffix(HASH), f"remove {self.folder}") or "lost"
        return Pictures(path, replace(self.making, prompts=prompts, tar=written), len(batch)).encoded(range(len(batch)))


def hash_of(tar: Path) -> str:
    """A name for the very bytes of a file."""
    size_of_file(tar)
    with tar.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def as_caption(prompt: str) -> str:
    """A prompt as it is read again from beside a picture."""
    return " ".join(prompt.split())


def png(picture: Float[Tensor, "3 h w"]) -> bytes:
    """A picture in [0, 1] as a PNG file."""
    pixels = (picture.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def fingerprint(network: nn.Module) -> str:
    """A name for these very weights: a hash of all of them."""
    state = hashlib.blake2b(digest_size=16)
    for name, value in sorted(network.state_dict().items()):
        state.update(name.encode())
        state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


def plain_sampling(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling as JSON gives it back, so that what is kept and what is wanted compare equal."""
    return json.loads(json.dumps(dict(sampling), default=list))
