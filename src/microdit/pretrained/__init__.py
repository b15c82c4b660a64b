"""Weights that come with this package: an autoencoder of the embedded shapes, and a network that draws them."""

from pathlib import Path

EMBEDDED = "embedded:"


def embedded_folder(name: str) -> Path:
    """The folder that "embedded:name" stands for. FileNotFoundError, with the names there are, for another name."""
    known = {folder.name: folder for folder in Path(__file__).parent.iterdir() if (folder / "README.md").is_file()}
    wanted = name.removeprefix(EMBEDDED)
    if wanted not in known:
        raise FileNotFoundError(
            f"there is no {name}: with this package come {', '.join(EMBEDDED + each for each in sorted(known))}"
        )
    return known[wanted]
