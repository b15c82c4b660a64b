"""A judge on this machine: a real, small, random class of transformers, saved and read from a folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_judge import write_small_judge

from microdit.evaluation.judging.judges import check_judge, read_judge
from microdit.evaluation.judging.local import LocalModel
from microdit.evaluation.judging.questions import YES_OR_NO, Question, chosen, probabilities_of
from microdit.kinds import SettingsError

OPTION, CPU = "metrics.x.judge", torch.device("cpu")


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def question(*seeds: int, **settings) -> Question:
    return Question(tuple(map(picture, seeds)), "a picture ?", YES_OR_NO, "pictures", probable=True, **settings)


@pytest.fixture(scope="module")
def model(judge_weights) -> LocalModel:
    return LocalModel(judge_weights, f"{OPTION}.weights", CPU)


def test_it_answers_and_tells_the_probabilities_of_the_network_itself(model):
    reply = model(question(0))
    assert chosen(reply, YES_OR_NO) in YES_OR_NO
    assert (reply.refused, reply.tokens_written) == (False, 2)
    given = model.processor(images=[Image.fromarray(picture(0))], text="<image> a picture ? ", return_tensors="pt")
    assert reply.tokens_read == given["input_ids"].shape[1]
    shares = model.network(**given).logits[0, -1].softmax(-1)
    words = {word: model.processor.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no", "Yes", "No")}
    expected = {name: float(shares[words[name]] + shares[words[name.title()]]) for name in YES_OR_NO}
    assert probabilities_of(reply, YES_OR_NO) == pytest.approx(expected, rel=1e-4)


def test_it_looks_at_the_picture_and_at_each_of_two(model):
    assert model(question(0)).first != model(question(1)).first
    assert model(question(0, 1)).first != model(question(1, 0)).first
    assert model(question(0, 1)).tokens_read == model(question(0)).tokens_read + 2**2


def test_votes_are_draws_that_come_out_the_same_again_and_the_likeliest_answer_is_no_draw(model):
    hot = [model(question(0, temperature=50.0, vote=vote)).text for vote in (0, 1, 2, 0, 1, 2)]
    assert hot[:3] == hot[3:]
    assert len(set(hot)) > 1
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert model(question(0)).text == model(question(0, vote=5)).text
    assert (torch.random.get_rng_state() == before).all()


def test_other_weights_have_another_name(judge_weights, tmp_path):
    same = read_judge({"weights": judge_weights, "address": None}, OPTION, CPU)
    other = write_small_judge(tmp_path / "other", ("no", "yes"))
    assert same.name == read_judge({"weights": judge_weights, "address": None}, OPTION, CPU).name
    assert same.name != read_judge({"weights": str(other), "address": None}, OPTION, CPU).name
    assert same.at_once == 1


def test_weights_in_parts_are_read_and_a_missing_part_is_named(judge_weights, tmp_path):
    folder = Path(shutil.copytree(judge_weights, tmp_path / "parts"))
    weights = load_file(folder / "model.safetensors")
    halves = [dict(list(weights.items())[0::2]), dict(list(weights.items())[1::2])]
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name, half in zip(names, halves, strict=True):
        save_file(half, folder / name, {"format": "pt"})
    index = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "model.safetensors").unlink()
    settings = {"weights": str(folder), "address": None}
    whole = read_judge({"weights": judge_weights, "address": None}, OPTION, CPU)
    assert read_judge(settings, OPTION, CPU).name == whole.name  # type: ignore[arg-type]
    (folder / names[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r"metrics\.x\.judge\.weights=.* has no model-00002-of-00002"):
        check_judge(settings, OPTION)  # type: ignore[arg-type]
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../away.safetensors"}}))
    with pytest.raises(SettingsError, match="names no files of weights"):
        check_judge(settings, OPTION)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "processor_config.json"])
def test_a_file_that_is_missing_is_named_before_any_weights_are_read(name, judge_weights, tmp_path):
    folder = Path(shutil.copytree(judge_weights, tmp_path / "judge"))
    check_judge({"weights": str(folder), "address": None}, OPTION)
    (folder / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"metrics\.x\.judge\.weights=.*has no .*{name}.*Set metrics\.x\.judge"
    ):
        check_judge({"weights": str(folder), "address": None}, OPTION)


def test_weights_that_are_nowhere_say_how_to_get_them():
    with pytest.raises(FileNotFoundError, match=r"metrics\.x\.judge\.weights=\./nowhere: .*does not exist"):
        check_judge({"weights": "./nowhere", "address": None}, OPTION)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "swin"}, "not that of a model that takes pictures and text"),
        ({"attn_implementation": "owner/kernel"}, "has attn_implementation=owner/kernel, a program from elsewhere"),
        (
            {"text_config": {"_attn_implementation_internal": "flash|owner/kernel"}},
            "=flash|owner/kernel, a program from elsewhere",
        ),
        ({"attn_implementation": {"text_config": "owner/kernel:run"}}, "owner/kernel:run.*, a program from elsewhere"),
        ({"auto_map": {"AutoModelForImageTextToText": "theirs.Theirs"}}, "not that of a model that takes pictures"),
    ],
)
def test_a_network_of_another_kind_or_with_a_program_of_its_own_is_refused(changes, told, judge_weights, tmp_path):
    folder = Path(shutil.copytree(judge_weights, tmp_path / "judge"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(SettingsError, match=told):
        check_judge({"weights": str(folder), "address": None}, OPTION)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("processor_config.json", "[1]"),
        ("processor_config.json", '{"processor_class": "Trainer"}'),
        ("tokenizer.json", "{"),
        ("chat_template.jinja", "{% for"),
        ("chat_template.jinja", "{{ ''.__class__ }}"),
        ("chat_template.jinja", "{{ 1 / 0 }}"),
        ("chat_template.jinja", "no picture"),
    ],
)
def test_a_processor_that_is_none_is_told(name, content, judge_weights, tmp_path):
    folder = Path(shutil.copytree(judge_weights, tmp_path / "judge"))
    (folder / name).write_text(content)
    with pytest.raises(SettingsError, match=r"metrics\.x\.judge\.weights=.* does not hold a processor that"):
        LocalModel(str(folder), f"{OPTION}.weights", CPU)(question(0))


def test_a_model_that_cannot_be_asked_is_told(tmp_path):
    folder = write_small_judge(tmp_path / "judge", template=None)
    with pytest.raises(SettingsError, match="no template of a chat"):
        read_judge({"weights": str(folder), "address": None}, OPTION, CPU)


def test_a_model_is_asked_in_the_precision_it_is_kept_in(judge_weights, tmp_path):
    from transformers import AutoModelForImageTextToText

    folder = Path(shutil.copytree(judge_weights, tmp_path / "half"))
    AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    half, whole = (LocalModel(str(weights), OPTION, CPU) for weights in (folder, judge_weights))
    assert (half.network.dtype, whole.network.dtype) == (torch.bfloat16, torch.float32)
    told = [probabilities_of(each(question(0)), YES_OR_NO) for each in (half, whole)]
    assert told[0] == pytest.approx(told[1], abs=0.02)
