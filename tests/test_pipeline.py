"""Pictures from prompts: what they depend on, what is refused, and saving and loading."""

import json

import pytest
import torch

from microdit.build import SettingsError
from microdit.checkpoints.export import read_weights
from microdit.checkpoints.reading import CheckpointError
from microdit.encoders.pixel import PixelAutoencoder
from microdit.encoders.words import WordsTextEncoder
from microdit.objectives.edm import EDM
from microdit.objectives.objective import denoise
from microdit.pipeline import (
    LatentDiffusion,
    build_network,
    build_pipeline,
    objective_of,
    sampling_of,
    start_noise,
)
from microdit.sampling.guidance import guided
from microdit.sampling.samplers import heun, noise_schedule

PROMPTS = ["a red circle", "a blue square on wood", "two rings"]
STEPS = {"num_inference_steps": 3}


@pytest.fixture(scope="module")
def settings(pipeline_settings) -> dict:
    return pipeline_settings


@pytest.fixture(scope="module")
def pipeline(settings, wake) -> LatentDiffusion:
    torch.manual_seed(0)
    made = build_pipeline(settings)
    wake(made.dit)
    return made


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4, rtol=0)


def test_pictures_are_in_zero_to_one_and_differ_by_prompt(pipeline):
    pictures = pipeline.generate(PROMPTS, seed=1, **STEPS)
    assert pictures.shape == (3, 3, 8, 8)
    assert pictures.dtype == torch.float32
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert pictures.std() > 0.05
    captions_only = [pipeline.generate([prompt], seed=1, **STEPS) for prompt in PROMPTS]
    assert not close(captions_only[0], captions_only[1])


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_a_seed_gives_the_same_pictures_whatever_the_batch_size(pipeline, batch_size, guidance_scale):
    given = {"seed": 3, "guidance_scale": guidance_scale, **STEPS}
    expected = pipeline.generate(PROMPTS, batch_size=3, **given)
    assert close(pipeline.generate(PROMPTS, batch_size=batch_size, **given), expected)


def test_a_picture_does_not_depend_on_the_other_prompts(pipeline):
    one = pipeline.generate(PROMPTS[0], seed=3, **STEPS)
    assert close(pipeline.generate([PROMPTS[0], "nine green crosses"], seed=3, **STEPS)[:1], one)


def test_pictures_of_the_same_prompt_differ(pipeline):
    first, second = pipeline.generate([PROMPTS[0]] * 2, seed=3, **STEPS)
    assert not close(first, second)


def test_seed_zero_is_a_seed_and_no_seed_is_chance(pipeline):
    zero, again, one = (pipeline.generate(PROMPTS, seed=seed, **STEPS) for seed in (0, 0, 1))
    assert torch.equal(zero, again)
    assert not close(zero, one)
    chance, other = (pipeline.generate(PROMPTS, **STEPS) for _ in range(2))
    assert not close(chance, other)
    assert not close(chance, zero)


def test_generating_neither_reads_nor_moves_torchs_global_generator(pipeline):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = pipeline.generate(PROMPTS, seed=1, **STEPS)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert torch.equal(pipeline.generate(PROMPTS, seed=1, **STEPS), first)


def test_start_noise_is_unit_normal_and_its_own_for_each_seed_and_picture():
    draws = torch.stack([start_noise(seed, index, (3, 16, 16)) for seed in range(6) for index in range(6)])
    assert draws.mean().abs() < 0.03
    assert (draws.std() - 1).abs() < 0.03
    correlation = torch.corrcoef(draws.flatten(1)) - torch.eye(36)
    assert correlation.abs().max() < 0.2
    assert torch.equal(start_noise(2, 5, (3, 4, 4)), start_noise(2, 5, (3, 4, 4)))


def test_tokenized_prompts_equal_prompts(pipeline):
    tokens = pipeline.text_encoder.tokenize(PROMPTS)
    given = {"seed": 2, **STEPS}
    assert torch.equal(pipeline.generate(tokenized_prompts=tokens, **given), pipeline.generate(PROMPTS, **given))


def test_a_single_prompt_may_be_a_string(pipeline):
    assert torch.equal(pipeline.generate(PROMPTS[0], seed=2, **STEPS), pipeline.generate([PROMPTS[0]], seed=2, **STEPS))


def test_no_prompts_make_no_pictures(pipeline):
    assert pipeline.generate([], seed=2, **STEPS).shape == (0, 3, 8, 8)


def test_pictures_that_no_machine_has_room_for_are_refused_before_they_are_drawn(pipeline, monkeypatch):
    with pytest.raises(SettingsError, match=r"1 pictures at once take [\d,]+ GB.*lower batch_size"):
        pipeline.generate(["a ring"], image_size=(8 << 20, 8 << 20))
    monkeypatch.setattr("os.sysconf", lambda name: 8)
    with pytest.raises(SettingsError, match=r"10 pictures at once take"):
        next(pipeline.growing(["a ring"] * 10, seed=0))


@pytest.mark.parametrize("return_latents", [False, True])
def test_no_picture_is_made_of_what_are_no_numbers(settings, return_latents):
    """It would be black, and nobody would know why."""
    broken = build_pipeline(settings)
    torch.nn.init.constant_(broken.dit.final_layer.linear.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="no finite numbers: the network's weights or settings"):
        broken.generate("a circle", num_inference_steps=2, return_latents=return_latents)


def test_a_batch_of_no_pictures_is_refused(pipeline):
    with pytest.raises(ValueError, match="1 or more, got 0"):
        pipeline.generate(PROMPTS, batch_size=0, **STEPS)


@pytest.mark.parametrize("both", [True, False])
def test_both_or_neither_kind_of_prompt_is_refused(pipeline, both):
    given = {"prompt": PROMPTS, "tokenized_prompts": pipeline.text_encoder.tokenize(PROMPTS)} if both else {}
    with pytest.raises(ValueError, match=r"either prompt=\.\.\. or tokenized_prompts="):
        pipeline.generate(**given)


def test_latents_are_what_the_autoencoder_decodes(pipeline):
    given = {"seed": 2, **STEPS}
    latents = pipeline.generate(PROMPTS, return_latents=True, **given)
    assert latents.min() < 0, "latents of the pixel autoencoder are in about [-1, 1]"
    assert torch.equal(pipeline.autoencoder.decode(latents), pipeline.generate(PROMPTS, **given))


@torch.no_grad()
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_reading_captions_once_leaves_the_picture_of_plain_heun_as_it_was(pipeline, guidance_scale):
    captions = pipeline.text_encoder.encode(PROMPTS)
    network = guided(pipeline.dit, guidance_scale)

    def plain(x, sigma):
        return denoise(network, x.float(), torch.full((3, 1, 1, 1), sigma), captions, EDM(0.5)).double()

    noise = torch.stack([start_noise(4, i, (3, 8, 8)) for i in range(3)])
    *_, latents = heun(plain, noise, noise_schedule(30))
    images = pipeline.generate(PROMPTS, seed=4, guidance_scale=guidance_scale, num_inference_steps=30)
    torch.testing.assert_close(images, pipeline.autoencoder.decode(latents.float()), atol=1e-3, rtol=0)


def test_samplers_differ_with_few_steps_and_agree_with_many(pipeline):
    def latents(sampler: str, steps: int) -> torch.Tensor:
        given = {"seed": 4, "guidance_scale": 1.0, "return_latents": True}
        return pipeline.generate(PROMPTS, sampler=sampler, num_inference_steps=steps, **given)

    few, many = ((latents("heun", n) - latents("dpm_solver_2m", n)).abs().mean() for n in (4, 32))
    assert few > 5 * many


def test_a_sampler_it_does_not_know_is_refused(pipeline):
    with pytest.raises(ValueError, match=r"sampling\.sampler must be a text of heun, dpm_solver_2m, got 'ddim'"):
        pipeline.generate(PROMPTS, sampler="ddim")


def test_guidance_in_an_interval_is_guidance_if_the_interval_holds_every_level(pipeline):
    given = {"seed": 4, "guidance_scale": 3.0, "return_latents": True, **STEPS}
    everywhere = pipeline.generate(PROMPTS, **given)
    assert torch.equal(pipeline.generate(PROMPTS, guidance_interval=[0, 80], **given), everywhere)
    somewhere = pipeline.generate(PROMPTS, guidance_interval=[0.1, 10], **given)
    nowhere = pipeline.generate(PROMPTS, guidance_interval=[100, 200], **given)
    assert not close(somewhere, everywhere)
    assert not close(somewhere, nowhere)
    assert torch.equal(nowhere, pipeline.generate(PROMPTS, **{**given, "guidance_scale": 1.0}))


def test_autoguidance_is_away_from_another_network_that_reads_the_same(settings, pipeline, wake):
    weaker = build_pipeline({**settings, "model": {**settings["model"], "depth": 2}})
    wake(weaker.dit)
    weaker.dit.train()
    given = {"seed": 4, "return_latents": True, **STEPS}
    apart = pipeline.generate(PROMPTS, guidance="autoguidance", weaker=weaker, guidance_scale=3.0, **given)
    unguided = pipeline.generate(PROMPTS, guidance_scale=1.0, **given)
    assert weaker.dit.training
    assert not close(apart, unguided)
    assert not close(apart, pipeline.generate(PROMPTS, guidance_scale=3.0, **given))
    # From itself a network goes nowhere, and a scale of 0 is the weaker one.
    itself = pipeline.generate(PROMPTS, guidance="autoguidance", weaker=pipeline, guidance_scale=3.0, **given)
    assert close(itself, unguided)
    other_end = pipeline.generate(PROMPTS, guidance="autoguidance", weaker=weaker, guidance_scale=0.0, **given)
    assert close(other_end, weaker.generate(PROMPTS, guidance_scale=1.0, **given))


def test_guidance_that_cannot_be_had_is_refused_before_anything_is_drawn(settings, pipeline):
    counted = []
    given = {"progress": lambda *done: counted.append(done), **STEPS}
    with pytest.raises(ValueError, match="the weaker network to guide away from go together"):
        pipeline.generate(PROMPTS, guidance="autoguidance", **given)
    with pytest.raises(ValueError, match="the weaker network to guide away from go together"):
        pipeline.generate(PROMPTS, weaker=pipeline, **given)
    with pytest.raises(SettingsError, match="Deferred has no cheap pass to guide away from"):
        pipeline.generate(PROMPTS, guidance="path_drop", **given)
    with pytest.raises(SettingsError, match=r"sampling\.guidance must be a text of captions, path_drop, autoguidance"):
        pipeline.generate(PROMPTS, guidance="none", **given)
    longer = {**settings["text_encoder"], "length": 7}
    other = build_pipeline({**settings, "text_encoder": longer})
    with pytest.raises(SettingsError, match="the weaker one's text_encoder is another one, or has other settings"):
        pipeline.generate(PROMPTS, guidance="autoguidance", weaker=other, **given)
    assert not counted


def test_path_drop_guidance_is_kept_with_the_pipeline_and_used(settings, wake, tmp_path):
    path = {"_target_": "microdit.masking.sprint.Sprint", "first_share": 0.25, "last_share": 0.25, "path_drop": 0.1}
    made = build_pipeline({**settings, "token_path": path, "sampling": {"guidance": "path_drop"}})
    wake(made.dit)
    given = {"seed": 4, "guidance_scale": 3.0, "return_latents": True, **STEPS}
    usual = made.generate(PROMPTS, **given)
    assert not close(usual, made.generate(PROMPTS, guidance="captions", **given))
    made.save(tmp_path)
    assert close(LatentDiffusion.load(tmp_path).generate(PROMPTS, **given), usual)


def test_temperature_scales_the_noise_that_pictures_start_from(pipeline, monkeypatch):
    given = {"seed": 4, "return_latents": True, **STEPS}
    cooler = pipeline.generate(PROMPTS, temperature=0.5, **given)
    assert torch.equal(pipeline.generate(PROMPTS, temperature=1.0, **given), pipeline.generate(PROMPTS, **given))
    monkeypatch.setattr("microdit.pipeline.start_noise", lambda *key: 0.5 * start_noise(*key))
    assert torch.equal(pipeline.generate(PROMPTS, **given), cooler)


def test_the_precision_is_that_of_the_networks_products(pipeline):
    exact, default, rounded = (
        pipeline.generate(PROMPTS, seed=1, precision=precision, return_latents=True, **STEPS)
        for precision in ("fp32", None, "bf16")
    )
    assert torch.equal(exact, default)  # on a CPU
    assert rounded.dtype == torch.float32
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-5 < error < 0.5
    with pytest.raises(ValueError, match=r"^precision must be a text of fp32, bf16 or null, got 'fp8'"):
        pipeline.generate(PROMPTS, precision="fp8", **STEPS)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(pipeline, temperature):
    with pytest.raises(ValueError, match=r"sampling\.temperature must be a number"):
        pipeline.generate(PROMPTS, temperature=temperature, **STEPS)


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (16, 6)])
def test_image_size_is_height_and_width_in_pixels(pipeline, size):
    assert pipeline.generate(PROMPTS[0], seed=1, image_size=size, **STEPS).shape == (1, 3, *size)


@pytest.mark.parametrize("size", [(7, 8), (8, 9), (0, 8), (-8, 8)])
def test_an_image_size_that_patches_do_not_divide_is_refused(pipeline, size):
    with pytest.raises(ValueError, match="both sides must be multiples of 2 pixels"):
        pipeline.generate(PROMPTS[0], image_size=size, **STEPS)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize(("sampler", "evaluations"), [("heun", 5), ("dpm_solver_2m", 3)])
def test_progress_counts_every_evaluation_of_every_batch(pipeline, batch_size, sampler, evaluations):
    seen = []

    def progress(*counts):
        seen.append(counts)

    pipeline.generate(PROMPTS, sampler=sampler, batch_size=batch_size, progress=progress, **STEPS)
    total = evaluations * -(-3 // batch_size)
    assert seen == [(i, total) for i in range(1, total + 1)]


@pytest.mark.parametrize("sampler", ["heun", "dpm_solver_2m"])
def test_pictures_grow_into_those_that_are_generated(pipeline, sampler):
    told = {"sampler": sampler, "num_inference_steps": 5, "guidance_scale": 3.0}
    grown = list(pipeline.growing(PROMPTS, 7, **told))
    assert [one.shape for one in grown] == [(3, 3, 8, 8)] * 5
    assert torch.equal(grown[-1], pipeline.generate(PROMPTS, seed=7, **told))
    distances = [(one - grown[-1]).abs().mean().item() for one in grown]
    assert distances == sorted(distances, reverse=True)  # what is believed changes less and less


def test_growing_may_be_left_in_the_middle(pipeline):
    pipeline.dit.train()
    growing = pipeline.growing(PROMPTS, 7, num_inference_steps=5)
    next(growing)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled()
    growing.close()
    assert pipeline.dit.training
    pipeline.dit.eval()


@pytest.mark.parametrize("training", [True, False])
def test_the_networks_mode_is_left_as_it_was(pipeline, training):
    pipeline.dit.train(training)
    pipeline.generate(PROMPTS[0], seed=1, **STEPS)
    assert pipeline.dit.training is training


def test_sigma_data_is_the_autoencoders_unless_given(pipeline):
    parts = pipeline.dit, pipeline.autoencoder, pipeline.text_encoder
    assert LatentDiffusion(*parts).objective.sigma_data == 0.5
    assert LatentDiffusion(*parts, objective=EDM(0.8)).objective.sigma_data == 0.8


def test_encoders_that_do_not_fit_the_network_are_refused(pipeline, small_network):
    with pytest.raises(SettingsError, match="works on 4 latent channels, the autoencoder makes 3"):
        LatentDiffusion(small_network(in_channels=4), pipeline.autoencoder, pipeline.text_encoder)
    with pytest.raises(SettingsError, match="reads captions 16 wide, the text encoder has 24"):
        LatentDiffusion(pipeline.dit, PixelAutoencoder(), WordsTextEncoder(24, 6))


def test_a_pipeline_is_drawn_as_its_settings_say_unless_told_otherwise(settings, pipeline, tmp_path):
    drawn_so = {"sampler": "dpm_solver_2m", "num_inference_steps": 4, "guidance_scale": 2.0, "temperature": 0.6}
    drawn_so |= {"guidance_interval": [1.0, 80.0]}
    made = build_pipeline({**settings, "sampling": drawn_so})
    made.dit.load_state_dict(pipeline.dit.state_dict())
    assert close(made.generate(PROMPTS, seed=2), pipeline.generate(PROMPTS, seed=2, **drawn_so))
    otherwise = {"guidance_interval": "all", "temperature": 1.0}
    told = made.generate(PROMPTS, seed=2, **otherwise)
    assert close(told, pipeline.generate(PROMPTS, seed=2, **{**drawn_so, **otherwise}))
    assert not close(told, made.generate(PROMPTS, seed=2))
    made.save(tmp_path)
    assert LatentDiffusion.load(tmp_path).sampling == made.sampling == made.with_network(pipeline.dit).sampling


def test_saving_and_loading_gives_the_same_pictures(pipeline, tmp_path):
    pipeline.save(tmp_path / "a" / "b")
    loaded = LatentDiffusion.load(tmp_path / "a" / "b")
    assert loaded.objective == pipeline.objective
    assert torch.equal(loaded.generate(PROMPTS, seed=5, **STEPS), pipeline.generate(PROMPTS, seed=5, **STEPS))


def test_weights_in_half_the_precision_are_float32_again_once_they_are_read(pipeline, tmp_path):
    pipeline.save(tmp_path, torch.float16)
    assert {tensor.dtype for tensor in read_weights(tmp_path / "weights.safetensors").values()} == {torch.float16}
    loaded = LatentDiffusion.load(tmp_path).dit.state_dict()
    for name, tensor in pipeline.dit.state_dict().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], tensor.half().float())


def test_a_sigma_data_of_its_own_survives_saving(pipeline, tmp_path):
    made = LatentDiffusion(
        pipeline.dit, pipeline.autoencoder, pipeline.text_encoder, objective=EDM(0.8), settings=pipeline.settings
    )
    made.save(tmp_path)
    assert LatentDiffusion.load(tmp_path).objective.sigma_data == 0.8


def test_a_pipeline_without_settings_cannot_be_saved(pipeline, tmp_path):
    with pytest.raises(ValueError, match="built without settings"):
        LatentDiffusion(pipeline.dit, pipeline.autoencoder, pipeline.text_encoder).save(tmp_path)


@pytest.fixture
def run(pipeline, tmp_path):
    """A folder as training leaves it: two checkpoints, each with trained weights and their moving average."""
    (tmp_path / "pipeline.json").write_text(json.dumps(pipeline.settings))
    (tmp_path / "checkpoints").mkdir()
    for step in (9, 10):
        state = {}
        for key, value in pipeline.dit.state_dict().items():
            state[f"network.{key}"], state[f"ema.{key}"] = value + step, value - step
        torch.save({"state_dict": state}, tmp_path / "checkpoints" / f"step_{step}.ckpt")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "weights", "shift"),
    [("", "ema", -10), ("", "raw", 10), ("checkpoints/step_9.ckpt", "ema", -9), ("checkpoints/step_9.ckpt", "raw", 9)],
)
def test_a_run_is_loaded_from_its_newest_checkpoint_or_the_one_named(pipeline, run, name, weights, shift):
    loaded = LatentDiffusion.load(run / name, weights)
    assert torch.equal(loaded.dit.x_embedder.proj.weight, pipeline.dit.x_embedder.proj.weight + shift)


def test_a_checkpoint_of_another_network_lists_what_does_not_fit(run, pipeline):
    other = {**pipeline.settings, "model": {**pipeline.settings["model"], "depth": 5, "patch_mixer_dim": 24}}
    (run / "pipeline.json").write_text(json.dumps(other))
    with pytest.raises(CheckpointError) as caught:
        LatentDiffusion.load(run)
    assert "missing blocks.4.adaLN_modulation.1.bias" in str(caught.value)
    assert "more" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "value", "read"),
    [
        ("objective", True, objective_of),
        ("objective", ["x"], LatentDiffusion.load),
        ("sampling", None, sampling_of),
        ("model", "lacking", LatentDiffusion.load),
    ],
)
def test_a_part_of_another_kind_is_named_with_its_file(run, pipeline, part, value, read):
    model = {name: one for name, one in pipeline.settings["model"].items() if name != "pos_interp_scale"}
    settings = {**pipeline.settings, part: model if value == "lacking" else value}
    (run / "pipeline.json").write_text(json.dumps(settings))
    with pytest.raises(SettingsError, match=rf"pipeline\.json: {part} (must be settings|also needs: pos_interp_scale)"):
        read(run)


def test_a_folder_that_holds_no_pipeline_says_what_to_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no pipeline\.json: name the folder of a training run"):
        LatentDiffusion.load(tmp_path)


def test_a_run_that_ended_early_says_so(pipeline, tmp_path):
    (tmp_path / "pipeline.json").write_text(json.dumps(pipeline.settings))
    with pytest.raises(CheckpointError, match="ended before its first checkpoint"):
        LatentDiffusion.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("dpeth", r"model has no setting 'dpeth'; did you mean 'depth'\?"),
        ("use_patch_mixer", "model has no setting 'use_patch_mixer'"),  # the token path decides it
        ("in_channels", "model has no setting 'in_channels'"),  # the autoencoder decides it
    ],
)
def test_a_setting_the_network_does_not_know_is_refused(settings, key, message):
    with pytest.raises(SettingsError, match=message):
        build_network({**settings["model"], key: 1}, settings["token_path"], 3, 16)


def test_the_token_path_decides_whether_there_is_a_mixer(settings):
    for name, blocks in (("deferred.Deferred", 2), ("naive.Naive", 0), ("none.Unmasked", 0)):
        path = {"_target_": f"microdit.masking.{name}"}
        assert len(build_network(settings["model"], path, 3, 16).patch_mixer) == blocks


def test_on_meta_nothing_is_allocated_for_the_network(settings):
    assert {p.device.type for p in build_pipeline(settings, device="meta").dit.parameters()} == {"meta"}
