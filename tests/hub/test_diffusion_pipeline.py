"""What a call of the pipeline for diffusers does, beside drawing our pictures (test_diffusers_folder.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EDMDPMSolverMultistepScheduler, EDMEulerScheduler

from microdit.checkpoints.export import read_weights
from microdit.hub.diffusers_folder import WEIGHTS, transformer_config
from microdit.hub.diffusion_pipeline import MicroDiTPipeline
from microdit.hub.transformer import MicroDiTTransformer2DModel
from microdit.hub.words_text_encoder import MicroDiTTextEncoder
from microdit.pipeline import LatentDiffusion, build_pipeline, start_noise

PROMPTS = ["a red circle", "two blue squares"]
SAMPLING = {"sampler": "dpm_solver_2m", "num_inference_steps": 4, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def ours(pipeline_settings, wake) -> LatentDiffusion:
    torch.manual_seed(0)
    made = build_pipeline({**pipeline_settings, "sampling": SAMPLING})
    wake(made.dit)
    return made


@pytest.fixture
def pipeline(ours) -> MicroDiTPipeline:
    config = {name: value for name, value in transformer_config(ours).items() if not name.startswith("_")}
    transformer = MicroDiTTransformer2DModel(**config)
    transformer.load_state_dict(ours.dit.state_dict())
    text_encoder = MicroDiTTextEncoder(ours.text_encoder.channels, ours.text_encoder.length)
    scheduler = EDMDPMSolverMultistepScheduler(sigma_data=ours.objective.sigma_data)
    made = MicroDiTPipeline(transformer.eval(), text_encoder, scheduler, None, SAMPLING)
    made.set_progress_bar_config(disable=True)
    return made


def noise(ours: LatentDiffusion, count: int, seed: int = 3) -> torch.Tensor:
    return torch.stack([start_noise(seed, i, ours.latent_shape()) for i in range(count)])


@pytest.mark.parametrize("sampler", ["heun", "dpm_solver_2m"])
@pytest.mark.parametrize(
    "told",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 4.0, "guidance_interval": [0.5, 5.0]},
        {"guidance_interval": [1.0, 80.0], "num_inference_steps": 7},
        {"temperature": 0.5, "num_inference_steps": 16},
    ],
    ids=str,
)
def test_what_a_call_says_is_what_ours_does(ours, pipeline, sampler, told):
    expected = ours.generate(PROMPTS, seed=3, sampler=sampler, **told)
    if sampler == "heun":
        pipeline.scheduler = EDMEulerScheduler.from_config(pipeline.scheduler.config)
    images = pipeline(PROMPTS, latents=noise(ours, 2), output_type="pt", heun=sampler == "heun", **told).images
    assert (images - expected).abs().max() < 1e-3
    assert not torch.allclose(images, pipeline(PROMPTS, latents=noise(ours, 2), output_type="pt").images, atol=1e-2)


def test_a_generator_makes_the_noise_and_each_picture_may_have_its_own(pipeline):
    def drawn(prompts: list[str], seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipeline(prompts, generator=generators, output_type="pt").images

    both = drawn(PROMPTS, [1, 2])
    assert torch.allclose(both[1:], drawn(PROMPTS[1:], [2]), atol=1e-3)
    assert not torch.allclose(both[1:], drawn(PROMPTS[1:], [3]), atol=1e-2)


def test_several_pictures_of_each_prompt_stand_side_by_side(pipeline, ours):
    latents = noise(ours, 4)
    four = pipeline(PROMPTS, num_images_per_prompt=2, latents=latents, output_type="pt").images
    same = pipeline([PROMPTS[0]] * 2 + [PROMPTS[1]] * 2, latents=latents, output_type="pt").images
    assert torch.allclose(four, same, atol=1e-4)


def test_zeros_stand_for_no_caption_unless_a_negative_prompt_is_given(pipeline, ours):
    positive, negative = pipeline.encode_prompt(PROMPTS)
    assert torch.equal(positive, ours.text_encoder.encode(PROMPTS))
    assert not negative.any()
    assert torch.equal(
        pipeline.encode_prompt(PROMPTS, "a ring")[1], ours.text_encoder.encode(["a ring"]).expand(2, -1, -1)
    )
    given = {"latents": noise(ours, 2), "output_type": "pt"}
    usual, led = pipeline(PROMPTS, **given).images, pipeline(PROMPTS, negative_prompt="a ring", **given).images
    assert not torch.allclose(usual, led, atol=1e-2)
    embeds = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    assert torch.equal(pipeline(**embeds, **given).images, usual)


@pytest.mark.parametrize("heun", [False, True])
def test_a_callback_sees_each_step_and_may_change_the_latents(pipeline, ours, heun):
    if heun:
        pipeline.scheduler = EDMEulerScheduler.from_config(pipeline.scheduler.config)
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else {}

    names = ["latents", "prompt_embeds"]
    told = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names, "heun": heun}
    latents = pipeline(PROMPTS, output_type="latent", **told).images
    assert seen == [(step, names) for step in range(4)]
    assert not latents.any()


def test_the_kinds_of_output_are_the_same_picture(pipeline, ours):
    def drawn(kind: str):
        return pipeline(PROMPTS[0], latents=noise(ours, 1), output_type=kind, return_dict=False)[0]

    picture, array, tensor = drawn("pil")[0], drawn("np"), drawn("pt")
    assert picture.size == (8, 8)
    assert np.abs(np.asarray(picture) / 255 - array[0]).max() < 0.003
    assert np.allclose(tensor.permute(0, 2, 3, 1).numpy(), array)
    assert torch.allclose((drawn("latent") / 2 + 0.5).clamp(0, 1), tensor)


def test_weights_of_half_the_bits_draw_nearly_the_same(pipeline, ours):
    given = {"latents": noise(ours, 2), "output_type": "pt"}
    exact = pipeline(PROMPTS, **given).images
    coarse = pipeline.to(torch.bfloat16)(PROMPTS, **given).images
    assert coarse.dtype == torch.float32
    assert 0 < (coarse - exact).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"prompt": None}, "either prompt or prompt_embeds"),
        ({"height": 9}, "multiples of 2 pixels, got 9 and 8"),
        ({"guidance_interval": [2.0, 1.0]}, "0 <= low < high"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, r"latents are \[1, 3, 8, 8\]"),
        ({"heun": True}, "EDMEulerScheduler"),
        ({"negative_prompt": ["a", "b", "c"]}, "prompts and negative prompts differ"),
        ({"callback_on_step_end_tensor_inputs": ["images"]}, "not images"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(pipeline, told, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**{"prompt": PROMPTS, **told})


def test_a_scheduler_that_is_not_of_edm_is_refused(pipeline):
    pipeline.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="DDIMScheduler is no scheduler of diffusers for EDM"):
        pipeline(PROMPTS)


def test_the_transformer_alone_is_written_and_read_as_any_model_of_diffusers(pipeline, tmp_path: Path):
    pipeline.transformer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["masking"]["name"] == "Deferred"
    assert read_weights(tmp_path / WEIGHTS).keys() == pipeline.transformer.state_dict().keys()
    again = MicroDiTTransformer2DModel.from_pretrained(tmp_path)
    assert not again.training
    half = MicroDiTTransformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    for name, value in pipeline.transformer.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value.to(torch.bfloat16), half.state_dict()[name])
