"""What `demo.py` does: a page on which pictures grow from a prompt, and on which one sees what masking keeps."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np
import torch
from jaxtyping import Float, UInt8
from omegaconf import DictConfig
from torch import Tensor

from microdit.build import SettingsError
from microdit.commands.compose import as_texts, trusted
from microdit.commands.generate import open_pipeline
from microdit.commands.messages import check_device, console
from microdit.kinds import Limits, Positive, Share, check_arguments
from microdit.masking.patches import keep_patches
from microdit.pipeline import LatentDiffusion
from microdit.sampling.samplers import MOST_STEPS, SAMPLERS
from microdit.sampling.settings import SamplerName

LONGEST_PROMPT = 1_000  # characters; encoders read a few dozen words
LARGEST_SEED = 2**53  # that a browser tells from the next
LARGEST_UPLOAD = 1_000  # bytes: the page asks for no file, and its server takes any that is sent
KEPT_S = (600, 600)  # pictures that were drawn for visitors: how often it is looked, and for how long one stays
SHOWN_PX = 384
DROPPED = 0.25  # of a patch's brightness that is left where the backbone does not see it
EXAMPLES = [
    "a large red circle",
    "two green triangles on a white background",
    "a yellow ring left of a blue square",
    "a pink diamond and an orange cross",
]


class Asked(TypedDict):
    """What a visitor sends, who may be a program."""

    prompt: Annotated[str, Limits(0, LONGEST_PROMPT)]
    seed: Annotated[float, Limits(0, LARGEST_SEED)]
    mask_ratio: Share
    sampler: SamplerName
    num_inference_steps: Annotated[float, Limits(2, MOST_STEPS)]
    guidance_scale: Annotated[float, Limits(0, 1000)]
    temperature: Positive


class Page(TypedDict):
    """What conf/demo.yaml may hold."""

    checkpoint: str
    beside: str | None
    weights: str
    device: str
    address: str
    port: Annotated[int, Limits(0, 65535)]
    open_browser: bool


class Subject(NamedTuple):
    """A network on the page, and what it is called there."""

    name: str
    pipeline: LatentDiffusion


def enlarged(picture: Float[Tensor, "3 h w"]) -> UInt8[np.ndarray, "side side2 3"]:
    """A picture as the page shows it: every pixel a square, nothing smoothed."""
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    factor = max(1, SHOWN_PX // max(pixels.shape[:2]))
    return np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1)


def seen_by_backbone(
    pipeline: LatentDiffusion, picture: Float[Tensor, "3 h w"], mask_ratio: float, seed: int
) -> Float[Tensor, "3 h w"]:
    """The picture with the patches darkened that training at this mask ratio drops before the backbone."""
    unit_px = pipeline.autoencoder.downscale * pipeline.dit.patch_size
    rows, columns = (side // unit_px for side in picture.shape[1:])
    uniform = torch.rand(1, rows * columns, generator=torch.Generator().manual_seed(seed))
    kept = keep_patches(uniform, mask_ratio)
    if kept is None:
        return picture
    light = (1 - (1 - DROPPED) * kept.mask).view(rows, columns).to(picture)
    return picture * light.repeat_interleave(unit_px, 0).repeat_interleave(unit_px, 1)


def drawn(
    subjects: Sequence[Subject],
    prompt: str,
    seed: float,
    mask_ratio: float,
    told: dict[str, Any],
) -> Iterator[list[Any]]:
    """After each step: the picture of each subject, from the same noise; then, of the first, what masking keeps.
    SettingsError for what is no such request."""
    check_arguments(Asked, {"prompt": prompt, "seed": seed, "mask_ratio": mask_ratio, **told}, "request")
    told = {**told, "num_inference_steps": int(told["num_inference_steps"])}
    if not prompt.strip():
        raise SettingsError("a prompt says what to draw, such as: a red circle")
    growing = [subject.pipeline.growing([prompt], int(seed), **told) for subject in subjects]
    for pictures in zip(*growing, strict=True):
        first = seen_by_backbone(subjects[0].pipeline, pictures[0][0], mask_ratio, int(seed))
        yield [*(enlarged(picture[0]) for picture in pictures), enlarged(first)]


def page(subjects: Sequence[Subject]) -> Any:
    """The page, a gradio.Blocks; its one function is `draw`, also for gradio_client."""
    import gradio

    usual = subjects[0].pipeline.sampling

    def draw(
        prompt: str, seed: float, sampler: str, steps: float, guidance: float, temperature: float, mask_ratio: float
    ) -> Iterator[list[Any]]:
        told = {"sampler": sampler, "num_inference_steps": steps, "guidance_scale": guidance}
        try:
            yield from drawn(subjects, prompt, seed, mask_ratio, {**told, "temperature": temperature})
        except ValueError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    async def no_file(url_or_file_path: str | Path | None) -> str | None:
        """For gradio, which would fetch any address that a request names in place of a prompt or a number."""
        raise gradio.Error("a request holds a prompt and numbers, and names no file or address", print_exception=False)

    with gradio.Blocks(title="microdit", analytics_enabled=False, delete_cache=KEPT_S) as blocks:
        gradio.Markdown(f"# microdit\n{', '.join(subject.name for subject in subjects)}")
        with gradio.Row():
            with gradio.Column(scale=1):
                prompt = gradio.Textbox(EXAMPLES[2], label="Prompt", max_length=LONGEST_PROMPT)
                go = gradio.Button("Draw", variant="primary")
                seed = gradio.Number(0, label="Seed", step=1)  # what it may be, `drawn` says
                sampler = gradio.Dropdown(list(SAMPLERS), value=usual.sampler, label="Sampler")
                steps = gradio.Slider(2, 100, usual.num_inference_steps, step=1, label="Steps")
                guidance = gradio.Slider(1, 15, usual.guidance_scale, step=0.5, label="Guidance (1: none)")
                temperature = gradio.Slider(0.1, 1.5, usual.temperature, step=0.05, label="Temperature")
                mask_ratio = gradio.Slider(0, 0.9, 0.75, step=0.05, label="Mask ratio of the last picture")
                gradio.Examples(EXAMPLES, prompt)
            with gradio.Column(scale=2), gradio.Row():
                pictures = [gradio.Image(label=subject.name, interactive=False) for subject in subjects]
                masked = gradio.Image(label="What the backbone sees in training", interactive=False)
        asked = [prompt, seed, sampler, steps, guidance, temperature, mask_ratio]
        gradio.on([go.click, prompt.submit], draw, asked, [*pictures, masked], api_name="draw")
    for block in blocks.blocks.values():
        if not isinstance(block, gradio.Image):  # which the page itself fills
            block.async_move_resource_to_block_cache = no_file
    return blocks


def demo_command(config: DictConfig) -> None:
    """Opens the page and serves it until Ctrl-C."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise SettingsError("the page needs gradio: pip install 'microdit[demo]'") from error
    given = trusted(config)
    as_texts(given, Page)
    check_arguments(Page, given, "")
    check_device(given["device"])
    names = [name for name in (given["checkpoint"], given["beside"]) if name is not None]
    subjects = [
        Subject(str(name), open_pipeline(name, given["weights"], None, None).to(given["device"])) for name in names
    ]
    for subject in subjects:
        subject.pipeline.load_encoders()
    console.print("the page ends with Ctrl-C", highlight=False)
    page(subjects).queue(max_size=16).launch(
        server_name=given["address"],
        server_port=given["port"],
        inbrowser=given["open_browser"],
        share=False,
        max_file_size=LARGEST_UPLOAD,
    )
