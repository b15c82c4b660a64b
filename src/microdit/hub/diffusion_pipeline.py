"""Captions to pictures as a pipeline of diffusers; an exported folder has this module with all that it needs."""

import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from microdit.objectives.edm import EDM
from microdit.objectives.objective import Objective, denoise
from microdit.objectives.rectified_flow import RectifiedFlow
from microdit.objectives.x_prediction import XPrediction
from microdit.sampling.guidance import within
from microdit.sampling.samplers import heun_step

OBJECTIVES = {each.__name__: each for each in (EDM, RectifiedFlow, XPrediction)}
CODE = "pipeline"  # the name of this file in a folder


class MicroDiTPipeline(DiffusionPipeline):
    """Text to pictures.

    `transformer` is a MicroDiTTransformer2DModel, `text_encoder` tokenizes captions and gives a vector a token, `vae`
    turns latents into pictures, or is None where the network draws pixels. `scheduler` is one of diffusers' for EDM:
    EDMDPMSolverMultistepScheduler, or EDMEulerScheduler, whose steps are made second order where `sampling` or a call
    says so (Heun). `sampling`: what a call does unless told otherwise (num_inference_steps, guidance_scale, ...).
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: ClassVar[list[str]] = ["vae"]
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(
        self,
        transformer: ModelMixin,
        text_encoder: ModelMixin,
        scheduler: EDMDPMSolverMultistepScheduler | EDMEulerScheduler,
        vae: AutoencoderKL | None = None,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, text_encoder=text_encoder, scheduler=scheduler, vae=vae)
        self.register_to_config(sampling=dict(sampling or {}))
        self.image_processor = VaeImageProcessor(do_resize=False)

    @property
    def objective(self) -> Objective:
        """What the network learned: how it is called, and what its output means."""
        settings = dict(self.transformer.config.objective)
        return OBJECTIVES[settings.pop("name")](**settings)

    @property
    def patch_px(self) -> int:
        """Pixels along a side that are channels for the autoencoder's network: 1 for most."""
        return 1 if self.vae is None else math.isqrt(self.vae.config.in_channels // 3)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent, along each side."""
        return 1 if self.vae is None else self.patch_px * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        device: torch.device | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
    ) -> tuple[Float[Tensor, "n l d"], Float[Tensor, "n l d"]]:
        """The captions' vectors, and those to lead away from: zeros, as in training, if no other caption is given.

        ValueError where a prompt and its vectors are both given or both absent, or numbers of prompts differ.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("give either prompt or prompt_embeds")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("give either negative_prompt or negative_prompt_embeds")

        def encoded(captions: str | Sequence[str]) -> Tensor:
            texts = [captions] if isinstance(captions, str) else list(captions)
            return self.text_encoder(self.text_encoder.tokenize(texts).to(device or self._execution_device))

        embeds = encoded(prompt) if prompt is not None else prompt_embeds
        assert embeds is not None
        if negative_prompt is not None:
            negative_prompt_embeds = encoded(negative_prompt)
        if negative_prompt_embeds is None:
            negative_prompt_embeds = torch.zeros_like(embeds)
        elif len(negative_prompt_embeds) == 1:
            negative_prompt_embeds = negative_prompt_embeds.expand_as(embeds)
        if negative_prompt_embeds.shape != embeds.shape:
            raise ValueError(
                f"prompts and negative prompts differ: {list(embeds.shape)} and {list(negative_prompt_embeds.shape)}"
            )
        repeated = (each.repeat_interleave(num_images_per_prompt, dim=0) for each in (embeds, negative_prompt_embeds))
        positive, negative = (each.to(device or self._execution_device) for each in repeated)
        return positive, negative

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | str | None = None,
        temperature: float | None = None,
        heun: bool | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Float[Tensor, "n c h w"] | None = None,
        prompt_embeds: Float[Tensor, "m l d"] | None = None,
        negative_prompt_embeds: Float[Tensor, "m l d"] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Pictures: `num_images_per_prompt` of each prompt, as `output_type` says: "pil", "np", "pt" or "latent".

        `height`, `width`: pixels, by default those of training. `guidance_scale`: 1 is none, and half the work.
        `guidance_interval`: noise levels [low, high] that are guided, low < sigma <= high, or "all". `temperature`:
        scales the noise that pictures start from. `heun`: whether the Euler scheduler's steps are made second order.
        `latents`: that noise, of unit variance. `callback_on_step_end(pipeline, step, timestep, tensors)` gets the
        tensors named and may return others in their place. What is None is as `sampling` in the configuration says.

        Raises ValueError for sizes that patches and autoencoder do not divide, prompts as `encode_prompt`, an interval
        that is none, a scheduler that is none of EDM's, `heun` with another than the Euler scheduler, and callback
        tensors that there are not.
        """
        usual = {"num_inference_steps": 30, "guidance_scale": 5.0, "guidance_interval": "all", "temperature": 1.0}
        usual |= cast("Any", self.config).sampling
        steps = usual["num_inference_steps"] if num_inference_steps is None else num_inference_steps
        scale = usual["guidance_scale"] if guidance_scale is None else guidance_scale
        interval = usual["guidance_interval"] if guidance_interval is None else guidance_interval
        warmth: float = usual["temperature"] if temperature is None else temperature
        is_guided = within(None if isinstance(interval, str) else interval)
        is_euler = isinstance(self.scheduler, EDMEulerScheduler)
        second_order = is_euler and usual.get("sampler") == "heun" if heun is None else heun
        if not isinstance(self.scheduler, EDMEulerScheduler | EDMDPMSolverMultistepScheduler):
            raise ValueError(f"{type(self.scheduler).__name__} is no scheduler of diffusers for EDM: {self.__doc__}")
        if second_order and not is_euler:
            raise ValueError("heun=True makes steps of EDMEulerScheduler second order, and the scheduler is another")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"callbacks get {', '.join(self._callback_tensor_inputs)}; not {', '.join(sorted(unknown))}"
            )

        device = self._execution_device
        positive, negative = self.encode_prompt(
            prompt, negative_prompt, num_images_per_prompt, device, prompt_embeds, negative_prompt_embeds
        )
        shape = (len(positive), *self.latent_shape(height, width))
        noise = latents
        if noise is None:
            noise = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if tuple(noise.shape) != shape:
            raise ValueError(f"latents are {list(noise.shape)}, and for these prompts and this size {list(shape)}")
        self.scheduler.set_timesteps(steps, device=device)
        self.scheduler.set_begin_index(0)
        sigmas = [float(f"{sigma:.6g}") for sigma in self.scheduler.sigmas.tolist()]  # float32: 80 may be 80.00001
        start = warmth * sigmas[0] * noise.to(device, torch.float32)
        state: dict[str, Tensor] = {
            "latents": start,
            "prompt_embeds": positive,
            "negative_prompt_embeds": negative,
        }
        objective, by_path_drop = self.objective, usual.get("guidance") == "path_drop"

        def denoised(x: Tensor, sigma: float) -> Tensor:
            network = self.guided(state["negative_prompt_embeds"], scale if is_guided(sigma) else 1.0, by_path_drop)
            levels = torch.full((len(x), 1, 1, 1), sigma, device=device)
            return denoise(network, x, levels, state["prompt_embeds"], objective)

        progress: Any = self.progress_bar(total=steps)  # pyright: ignore[reportCallIssue] - it says nothing of its kind
        with progress:
            for i, timestep in enumerate(self.scheduler.timesteps):
                x = state["latents"]
                if second_order:
                    state["latents"] = heun_step(denoised, x, sigmas[i], sigmas[i + 1])
                else:
                    state["latents"] = self.scheduler_step(x, denoised(x, sigmas[i]), timestep)
                if callback_on_step_end is not None:
                    given = {name: state[name] for name in callback_on_step_end_tensor_inputs}
                    state |= callback_on_step_end(self, i, timestep, given) or {}
                progress.update()
        drawn = state["latents"]
        images = drawn if output_type == "latent" else self.decode(drawn, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)  # pyright: ignore[reportArgumentType]

    def guided(self, negative: Tensor, scale: float, by_path_drop: bool) -> Callable[..., Tensor]:
        """The raw network under guidance; at scale 1 the network."""

        def network(x: Tensor, noise_label: Tensor, captions: Tensor) -> Tensor:
            if scale == 1:
                return self.transformer(x, noise_label, captions, return_dict=False)[0]
            if by_path_drop:
                weak = self.transformer(x, noise_label, negative, without_middle=True, return_dict=False)[0]
                strong = self.transformer(x, noise_label, captions, return_dict=False)[0]
            else:
                both = x.repeat(2, 1, 1, 1), noise_label.repeat(2), torch.cat([captions, negative])
                strong, weak = self.transformer(*both, return_dict=False)[0].chunk(2)
            return weak + scale * (strong - weak)

        return network

    def scheduler_step(self, latents: Tensor, denoised: Tensor, timestep: Tensor) -> Tensor:
        """One step of the scheduler, which wants the raw output of an EDM network: what it has to be for `denoised`,
        whatever our network learned."""
        self.scheduler.scale_model_input(latents, timestep)  # finds its place
        sigma = self.scheduler.sigmas[self.scheduler.step_index].to(latents.device)
        zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)  # its formula is linear in sample and output
        c_skip = self.scheduler.precondition_outputs(one, zero, sigma)
        c_out = self.scheduler.precondition_outputs(zero, one, sigma)
        return self.scheduler.step((denoised - c_skip * latents) / c_out, timestep, latents, return_dict=False)[0]

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        """Channels, height and width of the latents of a picture of so many pixels."""
        network, factor = self.transformer.config.network, self.vae_scale_factor
        unit, usual = factor * network["patch_size"], factor * network["input_size"]
        sides = (usual if height is None else height, usual if width is None else width)
        if any(side <= 0 or side % unit for side in sides):
            raise ValueError(f"height and width must be multiples of {unit} pixels, got {sides[0]} and {sides[1]}")
        return network["in_channels"], sides[0] // factor, sides[1] // factor

    def decode(self, latents: Float[Tensor, "n c h w"], output_type: str) -> Any:
        """The pictures of scaled latents."""
        if self.vae is None:
            pixels = latents
        else:
            config = self.vae.config
            if self.vae.dtype == torch.float16 and config.force_upcast:  # some overflow in it
                self.vae.to(dtype=torch.float32)
            z = latents / config.scaling_factor + (config.shift_factor or 0.0)
            pixels = pixel_shuffle(self.vae.decode(z.to(self.vae.dtype), return_dict=False)[0], self.patch_px)
        return self.image_processor.postprocess(pixels.float().clamp(-1, 1), output_type=output_type)

    def save_pretrained(self, save_directory: Any, *given: Any, **named: Any) -> None:
        """Writes a folder as diffusers does, with the code of this pipeline and of its parts in it."""
        super().save_pretrained(save_directory, *given, **named)
        folder = Path(save_directory)
        index = json.loads((folder / "model_index.json").read_text())
        index["_class_name"] = [CODE, type(self).__name__]
        shutil.copyfile(str(sys.modules[type(self).__module__].__file__), folder / f"{CODE}.py")
        for name in ("transformer", "text_encoder"):
            module = type(getattr(self, name)).__module__
            index[name][0] = module.rpartition(".")[2]
            shutil.copyfile(str(sys.modules[module].__file__), folder / name / f"{index[name][0]}.py")
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
