"""`python generate.py` and its options, from the outside."""

import pytest
import torch
from cli_processes import run_script
from compiler import needs_compiler
from PIL import Image

from microdit.pipeline import build_pipeline

PROMPTS = 'prompts=["a red circle left of a blue square","a ring"]'


@pytest.fixture(scope="module")
def saved(pipeline_settings, wake, tmp_path_factory) -> str:
    """A small pipeline with random weights, as LatentDiffusion.save writes it."""
    torch.manual_seed(0)
    pipeline = build_pipeline(pipeline_settings)
    wake(pipeline.dit)
    folder = tmp_path_factory.mktemp("saved")
    pipeline.save(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("options", "evaluations"),
    [
        ([], "5/5"),
        pytest.param(["compile=true"], "5/5", marks=needs_compiler),
        (["sampler=dpm_solver_2m", "guidance_interval=[0.1,10]", "temperature=0.6"], "3/3"),
    ],
)
def test_samplers_are_options_and_the_bar_counts_their_evaluations(saved, tmp_path, options, evaluations):
    output = tmp_path / "grid.png"
    given = [f"checkpoint={saved}", PROMPTS, "num_inference_steps=3", f"output={output}", *options]
    made = run_script("generate.py", *given, cold=not options)
    assert made.returncode == 0, made.stderr
    assert evaluations in made.stderr
    assert Image.open(output).size[0] > 2 * 144


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (
            "guidance_interval=[5]",
            "sampling.guidance_interval must be a list whose values are each a number, 2 of them or all",
        ),
        ("temperature=0", "sampling.temperature must be a number"),
        ("autoencoder_weights=elsewhere", "PixelAutoencoder has no setting 'weights'"),
    ],
)
def test_mistakes_end_with_one_sentence(saved, tmp_path, option, told):
    ended = run_script("generate.py", f"checkpoint={saved}", f"output={tmp_path / 'grid.png'}", option)
    assert ended.returncode == 1
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_file_that_is_no_released_network_says_what_it_holds(tmp_path):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pt")
    ended = run_script("generate.py", f"checkpoint={tmp_path / 'other.pt'}")
    assert ended.returncode == 1
    assert "is no released network" in ended.stderr
    assert "conv.weight" in ended.stderr
