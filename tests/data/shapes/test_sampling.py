"""Samples by number, split by caption; prompts of the evaluation split."""

import subprocess
import sys

import pytest

from microdit.data.shapes import DOMAINS, SKILLS, SPLITS, evaluation_prompts, sample, split_of


def test_a_sample_depends_on_its_arguments_alone() -> None:
    before = sample("train", "real", 7, seed=1)
    sample("evaluation", "synthetic", 3)
    assert sample("train", "real", 7, seed=1) == before
    others = [sample("train", "real", 8, 1), sample("train", "real", 7, 2), sample("train", "synthetic", 7, 1)]
    assert all(other.scene != before.scene for other in others)


def test_another_process_draws_the_same_sample() -> None:
    program = "from microdit.data.shapes import sample; print(sample('validation', 'synthetic', 5, seed=2))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(sample("validation", "synthetic", 5, seed=2))


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_caption_is_in_two_splits(domain: str) -> None:
    captions = {split: {sample(split, domain, index).caption for index in range(300)} for split in SPLITS}
    for split, texts in captions.items():
        assert all(split_of(text) == split for text in texts)
    assert not captions["train"] & captions["evaluation"]
    assert not captions["train"] & captions["validation"]
    assert not captions["validation"] & captions["evaluation"]


def test_scenes_ask_for_the_skills_in_the_shares_that_are_named() -> None:
    shares = {"counting": 3.0, "position": 1.0}
    skills = [sample("train", "synthetic", index, skill_shares=shares).scene.skill for index in range(400)]
    assert set(skills) == {"counting", "position"}
    assert skills.count("counting") == pytest.approx(300, abs=40)


def test_splits_take_80_5_and_15_in_a_hundred_texts() -> None:
    found = [split_of(f"text number {index}") for index in range(20_000)]
    for split, share in zip(SPLITS, (0.80, 0.05, 0.15), strict=True):
        assert found.count(split) / 20_000 == pytest.approx(share, abs=0.01)


def test_the_split_of_a_caption_never_changes() -> None:
    assert split_of("a red circle") == "train"
    assert split_of("a blue diamond") == "validation"
    assert split_of("a purple ring") == "evaluation"


def test_case_spacing_and_punctuation_do_not_move_a_caption_to_another_split() -> None:
    for index in range(50):
        text = sample("evaluation", "synthetic", index).caption
        assert split_of(f"  {text.upper().replace(' ', '  ')}. ") == "evaluation"


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_skill_offers_at_least_64_distinct_evaluation_prompts(domain: str) -> None:
    prompts = evaluation_prompts(64, domain=domain)
    assert [prompt.skill for prompt in prompts] == [skill for skill in SKILLS for _ in range(64)]
    assert len({prompt.text for prompt in prompts}) == 64 * len(SKILLS)
    assert all(split_of(prompt.text) == "evaluation" for prompt in prompts)


def test_only_the_colour_skills_name_colours_in_evaluation() -> None:
    for prompt in evaluation_prompts(32):
        named = [expected.colour is not None for expected in prompt.expects.objects]
        assert named == [prompt.skill in ("colors", "color_attribution")] * len(named)


def test_fewer_prompts_are_the_first_of_more() -> None:
    assert evaluation_prompts(8, ("counting",)) == evaluation_prompts(20, ("counting",))[:8]
    assert evaluation_prompts(8, ("counting",), seed=1) != evaluation_prompts(8, ("counting",))


def test_wrong_names_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="train, validation, evaluation"):
        sample("test", "real", 0)
    with pytest.raises(ValueError, match="real, synthetic"):
        sample("train", "photos", 0)
    with pytest.raises(ValueError, match="unknown skill 'texture'"):
        evaluation_prompts(1, ("texture",))


def test_running_out_of_texts_says_how_many_there_are() -> None:
    with pytest.raises(ValueError, match=r"only \d+ of the 2000 distinct single_object prompts"):
        evaluation_prompts(2000, ("single_object",))
