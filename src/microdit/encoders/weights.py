"""Where pretrained weights come from, and how they live inside a module without being trained or saved with it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from torch import nn

from microdit.pretrained import EMBEDDED, embedded_folder

DType = Literal["float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FrozenModule(nn.Module):
    """A pretrained module, read on first use, that moves with its parent but is never trained or saved with it.

    The module is absent from `parameters()`, `state_dict()` and `train()` of whatever holds it, so optimizers,
    checkpoints and DDP or FSDP wrappers never see it. `.to(device)` moves it; its precision stays the one given here.
    """

    place: torch.Tensor

    def __init__(self, read: Callable[[], nn.Module], dtype: DType) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        self.read, self.dtype = read, DTYPES[dtype]
        # An empty buffer remembers the device before there is anything to move.
        self.register_buffer("place", torch.empty(0, device="cpu"), persistent=False)
        # nn.Module registers modules that are attributes; it does not look into a tuple.
        self.loaded: tuple[nn.Module, ...] = ()

    @property
    def device(self) -> torch.device:
        return self.place.device

    def module(self) -> nn.Module:
        """The pretrained module, in eval mode; read now if this is the first call (errors are those of `read`)."""
        if not self.loaded:
            # Weights made under inference_mode, as in a validation loop, could never be moved again.
            with torch.inference_mode(False):
                module = self.read().eval().requires_grad_(False)
                # Not diffusers' own `to`, which warns of a change of precision.
                self.loaded = (nn.Module.to(module, self.device, self.dtype),)
        return self.loaded[0]

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for module in self.loaded:
            module.to(self.device)
        return self


def weights_folder(
    weights: str, files: Sequence[Sequence[str]], option: str, advise: Sequence[Sequence[str]] | None = None
) -> Path:
    """The folder that holds `files` of `weights`: a local one, one of this package, or one downloaded once from the
    Hugging Face hub.

    `weights`: "embedded:name" for what comes with this package, a folder, "owner/name" on the hub, or
    "owner/name/folder" for a folder inside that repository; the prefixes `local-dir:` and `hf-hub:` say which it is.
    `files`: each entry lists alternatives, the best first, of which one must be present. `option`: the key of the
    configuration that holds `weights`, for the messages, which name the files to `advise`, where a later call will want
    more than this one.
    FileNotFoundError, within seconds, if the folder lacks a file or the hub is out of reach.
    """
    if weights.startswith(EMBEDDED):
        folder = embedded_folder(weights)
        if lacking := _lacking(folder, files):
            raise FileNotFoundError(
                f"{option}={weights}: what comes with this package has no {' and no '.join(lacking)}"
            )
        return folder
    local = weights.removeprefix("local-dir:")
    folder = Path(local).expanduser()
    if not weights.startswith("hf-hub:") and (
        folder.is_dir() or local != weights or local.startswith(("/", ".", "~")) or "/" not in local
    ):
        lacking = _lacking(folder, files)
        if lacking:
            raise FileNotFoundError(
                f"{option}={weights}: {_found(folder, lacking)}. {_near(folder, files, option)}"
                f"{_advice(None, advise or files, option)}"
            )
        return folder

    repository, prefix = _hub_name(weights)
    try:
        folder = _download(repository, prefix, files)
    # The hub's client raises errors of several libraries here; each means that the files cannot be had.
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise FileNotFoundError(
            f"{option}={weights}: no folder of that name, and the Hugging Face hub did not give the files "
            f"({type(error).__name__}: {reason}). {_advice(weights, advise or files, option)}"
        ) from error
    lacking = _lacking(folder, files)
    if lacking:
        raise FileNotFoundError(
            f"{option}={weights}: the repository {repository} on the Hugging Face hub, or its copy in the local cache, "
            f"has no {' and no '.join(lacking)}. {_advice(weights, advise or files, option)}"
        )
    return folder


def _hub_name(weights: str) -> tuple[str, str]:
    owner, _, rest = weights.removeprefix("hf-hub:").partition("/")
    name, _, inside = rest.partition("/")
    return f"{owner}/{name}", inside.strip("/")


def _download(repository: str, prefix: str, files: Sequence[Sequence[str]]) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path()
    for alternatives in files:
        for name in alternatives:
            # A whole-snapshot request fails at once without a network; a request for one file retries for 23 s.
            wanted = Path(prefix, name).as_posix()
            folder = Path(snapshot_download(repository, allow_patterns=[wanted])) / prefix
            if (folder / name).is_file():
                break
    return folder


def _lacking(folder: Path, files: Sequence[Sequence[str]]) -> list[str]:
    present = [any((folder / name).is_file() for name in alternatives) for alternatives in files]
    return [" or ".join(alternatives) for alternatives, there in zip(files, present, strict=True) if not there]


def _found(folder: Path, lacking: Sequence[str]) -> str:
    if folder.is_dir():
        return f"the folder {folder} has no {' and no '.join(lacking)}"
    return f"{folder} is a file, and a folder is wanted" if folder.exists() else f"the folder {folder} does not exist"


def _near(folder: Path, files: Sequence[Sequence[str]], option: str) -> str:
    """Which folder right below the given one has what is wanted, or whether the folder above a file has; "" if none."""
    places = sorted(folder.iterdir()) if folder.is_dir() else [folder.parent]
    there = next((place for place in places if place.is_dir() and not _lacking(place, files)), None)
    return f"{there} has them: {option}={there}. " if there else ""


def _advice(weights: str | None, files: Sequence[Sequence[str]], option: str) -> str:
    needed = " and ".join(" or ".join(alternatives) for alternatives in files)
    python_name = f" (in Python and generate.py: {option.replace('.', '_')}=FOLDER)"
    in_python = python_name if option.startswith(("autoencoder", "text_encoder")) else ""
    advice = f"Set {option}=FOLDER{in_python} to a folder with {needed}"
    if weights is None:
        return advice + ", or to a repository on the Hugging Face hub (owner/name)."
    repository, prefix = _hub_name(weights)
    wanted = [f"--include {Path(prefix, name).as_posix()}" for alternatives in files for name in alternatives]
    command = f"hf download {repository} {' '.join(wanted)} --local-dir FOLDER"
    below = f" (then FOLDER/{prefix})" if prefix else ""
    return f"{advice}; on a machine with a network, `{command}` makes one{below}."
