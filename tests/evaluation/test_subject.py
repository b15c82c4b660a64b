"""Pictures under evaluation: drawn once, kept, and named by what sets them apart."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import webdataset

from microdit.build import SettingsError
from microdit.evaluation.pictures import PicturesError
from microdit.evaluation.subject import PICTURES_A_CALL, KeptSubject, Subject

PROMPTS = ["a red circle", "a blue square", "two rings"]
SAMPLING = {"num_inference_steps": 2, "guidance_scale": 3.0, "seed": 5}


def evaluations(subject: Subject) -> list[int]:
    """Counts what the subject reports, evaluation by evaluation of the network."""
    seen: list[int] = []
    subject.progress = lambda done, total: seen.append(done)
    return seen


def test_kept_pictures_are_what_the_pipeline_draws_to_eight_bits(pipeline, tmp_path):
    kept = Subject(pipeline, tmp_path).pictures("skills", PROMPTS, SAMPLING)
    drawn = pipeline.generate(PROMPTS, **SAMPLING)
    assert kept.making.prompts == PROMPTS
    torch.testing.assert_close(kept.all(), drawn, atol=0.5 / 255 + 1e-6, rtol=0)


def test_any_webdataset_reader_opens_them(pipeline, tmp_path):
    Subject(pipeline, tmp_path).pictures("skills", PROMPTS, SAMPLING)
    found = list(webdataset.WebDataset(str(tmp_path / "skills.tar"), shardshuffle=False).decode("rgb8"))
    assert [sample["txt"] for sample in found] == PROMPTS
    assert all(sample["png"].shape == (16, 16, 3) for sample in found)


def test_the_same_pictures_are_not_drawn_twice(pipeline, tmp_path):
    first = Subject(pipeline, tmp_path).pictures("skills", PROMPTS, SAMPLING).all()
    again = Subject(pipeline, tmp_path)
    seen = evaluations(again)
    assert torch.equal(again.pictures("skills", PROMPTS, SAMPLING).all(), first)
    assert torch.equal(again.pictures("skills", PROMPTS[:2], SAMPLING).all(), first[:2])
    assert seen == []


@pytest.mark.parametrize("change", ["weights", "prompts", "sampling"])
def test_other_weights_prompts_or_sampling_are_drawn_anew(pipeline, tmp_path, change):
    first = Subject(pipeline, tmp_path).pictures("skills", PROMPTS, SAMPLING).all()
    prompts, sampling = PROMPTS, SAMPLING
    if change == "weights":
        with torch.no_grad():
            pipeline.dit.final_layer.linear.weight.add_(0.3)
    elif change == "prompts":
        prompts = ["a green cross", *PROMPTS[1:]]
    else:
        sampling = {**SAMPLING, "seed": 6}
    again = Subject(pipeline, tmp_path)
    seen = evaluations(again)
    assert not torch.equal(again.pictures("skills", prompts, sampling).all()[:1], first[:1])
    assert seen


def test_the_batch_size_changes_no_picture_beyond_rounding(pipeline, tmp_path):
    whole = Subject(pipeline, tmp_path / "a").pictures("skills", PROMPTS, SAMPLING).all()
    single = Subject(pipeline, tmp_path / "b", batch_size=1).pictures("skills", PROMPTS, SAMPLING).all()
    torch.testing.assert_close(single, whole, atol=1.01 / 255, rtol=0)


def test_many_pictures_are_drawn_in_several_calls_with_noise_of_their_own(pipeline, tmp_path):
    subject = Subject(pipeline, tmp_path, batch_size=256)
    seen = evaluations(subject)
    prompts = ["a red circle"] * (PICTURES_A_CALL + 2)
    images = subject.pictures("skills", prompts, {**SAMPLING, "guidance_scale": 1.0}).all()
    assert len(images) == len(prompts)
    assert not torch.equal(images[0], images[PICTURES_A_CALL])
    assert seen == list(range(1, 7))  # two calls of 2 steps: 2 * 3 evaluations


def test_a_tar_without_its_description_is_not_taken_for_whole(pipeline, tmp_path):
    Subject(pipeline, tmp_path).pictures("skills", PROMPTS, SAMPLING)
    (tmp_path / "skills.json").unlink()  # as after a kill between the two
    again = Subject(pipeline, tmp_path)
    seen = evaluations(again)
    again.pictures("skills", PROMPTS, SAMPLING)
    assert seen


def test_a_damaged_tar_is_refused_by_name(pipeline, tmp_path):
    pictures = Subject(pipeline, tmp_path).pictures("skills", PROMPTS, SAMPLING)
    content = pictures.tar.read_bytes()
    pictures.tar.write_bytes(content[: len(content) // 2])
    with pytest.raises(PicturesError, match=r"skills\.tar"):
        pictures.all()


def test_what_differs_from_what_a_metric_asks_for_is_in_the_suffix_and_the_folder(pipeline, tmp_path):
    plain = Subject(pipeline, tmp_path, sampling={"guidance_scale": 3})
    assert plain.pictures("skills", PROMPTS, SAMPLING).tar == tmp_path / "skills.tar"
    assert plain.suffix == ""
    chosen = Subject(pipeline, tmp_path, ["raw"], {"guidance_scale": 2.0, "num_inference_steps": 3})
    pictures = chosen.pictures("skills", PROMPTS, SAMPLING)
    assert chosen.suffix == "@raw,guidance_scale=2,num_inference_steps=3"
    assert pictures.tar == tmp_path / "raw+guidance_scale_2+num_inference_steps_3" / "skills.tar"


def test_the_sampler_and_the_guidance_interval_reach_the_pipeline(pipeline, tmp_path):
    chosen = {"sampler": "dpm_solver_2m", "guidance_interval": [0.2, 5.0]}
    subject = Subject(pipeline, tmp_path, sampling=chosen)
    seen = evaluations(subject)
    images = subject.pictures("skills", PROMPTS, SAMPLING).all()
    assert subject.suffix == "@guidance_interval=[0.2-5],sampler=dpm_solver_2m"
    assert subject.kept_in.name == "guidance_interval_0.2-5+sampler_dpm_solver_2m"  # nothing that Hydra would read
    assert len(seen) == 2  # one evaluation a step
    expected = pipeline.generate(PROMPTS, **SAMPLING, **chosen)
    torch.testing.assert_close(images, expected, atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_sampling_that_cannot_be_meant_is_refused(pipeline, tmp_path):
    subject = Subject(pipeline, tmp_path)
    with pytest.raises(SettingsError, match="did you mean 'guidance_scale'"):
        subject.pictures("skills", PROMPTS, {**SAMPLING, "guidance_scal": 3.0})
    with pytest.raises(SettingsError, match="sampling also needs: seed"):
        subject.pictures("skills", PROMPTS, {"num_inference_steps": 2})


def test_pictures_alone_give_the_same_pictures_and_the_same_suffix(pipeline, tmp_path):
    drawn = Subject(pipeline, tmp_path, ["raw"], {"guidance_scale": 2.0})
    images = drawn.pictures("skills", PROMPTS, SAMPLING).all()
    kept = KeptSubject(drawn.kept_in)
    assert torch.equal(kept.pictures("skills", PROMPTS, SAMPLING).all(), images)
    assert kept.suffix == drawn.suffix == "@raw,guidance_scale=2"


def test_pictures_alone_say_what_they_cannot_do(pipeline, tmp_path):
    Subject(pipeline, tmp_path).pictures("skills", PROMPTS, SAMPLING)
    kept = KeptSubject(tmp_path)
    with pytest.raises(PicturesError, match="give checkpoint=RUN"):
        _ = kept.pipeline
    with pytest.raises(PicturesError, match=r"no pictures scenes\.tar \(there are: skills\)"):
        kept.pictures("scenes", PROMPTS, SAMPLING)
    with pytest.raises(PicturesError, match="other prompts"):
        kept.pictures("skills", [*PROMPTS, "one more"], SAMPLING)


def test_two_that_want_the_same_pictures_at_once_both_have_them_and_one_draws(pipeline, tmp_path, monkeypatch):
    begun = []

    def drawn_slowly(self, prompts, *_):
        begun.append(self)
        time.sleep(0.2)
        return torch.rand(len(prompts), 3, 8, 8)

    monkeypatch.setattr(Subject, "drawn", drawn_slowly)
    subjects = [Subject(pipeline, tmp_path) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda subject: subject.pictures("skills", PROMPTS, SAMPLING).all(), subjects)
    assert torch.equal(first, second)
    assert len(begun) == 1


def test_what_drawing_takes_is_said_before_it_and_how_long_by_its_first_batch(pipeline, tmp_path, capsys, monkeypatch):
    Subject(pipeline, tmp_path / "quick", batch_size=2).pictures("skills", PROMPTS, SAMPLING)
    first = "skills: 3 pictures to draw in 2 batches on 1 device, 6 evaluations of the network"
    assert capsys.readouterr().err.splitlines() == [first]  # nothing is said of seconds
    monkeypatch.setattr("microdit.progress.SHORT", 0.0)
    Subject(pipeline, tmp_path / "slow", batch_size=2).pictures("skills", PROMPTS, SAMPLING)
    before, after = capsys.readouterr().err.splitlines()
    assert before == first
    assert re.fullmatch(r"skills: drawing: about [\d.e-]+ s, by the first, [\d.e-]+ s", after)
    Subject(pipeline, tmp_path / "slow", batch_size=2).pictures("skills", PROMPTS, SAMPLING)
    assert capsys.readouterr().err == ""
