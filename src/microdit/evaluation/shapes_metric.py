"""Compositional accuracy on the embedded shapes: GenEval's six questions, answered by a detector of our own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from microdit.data.shapes import SKILLS, Prompt, evaluation_prompts
from microdit.evaluation.compositional import compositional_accuracy
from microdit.evaluation.metric import Metric
from microdit.evaluation.subject import Subject
from microdit.grid import prompt_grid

SHOWN_PER_SKILL = 6


@dataclass(frozen=True)
class ShapesCompositional(Metric):
    """Generates held-out prompts of each skill in the wording of `domains`, and reads the pictures back.

    `prompts_per_skill` for each of the six skills, `colour_prompts` for the colour of single objects, which is the
    number that tells earliest whether captions are read. `sampling`: arguments of LatentDiffusion.generate; its seed
    also draws the prompts.
    """

    domains: Sequence[str]
    prompts_per_skill: int
    colour_prompts: int
    sampling: Mapping[str, Any]

    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image]:
        """`compositional/SKILL`, `compositional/overall`, `compositional/single_object_colour`, all shares in 0..1."""
        prompts = self.prompts()
        images = subject.pictures("skills", [prompt.text for prompt in prompts], self.sampling).all()
        accuracy = compositional_accuracy(images, prompts)
        shown = []
        for skill in SKILLS:
            mine = [i for i, prompt in enumerate(prompts) if prompt.skill == skill]
            step = max(1, len(mine) // SHOWN_PER_SKILL)
            shown += mine[::step][:SHOWN_PER_SKILL]
        grid = prompt_grid(images[shown], [prompts[i].text for i in shown], columns=SHOWN_PER_SKILL)
        return {f"compositional/{name}": value for name, value in accuracy.items()}, grid

    def prompts(self) -> list[Prompt]:
        """All prompts, skill by skill."""
        found: list[Prompt] = []
        for skill in SKILLS:
            count = self.colour_prompts if skill == "colors" else self.prompts_per_skill
            for number, domain in enumerate(self.domains):
                share = (count + number) // len(self.domains)
                found += evaluation_prompts(share, (skill,), domain, self.sampling["seed"]) if share else []
        return found
