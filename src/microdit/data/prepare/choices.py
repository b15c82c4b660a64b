"""What a user may choose of a picture's captions, of its transparent places and of the squares that are cut from it."""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Literal

import numpy as np
from PIL import ImageColor

from microdit.data.sources.captioned import CaptionedImage, Unreadable
from microdit.data.sources.images import CENTRE, WHITE, Colour, View
from microdit.kinds import SettingsError

Pick = Literal["all", "first", "longest", "shortest", "random"]
RANDOM = "random"
SMALLEST_CROP = 0.8  # of the shorter side

TAG = re.compile(r"<[a-zA-Z/!][^<>]{0,500}>")
PERSON = re.compile(r"<person>", re.IGNORECASE)
ADDRESS = re.compile(r"(?:https?://|www\.)\S+|(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]+\b", re.IGNORECASE)
SYMBOL = re.compile(r"#(?=\w)|@(?=\w)")


def without_html(text: str) -> str:
    """Entities such as &amp; as letters, twice as sites write them; no tags, but for those that stand for a word."""
    return TAG.sub(" ", PERSON.sub("person", html.unescape(html.unescape(text))))


CLEANING: Mapping[str, Callable[[str], str]] = {
    "person": lambda text: PERSON.sub("person", text),  # which Conceptual Captions has in place of names
    "html": without_html,
    "web": lambda text: SYMBOL.sub("", ADDRESS.sub(" ", text)),  # addresses, and the marks of hashtags and names
    "spaces": lambda text: re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split())),
    "lower": str.lower,
}


def with_chosen_captions(item: CaptionedImage, cleaning: Sequence[str], pick: Pick) -> CaptionedImage | Unreadable:
    """A picture with its captions cleaned by these steps, in order, and those of them that are picked."""
    captions = list(item.captions)
    for step in cleaning:
        captions = [CLEANING[step](caption).strip() for caption in captions]
    captions = [caption for caption in dict.fromkeys(captions) if caption] if cleaning else captions
    if not captions:
        return Unreadable(item.key, "no caption: nothing is left of it after clean_captions")
    if pick == "first":
        captions = captions[:1]
    elif pick in ("longest", "shortest"):
        captions = [(max if pick == "longest" else min)(captions, key=len)]
    elif pick == "random":
        captions = [captions[chance_of(item.key, "caption").integers(len(captions))]]
    return replace(item, captions=captions)


def chance_of(key: str, what: str) -> np.random.Generator:
    """Random numbers that a picture of this name always gets for the same thing."""
    return np.random.default_rng(
        list(blake2b(f"{what} {key}".encode("utf-8", "backslashreplace"), digest_size=16).digest())
    )


def colour_of(transparency: str) -> Colour | None:
    """The colour that transparent places become; None for another one for each picture. SettingsError for no colour."""
    if transparency == RANDOM:
        return None
    try:
        red, green, blue, *_ = ImageColor.getrgb(transparency)
    except ValueError as error:
        raise SettingsError(
            f"transparency={transparency} is no colour: give a name, such as white, '\"#ff8800\"', or random"
        ) from error
    return red, green, blue


def background_of(key: str, transparency: str) -> Colour:
    """The colour that transparent places of a picture become."""
    colour = WHITE if transparency == "white" else colour_of(transparency)
    if colour is not None:
        return colour
    red, green, blue = chance_of(key, "background").integers(256, size=3).tolist()
    return red, green, blue


def views_of(key: str, crops: int, flips: bool) -> list[View]:
    """The squares that are cut from a picture: the centre, then crops at random places, each also mirrored."""
    chance, views = chance_of(key, "crops"), [CENTRE]
    for _ in range(crops - 1):
        size, across, down = chance.random(3).tolist()
        views.append(View(SMALLEST_CROP + (1 - SMALLEST_CROP) * size, across, down))
    return [*views, *(view._replace(mirrored=True) for view in views)] if flips else views
