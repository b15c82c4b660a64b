"""The tree of conf/: every choice composes, is explained, and builds what it names."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from compositions import CONF, composed
from omegaconf import DictConfig, OmegaConf

import microdit.commands.compose
from microdit.build import locate
from microdit.commands.compose import bundles_in_order
from microdit.kinds import OTHERS, SettingsError, check_names, kinds_of
from microdit.model import sizes
from microdit.model.dit import DiT
from microdit.pipeline import build_pipeline
from microdit.training.run import network_settings
from microdit.training.settings import TrainingSettings, training_settings

FILES = sorted(CONF.rglob("*.yaml"))


def groups_of(config: str) -> list[str]:
    defaults = yaml.safe_load((CONF / config).read_text())["defaults"]
    return [next(iter(d)) for d in defaults if isinstance(d, dict) and not next(iter(d)).startswith("override")]


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


GROUPS, PREPARE_GROUPS = groups_of("config.yaml"), groups_of("prepare.yaml")
BUNDLES = ["experiment", "recipe", "scale"]
EXPERIMENTS, SCALES, RECIPES = names("experiment"), names("scale"), names("recipe")
# What a scale cannot compare, and how it says so.
REFUSED = {
    ("data_synthetic", "tiny"): "asks for synthetic data, but its sources are real",
    ("data_mixed", "tiny"): "asks for synthetic data, but its sources are real",
}


def needed(bundle: str) -> list[str]:
    """What the user has to add to a bundle."""
    return ["init_from=runs/THE_RUN"] if bundle in ("unmasked_finetune", "sprint_finetune") else []


def compose(*overrides: str, config: str = "config") -> DictConfig:
    """Composes a configuration as the command line would; `name` is Hydra's business, so it is given."""
    ordered = bundles_in_order(overrides)  # as for a command line
    return composed(*ordered, *(["name=x"] if config == "config" else []), config=config)


def read(config: DictConfig) -> TrainingSettings:
    return training_settings(microdit.commands.compose.plain(config), Path("run"), {})


NETWORKS: dict[str, DiT] = {}


def network_on_meta(settings: TrainingSettings) -> DiT:
    """The network of these settings, built once for all that ask for the same, which may not change it."""
    parts = network_settings(settings)
    key = json.dumps(parts)
    if key not in NETWORKS:
        NETWORKS[key] = build_pipeline(parts, device="meta").dit
    return NETWORKS[key]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_begins_by_saying_when_to_choose_it(path):
    lines = path.read_text().splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert first.startswith("# ")
    assert len(first) > 30


def test_every_folder_is_a_group_that_an_entry_point_uses():
    folders = {path.parent.name for path in CONF.glob("*/*.yaml")}
    assert folders == {*GROUPS, *PREPARE_GROUPS, *BUNDLES}


@pytest.mark.parametrize(("group", "name"), [(g, n) for g in GROUPS for n in names(g)])
def test_every_choice_of_every_group_composes_and_is_accepted(group, name):
    # No masking is only accepted together with no mask ratio.
    together = ["mask_ratio=none"] if (group, name) == ("masking", "none") else []
    assert read(compose(f"{group}={name}", *together))


@pytest.mark.parametrize(("group", "name"), [(g, n) for g in PREPARE_GROUPS for n in names(g)])
def test_every_choice_of_preparation_composes(group, name):
    assert compose(f"{group}={name}", config="prepare")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_what_is_compared_and_how_big_are_chosen_independently(experiment):
    orders = itertools.permutations([f"+experiment={experiment}", "+scale=xl"])
    one, other = (compose(*order, *needed(experiment)) for order in orders)
    assert one == other


def test_bundles_are_applied_in_their_order_whatever_was_typed():
    typed = ["seed=1", "+experiment=a,b", "-m", "+scale=xl", "trainer=cpu"]
    assert bundles_in_order(typed) == ["seed=1", "+scale=xl", "-m", "+experiment=a,b", "trainer=cpu"]


@pytest.mark.parametrize("schedule", names("schedule"))
def test_a_schedule_that_is_typed_has_the_last_word_over_the_stages(schedule):
    settings = read(compose("resolution_stage=res512_finetune", f"schedule={schedule}"))
    assert type(settings.schedule).__name__.lower() == schedule.replace("_", "")


def test_every_scale_decides_the_same_groups():
    decided = [yaml.safe_load((CONF / "scale" / f"{scale}.yaml").read_text())["defaults"] for scale in SCALES]
    assert len({frozenset(key for entry in entries for key in entry) for entries in decided}) == 1


@pytest.mark.parametrize("bundle", [f"{group}={name}" for group in BUNDLES for name in names(group)])
def test_a_bundle_adds_no_key_of_its_own(bundle):
    def keys(config: DictConfig) -> set[str]:
        return {str(key) for key in config}

    group, _, name = bundle.partition("=")
    default = ["+scale=laptop"] if group == "experiment" else []  # has no effect, and is composed below as well
    assert keys(compose(f"+{bundle}", *default, *needed(name))) == keys(compose())


@pytest.mark.parametrize("scale", ["tiny", "xl"])
def test_a_recipe_decides_the_same_at_every_scale_whatever_was_typed_first(scale):
    paper = compose("+recipe=microdit", f"+scale={scale}")
    assert paper == compose(f"+scale={scale}", "+recipe=microdit") == compose(f"+scale={scale}")
    modern = compose(f"+scale={scale}", "+recipe=modern")
    assert modern == compose("+recipe=modern", f"+scale={scale}")
    assert set(modern) == set(paper)
    settings = read(modern)
    network = network_on_meta(settings)
    assert (network.in_channels, network.patch_size, network.trained_grid) == (32, 1, (8, 8))
    assert network.masks_padding
    assert settings.text_encoder["length"] > 77
    assert (settings.objective["noise_mean"], settings.objective["noise_std"]) == (0.0, 1.0)
    assert settings.representation["features"]["name"] == "dinov2_vit_b_14"
    assert "rectified_flow" in settings.objective["_target_"]
    assert "Muon" in settings.optimizer["_target_"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_experiment_has_the_last_word_over_a_recipe(recipe):
    settings = read(compose("+experiment=naive_mask_50", "+scale=xl", f"+recipe={recipe}"))
    assert (type(network_on_meta(settings).token_path).__name__, settings.mask_ratio.ratio(0.0)) == ("Naive", 0.5)


def test_the_laptop_scale_is_the_default():
    assert compose("+scale=laptop") == compose()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("scale", SCALES)
def test_every_experiment_builds_its_network_at_every_scale(experiment, scale):
    config = compose(f"+experiment={experiment}", f"+scale={scale}", *needed(experiment))
    if (experiment, scale) in REFUSED:
        with pytest.raises(SettingsError, match=REFUSED[experiment, scale]):
            network_on_meta(read(config))
        return
    settings = read(config)
    network = network_on_meta(settings)
    patches = (network.input_size // network.patch_size) ** 2
    assert network.pos_embed.shape[1] == patches
    assert 0 <= settings.mask_ratio.ratio(0.0) < 1
    if not network.token_path.uses_patch_mixer:
        assert not network.patch_mixer


@pytest.mark.parametrize("model", names("model"))
@pytest.mark.parametrize("moe", names("moe"))
def test_every_model_builds_with_and_without_experts(model, moe):
    network = network_on_meta(read(compose(f"model={model}", f"moe={moe}")))
    assert any("gate" in key for key in network.state_dict()) == (moe != "none")


def described(network: DiT) -> dict[str, Any]:
    """Every plain number that a network and its parts hold, and the shapes of its weights."""
    plain = (bool, int, float, str, tuple)
    numbers = {
        name: {key: value for key, value in vars(module).items() if isinstance(value, plain)}
        for name, module in network.named_modules()
    }
    return {"numbers": numbers, "shapes": {key: tuple(value.shape) for key, value in network.state_dict().items()}}


@pytest.mark.parametrize(("model", "make"), [("xl", sizes.MicroDiT_XL_2), ("tiny", sizes.MicroDiT_Tiny_2)])
def test_the_named_sizes_have_the_numbers_of_the_configuration(model, make):
    config = compose(f"model={model}", "+scale=xl", f"model={model}")
    configured = network_on_meta(read(config))
    with torch.device("meta"):
        named = make()
    assert described(configured) == described(named)
    given = {**microdit.commands.compose.plain(config)["model"], **microdit.commands.compose.plain(config)["moe"]}
    shared = given.keys() & sizes.RELEASED.keys()
    assert {"depth_init", "norm_eps", "expert_capacity"} <= shared
    for key in shared:
        wanted = sizes.RELEASED[key]
        assert given[key] == (list(wanted) if isinstance(wanted, tuple) else wanted), key


def targets(node: Any) -> list[dict[str, Any]]:
    """Every dictionary with a `_target_`, however deep."""
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    found = [t for value in inner for t in targets(value)]
    return [node, *found] if isinstance(node, dict) and "_target_" in node else found


@pytest.mark.parametrize("path", [p for p in FILES if targets(yaml.safe_load(p.read_text()))], ids=lambda p: p.stem)
def test_every_target_exists_and_takes_its_settings(path):
    for settings in targets(yaml.safe_load(path.read_text())):
        found = locate(settings["_target_"], object)
        if OTHERS not in (known := kinds_of(found)):
            check_names(
                [key for key in settings if key not in ("_target_", "kinds", "defaults")], known, settings["_target_"]
            )


@pytest.fixture
def write_bundle(tmp_path) -> Callable[[str], list[str]]:
    """Writes a bundle as a user would, outside conf/, and returns the overrides that add it."""

    def write(content: str) -> list[str]:
        folder = tmp_path / "experiment"
        folder.mkdir()
        (folder / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
        return ["+experiment=mine", f"hydra.searchpath=[file://{tmp_path}]"]

    return write


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trainer: {max_step: 3}", "trainer has no setting 'max_step'; did you mean 'max_steps'"),
        ("optimizer: {beta: 0.5}", "MuonWithAdamW has no setting 'beta'; did you mean 'betas'"),
        ("optimizer: {kinds: {matrix: {}}}", "optimizer.kinds has no kind 'matrix'. It knows: matrices: "),
        ("objective: {noise_means: 1}", "EDM has no setting 'noise_means'; did you mean 'noise_mean'"),
        ("schedule: {final_facto: 1}", "Cosine has no setting 'final_facto'; did you mean 'final_factor'"),
        ("resolution_stage: {step: 3}", "resolution_stage has no setting 'step'; did you mean 'steps'"),
        ("reading: {on_corupt: skip}", "reading has no setting 'on_corupt'; did you mean 'on_corrupt'"),
        ("data_mix: {source: []}", "data_mix has no setting 'source'; did you mean 'sources'"),
        ("paths: {data: here}", "paths has no setting 'data'; did you mean 'data_root'"),
        ("mask_ratio: {shares: 0.5}", "has no setting 'shares'; did you mean 'share'"),
        ("callbacks: {sample: {}}", "callbacks has no setting 'sample'; did you mean 'samples'"),
        ("callbacks: {samples: {prompt: []}}", "has no setting 'prompt'; did you mean 'prompts'"),
        ("variation: {patch_mixer_dpeth: 2}", "variation has no setting 'patch_mixer_dpeth'; did you mean"),
        ("traner: {max_steps: 3}", "the configuration has no setting 'traner'; did you mean 'trainer'"),
    ],
)
def test_a_misspelt_key_in_a_bundle_is_refused_with_the_list(write_bundle, content, message):
    config = compose(*write_bundle(content))
    with pytest.raises(SettingsError) as caught:
        read(config)
    assert message in str(caught.value)
    assert "It knows: " in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: {dpeth: 3}", "model has no setting 'dpeth'; did you mean 'depth'"),
        ("moe: {num_expert: 3}", "model has no setting 'num_expert'; did you mean 'num_experts'"),
        ("masking: {ratio: 0.5}", "Deferred has no setting 'ratio'"),
        ("autoencoder: {sigma: 1.0}", "PixelAutoencoder has no setting 'sigma'"),
        ("text_encoder: {lenght: 3}", "WordsTextEncoder has no setting 'lenght'; did you mean 'length'"),
    ],
)
def test_a_misspelt_key_of_the_network_or_its_encoders_is_refused(write_bundle, content, message):
    config = compose(*write_bundle(content))
    with pytest.raises(SettingsError) as caught:
        network_on_meta(read(config))
    assert message in str(caught.value)


def test_a_misspelt_key_added_on_the_command_line_is_refused():
    with pytest.raises(SettingsError, match=r"trainer has no setting 'max_step'.*It knows: accelerator, .*max_steps"):
        read(compose("+trainer.max_step=3"))


@pytest.mark.parametrize("share", ["1.0", "1.5", "-0.1", "nan"])
def test_a_mask_ratio_outside_zero_to_one_is_refused_when_settings_are_read(share):
    with pytest.raises(SettingsError, match=r"^mask_ratio\.share must be a number from 0 to"):
        read(compose(f"mask_ratio.share={share}"))
    with pytest.raises(SettingsError, match=r"^mask_ratio\.first must be a number from 0 to"):
        read(compose("mask_ratio=falling", f"mask_ratio.first={share}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+resolution_stage.schedule=linear", "resolution_stage has no setting 'schedule'"),
        ("optimizer._target_=torch.optim.Adamw", "'torch.optim.Adamw' cannot be imported"),
        ("objective._target_=microdit.model.dit.DiT", "does not make a Objective"),
        ("resolution_stage.caption_dropout=1.0", "caption_dropout must be a number from 0 to 0.9999, got 1.0"),
        ("resolution_stage.ema_decay=1.0", "ema_decay must be a number from .* or null, got 1.0"),
        ("trainer.max_steps=0", "trainer.max_steps must be a whole number from 1 to 1,000,000,000, got 0"),
        ("~resolution_stage.steps", "resolution_stage also needs: steps"),
        (
            "metrics.compositional.sampling.seed=null",
            r"^metrics\.compositional\.sampling\.seed must be a whole number from 0 to .*, got None",
        ),
        ("~metrics.compositional.sampling.seed", r"^metrics\.compositional\.sampling also needs: seed"),
        ("+metrics.compositional.sampling.batch_size=3", r"^metrics\.compositional\.sampling has no setting 'batch_s"),
        (
            "metrics.compositional.sampling.sampler=ddim",
            r"^metrics\.compositional\.sampling\.sampler must be a text of",
        ),
    ],
)
def test_values_that_cannot_be_meant_are_refused(override, message):
    with pytest.raises(SettingsError, match=message):
        read(compose(override, *(["trainer.max_steps=3"] if override.startswith("~") else [])))


def test_the_stages_are_the_papers_table():
    rows = {
        "res256_pretrain": (256, 250_000, 2.4e-4, "cosine", 2500, 0.25, None, -0.6, 1.2, 1.0),
        "res256_finetune": (256, 30_000, 8e-5, "constant", 0, 0.25, None, -0.6, 1.2, 1.0),
        "res512_pretrain": (512, 50_000, 8e-5, "constant", 500, 0.5, 0.99975, 0.0, 0.6, 2.0),
        "res512_finetune": (512, 5_000, 8e-5, "constant", 0, 0.5, 0.9975, 0.0, 0.6, 2.0),
    }
    for name, row in rows.items():
        settings = read(compose(f"resolution_stage={name}", "optimizer=adamw"))
        s, objective, schedule = settings.resolution_stage, settings.objective, settings.schedule
        kind = type(schedule).__name__.lower()
        where_how_long = (s.resolution_px, s.steps, settings.optimizer["lr"], kind, schedule.warmup_steps)
        levels = objective["noise_mean"], objective["noise_std"]
        rest = (s.gradient_clip_norm, s.ema_decay, *levels, s.pos_interp_scale)
        assert where_how_long + rest == row, name
        assert (s.global_batch_size, s.caption_dropout) == (2048, 0.1)
    assert read(compose("resolution_stage=res256_pretrain")).schedule.final_factor == 0.33
    starts = [read(compose(f"resolution_stage={name}")).resolution_stage.ema_start_step for name in rows]
    assert starts[2:] == [25_000, 1_000]
    adamw = OmegaConf.to_container(compose("+scale=xl").optimizer)
    paper = {"_target_": "torch.optim.AdamW", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1}
    assert adamw.items() >= paper.items()
