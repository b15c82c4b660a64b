"""Networks of transformers that judge pictures, read from a folder or from the Hugging Face hub."""

from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError

from microdit.build import SettingsError
from microdit.encoders.weights import weights_folder
from microdit.files import read_json

CONFIG, WEIGHTS = ["config.json"], ["model.safetensors", "pytorch_model.bin"]


def read_network(kind: str, model_type: str, weights: str, option: str, backbone: str | None = None) -> Any:
    """The network of transformers' class `kind`, frozen, on the CPU in float32. `weights`: a folder, or a name on the
    hub; `option`: where they are set; `model_type`, and that of the `backbone`: what their config.json has to name.

    SettingsError where transformers is missing, or the files are another network's or cannot be read;
    FileNotFoundError where they cannot be had, with which, from where, and how to point to a folder.
    """
    try:
        import transformers
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise SettingsError(
            f"{option} is a network of transformers, which is missing ({error}): pip install 'microdit[judges]'. Its "
            f"weights are then downloaded from the Hugging Face hub ({weights}) on first use, or read from a folder, "
            f"{option}=FOLDER"
        ) from error
    folder = weights_folder(weights, [CONFIG, WEIGHTS], option)
    config = read_json(folder / CONFIG[0], "download it again")
    within = config.get("backbone_config")
    found = config.get("model_type"), within.get("model_type") if isinstance(within, Mapping) else None
    # Others could be looked up by a name in the file, and be a program from elsewhere.
    if found != (model_type, backbone) or config.get("backbone") or config.get("auto_map"):
        meant = model_type if backbone is None else f"{model_type} over {backbone}"
        raise SettingsError(f"{option}={weights}: {folder / CONFIG[0]} is not that of a {meant}")
    disable_progress_bar()
    try:
        read: Any = getattr(transformers, kind).from_pretrained
        network, told = read(folder, local_files_only=True, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError, UnpicklingError) as error:
        raise SettingsError(f"{option}={weights}: transformers cannot read {folder} ({error})") from error
    if missing := sorted(name for name in told["missing_keys"] if not name.startswith("criterion.")):
        raise SettingsError(  # transformers would draw them at random
            f"{option}={weights}: {folder} lacks {len(missing)} of the network's weights, such as {missing[0]}"
        )
    return network.float().eval().requires_grad_(False)
