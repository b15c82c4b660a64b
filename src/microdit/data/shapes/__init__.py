"""The embedded dataset: captioned scenes of simple shapes, drawn by code: what is in a picture is known exactly.

Two domains share one vocabulary. `real`: textured, lit, noisy scenes with short plain captions. `synthetic`: clean
renderings with richer captions.
"""

from microdit.data.shapes.captions import Expectation, ExpectedObject, Prompt
from microdit.data.shapes.render import coverage, render
from microdit.data.shapes.sampling import SKILL_SHARES, Sample, evaluation_prompts, sample, split_of
from microdit.data.shapes.scenes import (
    COLOURS,
    DOMAINS,
    RELATIONS,
    SHAPES,
    SKILLS,
    SPLITS,
    Background,
    Light,
    Scene,
    SceneObject,
)

__all__ = [
    "COLOURS",
    "DOMAINS",
    "RELATIONS",
    "SHAPES",
    "SKILLS",
    "SKILL_SHARES",
    "SPLITS",
    "Background",
    "Expectation",
    "ExpectedObject",
    "Light",
    "Prompt",
    "Sample",
    "Scene",
    "SceneObject",
    "coverage",
    "evaluation_prompts",
    "render",
    "sample",
    "split_of",
]
