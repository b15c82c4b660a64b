"""Public data sets as they lie on disks, of a few small pictures each: the layout is theirs, the content is made."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from made_tars import tar_of
from PIL import Image
from pyarrow import parquet

COUNT = 6


def picture(number: int, kind: str = "jpeg", side: int = 64) -> bytes:
    """A picture that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((side + 16, side)).save(file, kind, quality=95)
    return file.getvalue()


def words(number: int) -> str:
    return f"caption of picture {number}"


def cc12m(root: Path) -> list[str]:
    """As img2dataset writes it, beside what it writes about it, with one picture that could not be fetched."""
    root.mkdir()
    members = []
    for number in range(COUNT):
        key = f"{number:09d}"
        record = {"url": "http://example.org", "caption": words(number), "key": key, "status": "success"}
        record |= {"error_message": None, "width": 80, "height": 64, "exif": "{}", "sha256": "0"}
        members += [(f"{key}.jpg", picture(number)), (f"{key}.txt", f"<PERSON>&amp; {words(number)} ".encode())]
        members += [(f"{key}.json", json.dumps(record).encode())]
    (root / "00000.tar").write_bytes(tar_of(members))
    (root / "00000_stats.json").write_text("{}")
    (root / "00000.parquet").write_bytes(b"")
    return [f"source.path={root}"]


def cc12m_tsv(root: Path) -> list[str]:
    (root / "pictures").mkdir(parents=True)
    lines = []
    for number in range(COUNT):
        lines.append(f"https://example.org/{number}.jpg?size=1\t{words(number)}")
        (root / f"pictures/{number:08d}.jpg").write_bytes(picture(number))
    (root / "cc12m.tsv").write_text("\n".join(lines) + "\n")
    folder = f"source.image_folder={root / 'pictures'}"
    return [f"source.path={root / 'cc12m.tsv'}", folder, 'source.image_name="{row:08d}.jpg"']


def sa1b_tars(root: Path, captions: str = "SA1B_caption.tar.gz") -> list[str]:
    """Tars of pictures with their masks, and the captions in another tar, packed or not, or in a folder."""
    (root / "tars").mkdir(parents=True)
    masks = json.dumps({"image": {"image_id": 1, "width": 80, "height": 64}, "annotations": [{"area": 3}]}).encode()
    pictures = [[(f"./sa_{n}.jpg", picture(n)), (f"./sa_{n}.json", masks)] for n in range(COUNT)]
    (root / "tars/sa_000000.tar").write_bytes(tar_of([member for pair in pictures for member in pair]))
    texts = {f"sa_{number}.txt": words(number).encode() for number in range(COUNT)}
    if ".tar" in captions:
        packed = tar_of([(f"SA1B_caption/{name}", text) for name, text in texts.items()])
        (root / captions).write_bytes(gzip.compress(packed) if captions.endswith("gz") else packed)
    else:
        (root / captions).mkdir()
        for name, text in texts.items():
            (root / captions / name).write_bytes(text)
    return [f"source.path={root / 'tars'}", f"source.captions={root / captions}"]


def sa1b_folder(root: Path) -> list[str]:
    overrides = sa1b_tars(root, "captions")
    (root / "pictures/sa_000000").mkdir(parents=True)
    for number in range(COUNT):
        (root / f"pictures/sa_000000/sa_{number}.jpg").write_bytes(picture(number))
    return [f"source.path={root / 'pictures'}", overrides[1]]


def textcaps(root: Path) -> list[str]:
    """One row a caption, five rows a picture; a picture has a name that is a hash."""
    (root / "train_images").mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for number in range(COUNT):
        name = f"{number:016x}"
        (root / f"train_images/{name}.jpg").write_bytes(picture(number))
        references = [words(number), *(f"other words {n} of {number}" for n in range(4))]
        more = {"image_id": name, "image_name": name, "image_width": 80, "image_height": 64}
        rows += [more | {"caption_str": text, "reference_strs": references, "set_name": "train"} for text in references]
    content = {"dataset_type": "train", "dataset_name": "textcaps", "data": rows}
    (root / "TextCaps_0.1_train.json").write_text(json.dumps(content))
    return [f"source.path={root / 'train_images'}", f"source.captions={root / 'TextCaps_0.1_train.json'}"]


def journeydb(root: Path, packed: bool = True) -> list[str]:
    (root / "imgs").mkdir(parents=True)
    lines, members = [], []
    for number in range(COUNT):
        name = f"{number:08x}-0000-4000-8000-000000000000"
        members.append((f"000/{name}.jpg", picture(number)))
        told = {"img_path": f"./000/{name}.jpg", "prompt": words(number), "Task2": {"Caption": f"what {number} shows"}}
        lines.append(json.dumps(told | {"Task3": {"Style": []}}))
    jsonl = "\n".join(lines).encode() + b"\n"
    if packed:
        (root / "imgs/000.tgz").write_bytes(gzip.compress(tar_of(members)))
        captions = root / "train_anno_realease_repath.jsonl.tgz"
        captions.write_bytes(gzip.compress(tar_of([("train_anno_realease_repath.jsonl", jsonl)])))
    else:
        (root / "imgs/000").mkdir()
        for path, content in members:
            (root / "imgs" / path).write_bytes(content)
        captions = root / "train_anno_realease_repath.jsonl"
        captions.write_bytes(jsonl)
    return [f"source.path={root / 'imgs'}", f"source.captions={captions}"]


def diffusiondb(root: Path) -> list[str]:
    """Of Large: zips of .webp with a .json each, and the metadata of more pictures than were fetched, of which one more
    is not safe."""
    (root / "parts").mkdir(parents=True)
    names = [f"{number:08x}-1111-4000-8000-000000000000.webp" for number in range(COUNT + 1)]
    told = {name: {"p": words(number), "se": 1, "c": 7.0, "st": 50, "sa": "k_lms"} for number, name in enumerate(names)}
    with zipfile.ZipFile(root / "parts/part-000001.zip", "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(name, picture(number, "webp"))
        archive.writestr("part-000001.json", json.dumps(told))
    names.append("of-another-part.webp")
    columns: Mapping[str, Sequence[object]] = {
        "image_name": names,
        "prompt": [words(number) for number in range(len(names))],
        "part_id": [1] * len(names),
        "image_nsfw": pa.array([0.1] * COUNT + [2.0, 0.0], pa.float32()),
        "prompt_nsfw": pa.array([0.0] * len(names), pa.float32()),
    }
    parquet.write_table(pa.table(columns), root / "metadata-large.parquet")  # type: ignore[arg-type]
    return [f"source.path={root / 'parts'}", f"source.captions={root / 'metadata-large.parquet'}"]


def coco_2014(root: Path) -> list[str]:
    (root / "annotations").mkdir(parents=True)
    (root / "val2014").mkdir()
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number in range(COUNT):
        name = f"COCO_val2014_{number:012d}.jpg"
        (root / "val2014" / name).write_bytes(picture(number))
        images.append({"id": number, "file_name": name, "width": 80, "height": 64})
        texts = [words(number), *(f"other words {n} of {number}" for n in range(4))]
        annotations += [{"image_id": number, "id": 10 * number + n, "caption": text} for n, text in enumerate(texts)]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    (root / "annotations/captions_val2014.json").write_text(json.dumps(content))
    return [f"source.path={root / 'val2014'}", f"source.captions={root / 'annotations/captions_val2014.json'}"]


def tars_of_pairs(root: Path) -> list[str]:
    """As cifar-captions and BLIP3o: tars of .jpg and .txt."""
    root.mkdir()
    pairs = [[(f"{n:08d}.jpg", picture(n)), (f"{n:08d}.txt", words(n).encode())] for n in range(COUNT)]
    for first in range(0, COUNT, 3):
        (root / f"{first:05d}.tar").write_bytes(tar_of([one for pair in pairs[first : first + 3] for one in pair]))
    return [f"source.path={root}"]


def huggingface(root: Path) -> list[str]:
    """In two parts of several row groups, with the card of the data set beside them."""
    (root / "data").mkdir(parents=True)
    (root / "README.md").write_text("# a card")
    for part in range(2):
        numbers = range(part * COUNT // 2, (part + 1) * COUNT // 2)
        table = pa.table(
            {
                "image": [{"bytes": picture(number), "path": f"{number}.jpg"} for number in numbers],
                "caption": [words(number) for number in numbers],
                "score": [float(number) for number in numbers],
            }
        )
        parquet.write_table(table, root / f"data/train-0000{part}-of-00002.parquet", row_group_size=2)
    return [f"source.path={root}"]


def imagefolder(root: Path) -> list[str]:
    root.mkdir()
    lines = [json.dumps({"file_name": f"{number}.jpg", "text": words(number)}) for number in range(COUNT)]
    for number in range(COUNT):
        (root / f"{number}.jpg").write_bytes(picture(number))
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return [f"source.path={root / 'metadata.jsonl'}"]


def kohya(root: Path) -> list[str]:
    root.mkdir()
    for number in range(COUNT):
        (root / f"{number}.jpg").write_bytes(picture(number))
        (root / f"{number}.caption").write_text(f"{words(number)}\nother words of {number}\n")
    return [f"source.path={root}"]


def write_mds(
    root: Path, columns: Mapping[str, str], samples: Sequence[Mapping[str, bytes]], zstd: bool = False
) -> None:
    """A shard as MosaicML's library writes it: the columns by name, the lengths of those that have no fixed one."""
    root.mkdir(parents=True, exist_ok=True)
    names = sorted(columns)
    fixed = {name: np.dtype(kind).itemsize if kind[:3] in ("int", "flo") else None for name, kind in columns.items()}
    bodies = []
    for sample in samples:
        lengths = [len(sample[name]) for name in names if fixed[name] is None]
        bodies.append(np.array(lengths, "<u4").tobytes() + b"".join(sample[name] for name in names))
    described = json.dumps({"columns": columns}).encode()
    ends = np.cumsum([0, *map(len, bodies)]) + 4 * (len(bodies) + 2) + len(described)
    content = np.array([len(bodies), *ends], "<u4").tobytes() + described + b"".join(bodies)
    name, packed = "shard.00000.mds", None
    if zstd:
        packed = {"basename": f"{name}.zstd", "bytes": 1, "hashes": {}}
        with pa.output_stream(str(root / f"{name}.zstd"), compression="zstd") as file:
            file.write(content)
    else:
        (root / name).write_bytes(content)
    shard = {
        "column_names": names,
        "column_encodings": [columns[name] for name in names],
        "column_sizes": [fixed[name] for name in names],
        "compression": "zstd" if zstd else None,
        "format": "mds",
        "hashes": [],
        "raw_data": {"basename": name, "bytes": len(content), "hashes": {}},
        "samples": len(bodies),
        "size_limit": 1 << 28,
        "version": 2,
        "zip_data": packed,
    }
    (root / "index.json").write_text(json.dumps({"shards": [shard], "version": 2}))


def mds(root: Path, zstd: bool = False) -> list[str]:
    columns = {"width": "int32", "height": "int32", "jpg": "jpeg", "caption": "str"}
    side = np.int32(64).tobytes()
    samples = [
        {"width": side, "height": side, "jpg": picture(number), "caption": words(number).encode()}
        for number in range(COUNT)
    ]
    write_mds(root, columns, samples, zstd)
    return [f"source.path={root}"]


SETS: Mapping[str, Callable[[Path], list[str]]] = {
    "cc12m": cc12m,
    "cc12m_tsv": cc12m_tsv,
    "sa1b": sa1b_tars,
    "sa1b_folder": sa1b_folder,
    "textcaps": textcaps,
    "journeydb": journeydb,
    "journeydb_folder": lambda root: journeydb(root, packed=False),
    "diffusiondb": diffusiondb,
    "coco_2014": coco_2014,
    "cifar_captions": tars_of_pairs,
    "blip3o": tars_of_pairs,
    "huggingface": huggingface,
    "imagefolder": imagefolder,
    "kohya": kohya,
    "mds": mds,
}
