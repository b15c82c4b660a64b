"""Networks on the Hugging Face hub, as export.py --push leaves them there: two files, fetched once, checked like any
folder from somebody else."""

import os
import re
from functools import cache
from pathlib import Path

from microdit.checkpoints.export import WEIGHTS_FILE
from microdit.checkpoints.reading import CheckpointError
from microdit.files import LARGEST_SETTINGS
from microdit.runs.folder import PIPELINE_FILE

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
FILES = {PIPELINE_FILE: LARGEST_SETTINGS, WEIGHTS_FILE: 64 << 30}  # and the bytes that each has at most
SECONDS = 10  # that the hub has for its first answer


def is_on_hub(name: str) -> bool:
    """Whether a text names a repository, OWNER/NAME, and nothing here: what lies in a folder called OWNER is meant
    first, also where it is misspelt."""
    return HUB_NAME.fullmatch(name) is not None and not Path(name).parent.exists()


@cache
def from_hub(name: str) -> Path:
    """The folder with the files of repository OWNER/NAME, fetched unless they are kept from an earlier time.

    Both are of one commit. Raises CheckpointError, in one sentence, where the hub does not give them, and for files
    that are larger than they can be, before they are fetched.
    """
    from huggingface_hub import HfApi, hf_hub_download

    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        found = HfApi(endpoint=endpoint).model_info(name, files_metadata=True, timeout=SECONDS)
        check_files(name, {each.rfilename: each.size for each in found.siblings or ()})
        settings = Path(hf_hub_download(name, PIPELINE_FILE, endpoint=endpoint))
        hf_hub_download(name, WEIGHTS_FILE, revision=settings.parent.name, endpoint=endpoint)
    except CheckpointError:
        raise
    # The hub's client raises errors of several libraries here; each means that the files cannot be had.
    except Exception as error:
        if (kept := kept_of(name)) is not None:
            return kept
        reason = " ".join(str(error.__cause__ or error).split())
        raise CheckpointError(
            f"{name}: there is no folder of that name, and the Hugging Face hub did not give the files "
            f"({type(error).__name__}: {reason[:300]}). Name a run or a folder, or on a machine with a network: "
            f"hf download {name} {' '.join(FILES)} --local-dir FOLDER"
        ) from error
    return settings.parent


def check_files(name: str, sizes: dict[str, int | None]) -> None:
    """Raises CheckpointError where a repository lacks one of the files, or one is larger than it can be."""
    for file, most in FILES.items():
        if file not in sizes:
            raise CheckpointError(
                f"{name} on the Hugging Face hub has no {file}: it holds no network that export.py --push wrote. A "
                "folder for diffusers opens with diffusers.DiffusionPipeline.from_pretrained"
            )
        if (size := sizes[file]) is None or size > most:
            raise CheckpointError(
                f"{name} on the Hugging Face hub: {file} has {'an unknown number of' if size is None else f'{size:,}'} "
                f"bytes, and {most:,} is the most that is fetched"
            )


def kept_of(name: str) -> Path | None:
    """The folder of a repository's files that were fetched before, if they all were."""
    from huggingface_hub import try_to_load_from_cache

    kept = [try_to_load_from_cache(name, file) for file in FILES]
    return Path(kept[0]).parent if isinstance(kept[0], str) and isinstance(kept[1], str) else None
