"""The network of the embedded shapes that comes with the package."""

import pytest
import torch
from cli_processes import run_script
from PIL import Image

from microdit.data.shapes import evaluation_prompts
from microdit.evaluation.shapes.compositional import compositional_accuracy
from microdit.pipeline import LatentDiffusion
from microdit.pretrained import embedded_folder


@pytest.fixture(scope="module")
def shapes() -> LatentDiffusion:
    return LatentDiffusion.load("embedded:shapes")


def test_it_draws_what_it_is_asked_for(shapes: LatentDiffusion) -> None:
    prompts = evaluation_prompts(8, ["single_object", "counting", "colors"], "synthetic")
    images = shapes.generate([prompt.text for prompt in prompts], seed=0)
    found = compositional_accuracy(images, prompts)
    assert found["single_object"] >= 0.75
    assert found["colors"] >= 0.75
    assert found["counting"] >= 0.25


def test_it_is_drawn_as_it_was_trained_to_be_unless_told_otherwise(shapes: LatentDiffusion) -> None:
    usual = shapes.generate(["a red circle"], seed=1)
    told = {"guidance_scale": shapes.sampling.guidance_scale, "temperature": shapes.sampling.temperature}
    assert torch.equal(usual, shapes.generate(["a red circle"], seed=1, **told))
    assert not torch.equal(usual, shapes.generate(["a red circle"], seed=1, guidance_scale=1.0))


def test_all_of_it_is_small() -> None:
    assert sum(file.stat().st_size for file in embedded_folder("embedded:shapes").iterdir()) < 12e6


def test_generate_draws_with_it_where_no_checkpoint_is_named(tmp_path) -> None:
    output = tmp_path / "first.png"
    made = run_script("generate.py", f"output={output}")
    assert made.returncode == 0, made.stderr
    assert Image.open(output).size[0] > 2 * 144
