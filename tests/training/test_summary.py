"""What a run tells before its first step."""

import pytest
from rich.console import Console

from microdit.training.summary import show_summary

COST = {"parameters": 10**6, "patches": 16, "patches_kept": 4, "flops_per_image": 10**9, "total_flops": 10**12}


@pytest.fixture
def told(run_settings):
    """told(...): the words of the table, on one line."""

    def words(*overrides: str) -> str:
        settings = run_settings(*overrides)
        console = Console(width=400)
        with console.capture() as shown:
            show_summary(console, settings, COST, 8, 24, None)
        return " ".join(shown.get().split())

    return words


def test_what_is_measured_at_the_end_and_what_that_reads_is_told(told):
    fid = "fid, count=30,000, reads source.path=data/coco_2014_validation"
    clip = "clip_score, count=30,000, reads source.path=data/coco_2014_validation, reads weights=hf-hub:timm/vit_large"
    assert f"at the end {fid}; {clip}" in told("metrics=photos")
    cifar = told("metrics=photos_cifar")
    assert cifar.count("count=10,000, reads source.path=data/cifar_captions_validation") == 2
    paper = told("metrics=paper")
    assert [name for name in ("fid,", "clip_fid,", "clip_score,", "geneval,") if name not in paper] == []
    assert "geneval, pictures_per_prompt=4, reads detector_weights=facebook/mask2former" in paper
    assert "reads features.weights=hf-hub:timm/vit_base_patch32_clip_224.openai" in paper


def test_what_is_also_measured_while_it_trains_is_told_with_its_steps_and_what_it_reads(told):
    words = told("metrics=[compositional,geneval_look]")
    assert "at the end compositional, prompts_per_skill=16; geneval_look while it trains every 25,000 steps" in words
    assert "geneval_look, prompts_per_tag=10, pictures_per_prompt=1, reads metric.detector_weights=facebook" in words
    assert "while it trains" not in told("metrics=compositional")


def test_a_run_that_measures_nothing_says_nothing_of_it(told):
    assert "at the end" not in told("metrics=none")
