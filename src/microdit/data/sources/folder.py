"""A folder of pictures, however deep, each with its caption beside it: NAME.jpg with NAME.txt or NAME.json."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from microdit.data.sources.captioned import (
    CaptionedImage,
    NoCaptionError,
    Source,
    Unreadable,
    captions_beside,
    check_shard_size,
    content_of,
)
from microdit.kinds import Pictures

# Those of telephones are named too, so that what cannot be decoded is listed and not passed over.
PICTURES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
)


class FolderSource(Source):
    """Captioned pictures below `path`, in the order of their names, `shard_size` of them to an input shard.

    NAME.txt holds one caption; NAME.json an object with `caption_column`, a text or a list of texts. Where both are
    there, see `captions_beside`.
    """

    def __init__(self, path: Pictures, caption_column: str = "caption", shard_size: int = 2_000) -> None:
        check_shard_size(shard_size)
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
            files = (path for path in self.path.rglob("*") if path.suffix.lower() in PICTURES and not path.is_dir())
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
                captions = captions_beside(beside(picture, ".txt"), beside(picture, ".json"), self.caption_column)
                yield CaptionedImage(key, content_of(picture), captions)
            except NoCaptionError as error:
                yield Unreadable(key, str(error))
            except OSError as error:
                yield Unreadable(key, f"cannot be read: {error}")


def beside(picture: Path, suffix: str) -> bytes | None:
    """The content of the file with this suffix, in small or in capital letters, beside a picture; None without one."""
    for spelling in (suffix, suffix.upper()):
        path = picture.with_suffix(spelling)
        if path.exists():
            return content_of(path)
    return None
