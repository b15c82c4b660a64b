"""Networks of transformers, which read captions and judge pictures, from a folder or from the Hugging Face hub."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from microdit.build import SettingsError
from microdit.encoders.weights import weights_folder
from microdit.files import is_refusal, read_json

CONFIG, INDEX = ["config.json"], "model.safetensors.index.json"
WEIGHTS = ["model.safetensors", INDEX, "pytorch_model.bin"]
PART = re.compile(r"[\w.-]{1,100}\.safetensors")
LARGEST_INDEX = 1 << 26  # bytes
FEW_NAMED = 6  # kinds of models in a message


@contextmanager
def reading(place: object, option: str, meant: str) -> Iterator[None]:
    """While the block runs, what a library raises on the files of others becomes a SettingsError: `place` does not hold
    what is `meant`."""
    try:
        yield
    except Exception as error:  # transformers, open_clip and torch raise whatever they like on files that are others
        if is_refusal(error) or isinstance(error, SettingsError | FileNotFoundError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise SettingsError(f"{option}: {place} does not hold {meant} ({reason})") from error


def programs_in(config: Any) -> Iterator[str]:
    """What a configuration would have transformers fetch from a hub and run, such as a kernel of attention."""
    for name, value in config.items() if isinstance(config, Mapping) else enumerate(config):
        if "_implementation" in str(name) and "/" in str(value):
            yield f"{name}={value}"
        if isinstance(value, Mapping | list):
            yield from programs_in(value)


def need_transformers(weights: str, option: str) -> None:
    """Raises SettingsError where transformers is missing."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"{option} is a network of transformers, which is missing ({error}): pip install 'microdit[judges]'. Its "
            f"weights are then downloaded from the Hugging Face hub ({weights}) on first use, or read from a folder, "
            f"{option}=FOLDER"
        ) from error


def network_folder(
    model_types: Collection[str],
    weights: str,
    option: str,
    backbone: str | None = None,
    beside: Sequence[Sequence[str]] = (),
) -> Path:
    """The folder of a network of transformers that is one of `model_types`, over that `backbone`, with what has to lie
    `beside` its weights: each entry lists alternatives. Raises as `read_network`, but no weights are read."""
    need_transformers(weights, option)
    folder = weights_folder(weights, [CONFIG, WEIGHTS, *beside], option)
    if not (folder / WEIGHTS[0]).is_file() and (folder / INDEX).is_file():
        cure = "download it again"
        parts = read_json(folder / INDEX, cure, LARGEST_INDEX).get("weight_map")
        names = sorted(set(map(str, parts.values()))) if isinstance(parts, Mapping) else []
        if not names or not all(map(PART.fullmatch, names)):
            raise SettingsError(f"{option}={weights}: {folder / INDEX} names no files of weights; {cure}")
        weights_folder(weights, [[name] for name in names], option)
    config = read_json(folder / CONFIG[0], "download it again")
    if program := next(programs_in(config), None):
        raise SettingsError(
            f"{option}={weights}: {folder / CONFIG[0]} has {program[:200]}, a program from elsewhere; remove it there"
        )
    within = config.get("backbone_config")
    inside = within.get("model_type") if isinstance(within, Mapping) else None
    # Others could be looked up by a name in the file, and be a program from elsewhere.
    of_these = config.get("model_type") in model_types and (backbone is None or inside == backbone)
    if not of_these or config.get("backbone") or config.get("auto_map") or (backbone is None and within):
        few = len(model_types) <= FEW_NAMED
        one = " or ".join(model_types) if few else "model that takes pictures and text"
        meant = one if backbone is None else f"{one} over {backbone}"
        raise SettingsError(f"{option}={weights}: {folder / CONFIG[0]} is not that of a {meant}")
    return folder


def read_network(kind: str, model_type: str, weights: str, option: str, backbone: str | None = None) -> Any:
    """The network of transformers' class `kind`, frozen, on the CPU in float32. `weights`: a folder, or a name on the
    hub; `option`: where they are set; `model_type`, and that of the `backbone`: what their config.json has to name.

    SettingsError where transformers is missing, or the files are another network's or cannot be read;
    FileNotFoundError where they cannot be had, with which, from where, and how to point to a folder.
    """
    folder = network_folder([model_type], weights, option, backbone)
    return network_in(folder, kind, weights, option).float()


def network_in(folder: Path, kind: str, weights: str, option: str, **settings: Any) -> Any:
    """The network of transformers' class `kind` in a folder, frozen, on the CPU; `settings` are for `from_pretrained`.
    SettingsError for files that cannot be read."""
    import transformers
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with reading(folder, f"{option}={weights}", f"a {kind} that transformers reads"):
        read: Any = getattr(transformers, kind).from_pretrained
        network, told = read(folder, local_files_only=True, output_loading_info=True, **settings)
    if missing := sorted(name for name in told["missing_keys"] if not name.startswith("criterion.")):
        raise SettingsError(  # transformers would draw them at random
            f"{option}={weights}: {folder} lacks {len(missing)} of the network's weights, such as {missing[0]}"
        )
    return network.eval().requires_grad_(False)
