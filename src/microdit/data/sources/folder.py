"""A folder of pictures, however deep, each with its caption beside it: NAME.jpg with NAME.txt or NAME.json."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from microdit.data.sources.captioned import CaptionedImage, Source, Unreadable, captions_in

PICTURES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))


class FolderSource(Source):
    """Captioned pictures below `path`, in the order of their names, `shard_size` of them to an input shard.

    NAME.txt holds one caption; NAME.json an object with `caption_column`, a text or a list of texts.
    """

    def __init__(self, path: str, caption_column: str = "caption", shard_size: int = 2_000) -> None:
        self.path, self.caption_column, self.shard_size = Path(path).expanduser(), caption_column, shard_size
        self._pictures: list[Path] | None = None

    @property
    def identity(self) -> Mapping[str, object]:
        names = {"path": str(self.path.resolve()), "caption_column": self.caption_column, "shard_size": self.shard_size}
        return {"kind": "folder", **names, "pictures": len(self.pictures())}

    def pictures(self) -> list[Path]:
        """Every picture in the folder, by its path in it."""
        if self._pictures is None:
            if not self.path.is_dir():
                raise FileNotFoundError(
                    f"{self.path} is no folder. Give the folder of your pictures: source.path=FOLDER"
                )
            files = (path for path in self.path.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
            self._pictures = sorted(path for path in files if not path.name.startswith("."))
        return self._pictures

    def shards(self) -> list[str]:
        if not self.pictures():
            raise FileNotFoundError(f"{self.path} holds no pictures ({', '.join(sorted(PICTURES))})")
        return [f"pictures from {first}" for first in range(0, len(self.pictures()), self.shard_size)]

    def read(self, shard: int) -> Iterator[CaptionedImage | Unreadable]:
        for picture in self.pictures()[shard * self.shard_size : (shard + 1) * self.shard_size]:
            key = picture.relative_to(self.path).as_posix()
            try:
                captions = self.captions(picture)
                if captions:
                    yield CaptionedImage(key, picture.read_bytes(), captions)
                else:
                    yield Unreadable(key, f"no caption: {picture.stem}.txt or .json is missing or empty")
            except (OSError, ValueError) as error:
                yield Unreadable(key, f"cannot be read: {error}")

    def captions(self, picture: Path) -> list[str]:
        """The captions beside a picture; [] where there are none. ValueError for a damaged `.json`."""
        for suffix in (".txt", ".json"):
            beside = picture.with_suffix(suffix)
            if beside.exists():
                text = beside.read_text(encoding="utf-8-sig", errors="replace")
                return captions_in(
                    " ".join(text.split()) if suffix == ".txt" else json.loads(text), self.caption_column
                )
        return []
