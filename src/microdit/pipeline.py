"""From captions to pictures: a trained network, its autoencoder and its text encoder in one object."""

from __future__ import annotations

import itertools
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from microdit.build import build
from microdit.checkpoints.export import WEIGHTS_FILE, learned_objective, read_weights, write_weights
from microdit.checkpoints.from_hub import from_hub, is_on_hub
from microdit.checkpoints.reading import CheckpointError, latest_checkpoint, load_weights, network_weights
from microdit.checkpoints.released import (
    SIZES,
    other_encoder_weights,
    pipeline_settings,
    position_scale,
    read_released,
    recognise,
)
from microdit.encoders.protocols import Autoencoder, TextEncoder
from microdit.files import near_path, read_json, write_json
from microdit.kinds import (
    OneOf,
    Positive,
    SettingsError,
    check_arguments,
    check_kind,
    check_names,
    kinds_of,
    told_with,
)
from microdit.masking.token_path import TokenPath
from microdit.model.dit import DiT
from microdit.model.sizes import layerwise_scaled_dit
from microdit.objectives.edm import EDM
from microdit.objectives.objective import Objective
from microdit.pretrained import EMBEDDED, embedded_folder
from microdit.runs.folder import PIPELINE_FILE, read_config, run_of
from microdit.runs.older import todays_pipeline
from microdit.sampling.guidance import AUTOGUIDANCE, autoguided, guided_denoiser
from microdit.sampling.samplers import SAMPLERS, noise_schedule
from microdit.sampling.settings import (
    AnyGuidanceName,
    GuidanceInterval,
    Quality,
    SamplerName,
    SamplingSettings,
    SamplingSteps,
)

GIVEN_HERE = (
    *("in_channels", "caption_channels", "masks_padding", "token_path", "use_patch_mixer"),
    *("qkv_multipliers", "ffn_multipliers"),
)
OF_THE_RUN = ("input_size", "pos_interp_scale")
PRECISIONS = ("fp32", "bf16")
Precision = Annotated[str, OneOf(PRECISIONS)]
BYTES_A_NUMBER = 64  # of latents, that drawing holds: noise, captioned and not, the sampler's states in float64
RUNS_NAMED = 10  # in a message
PIPELINE_CURE = "train.py resume=THE_RUN writes a run's anew, LatentDiffusion.save a saved folder's"


class LatentDiffusion(nn.Module):
    """A text-to-image model: `dit` denoises latents, `autoencoder` turns them into pictures, `text_encoder` reads.

    `objective` is what the network was trained for; EDM at the standard deviation of the autoencoder's latents if not
    given. `sampling` is how pictures are drawn unless `generate` is told otherwise. `settings` are what `save` needs to
    build the same object again.
    """

    def __init__(
        self,
        dit: DiT,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
        objective: Objective | None = None,
        settings: dict[str, Any] | None = None,
        sampling: SamplingSettings | None = None,
    ):
        super().__init__()
        if dit.in_channels != autoencoder.channels:
            raise SettingsError(
                f"the network works on {dit.in_channels} latent channels, the autoencoder makes {autoencoder.channels}"
            )
        if dit.caption_channels != text_encoder.channels:
            raise SettingsError(
                f"the network reads captions {dit.caption_channels} wide, the text encoder has {text_encoder.channels}"
            )
        if dit.masks_padding != text_encoder.masks_padding:
            raise SettingsError(
                "of network and text encoder one masks the padding of captions and the other does not: build them from "
                "the same settings (text_encoder.masks_padding, DiT's masks_padding)"
            )
        self.dit, self.autoencoder, self.text_encoder = dit, autoencoder, text_encoder
        self.objective = EDM(autoencoder.sigma_data) if objective is None else objective
        self.sampling = SamplingSettings() if sampling is None else sampling
        self.settings = settings

    def with_network(self, dit: DiT) -> LatentDiffusion:
        """The same with another network, such as the moving average of this one."""
        return LatentDiffusion(dit, self.autoencoder, self.text_encoder, self.objective, self.settings, self.sampling)

    @property
    def device(self) -> torch.device:
        return next(self.dit.parameters()).device

    def load_encoders(self, captions_only: bool = False) -> None:
        """Reads the encoders' weights, once. FileNotFoundError or ValueError where they cannot be had."""
        self.text_encoder.load()
        if not captions_only:
            self.autoencoder.load()

    @torch.no_grad()
    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        num_inference_steps: SamplingSteps | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        tokenized_prompts: Int[Tensor, "n l"] | None = None,
        image_size: tuple[int, int] | None = None,
        sampler: SamplerName | None = None,
        guidance_interval: GuidanceInterval | None = None,
        temperature: Positive | None = None,
        guidance: AnyGuidanceName | None = None,
        quality: Quality | None = None,
        weaker: LatentDiffusion | None = None,
        precision: Precision | None = None,
        batch_size: int = 64,
        first: int = 0,
        return_latents: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """One picture a prompt: [N, 3, H, W] in [0, 1], or the scaled latents with `return_latents`.

        Picture i starts from noise that depends on (seed, i) alone, so neither the batch size nor the other prompts
        change it; without a seed it is new each time. `first` is the i of the first prompt, where others draw those
        before it. `image_size` is (height, width) in pixels, by default the size
        the network was trained at.

        What is not said of the seven settings below is `self.sampling`, which a run's own pictures are drawn by.
        `sampler`: "heun" makes 2 * num_inference_steps - 1 evaluations of the network (EDM, algorithm 2),
        "dpm_solver_2m" num_inference_steps (DPM-Solver++(2M)); `progress(done, total)` counts them. A guidance_scale
        of 1 is no guidance, and half the work; `guidance_interval` [low, high] guides only at noise levels
        low < sigma <= high, between 80 and 0.002, "all" at every one. `temperature` scales the noise a picture starts
        from: below 1 pictures are smoother, more typical and less varied, which suits a network that was trained for
        minutes. `guidance` is away from what: "captions" from the network without a caption; "path_drop" from it
        without its middle as well, which costs less (masking=sprint); "autoguidance" from the `weaker` network, which
        has the same encoders and reads the same captions (Karras et al. 2024). `quality`: what pictures are to be
        worth, from 0 to 1, of a network that was trained with it (`model.quality_dropout`).

        Weights are float32, and so is the sampler's arithmetic; `precision` is that of the network's products: "fp32",
        "bf16" (autocast), or None for bf16 on a GPU and fp32 elsewhere.

        Raises ValueError when there are both or neither of `prompt` and `tokenized_prompts`, for settings that
        SamplingSettings refuses, guidance that this network cannot have, a precision it does not know, or a size that
        the autoencoder and patches do not divide; FileNotFoundError, before anything is drawn, where the encoders'
        weights cannot be had; FloatingPointError where the latents are no finite numbers.
        """
        if (prompt is None) == (tokenized_prompts is None):
            raise ValueError("generate() wants either prompt=... or tokenized_prompts=...")
        check_kind(guidance, AnyGuidanceName | None, "sampling.guidance")
        sampling = self.sampling.told(
            {
                "sampler": sampler,
                "num_inference_steps": num_inference_steps,
                "guidance_scale": guidance_scale,
                "guidance_interval": guidance_interval,
                "temperature": temperature,
                "guidance": None if guidance == AUTOGUIDANCE else guidance,
                "quality": quality,
            }
        )
        if (guidance == AUTOGUIDANCE) != (weaker is not None):
            raise ValueError("guidance=autoguidance and the weaker network to guide away from go together: name both")
        if weaker is not None:
            self.check_reads_the_same(weaker)
        check_kind(precision, Precision | None, "precision")
        if batch_size < 1:
            raise ValueError(f"batch_size is how many pictures are drawn at once: 1 or more, got {batch_size}")
        self.load_encoders(captions_only=return_latents)
        if tokenized_prompts is None:
            tokenized_prompts = self.text_encoder.tokenize([prompt] if isinstance(prompt, str) else list(prompt or ()))
        count = len(tokenized_prompts)
        shape = self.latent_shape(image_size)
        check_room(min(batch_size, count), shape)
        seed = secrets.randbits(62) if seed is None else seed
        batches = [range(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
        evaluations = len(batches) * SAMPLERS[sampling.sampler].evaluations(sampling.num_inference_steps)
        done = itertools.count(1)

        def report() -> None:
            if progress is not None:
                progress(next(done), evaluations)

        halved = precision == "bf16" or (precision is None and self.device.type == "cuda")
        pictures = []
        for batch in batches:
            noise = torch.stack([start_noise(seed, first + i, shape) for i in batch]).to(self.device)
            captions = self.text_encoder.encode_tokens(tokenized_prompts[batch.start : batch.stop]).to(self.device)
            *_, (latents, _) = self.steps(noise, captions, sampling, halved, report, weaker)
            if not latents.isfinite().all():
                raise FloatingPointError(
                    "what was drawn are no finite numbers: the network's weights or settings are damaged, or its "
                    "training diverged. Draw with another checkpoint, or with a temperature and guidance near 1"
                )
            pictures.append(latents if return_latents else self.autoencoder.decode(latents))
        if pictures:
            return torch.cat(pictures)
        sides = (side * (1 if return_latents else self.autoencoder.downscale) for side in shape[1:])
        return torch.empty(0, shape[0] if return_latents else 3, *sides)

    @torch.no_grad()
    def growing(self, prompts: Sequence[str], seed: int, **otherwise: Any) -> Iterator[Float[Tensor, "n 3 h w"]]:
        """What the network believes the pictures to be, after each step of the sampler: shapeless at first, the last
        are those that `generate` returns for the same arguments. `otherwise`: what is not as in `self.sampling`.

        Raises SettingsError, ValueError and FileNotFoundError as `generate` does.
        """
        sampling = self.sampling.told(otherwise)
        self.load_encoders()
        shape = self.latent_shape()
        check_room(len(prompts), shape)
        noise = torch.stack([start_noise(seed, i, shape) for i in range(len(prompts))]).to(self.device)
        captions = self.text_encoder.encode(list(prompts)).to(self.device)
        steps = self.steps(noise, captions, sampling, self.device.type == "cuda", lambda: None)
        for number, (latents, believed) in enumerate(steps, start=1):
            yield self.autoencoder.decode(latents if number == sampling.num_inference_steps else believed)

    def steps(
        self,
        noise: Float[Tensor, "n c h w"],
        captions: Float[Tensor, "n l d"],
        sampling: SamplingSettings,
        halved: bool,
        report: Callable[[], None],
        weaker: LatentDiffusion | None = None,
    ) -> Iterator[tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]]:
        """After each step of the sampler the scaled latents, which unit-variance `noise` becomes, and those that the
        network last believed to be behind them; `report` is called before each evaluation.

        The state is float64, the network is called in float32 (its products in bfloat16 if `halved`), and the captions
        are read once. With a `weaker` network guidance is away from it.
        """
        networks = [self.dit] if weaker is None else [self.dit, weaker.dit]
        training = [network.training for network in networks]
        believed = noise
        if sampling.guidance == "path_drop" and weaker is None:
            self.dit.token_path.weak_pass(1, self.dit.trained_grid, noise.device)  # it may have none

        def products() -> AbstractContextManager[Any]:
            return torch.autocast(self.device.type, torch.bfloat16) if halved else nullcontext()

        def reported(x: Tensor, sigma: float) -> Tensor:
            nonlocal believed
            report()
            with products():
                believed = denoiser(x, sigma)
            return believed

        for network in networks:
            network.eval()
        try:
            with products():
                memory = self.dit.read_captions(captions, sampling.quality)
                weak_memory = None if weaker is None else weaker.dit.read_captions(captions, weaker.sampling.quality)
            scale, interval = sampling.guidance_scale, sampling.interval
            if weaker is None or weak_memory is None:
                denoiser = guided_denoiser(self.dit, memory, self.objective, scale, interval, sampling.guidance)
            else:
                strong = guided_denoiser(self.dit, memory, self.objective, 1.0)
                weak = guided_denoiser(weaker.dit, weak_memory, weaker.objective, 1.0)
                denoiser = autoguided(strong, weak, scale, interval)
            levels = noise_schedule(sampling.num_inference_steps)
            for latents in SAMPLERS[sampling.sampler].states(reported, sampling.temperature * noise, levels):
                yield latents.float(), believed.float()
        finally:
            for network, was in zip(networks, training, strict=True):
                network.train(was)

    def check_reads_the_same(self, weaker: LatentDiffusion) -> None:
        """Raises SettingsError where another network works on other latents or captions than this one."""
        for part in ("autoencoder", "text_encoder"):
            ours, theirs = (((each.settings or {}).get(part), type(getattr(each, part))) for each in (self, weaker))
            if ours != theirs:
                raise SettingsError(
                    f"autoguidance is away from a network with the same encoders, and the weaker one's {part} is "
                    "another one, or has other settings"
                )

    def latent_shape(self, image_size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """Channels, height and width of the latents of a picture of (height, width) pixels."""
        if image_size is None:
            return self.dit.in_channels, self.dit.input_size, self.dit.input_size
        unit = self.autoencoder.downscale * self.dit.patch_size
        if any(side <= 0 or side % unit for side in image_size):
            raise ValueError(f"image_size {image_size}: both sides must be multiples of {unit} pixels")
        height, width = (side // self.autoencoder.downscale for side in image_size)
        return self.dit.in_channels, height, width

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Writes `pipeline.json` and `weights.safetensors` (released key names), from which `load` builds it again.

        `dtype`: of the weights in the file; torch.float16 is half as large. They are float32 again once they are read.
        Raises ValueError when the object was put together by hand, without settings.
        """
        if self.settings is None:
            raise ValueError("this pipeline was built without settings; use build_pipeline(), or pass settings=...")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        kind = type(self.objective)
        objective = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **asdict(self.objective)}
        write_settings({**self.settings, "objective": objective, "sampling": asdict(self.sampling)}, folder)
        state = {name: tensor.to(dtype) for name, tensor in self.dit.state_dict().items()}
        write_weights(state, folder / WEIGHTS_FILE, {})

    @classmethod
    def load(
        cls,
        run: str | Path,
        weights: str = "ema",
        autoencoder_weights: str | Path | None = None,
        text_encoder_weights: str | Path | None = None,
    ) -> LatentDiffusion:
        """The pipeline of a training run (its newest checkpoint), of one checkpoint in it, of a saved folder, of a
        repository on the Hugging Face hub ("owner/name", unless a folder owner is here), or of what comes with this
        package ("embedded:shapes").

        `weights`: "ema" takes the moving average where there is one, "raw" the trained weights; a saved folder has one
        set, and no raw ones beside it. The encoders' weights are those the run names, unless a local folder or hub
        name is given here.
        Raises CheckpointError, which says what is missing or lists the keys that do not fit.
        """
        run = place_of(run)
        folder = run_of(run)
        settings_file = folder / PIPELINE_FILE
        if not run.exists():
            raise CheckpointError(f"there is no {run}{near_path(run)}")
        if not settings_file.is_file():
            below = sorted(path.parent for path in itertools.islice(folder.glob(f"*/{PIPELINE_FILE}"), RUNS_NAMED))
            hint = f". There are runs in it, name one of them: {', '.join(map(str, below))}" if below else ""
            if run.is_file():
                hint = "; a released file of weights opens with LatentDiffusion.from_released"
            raise CheckpointError(
                f"{folder} holds no {PIPELINE_FILE}: name the folder of a training run, such as runs/..., "
                f"a file in its checkpoints/, or a folder that LatentDiffusion.save wrote{hint}"
            )
        settings = pipeline_settings_of(folder)
        pipeline = described_pipeline(settings, settings_file, autoencoder_weights, text_encoder_weights)
        saved = folder / WEIGHTS_FILE
        if folder == run and saved.is_file():
            if weights == "raw":
                raise CheckpointError(
                    f"{folder} was written by LatentDiffusion.save and holds one set of weights: it has no raw ones "
                    "beside them"
                )
            state = read_weights(saved)
        else:
            state = network_weights(latest_checkpoint(folder) if folder == run else run, weights)
        load_weights(pipeline.dit, state, source=str(run), into_nothing=True)
        return pipeline

    @classmethod
    def from_released(
        cls,
        path: str | Path,
        autoencoder_weights: str | Path | None = None,
        text_encoder_weights: str | Path | None = None,
        sizes: Mapping[str, Mapping[str, Any]] = SIZES,
    ) -> LatentDiffusion:
        """The pipeline of a released file of weights (.safetensors, or a torch file, read as tensors alone).

        The file says which of `sizes` its network has, its resolution, and its latent channels, with which the
        autoencoder comes: SDXL's for 4, ostris' for 16. The encoders' weights come from the Hugging Face hub on first
        use, or from the local folders given here. What the network learned is EDM's, the paper's, unless the file says
        otherwise, as export.py's do.
        Raises CheckpointError, listing the keys, for a file that is no such network.
        """
        path = Path(path).expanduser()
        state = read_released(path)
        model = {**recognise(state, str(path), sizes), "pos_interp_scale": position_scale(state["pos_embed"])}
        settings = pipeline_settings(model, autoencoder_weights, text_encoder_weights)
        with told_with(path):
            settings["objective"] = learned_objective(path) or settings["objective"]
            pipeline = build_pipeline(settings, device="meta")
        pipeline.dit.load_state_dict(state, strict=True, assign=True)
        return pipeline


def create_latent_diffusion(
    latent_res: int = 64,
    in_channels: int = 4,
    pos_interp_scale: float = 2.0,
    size: str = "xl",
    autoencoder_weights: str | Path | None = None,
    text_encoder_weights: str | Path | None = None,
) -> LatentDiffusion:
    """The paper's pipeline with a fresh network, into whose `dit` the released files load strictly.

    `latent_res` is the side of the latents, an eighth of the picture's: 64 for 512 px (with a `pos_interp_scale` of
    2.0), 32 for 256 px (with 1.0). The encoders are the released ones (SDXL's autoencoder for 4 channels, ostris' for
    16; DFN-CLIP for captions); their weights come from the Hugging Face hub on first use, or from the local folders
    given here. Raises SettingsError for an unknown size (xl, tiny) or number of channels.
    """
    if size not in SIZES:
        raise SettingsError(f"there is no size '{size}'; choose from {', '.join(SIZES)}")
    inputs = {"input_size": latent_res, "in_channels": in_channels, "pos_interp_scale": pos_interp_scale}
    return build_pipeline(pipeline_settings({**SIZES[size], **inputs}, autoencoder_weights, text_encoder_weights))


def check_room(pictures: int, shape: tuple[int, ...]) -> None:
    """Raises SettingsError where this machine has no room to draw so many pictures, whose latents have this shape, at
    once: a small network can describe large ones."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if (needed := BYTES_A_NUMBER * pictures * math.prod(shape)) > memory:
        raise SettingsError(
            f"{pictures} pictures at once take {needed / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f}: lower "
            "batch_size, or draw smaller ones"
        )


def start_noise(seed: int, index: int, shape: tuple[int, ...]) -> Float[Tensor, "c h w"]:
    """Unit-variance noise of picture `index`: the same for every batch size and, being made on the CPU, each device."""
    # torch hashes its seed, so neighbouring ones give unrelated streams; the stride keeps seeds and indices apart.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)
    return torch.randn(shape, generator=generator)


def build_pipeline(settings: dict[str, Any], device: str | None = None) -> LatentDiffusion:
    """A pipeline with fresh weights from plain settings.

    `settings` has the parts `model` (arguments of layerwise_scaled_dit), `token_path`, `objective`, `autoencoder` and
    `text_encoder` (each a `_target_` with arguments), and `sampling` (of SamplingSettings). The objective's
    `sigma_data` is the autoencoder's if not given. The network is made on `device`, by default torch's; on "meta"
    nothing is allocated for it.
    """
    check_parts(settings)
    autoencoder = build(settings["autoencoder"], Autoencoder, "autoencoder")
    text_encoder = build(settings["text_encoder"], TextEncoder, "text_encoder")
    with nullcontext() if device is None else torch.device(device):
        inputs = autoencoder.channels, text_encoder.channels, text_encoder.masks_padding
        dit = build_network(settings["model"], settings["token_path"], *inputs)
    objective = build({"sigma_data": autoencoder.sigma_data, **settings["objective"]}, Objective, "objective")
    sampling = SamplingSettings().told(settings.get("sampling", {}))
    return LatentDiffusion(dit, autoencoder, text_encoder, objective, settings, sampling)


def check_parts(settings: Mapping[str, Any]) -> None:
    """Raises SettingsError where one of the parts of a pipeline is missing, or no settings."""
    for part in ("model", "token_path", "objective", "sampling", "autoencoder", "text_encoder"):
        if not isinstance(settings.get(part, {} if part == "sampling" else None), Mapping):
            raise SettingsError(f"it has no settings of {part}; {PIPELINE_CURE}")


def build_network(
    model: dict[str, Any],
    token_path: dict[str, Any],
    in_channels: int,
    caption_channels: int,
    masks_padding: bool = False,
) -> DiT:
    """The network from plain settings, its inputs as wide as the encoders' outputs; `masks_padding`: of captions.

    Raises SettingsError for a setting it does not know.
    """
    path = build(token_path, TokenPath, "token_path")
    check_model(model)
    of_the_run = {name: model[name] for name in OF_THE_RUN if name in model}
    check_arguments(DiT, of_the_run, "model", kinds_of(DiT).keys() - {*OF_THE_RUN})
    return layerwise_scaled_dit(
        **model,
        in_channels=in_channels,
        caption_channels=caption_channels,
        masks_padding=masks_padding,
        use_patch_mixer=path.uses_patch_mixer,
        token_path=path,
    )


def pipeline_settings_of(run: Path) -> dict[str, Any]:
    """What a run's or saved folder's pipeline.json says. DamagedFileError where that cannot be read."""
    settings = todays_pipeline(read_json(run / PIPELINE_FILE, PIPELINE_CURE))
    if "sampling" not in settings:  # a run of before: its grids tell how it is drawn
        settings["sampling"] = read_config(run).get("sampling", {})
    for part in ("objective", "sampling"):
        check_kind(settings.get(part, {}), Mapping, f"{run / PIPELINE_FILE}: {part}")
    return settings


def place_of(name: str | Path) -> Path:
    """The folder or file that a network is named by: a path, what comes with this package, or what is fetched from the
    hub. CheckpointError where that cannot be had."""
    text = str(name)
    if text.startswith(EMBEDDED):
        return embedded_folder(text)
    return from_hub(text) if is_on_hub(text) else Path(name)


def objective_of(name: str | Path) -> str:
    """The class of the objective that the network of a run, a checkpoint in it, a saved folder, a repository or a file
    of weights learned; EDM, the paper's, where neither the file nor a pipeline.json says."""
    place = place_of(name)
    told = learned_objective(place) if place.is_file() else None
    run = run_of(place)
    if told is None and (run / PIPELINE_FILE).is_file():
        told = pipeline_settings_of(run).get("objective")
    return str((told or {}).get("_target_", f"{EDM.__module__}.{EDM.__qualname__}"))


def sampling_of(run: Path) -> SamplingSettings:
    """How a run's pictures are drawn unless told otherwise. SettingsError for what no sampler takes."""
    return SamplingSettings().told(pipeline_settings_of(run)["sampling"])


def check_model(model: Mapping[str, Any]) -> None:
    """Raises SettingsError where `model` is not what a network is made of, beside what encoders and run give."""
    known = {*kinds_of(DiT), "attention_ratios", "ffn_ratios"}
    check_names(model, known - {*GIVEN_HERE}, where="model")
    ratios = {name: value for name, value in model.items() if name in ("attention_ratios", "ffn_ratios")}
    check_arguments(layerwise_scaled_dit, ratios, "model", ["depth"])
    rest = {name: value for name, value in model.items() if name not in ratios}
    check_arguments(DiT, rest, "model", [name for name in (*GIVEN_HERE, *OF_THE_RUN) if name not in rest])


def described_pipeline(
    settings: dict[str, Any],
    file: Path,
    autoencoder_weights: str | Path | None,
    text_encoder_weights: str | Path | None,
) -> LatentDiffusion:
    """The pipeline that a run's file describes, its network without memory until its weights are there.

    Raises SettingsError, which names the file, for what describes none.
    """
    with told_with(file):
        check_parts(settings)
        settings = other_encoder_weights(settings, autoencoder_weights, text_encoder_weights)
        with makes_a_network():
            return build_pipeline(settings, device="meta")


@contextmanager
def makes_a_network() -> Iterator[None]:
    """While the block runs, on the meta device, what torch or a network says of its sizes is a SettingsError."""
    try:
        yield
    except SettingsError:
        raise
    except (ValueError, ArithmeticError, RuntimeError) as error:
        raise SettingsError(f"these settings make no network ({' '.join(str(error).split())[:300]})") from error


def write_settings(settings: dict[str, Any], folder: Path) -> None:
    """Writes `pipeline.json`, the file `LatentDiffusion.load` starts from."""
    write_json(folder / PIPELINE_FILE, settings)
