"""Draws the network with deferred masking: `python docs/draw_network.py` writes docs/network.svg.

The numbers in it are those of conf/model/xl.yaml; a test compares the committed file with what this makes.
"""

import random
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "network.svg"
SIDE, CELL = 8, 18  # patches on a side of the drawn picture, and the pixels of one
INK, QUIET, ALL, KEPT, FROZEN = "#1f2933", "#616e7c", "#5b8def", "#e8833a", "#8d99a6"


def text(x: float, y: float, words: str, size: int = 13, colour: str = INK, weight: str = "normal") -> str:
    style = f'font-size="{size}" fill="{colour}" font-weight="{weight}" text-anchor="middle"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{words}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, opacity: float = 1.0) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {place} rx="6" fill="{fill}" fill-opacity="{opacity:g}"/>'


def arrow(*points: tuple[float, float], colour: str = INK) -> str:
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8" marker-end="url(#head)"/>'


def colour_at(row: int, column: int) -> str:
    """The drawn scene, patch by patch: a red disc left of a blue square, on a light ground."""
    if (row - 3.5) ** 2 + (column - 1.5) ** 2 < 2.8:
        return "#de2026"
    if 2 <= row <= 4 and 5 <= column <= 7:
        return "#2450e0"
    return "#e9edf5"


def picture(x: float, y: float, kept: set[int]) -> str:
    """The scene as patches; those that are not kept are hatched."""
    cells = []
    for patch in range(SIDE * SIDE):
        row, column = divmod(patch, SIDE)
        fill = colour_at(row, column) if patch in kept else "url(#dropped)"
        place = f'x="{x + column * CELL:g}" y="{y + row * CELL:g}" width="{CELL - 1.5:g}" height="{CELL - 1.5:g}"'
        cells.append(f'<rect {place} fill="{fill}" stroke="#c3cad5" stroke-width="0.5"/>')
    return "\n".join(cells)


def blocks(x: float, y: float, width: float, height: float, count: int, colour: str) -> str:
    """A stack of blocks, side by side in the order in which tokens pass."""
    step = width / count
    return "\n".join(box(x + i * step, y, step * 0.8, height, colour, 0.85) for i in range(count))


def network() -> str:
    """The drawing as SVG text, the same on every machine."""
    model = yaml.safe_load((ROOT / "conf/model/xl.yaml").read_text())
    patches = SIDE * SIDE
    kept = set(random.Random(6).sample(range(patches), patches // 4))
    top, side = 92, SIDE * CELL
    middle = top + side / 2
    mixer, drop, backbone, out = 208, 372, 556, 856
    mixer_told = f"{model['patch_mixer_depth']} narrow blocks ({model['patch_mixer_dim']} channels)"
    backbone_told = f"{model['depth']} wide blocks ({model['dim']} channels)"
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1020 400" role="img" '
        'font-family="Helvetica, Arial, sans-serif" aria-label="The network with deferred masking">',
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0 L10,5 L0,10 z" fill="{INK}"/></marker>',
        '<pattern id="dropped" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="6" height="6" fill="#f7f8fa"/><rect width="1.5" height="6" fill="#d5dae1"/></pattern></defs>',
        '<rect width="1020" height="400" fill="#ffffff"/>',
        text(
            510,
            30,
            "Deferred masking: look at everything with a light network, think about a quarter with a heavy one",
            16,
            INK,
            "bold",
        ),
        picture(20, top, set(range(patches))),
        text(20 + side / 2, top - 14, "noisy latents", 14, INK, "bold"),
        text(20 + side / 2, top + side + 20, "every patch is a token", 13, QUIET),
        arrow((20 + side + 4, middle), (mixer - 4, middle)),
        blocks(mixer, top + 22, 112, side - 44, model["patch_mixer_depth"], ALL),
        text(mixer + 56, top - 14, "patch-mixer", 14, INK, "bold"),
        text(mixer + 56, top + side + 20, mixer_told, 13, QUIET),
        text(mixer + 56, top + side + 38, "all patches", 13, ALL, "bold"),
        arrow((mixer + 116, middle), (drop - 4, middle)),
        picture(drop, top, kept),
        text(drop + side / 2, top - 14, "drop 75 %", 14, INK, "bold"),
        text(drop + side / 2, top + side + 20, "at random, anew each step", 13, QUIET),
        arrow((drop + side + 4, middle), (backbone - 4, middle)),
        blocks(backbone, top - 2, 252, side + 4, model["depth"], KEPT),
        text(backbone + 126, top - 14, "backbone", 14, INK, "bold"),
        text(backbone + 126, top + side + 20, backbone_told, 13, QUIET),
        text(backbone + 126, top + side + 38, "a quarter of the patches", 13, KEPT, "bold"),
        arrow((backbone + 256, middle), (out - 4, middle)),
        picture(out, top, kept),
        text(out + side / 2, top - 14, "prediction", 14, INK, "bold"),
        text(out + side / 2, top + side + 20, "loss on kept patches", 13, QUIET),
        box(20, 322, 150, 34, FROZEN, 0.35),
        text(95, 344, "&#8220;a red circle left of ...&#8221;", 12),
        arrow((174, 339), (204, 339), colour=FROZEN),
        box(208, 322, 112, 34, FROZEN, 0.6),
        text(264, 344, "text encoder", 13),
        text(462, 335, "captions: cross-attention in every block", 13, QUIET),
        text(462, 353, "noise level: scales, shifts, gates", 13, QUIET),
        arrow((264, 318), (264, top + side + 46), colour=FROZEN),
        arrow((600, 339), (682, 339), (682, top + side + 46), colour=FROZEN),
        text(510, 388, "When pictures are drawn nothing is dropped: mixer and backbone see all patches.", 13, INK),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    FILE.write_text(network())
