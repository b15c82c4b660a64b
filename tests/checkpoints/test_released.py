"""Released files: recognised by keys and shapes, loaded strictly and safely, with the encoders they belong to."""

import inspect
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from safetensors.torch import save_file

import microdit
from microdit.build import SettingsError
from microdit.checkpoints.reading import CheckpointError
from microdit.checkpoints.released import (
    AUTOENCODERS,
    SIZES,
    TEXT_ENCODER,
    pipeline_settings,
    position_scale,
    read_released,
    recognise,
)
from microdit.model.dit import DiT
from microdit.model.embeddings import sincos_position_table
from microdit.model.sizes import layerwise_scaled_dit
from microdit.objectives.edm import EDM
from microdit.objectives.rectified_flow import RectifiedFlow
from microdit.pipeline import LatentDiffusion, build_pipeline

ROOT = Path(__file__).parents[2]
KEYS = json.loads((ROOT / "tests" / "golden" / "released_checkpoint_keys.json").read_text())
FILES = {"dit_4_channel": ("xl", 64, 4), "dit_16_channel": ("xl", 64, 16), "tiny": ("tiny", 32, 4)}
HUB = {4: "stabilityai/stable-diffusion-xl-base-1.0/vae", 16: "ostris/vae-kl-f8-d16"}


def on_meta(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in KEYS[name].items()}


@pytest.mark.parametrize("name", FILES)
def test_a_released_file_is_recognised_by_its_keys_and_shapes(name):
    size, latent_res, channels = FILES[name]
    model = recognise(on_meta(name), name)
    assert {key: model[key] for key in SIZES[size]} == SIZES[size]
    assert (model["input_size"], model["in_channels"]) == (latent_res, channels)


@pytest.mark.parametrize("name", FILES)
def test_the_pipeline_of_a_released_file_has_its_keys_and_the_autoencoder_of_its_channels(name):
    _, _, channels = FILES[name]
    settings = pipeline_settings(recognise(on_meta(name), name))
    pipeline = build_pipeline(settings, device="meta")
    assert {key: list(value.shape) for key, value in pipeline.dit.state_dict().items()} == KEYS[name]
    assert (pipeline.autoencoder.channels, pipeline.autoencoder.weights) == (channels, HUB[channels])
    pipeline.dit.load_state_dict(on_meta(name), strict=True, assign=True)


def test_sizes_and_encoders_are_those_of_the_configuration():
    def conf(file: str) -> dict:
        return yaml.safe_load((ROOT / "conf" / f"{file}.yaml").read_text())

    assert (conf("autoencoder/sdxl"), conf("autoencoder/ostris16")) == (AUTOENCODERS[4], AUTOENCODERS[16])
    assert conf("text_encoder/dfn_clip") == TEXT_ENCODER
    for size, model in SIZES.items():
        shared = {key: list(v) if isinstance(v, tuple) else v for key, v in model.items()}
        configured = conf(f"model/{size}") | conf("moe/expert_choice")
        assert {key: value for key, value in configured.items() if key in shared}.items() <= shared.items()
        assert shared.keys() - configured.keys() == {"caption_channels", "use_patch_mixer"}


@pytest.mark.parametrize("scale", [1.0, 2.0, 1.5])
def test_the_scale_of_positions_is_read_off_their_table(scale):
    assert position_scale(sincos_position_table(8, 8, 32, scale)) == scale


def test_a_single_patch_has_no_scale_to_tell():
    assert position_scale(sincos_position_table(1, 1, 32, 2.0)) == 1.0


# A small network in the released format, with small encoders of the released kinds.


@pytest.fixture(scope="module")
def sizes(small_settings) -> dict[str, dict]:
    return {**SIZES, "small": {k: v for k, v in small_settings.items() if k != "in_channels"}}


@pytest.fixture(scope="module")
def network(sizes, wake) -> DiT:
    torch.manual_seed(0)
    inputs = {"input_size": 8, "in_channels": 4, "pos_interp_scale": 2.0, "caption_channels": 32}
    made = layerwise_scaled_dit(**{**sizes["small"], **inputs})
    wake(made)
    return made


@pytest.fixture(params=[".pt", ".safetensors"])
def released(request, network, tmp_path) -> Path:
    path = tmp_path / f"small{request.param}"
    (torch.save if request.param == ".pt" else save_file)(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def encoder_folders(tmp_path_factory) -> dict[str, Path]:
    autoencoder, clip = tmp_path_factory.mktemp("autoencoder"), tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.13025,
    ).save_pretrained(autoencoder)
    towers = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (clip / "released_test_clip.json").write_text(json.dumps(towers))
    open_clip.add_model_config(clip / "released_test_clip.json")
    save_file(open_clip.create_model("released_test_clip").state_dict(), clip / "open_clip_model.safetensors")
    (clip / "open_clip_config.json").write_text(json.dumps({"model_cfg": towers, "preprocess_cfg": {}}))
    return {"autoencoder_weights": autoencoder, "text_encoder_weights": clip}


def test_a_released_file_draws_pictures_with_the_model_cards_call(released, sizes, encoder_folders):
    model = LatentDiffusion.from_released(released, **encoder_folders, sizes=sizes)
    given = {"prompt": ["a red cat", "two dogs"], "num_inference_steps": 2, "guidance_scale": 5.0, "seed": 2024}
    images = model.generate(**given)
    assert images.shape == (2, 3, 64, 64)
    assert images.std() > 0
    assert model.generate(**given, return_latents=True).shape == (2, 4, 8, 8)


def test_what_is_loaded_is_what_the_file_holds(released, sizes, network):
    loaded = LatentDiffusion.from_released(released, sizes=sizes).dit
    assert loaded.pos_interp_scale == 2.0
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_file_that_says_what_its_network_learned_is_opened_as_that(network, sizes, tmp_path):
    flow = {"_target_": "microdit.objectives.rectified_flow.RectifiedFlow", "time_shift": 2.0}
    for name, metadata in (("flow", {"objective": json.dumps(flow)}), ("unsaid", {})):
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors", metadata)
    learned = LatentDiffusion.from_released(tmp_path / "flow.safetensors", sizes=sizes).objective
    assert learned == RectifiedFlow(sigma_data=0.9, time_shift=2.0)
    assert LatentDiffusion.from_released(tmp_path / "unsaid.safetensors", sizes=sizes).objective == EDM(0.9)
    stranger = {"objective": json.dumps({"_target_": "os.system", "command": "true"})}
    save_file(network.state_dict(), tmp_path / "stranger.safetensors", stranger)
    with pytest.raises(SettingsError, match=r"stranger\.safetensors: .*os\.system is not of microdit"):
        LatentDiffusion.from_released(tmp_path / "stranger.safetensors", sizes=sizes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_file_of_half_precision_becomes_full_precision(network, sizes, tmp_path, dtype):
    torch.save({key: value.to(dtype) for key, value in network.state_dict().items()}, tmp_path / "half.pt")
    loaded = LatentDiffusion.from_released(tmp_path / "half.pt", sizes=sizes).dit
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0])
def test_the_scale_of_positions_survives_half_precision(dtype, scale):
    table = sincos_position_table(32, 32, 1024, scale)
    assert position_scale(table.to(dtype).float()) == scale


def test_a_folder_in_place_of_a_released_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder: name the file of weights in it"):
        LatentDiffusion.from_released(tmp_path)


def test_a_released_file_given_to_load_is_sent_to_from_released(released):
    with pytest.raises(CheckpointError, match=r"opens with LatentDiffusion\.from_released"):
        LatentDiffusion.load(released)


def test_a_run_that_is_not_there_is_called_absent(tmp_path):
    with pytest.raises(CheckpointError, match=f"there is no {tmp_path}/absent"):
        LatentDiffusion.load(tmp_path / "absent")


def test_a_pipeline_from_a_released_file_can_be_saved_and_loaded(released, sizes, encoder_folders, tmp_path):
    model = LatentDiffusion.from_released(released, **encoder_folders, sizes=sizes)
    model.save(tmp_path / "saved")
    again = LatentDiffusion.load(tmp_path / "saved")
    given = {"prompt": "a red cat", "num_inference_steps": 2, "seed": 1}
    assert torch.equal(model.generate(**given), again.generate(**given))


def test_a_saved_pipeline_can_take_its_encoders_from_elsewhere(released, sizes, encoder_folders, tmp_path):
    LatentDiffusion.from_released(released, sizes=sizes).save(tmp_path / "saved")
    assert LatentDiffusion.load(tmp_path / "saved").autoencoder.weights == HUB[4]
    moved = LatentDiffusion.load(tmp_path / "saved", **encoder_folders)
    assert moved.generate("a red cat", num_inference_steps=2, seed=1).shape == (1, 3, 64, 64)


def test_encoders_that_cannot_be_had_say_how_to_point_to_local_weights(released, sizes, tmp_path):
    absent = {"autoencoder_weights": tmp_path / "vae", "text_encoder_weights": tmp_path / "clip"}
    model = LatentDiffusion.from_released(released, **absent, sizes=sizes)
    with pytest.raises(FileNotFoundError, match="text_encoder_weights=FOLDER"):
        model.generate("a red cat", num_inference_steps=2)
    with pytest.raises(FileNotFoundError, match="autoencoder_weights=FOLDER"):
        model.autoencoder.decode(torch.randn(1, 4, 8, 8))


def test_weights_that_cannot_be_had_are_missed_before_anything_is_drawn(released, sizes, encoder_folders, tmp_path):
    folders = {**encoder_folders, "autoencoder_weights": tmp_path / "vae"}
    model = LatentDiffusion.from_released(released, **folders, sizes=sizes)
    model.dit.train()
    with pytest.raises(FileNotFoundError, match="autoencoder_weights=FOLDER"):
        model.generate("a red cat", num_inference_steps=2, progress=lambda done, total: pytest.fail("it drew"))
    assert model.dit.training
    assert model.generate("a red cat", num_inference_steps=2, return_latents=True).shape == (1, 4, 8, 8)


def test_a_network_of_no_known_size_lists_what_does_not_fit_the_nearest(network, sizes, tmp_path):
    state = network.state_dict()
    state["blocks.0.extra"] = state.pop("blocks.0.norm1.weight")
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(CheckpointError) as caught:
        LatentDiffusion.from_released(tmp_path / "other.pt", sizes=sizes)
    told = str(caught.value)
    assert "xl and tiny and small were tried; the nearest is shown" in told
    assert [line.strip() for line in told.splitlines()[1:]] == [
        "missing blocks.0.norm1.weight",
        "unexpected blocks.0.extra",
    ]


def test_a_file_of_something_else_lists_its_keys(tmp_path):
    torch.save({"conv.weight": torch.zeros(3), "conv.bias": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"no x_embedder\.proj\.weight .* 2 keys: conv\.weight, conv\.bias"):
        LatentDiffusion.from_released(tmp_path / "other.pt")


@pytest.mark.parametrize("content", [{"state_dict": {}, "step": 3}, [torch.zeros(1)]])
def test_a_file_that_is_no_dictionary_of_tensors_says_what_it_holds(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"it holds (state_dict, step|a list)"):
        LatentDiffusion.from_released(tmp_path / "other.pt")


def test_channels_without_an_autoencoder_are_refused(sizes, tmp_path):
    torch.save(layerwise_scaled_dit(**sizes["small"], in_channels=8).state_dict(), tmp_path / "eight.pt")
    with pytest.raises(SettingsError, match="autoencoders for 4 and 16 latent channels, none for 8"):
        LatentDiffusion.from_released(tmp_path / "eight.pt", sizes=sizes)


class Mischief:
    """Unpickling it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_nothing_in_a_file_runs(tmp_path, name, save):
    save({"a": Mischief(tmp_path / "made")}, tmp_path / name)
    with pytest.raises(CheckpointError, match="download it again"):
        LatentDiffusion.from_released(tmp_path / name)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["absent.pt", "absent.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(CheckpointError, match=f"there is no file .*{name}"):
        LatentDiffusion.from_released(tmp_path / name)


def test_a_fresh_pipeline_takes_a_released_file_of_its_size(tmp_path):
    model = microdit.create_latent_diffusion(latent_res=8, in_channels=16, pos_interp_scale=1.0, size="tiny")
    assert model.autoencoder.weights == HUB[16]
    assert model.text_encoder.weights == "hf-hub:apple/DFN5B-CLIP-ViT-H-14-378"
    shapes = {key: list(value.shape) for key, value in model.dit.state_dict().items()}
    of_the_inputs = {"x_embedder.proj.weight", "pos_embed", "mask_token"}
    of_the_outputs = {"final_layer.linear.weight", "final_layer.linear.bias"}
    assert {key for key in KEYS["tiny"] if shapes[key] != KEYS["tiny"][key]} == of_the_inputs | of_the_outputs


def test_by_default_a_fresh_pipeline_is_the_released_one():
    parameters = inspect.signature(microdit.create_latent_diffusion).parameters.values()
    default = {parameter.name: parameter.default for parameter in parameters}
    assert (default.pop("autoencoder_weights"), default.pop("text_encoder_weights")) == (None, None)
    assert default == {"latent_res": 64, "in_channels": 4, "pos_interp_scale": 2.0, "size": "xl"}


def test_an_unknown_size_is_refused():
    with pytest.raises(SettingsError, match="no size 'huge'; choose from xl, tiny"):
        microdit.create_latent_diffusion(size="huge")


def test_importing_the_package_is_light_and_it_knows_its_names():
    script = "import sys, microdit; assert 'torch' not in sys.modules; print(sorted(dir(microdit)), microdit.nonsense)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "module 'microdit' has no attribute 'nonsense'" in done.stderr
    assert microdit.LatentDiffusion is LatentDiffusion


@pytest.mark.parametrize("first", [[0.0, 1.0], [math.nan, 1.0], [-1.0, 0.0]])
def test_a_table_of_positions_that_holds_none_is_refused(first):
    table = torch.zeros(1, 4, 8)
    table[0, 1, 0], table[0, 1, 2] = first
    with pytest.raises(CheckpointError, match="table of positions"):
        position_scale(table)


@pytest.mark.parametrize(
    ("key", "shape"),
    [("x_embedder.proj.weight", (8, 3, 0, 2)), ("pos_embed", (1, 0, 8)), ("x_embedder.proj.weight", (8, 3, 3, 3))],
)
def test_tensors_of_odd_shapes_are_no_released_network(key, shape):
    shapes = {"x_embedder.proj.weight": (8, 3, 2, 2), "pos_embed": (1, 9, 8), "y_embedder.y_proj.fc1.weight": (8, 4)}
    state = {name: torch.zeros(size) for name, size in {**shapes, key: shape}.items()}
    with pytest.raises(CheckpointError, match="is no released network"):
        recognise(state, "a file")


def test_tensors_under_names_that_are_no_texts_are_no_released_network(tmp_path):
    torch.save({1: torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="it holds 1"):
        read_released(tmp_path / "a.pt")


@pytest.mark.parametrize(("side", "positions"), [(1 << 40, 1 << 50), (1 << 20, 1 << 40)])
def test_sizes_that_no_tensor_has_are_no_released_network(side, positions):
    shapes = {"x_embedder.proj.weight": (1, 1, side, 1), "pos_embed": (1, positions, 1)}
    state = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    state["y_embedder.y_proj.fc1.weight"] = torch.zeros(1, 1)
    with pytest.raises(CheckpointError, match="is no released network"):
        recognise(state, "a.pt")


def test_parameters_with_anything_more_to_them_are_not_read(tmp_path):
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.more = {"a": 1}
    torch.save({"a": weight}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="_rebuild_parameter_with_state, and tensors alone"):
        read_released(tmp_path / "a.pt")


@pytest.mark.parametrize("name", [name for name in ("float4_e2m1fn_x2", "float8_e8m0fnu") if hasattr(torch, name)])
def test_numbers_that_no_network_is_trained_in_are_refused(network, tmp_path, name):
    state = network.state_dict() | {"pos_embed": torch.zeros(1, 4, dtype=torch.uint8).view(getattr(torch, name))}
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=rf"a\.safetensors holds no weights in pos_embed \(torch\.{name}\)"):
        read_released(tmp_path / "a.safetensors")
