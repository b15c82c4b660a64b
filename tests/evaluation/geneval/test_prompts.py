"""GenEval's prompts: the recipe gives the published 553, and a file of its kind is read as it is, or refused."""

import hashlib
import json
from collections import Counter

import pytest

from microdit.evaluation.geneval.prompts import CLASSES, TAGS, checked, of_each_tag, read_samples, recipe
from microdit.files import DamagedFileError

OF_THE_553 = "4de60dfc3c29f9d3db69ec45cf03a964627c2d82f2c224c3f75645e137f7126b"
BENCH = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}


def test_the_recipe_gives_the_published_prompts():
    prompts = [sample["prompt"] for sample in recipe()]
    assert hashlib.sha256("\n".join(prompts).encode()).hexdigest() == OF_THE_553
    assert Counter(sample["tag"] for sample in recipe()) == dict(zip(TAGS, (80, 99, 80, 94, 100, 100), strict=True))


@pytest.mark.parametrize(
    ("prompt", "include", "exclude"),
    [
        ("a bench", [{"class": "bench", "count": 1}], None),
        ("a bench and a sports ball", [{"class": "bench", "count": 1}, {"class": "sports ball", "count": 1}], None),
        ("two clocks", [{"class": "clock", "count": 2}], [{"class": "clock", "count": 3}]),
        ("three wine glasses", [{"class": "wine glass", "count": 3}], [{"class": "wine glass", "count": 4}]),
        ("a blue fire hydrant", [{"class": "fire hydrant", "count": 1, "color": "blue"}], None),
        (  # the place is seen from the object that is named last, and comes first
            "a dog right of a teddy bear",
            [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
            None,
        ),
        (
            "a purple wine glass and a black apple",
            [{"class": "wine glass", "count": 1, "color": "purple"}, {"class": "apple", "count": 1, "color": "black"}],
            None,
        ),
    ],
)
def test_each_prompt_says_what_must_be_in_the_picture(prompt, include, exclude):
    (sample,) = [each for each in recipe() if each["prompt"] == f"a photo of {prompt}"]
    assert (sample["include"], sample.get("exclude")) == (include, exclude)


def test_classes_are_called_as_in_the_prompts_and_stand_in_the_order_of_coco():
    assert len(set(CLASSES)) == 80
    assert [CLASSES[number] for number in (0, 57, 62, 64, 65, 66, 79)] == [
        *("person", "couch", "tv", "computer mouse", "tv remote", "computer keyboard", "toothbrush")
    ]


def test_nobody_is_asked_for_a_colour_of_a_person():
    coloured = [sample for sample in recipe() if sample["tag"] in ("colors", "color_attr")]
    assert coloured
    assert "person" not in {asked["class"] for sample in coloured for asked in sample["include"]}


def test_what_the_recipe_gives_is_read_back_from_a_file(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in recipe()))
    assert read_samples(path) == recipe()
    assert all(checked(json.loads(json.dumps(sample)), "it:") for sample in recipe())


def test_of_each_tag_the_first_ones_are_taken():
    few = of_each_tag(recipe(), 3)
    assert Counter(sample["tag"] for sample in few) == dict.fromkeys(TAGS, 3)
    assert few[:3] == recipe()[:3]
    assert of_each_tag(recipe(), None) == recipe()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: "),
        ("[" * 100_000, "nested too deeply|recursion"),
        ("[1]", "line 2: it must be settings by name"),
        (json.dumps({**BENCH, "tag": "style"}), r"it: tag must be a text of single_object, .* got 'style'"),
        (json.dumps({**BENCH, "include": []}), "include must be a list .*, 1 to 16 of them"),
        (
            json.dumps({**BENCH, "include": [{"class": "unicorn", "count": 1}]}),
            r"include\.0\.class must be .* 'unicorn'",
        ),
        (json.dumps({**BENCH, "include": [{"class": "bench", "count": 0}]}), r"count must be a whole number from 1"),
        (json.dumps({**BENCH, "include": [{"class": "bench"}]}), r"include\.0 also needs: count"),
        (
            json.dumps({**BENCH, "include": [{"class": "bench", "count": 1, "color": "teal"}]}),
            "color must be .* 'teal'",
        ),
        (
            json.dumps({**BENCH, "include": [{"class": "bench", "count": 1, "position": ["above", 0]}]}),
            "position is seen from a clause that does not come before it",
        ),
        (json.dumps({"tag": "colors", "include": BENCH["include"]}), "also needs: prompt"),
        (json.dumps({**BENCH, "exclude": [{"class": "bench", "count": "2"}]}), r"exclude\.0\.count must be"),
    ],
)
def test_what_is_no_prompt_is_told_with_its_line(line, says, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{json.dumps(BENCH)}\n{line}\n")
    with pytest.raises(DamagedFileError, match=says) as told:
        read_samples(path)
    assert str(told.value).startswith(str(path))
    assert "evaluation_metadata.jsonl" in str(told.value)


def test_a_file_without_a_prompt_is_none(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("\n\n")
    with pytest.raises(DamagedFileError, match="it holds no prompt"):
        read_samples(tmp_path / "prompts.jsonl")
