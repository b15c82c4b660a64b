import io
import random
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from contextlib import nullcontext, suppress

import numpy as np
import pytest
from PIL import Image, ImageCms

from microdit.data.sources import images
from microdit.data.sources.images import (
    SHAPES,
    BrokenImageError,
    FilteredImageError,
    nearest_shape,
    scans_of,
    square_images,
    square_views,
)


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=-1).astype(np.uint8))


def square(data: bytes, side: int = 16, **options: int) -> np.ndarray:
    return square_images(data, [side], **options)[side]


def test_the_centre_is_cropped_and_the_short_side_resized() -> None:
    found = square(encoded(gradient(90, 30)), 10)
    assert found.shape == (10, 10, 3)
    red = found[:, :, 0].mean(axis=0)
    assert 80 < red[0] < 95, "a third of the width lies to the left"
    assert 160 < red[-1] < 175
    assert found[0, :, 1].mean() < 20
    assert found[-1, :, 1].mean() > 235


def test_resizing_does_not_alias() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(square(encoded(Image.fromarray(stripes)), 32).astype(int) - 127).max() <= 8


def test_every_resolution_shows_the_same() -> None:
    both = square_images(encoded(gradient(200, 100)), [16, 64])
    assert np.abs(both[64].reshape(16, 4, 16, 4, 3).mean((1, 3)) - both[16]).max() < 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = Image.fromarray(np.full((40, 40), 200, np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 40), 200 * 257, np.uint16))
    elif mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.applyTransform(grey.convert("RGB"), ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    elif mode == "P":
        image = grey.quantize(16)
    else:
        image = grey.convert(mode) if mode in ("1", "L", "I", "F") else grey.convert("RGB").convert(mode)
    kind = "tiff" if mode in ("CMYK", "YCbCr", "LAB", "F", "I") else "png"
    how = {"compression": "jpeg"} if mode == "YCbCr" else {}  # as such files are; plain ones Pillow reads from 13 on
    found = square(encoded(image, kind, **how))
    assert found.shape == (16, 16, 3)
    assert found.dtype == np.uint8
    if mode != "1":
        assert np.abs(found.astype(int) - 200).max() <= 3


def test_transparent_places_are_white() -> None:
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert (square(encoded(image)) == 255).all()
    palette = image.convert("P")
    assert (square(encoded(palette, "png", transparency=palette.getpixel((0, 0)))) == 255).all()


def test_exif_orientation_is_followed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: right is down
    turned = square(encoded(gradient(64, 64), "jpeg", quality=95, exif=exif))
    assert turned[0, :, 0].mean() < 30
    assert turned[-1, :, 0].mean() > 220


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    found = square(encoded(frames[0], "gif", save_all=True, append_images=frames[1:]))
    assert (found == [255, 0, 0]).all()


def test_huge_pictures_are_read_and_bombs_are_not() -> None:
    bilevel = encoded(Image.new("1", (10_000, 10_000)))
    assert square(bilevel).shape == (16, 16, 3)
    with pytest.raises(FilteredImageError, match="more than 1000000 pixels"):
        square(bilevel, max_pixels=1_000_000)


def of_scans(image: Image.Image, scans: int) -> bytes:
    """A JPEG that goes over its picture again and again, in as few bytes as it can."""
    whole = encoded(image, "jpeg", progressive=True)
    first = whole.index(b"\xff\xda")
    second = whole.index(b"\xff\xc4", first)
    return whole[:second] + whole[first:second] * (scans - 1) + b"\xff\xd9"


@pytest.mark.parametrize(
    ("size", "scans", "message"),
    [((400, 400), 2_000, "400 x 400 px: a JPEG of 2,000 scans"), ((10_000, 10_000), 50, "a JPEG of 50 scans")],
)
def test_a_jpeg_that_goes_over_its_picture_too_often_is_not_decoded(
    size: tuple[int, int], scans: int, message: str
) -> None:
    with pytest.raises(FilteredImageError, match=message):
        square(of_scans(Image.new("L", size), scans))


@pytest.mark.parametrize("progressive", [True, False])
def test_what_looks_like_scans_beside_a_jpeg_is_none(progressive: bool) -> None:
    """As in an icon among what a camera notes, and in a film behind the picture."""
    noise, picture = b"\xff\xda" * 1_000, gradient(40, 20)
    whole = encoded(picture, "jpeg", progressive=progressive, icc_profile=noise) + noise
    assert scans_of(whole) == (10 if progressive else 1)
    assert (square(whole) == square(encoded(picture, "jpeg", progressive=progressive))).all()


def tags(own: Sequence[tuple[int, int, int]], shared: int, size: int, pixels: bytes = b"") -> bytes:
    """A TIFF of tags (number, kind, value), and `shared` more that all name the same `size` bytes."""
    count = len(own) + shared
    behind = 8 + 2 + 12 * count + 4
    entries = [struct.pack("<HHLL", number, kind, 1, value or behind + size) for number, kind, value in own]
    entries += [struct.pack("<HHLL", 40_000 + number, 1, size, behind) for number in range(shared)]
    return b"II*\0" + struct.pack("<LH", 8, count) + b"".join(entries) + bytes(4) + b"x" * size + pixels


SQUARE = [
    (256, 4, 8),
    (257, 4, 8),
    (258, 3, 8),
    (259, 3, 1),
    (262, 3, 1),
    (273, 4, 0),
    (277, 3, 1),
    (278, 4, 8),
    (279, 4, 64),
]
TURNED = [(0x0112, 3, 6)]


@pytest.mark.parametrize("kind", ["tiff", "png", "webp", "jpeg"])
def test_tags_that_all_name_the_same_bytes_take_no_memory(kind: str) -> None:
    def picture(shared: int, size: int) -> bytes:
        if kind == "tiff":
            return tags(SQUARE, shared, size, bytes(64))
        return encoded(gradient(8, 8), kind, exif=b"Exif\0\0" + tags(TURNED, shared, size))

    for few in (0, 1):
        assert square(picture(few, 30_000)).shape == (16, 16, 3)
    many = picture(1_000, 30_000)
    tracemalloc.start()
    with (
        nullcontext() if kind == "jpeg" else pytest.raises(FilteredImageError, match="TIFF or EXIF tags say more than")
    ):
        square(many)  # of a JPEG Pillow takes the tags up to there
    assert tracemalloc.get_traced_memory()[1] < 20 * len(many)
    tracemalloc.stop()


@pytest.mark.parametrize("whole", [True, False])
def test_a_compressed_bmp_is_left_out(whole: bool) -> None:
    """Three bytes of it fill any picture."""
    header = struct.pack("<LllHHLLllLL", 40, 60_000, 33, 1, 8, 1, 6, 0, 0, 0, 0) + bytes(1024)
    file = struct.pack("<2sLLL", b"BM", 0, 0, 14 + len(header)) if whole else b""
    with pytest.raises(FilteredImageError, match="60000 x 33 px: a compressed BMP; save it as PNG"):
        square(file + header + bytes([1, 0, 0, 2, 0, 255]))


@pytest.mark.parametrize(("kind", "pixels"), [("jpeg2000", 80), ("webp", 117), ("png", 200)])
def test_a_format_that_takes_more_memory_may_have_fewer_pixels(kind: str, pixels: int, monkeypatch) -> None:
    monkeypatch.setattr(images, "MOST_BYTES", 2_000)
    with pytest.raises(FilteredImageError, match=f"15 x 15 px: more than {pixels} pixels of {kind.upper()}"):
        square(encoded(gradient(15, 15), kind))
    assert square(encoded(gradient(8, 8), kind)).shape == (16, 16, 3)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"


def test_a_picture_that_is_a_program_starts_none(tmp_path, monkeypatch) -> None:
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(BrokenImageError, match="no picture of a format that is read here"):
        square(EPS)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "P", "L"])
def test_memory_is_a_few_bytes_a_pixel(mode: str) -> None:
    """In a process of its own, whose memory is measured at its peak."""
    program = f"""
import io, resource
from PIL import Image
from microdit.data.sources.images import square_images

def picture(side):
    file = io.BytesIO()
    Image.new({mode!r}, (side, side)).save(file, "tiff", compression="tiff_deflate")
    return file.getvalue()

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

small, large = picture(70), picture(7000)
square_images(small, [16])
before = peak()
square_images(large, [16])
print((peak() - before) / 49e6)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 12


def test_a_strip_costs_no_more_than_its_square() -> None:
    assert square(encoded(Image.new("L", (60_000, 4))), 64).shape == (64, 64, 3)


def test_small_pictures_are_filtered() -> None:
    with pytest.raises(FilteredImageError, match="40 x 20 px: a side shorter than 21 px"):
        square(encoded(gradient(40, 20)), min_side_px=21)
    assert square(encoded(gradient(40, 20)), min_side_px=20).shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "tiff", "bmp"])
def test_damaged_files_are_broken_or_whole_and_nothing_else(kind: str) -> None:
    whole = encoded(gradient(48, 48), kind)
    chance = random.Random(0)
    with pytest.raises(BrokenImageError):
        square(whole[: len(whole) // 2])
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        with suppress(BrokenImageError, FilteredImageError):
            assert square(bytes(damaged)).shape == (16, 16, 3)


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"<html>404</html>"])
def test_what_is_no_picture_is_broken(data: bytes) -> None:
    with pytest.raises(BrokenImageError):
        square(data)


@pytest.mark.parametrize(
    ("width", "height", "ratio", "kept"),
    [
        (100, 100, 4.0, (8, 8)),
        (300, 200, 1.0, (8, 8)),  # squares alone
        (300, 200, 1.2, (8, 8)),
        (400, 300, 2.0, (7, 9)),
        (300, 400, 2.0, (9, 7)),
        (1920, 1080, 2.0, (6, 10)),
        (4000, 1000, 2.0, (6, 10)),
        (4000, 1000, 4.0, (4, 16)),
    ],
)
def test_a_picture_keeps_the_nearest_shape_that_is_not_too_long(
    width: int, height: int, ratio: float, kept: tuple[int, int]
) -> None:
    assert nearest_shape(width, height, ratio) == kept


def test_no_shape_is_larger_than_the_square() -> None:
    assert len({*SHAPES}) == 11
    assert all(60 <= shape.rows * shape.columns <= 64 for shape in SHAPES)
    assert SHAPES[1].at(256) == (224, 288)


def test_what_is_wide_is_cut_at_its_sides_alone() -> None:
    picture = encoded(gradient(180, 100))
    (wide,) = square_views(picture, [16], largest_ratio=2.0)[16]
    assert wide.shape == (12, 20, 3)
    (square,) = square_views(picture, [16])[16]
    left, right = np.asarray(gradient(180, 100))[50, [7, 172], 0].astype(int)  # 10/6 of 100 px, from the middle
    assert abs(int(wide[6, 0, 0]) - left) < 12
    assert abs(int(wide[6, -1, 0]) - right) < 12
    assert wide[..., 0].min() < square[..., 0].min()


def test_scans_are_counted_in_one_pass_whatever_fills_the_file() -> None:
    fill = b"\xff" * 10_000_000
    assert scans_of(b"\xff\xd8" + fill + b"\x00") == 0
    assert scans_of(b"\xff\xd8" + fill + b"\xda\x00\x02\xff\xd9") == 1
