"""docs/methods.md is true: the two files that it writes are a method, and its numbers are counted."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cli_processes import run_script
from flops_shares import flops_shares, network_of

import microdit.masking
from microdit.build import SettingsError, build
from microdit.masking.deferred import Deferred
from microdit.masking.token_path import TokenPath

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "methods.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    return found


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """The document's files, in folders of their own that Python and Hydra also look into."""
    (tmp_path / "masking").mkdir()
    (tmp_path / "conf" / "masking").mkdir(parents=True)
    (tmp_path / "masking" / "central.py").write_text(block("python"))
    (tmp_path / "conf" / "masking" / "central.yaml").write_text(block("yaml"))
    monkeypatch.setattr(microdit.masking, "__path__", [*microdit.masking.__path__, str(tmp_path / "masking")])
    yield tmp_path
    sys.modules.pop("microdit.masking.central", None)


def test_the_example_keeps_the_middle_more_often(files):
    path = build(yaml.safe_load(block("yaml")), TokenPath)
    uniform = torch.rand(200, 64, generator=torch.Generator().manual_seed(0))

    def share_in_the_middle(path: TokenPath) -> float:
        kept = 1 - path.keep(uniform, 0.75, (8, 8)).mask.view(-1, 8, 8)
        assert (kept.sum(dim=(1, 2)) == 16).all()
        return (kept[:, 2:6, 2:6].sum() / kept.sum()).item()

    assert share_in_the_middle(Deferred()) == pytest.approx(0.25, abs=0.03)
    assert share_in_the_middle(path) > 0.4


def test_a_misspelt_setting_of_the_example_is_refused(files):
    settings = yaml.safe_load(block("yaml").replace("pull", "pul"))
    with pytest.raises(SettingsError, match="Central has no setting 'pul'; did you mean 'pull'"):
        build(settings, TokenPath)


def test_the_example_trains_by_its_name_alone(files):
    # In a process of its own, which finds the files as if they lay in the package.
    program = (
        "import microdit.masking, runpy\n"
        f"microdit.masking.__path__.append({str(files / 'masking')!r})\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    (files / "program.py").write_text(program)
    small = ["model.dim=32", "model.depth=2", "model.head_dim=16", "model.patch_mixer_dim=16", "moe.num_experts=2"]
    small += ["resolution_stage.resolution_px=16", "resolution_stage.global_batch_size=4", "trainer.max_steps=2"]
    small += ["data_mix.embedded.counts={train: 24, validation: 4}", "trainer.validation_batch_size=4", "metrics=none"]
    small += ["sampling.num_inference_steps=2", "callbacks.samples.prompts=[a red circle]"]
    where = [f"paths.data_root={files / 'data'}", f"hydra.run.dir={files / 'run'}"]
    chosen = ["masking=central", f"hydra.searchpath=[file://{files / 'conf'}]"]
    ended = run_script(str(files / "program.py"), *chosen, *small, *where)
    assert ended.returncode == 0, ended.stderr
    assert "central: the backbone sees 16 of 64 patches" in ended.stdout


@pytest.mark.parametrize("name", ["xl", "tiny", "nano", "nano_deep"])
def test_the_shares_of_flops_are_those_of_the_table(name):
    (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", DOCUMENT, flags=re.MULTILINE)
    stated = [int(cell) for cell in row.split("|")]
    network, length = network_of(name)
    shares = flops_shares(network, 0.75, length)
    assert [round(100 * shares[part]) for part in ("patch_mixer", "backbone", "captions")] == stated
