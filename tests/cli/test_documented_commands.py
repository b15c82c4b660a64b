"""Every command of the README and of the pages is typed here, in small, or needs what it is said to need."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_processes import ROOT, SMALL, run_script
from documents import DOCUMENTS, commands
from PIL import Image

NEEDS = {
    "make ": "an environment: CI calls the targets that are tests, tests/test_project_files.py names all",
    "benchmarks/": "minutes of a quiet machine: tests/benchmarks runs them small",
    "demo.py": "somebody who closes the page: tests/commands/test_demo.py talks to it",
    "plan.py": "half a minute for the largest network: tests/cli/test_plan.py",
    "device=cuda": "a GPU",
    "trainer=gpu": "a GPU",
    "trainer=ddp": "eight GPUs: tests/training/test_strategies.py has processes instead",
    "trainer=fsdp": "eight GPUs: tests/training/test_strategies.py has processes instead",
    "trainer=slurm": "a cluster: tests/cli/test_train_many.py has a launcher instead",
    "trainer.devices=4": "four devices: tests/training/test_strategies.py",
    "+scale=": "a GPU: tests/conf composes it",
    "metrics=geneval": "weights from the hub: tests/commands/test_evaluate.py has small ones",
    "metrics=[fid,clip_score,geneval]": "weights from the hub",
    "judge.address=": "a server with a judge: tests/evaluation/judging has one",
    "metrics=preference": "a judge: tests/evaluation/judging",
    "sampling.guidance=path_drop": "a run of SPRINT: tests/sampling/test_guidance.py",
    "--push": "the hub: tests/hub/test_push.py has a small one",
    "FOLDER": "shards from elsewhere: tests/commands/test_prepare.py",
    "image_size=": "a network of several shapes: tests/training/test_shapes_of_pictures.py",
    "experiments/": "minutes for each run: tests/conf composes them, tests/reports writes the tables",
}
"""What is not here, by a part of a command or of the document that tells it, and who stands in for it."""
PLACES = {"source.path=$HOME/photos": "source.path=photos", "RUN": "runs/THE_RUN"}
OF_NO_RUN = ("--help", "--list", "--cfg")
PICTURES = ["sampling.num_inference_steps=2"]
FEW = ["metrics.compositional.prompts_per_skill=1"]


def told() -> list[tuple[str, ...]]:
    """The commands to type, each once, in the order of the documents; RUN is a run as in the others."""
    every = {
        tuple(PLACES.get(word, word) for word in command): None
        for document in DOCUMENTS
        for command in commands(document)
        if not any(part in " ".join((document, *command)) for part in NEEDS)
    }
    return [*every]


def in_small(name: str, *words: str) -> list[str]:
    """The arguments of the command with the checkpoint that is here, one seed, and a network, pictures and steps that
    take a second."""
    words = tuple(re.sub(r"step_\d+", "step_0000002", word).replace("seed=1,2,3", "seed=1") for word in words)
    if any(word in OF_NO_RUN for word in words):
        return [*words]
    here = " ".join(words)
    if name == "train.py":
        if "resume=" in here:
            return [*words, "trainer.max_steps=3"]
        small = [word for word in SMALL if not (word.startswith("data_mix.embedded") and "data_mix=my_" in here)]
        swept = ["-m"] * ("-m" in words)  # before all settings
        return [*swept, *small, "trainer.max_steps=2", *(word for word in words if word != "-m")]
    if name == "prepare.py":
        return ["resolutions_px=[16]", *words]
    if name == "generate.py":
        return ["num_inference_steps=2", *words]
    if name == "evaluate.py" and "metrics=shapes_loss" not in here:
        return [*FEW, *words] if "pictures=" in here else [*FEW, *PICTURES, *words]
    return [*words]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A person's folder: photographs with captions, and a run that was trained there."""
    folder = tmp_path_factory.mktemp("person")
    (folder / "photos").mkdir()
    for number in range(10):
        noise = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"photos/{number}.png")
        (folder / f"photos/{number}.txt").write_text(f"a picture of noise, {number}")
    trained = run_script("train.py", *SMALL, "trainer.max_steps=2", "hydra.run.dir=runs/THE_RUN", folder=folder)
    assert trained.returncode == 0, trained.stderr
    shutil.copytree(ROOT / "experiments/headline", folder / "experiments/NAME")
    return folder


def test_there_are_many_and_what_others_need_is_so():
    assert len(told()) > 25
    every = [" ".join((document, *command)) for document in DOCUMENTS for command in commands(document)]
    assert [part for part in NEEDS if not any(part in command for command in every)] == []
    named = re.findall(r"tests/[\w/.]+", " ".join(NEEDS.values()))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_each_ends_well(folder):
    """One after the other, since some go on with what others left."""
    failed = {}
    for command in told():
        ended = run_script(command[0], *in_small(*command), folder=folder)
        if ended.returncode:
            failed[" ".join(command)] = ended.stderr[-1500:]
    assert not failed, json.dumps(failed, indent=1)
