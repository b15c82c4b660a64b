"""A network given to the Hugging Face hub: what is uploaded is written here first, listed, and nothing else is sent."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from microdit.build import places_in
from microdit.checkpoints.from_hub import HUB_NAME
from microdit.files import size_of_file, write_json
from microdit.hub.diffusers_folder import write_folder
from microdit.hub.model_card import model_card, without_places
from microdit.kinds import SettingsError
from microdit.pipeline import LatentDiffusion
from microdit.pretrained import EMBEDDED
from microdit.runs.folder import NAMES_A_PATH, RESULT_FILE, SAMPLES, refuse_links, run_of
from microdit.runs.record import read_record

TOKEN = "HF_TOKEN"
SAMPLES_FILE, CARD = "samples.png", "README.md"
LARGEST_PICTURE = 64 << 20  # bytes of a sample grid
MOST_PIXELS = 100_000_000


def check_push(name: str) -> str:
    """The token to push to a repository with. SettingsError for what is no name of one, and without a token in the
    environment: neither a file nor a run is asked for it."""
    if HUB_NAME.fullmatch(name) is None:
        raise SettingsError(f"--push {name}: name a repository as OWNER/NAME, such as me/shapes")
    token = os.environ.get(TOKEN)
    if not token:
        raise SettingsError(f"--push wants a token that may write, in the environment: export {TOKEN}=...")
    return token


def write_for_hub(run: str | Path, weights: str, form: str, name: str, licence: str, folder: Path) -> None:
    """Fills an empty folder with what is uploaded: the network (`form` "diffusers": for diffusers, with encoders and
    code; else for `LatentDiffusion.load`), the card, the run's record and its newest grid of pictures.

    `run` and `weights` are as `LatentDiffusion.load` takes them. Everything is written anew: no file of the run is
    taken as it is. Raises what `load` raises, and SettingsError where encoders' weights lie on this machine alone.
    """
    place = None if str(run).startswith(EMBEDDED) else run_of(Path(run))
    if place is not None and place.is_dir():
        refuse_links(place)
    pipeline = LatentDiffusion.load(run, weights)
    if form == "diffusers":
        write_folder(pipeline, folder)
    else:
        for key, text, _ in places_in(pipeline.settings):
            if not text.startswith(EMBEDDED) and (text.startswith(NAMES_A_PATH) or Path(text).exists()):
                raise SettingsError(
                    f"{key}={text} lies on this machine, and who loads the network has it not: --format diffusers takes"
                    " the encoders along, or name a repository there in the run's pipeline.json"
                )
        pipeline.save(folder)
    if place is not None and (place / RESULT_FILE).is_file():
        record = read_record(place / RESULT_FILE)
        write_json(folder / RESULT_FILE, {key: without_places(value) for key, value in record.items()})
    picture = place is not None and write_newest_grid(place, folder / SAMPLES_FILE)
    (folder / CARD).write_text(model_card(place, pipeline, name, form, licence, picture), encoding="utf-8")


def write_newest_grid(run: Path, path: Path) -> bool:
    """Draws a run's newest sample grid again into another file, without what else its file holds; whether there is one.
    SettingsError for what is no picture, or too large."""
    grids = sorted(run.glob(f"{SAMPLES}/step_*.png"))
    if not grids:
        return False
    if size_of_file(grids[-1]) > LARGEST_PICTURE:
        raise SettingsError(f"{grids[-1]} has over {LARGEST_PICTURE:,} bytes, more than a grid of pictures; remove it")
    try:
        with warnings.catch_warnings(), Image.open(grids[-1], formats=["PNG"]) as grid:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if grid.width * grid.height > MOST_PIXELS:
                raise ValueError(f"it has {grid.width} x {grid.height} px")
            grid.convert("RGB").save(path)
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning, ValueError) as error:
        raise SettingsError(f"{grids[-1]} is no grid of pictures ({error}); remove it") from error
    return True


def push(folder: Path, name: str, token: str, private: bool, tell: Callable[[str], None]) -> str:
    """Uploads every file of a folder to a model repository, made if it is not there; returns the commit's address.

    What is uploaded and where to is told first. The address is the hub's, or that of HF_ENDPOINT. Raises OSError, in
    one sentence and without the token, where the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    tell(f"to {api.endpoint}/{name} ({'private' if private else 'public, if it is new'}):")
    for path in files:
        tell(f"  {path.relative_to(folder)}  {path.stat().st_size:,} bytes")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        message = "Written by microdit's export.py"
        done = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    # The hub's client raises errors of several libraries here; each means that it was not uploaded.
    except Exception as error:
        reason = " ".join(str(error).split()).replace(token, "...")
        raise OSError(
            f"{api.endpoint}/{name} did not take the files ({type(error).__name__}: {reason[:300]}). Does the token in "
            f"{TOKEN} allow writing there? Nothing of the run has changed; the same command tries again"
        ) from None
    return str(done.commit_url)
