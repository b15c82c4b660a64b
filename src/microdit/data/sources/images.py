"""From the bytes of any picture file to square RGB at the asked sizes."""

import io
import math
import re
from collections.abc import Sequence
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

# Pillow's own guard warns or stops by a limit of the whole process; `max_pixels` below takes its place.
Image.MAX_IMAGE_PIXELS = None
MAX_PIXELS = 200_000_000
# What is opened, whatever a file is called: none of these starts another program, as Pillow does for PostScript.
WELL_KNOWN = "AVIF BMP DIB GIF HEIF JPEG JPEG2000 JXL MPO PCX PNG PPM QOI TGA TIFF WEBP"
Image.init()
FORMATS = [name for name in WELL_KNOWN.split() if name in Image.OPEN]  # that this Pillow, with its plugins, knows
# By which pictures are found. Those that this Pillow does not decode are named too: they are listed, not passed over.
UNDECODED = (
    ".heic .heif .jxl .jxr .wdp .hdp .psd .psb .svg .svgz .exr .hdr .ico .icns .cur .sgi .eps .pdf .xcf .dds .fits "
    ".hif .bpg .flif .emf .wmf .jng .mng .raw .dng .cr2 .cr3 .crw .nef .nrw .arw .orf .rw2 .raf .pef .srw .mpo"
)
DECODED = (suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)
SUFFIXES = frozenset((*DECODED, *UNDECODED.split()))
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BAND_PIXELS = 1 << 20
# Of memory while a picture is decoded, as it was measured, transparent ones included; the others take up to 10.
BYTES_A_PIXEL = {"JPEG2000": 25, "WEBP": 17, "AVIF": 13, "HEIF": 13, "JXL": 13}
MOST_BYTES = 10 * MAX_PIXELS
ROWS_IN_PYTHON = "bmp_rle"  # Pillow's decoder of compressed BMP, which a few bytes make fill any picture, and slowly
# How often a JPEG may go over its picture: those of cameras do up to 10 times. Fewer where the picture is large.
MOST_SCANS, MOST_SCANNED = 100, 20 * MAX_PIXELS
START, SCAN, END = b"\xff\xd8", b"\xda", b"\xd9"
MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)


Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)


class View(NamedTuple):
    """A square of a picture: its side as a share of the shorter one, where it lies between left and right, top and
    bottom, each from 0 to 1, and whether it is mirrored."""

    size: float = 1.0
    across: float = 0.5
    down: float = 0.5
    mirrored: bool = False


CENTRE = View()


class Shape(NamedTuple):
    """Of what is cut from a picture, in eighths of the side of a square of about the same area."""

    rows: int = 8
    columns: int = 8

    def at(self, side_px: int) -> tuple[int, int]:
        """Height and width in pixels where a square has this side."""
        return side_px * self.rows // EIGHTHS, side_px * self.columns // EIGHTHS


EIGHTHS = 8
SQUARE = Shape()
# Of 60 to 64 eighths by eighths: none is larger than the square, and the smallest lacks 6 % of it.
SHAPES = [
    SQUARE,
    *(shape for wide in ((7, 9), (6, 10), (5, 12), (4, 15), (4, 16)) for shape in (Shape(*wide), Shape(*wide[::-1]))),
]


def nearest_shape(width: int, height: int, largest_ratio: float) -> Shape:
    """The shape of which most of a picture remains, none longer than `largest_ratio` times its other side."""
    known = [shape for shape in SHAPES if max(shape) <= largest_ratio * min(shape)]
    return min(known, key=lambda shape: abs(math.log(width * shape.rows / (height * shape.columns))))


class ReadTwice:
    """An open file of which no more is read than it holds twice over. FilteredImageError for more."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell
        here = file.tell()
        self.size = file.seek(0, io.SEEK_END)
        self.room = 2 * self.size
        file.seek(here)

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes."""
        found = self.file.read(size)
        self.room -= len(found)
        if self.room < 0:
            raise FilteredImageError(f"its TIFF or EXIF tags say more than the {self.size:,} bytes that hold them")
        return found


# Pillow reads the tags of a TIFF, which EXIF is in every other format, as often as they are named, and all of them may
# name the same bytes. This is the one place through which it reads them.
load_tags = TiffImagePlugin.ImageFileDirectory_v2.load
TiffImagePlugin.ImageFileDirectory_v2.load = lambda self, fp: load_tags(self, ReadTwice(fp))  # type: ignore[method-assign]


class BrokenImageError(ValueError):
    """A picture cannot be decoded; the message says why."""


class FilteredImageError(ValueError):
    """A picture is sound but not wanted; the message says why."""


def square_images(
    data: bytes, sides_px: Sequence[int], min_side_px: int = 0, max_pixels: int = MAX_PIXELS
) -> dict[int, UInt8[np.ndarray, "side side 3"]]:
    """The centre square of a picture over white, otherwise as `square_views`."""
    return {side: views[0] for side, views in square_views(data, sides_px, min_side_px, max_pixels).items()}


def square_views(
    data: bytes,
    sides_px: Sequence[int],
    min_side_px: int = 0,
    max_pixels: int = MAX_PIXELS,
    views: Sequence[View] = (CENTRE,),
    background: Colour = WHITE,
    largest_ratio: float = 1.0,
) -> dict[int, UInt8[np.ndarray, "views h w 3"]]:
    """Squares of a picture, resized with antialiasing to each of `sides_px`; with a `largest_ratio` above 1 the nearest
    of SHAPES in place of a square.

    The first frame of an animation, turned as its EXIF orientation says, transparency over a colour, any colour mode.
    BrokenImageError, or FilteredImageError where the shorter side has less than `min_side_px`, or all have over
    `max_pixels` or, for some formats, what takes over MOST_BYTES. Memory: the decoder's own, and three bytes a pixel.
    """
    # A JPEG may be decoded at a fraction of its size; twice the target loses nothing that the resize would keep.
    enough_px = math.ceil(2 * max(sides_px) * math.sqrt(largest_ratio))
    rgb = rgb_image(data, min_side_px, max_pixels, enough_px, background=background)
    shape = nearest_shape(*rgb.size, largest_ratio)
    return {side: np.stack([cut(rgb, view, *shape.at(side)) for view in views]) for side in sides_px}


def cut(rgb: Image.Image, view: View, height_px: int, width_px: int) -> UInt8[np.ndarray, "h w 3"]:
    """A part of a picture at a size."""
    width = view.size * min(rgb.width, rgb.height * width_px / height_px)
    height = view.size * min(rgb.height, rgb.width * height_px / width_px)
    # Resizing the part equals resizing the whole and cropping, and a 10,000 x 10 strip costs no more.
    left, top = (rgb.width - width) * view.across, (rgb.height - height) * view.down
    part = rgb.resize((width_px, height_px), Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
    return np.asarray(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.mirrored else part)


def rgb_image(
    data: bytes,
    min_side_px: int = 0,
    max_pixels: int = MAX_PIXELS,
    enough_px: int | None = None,
    formats: list[str] = FORMATS,
    background: Colour = WHITE,
) -> Image.Image:
    """A picture file as 8-bit RGB over a background, turned upright; of `enough_px` on each side where more costs
    more. Raises as `square_views`."""
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            width, height = image.size
            if min(width, height) < min_side_px:
                raise FilteredImageError(f"{width} x {height} px: a side shorter than {min_side_px} px")
            most = min(max_pixels, MOST_BYTES // BYTES_A_PIXEL.get(image.format or "", 10))
            if width * height > most:
                raise FilteredImageError(f"{width} x {height} px: more than {most} pixels of {image.format}")
            if any(tile[0] == ROWS_IN_PYTHON for tile in image.tile):  # type: ignore[attr-defined]
                raise FilteredImageError(f"{width} x {height} px: a compressed BMP; save it as PNG")
            if data.startswith(START) and (scans := scans_of(data)) > min(MOST_SCANS, MOST_SCANNED / (width * height)):
                raise FilteredImageError(f"{width} x {height} px: a JPEG of {scans:,} scans, more than any needs")
            if enough_px is not None:
                image.draft(None, (enough_px, enough_px))
            image.load()  # of some formats this alone turns the picture, or finds where its EXIF is
            turn = turn_of(image)
            rgb = to_rgb(image, background)
            return rgb if turn is None else rgb.transpose(turn)
    except FilteredImageError:
        raise
    except UnidentifiedImageError as error:  # its own message holds an address in memory, another one in each run
        raise BrokenImageError("no picture of a format that is read here") from error
    except Exception as error:  # decoders raise whatever they like on damaged files, and none may stop the run
        raise BrokenImageError(f"{type(error).__name__}: {error}") from error


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What turns a picture upright, as its EXIF says; None where it says nothing that can be read: its pixels are
    sound all the same. FilteredImageError where it says more than its bytes."""
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except FilteredImageError:
        raise
    except Exception:  # what parses EXIF raises whatever it likes on what cameras and programs wrote there
        return None


def scans_of(data: bytes) -> int:
    """How often a JPEG goes over its picture, each time of which costs as much as one that goes over it once."""
    scans, place = 0, len(START)
    while (marker := MARKER.search(data, place)) and marker[1] != END:
        scans += marker[1] == SCAN
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def to_rgb(image: Image.Image, background: Colour = WHITE) -> Image.Image:
    """Any mode as 8-bit RGB, transparent places in the background's colour; band by band, so that no second copy of the
    whole is made."""
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    image.load()
    scale = grey_scale(image)
    rows = max(1, BAND_PIXELS // max(1, image.width))
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(band_to_rgb(band, scale, background), (0, top))
    return rgb


def grey_scale(image: Image.Image) -> float:
    """What greys of more than 8 bits are multiplied with, to reach 255; 1 for all other modes."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return 1.0
    brightest = max(0.0, float(image.getextrema()[1]))  # type: ignore[arg-type]  # one band has one pair
    if image.mode == "F":  # by custom either [0, 1] or [0, 255]
        return 255.0 if brightest <= 1 else 1.0
    # 16-bit greys, which Pillow may also hold as 32-bit numbers
    return 1 / 257 if image.mode.startswith("I;16") or brightest > 255 else 1.0


def band_to_rgb(image: Image.Image, scale: float, background: Colour) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.asarray(image, dtype=np.float64) * scale
        return Image.fromarray(levels.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")
    return image.convert("RGB")
