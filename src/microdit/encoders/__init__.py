"""Frozen autoencoders and text encoders behind two small protocols."""

from microdit.encoders.autoencoder_dc import DCAutoencoder
from microdit.encoders.autoencoder_kl import KLAutoencoder
from microdit.encoders.open_clip_text import OpenClipTextEncoder
from microdit.encoders.pixel import PixelAutoencoder
from microdit.encoders.protocols import Autoencoder, TextEncoder
from microdit.encoders.transformers_text import TransformersTextEncoder
from microdit.encoders.words import WordsTextEncoder

__all__ = [
    "Autoencoder",
    "DCAutoencoder",
    "KLAutoencoder",
    "OpenClipTextEncoder",
    "PixelAutoencoder",
    "TextEncoder",
    "TransformersTextEncoder",
    "WordsTextEncoder",
]
