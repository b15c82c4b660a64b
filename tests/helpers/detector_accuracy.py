"""How far the detector of shapes can be trusted, measured on true scenes."""

import numpy as np

from microdit.data.shapes import SKILLS, render, sample
from microdit.evaluation.shapes.compositional import fulfils
from microdit.evaluation.shapes.detector import DetectedObject, detect


def detector_accuracy(domain: str, count: int, side_px: int = 32, seed: int = 0) -> dict[str, float]:
    """How far the detector can be trusted: its own shares over `count` true scenes of the evaluation split, rendered at
    `side_px`.

    `prompts`: scenes judged to fulfil their own prompt, `prompts_SKILL` for each skill; `wrong_prompts`: prompts
    of the same skill that are false of the scene, yet judged to be fulfilled; `counts`: scenes with the right number of
    objects; `shapes`, `colours`: true objects that something is found at (within half their width) with the right one.
    Raises ValueError for an unknown domain, and for a `count` too small to hold a false prompt for some scene.
    """
    samples = [sample("evaluation", domain, index, seed) for index in range(count)]
    shapes, colours, counts, wrong = [], [], [], []
    verdicts: dict[str, list[bool]] = {skill: [] for skill in SKILLS}
    for index, drawn in enumerate(samples):
        found = detect(render(drawn.scene, side_px))
        verdicts[drawn.prompt.skill].append(fulfils(found, drawn.prompt))
        counts.append(len(found) == len(drawn.scene.objects))
        truth = [DetectedObject(t.shape, t.colour, t.x, t.y, t.size, 1.0) for t in drawn.scene.objects]
        for other in samples[index + 1 :] + samples[:index]:
            if other.prompt.skill == drawn.prompt.skill and not fulfils(truth, other.prompt):
                wrong.append(fulfils(found, other.prompt))
                break
        for true in truth:
            near = next(
                (thing for thing in found if np.hypot(thing.x - true.x, thing.y - true.y) < true.size / 2), None
            )
            shapes.append(near is not None and near.shape == true.shape)
            colours.append(near is not None and near.colour == true.colour)
    if not wrong:
        raise ValueError(f"{count} scenes hold no false prompt to try; measure on more, some hundreds")
    return {
        "prompts": float(np.mean([verdict for each in verdicts.values() for verdict in each])),
        **{f"prompts_{skill}": float(np.mean(each)) for skill, each in verdicts.items() if each},
        "wrong_prompts": float(np.mean(wrong)),
        "counts": float(np.mean(counts)),
        "shapes": float(np.mean(shapes)),
        "colours": float(np.mean(colours)),
    }
