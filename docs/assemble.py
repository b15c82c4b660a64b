"""Lays the pages of the site into one folder: `python docs/assemble.py FOLDER`, which `make docs` does before mkdocs.

Pages are what the repository has: docs/, the experiments' READMEs, notebooks, conf/ and docstrings. Nothing is written
twice: every choice of conf/ is told by its file's first comment, and links are turned to where a page lies on the site.
"""

import argparse
import base64
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
ROOMS = {
    "pipeline": "`LatentDiffusion`: encoders, network, objective and sampler as one object",
    "masking": "which patches are dropped, and how the others travel",
    "model": "the network",
    "objectives": "what the network is asked for; the loss",
    "sampling": "noise schedules, samplers, guidance",
    "encoders": "autoencoders and text encoders",
    "representation": "what a network learns beside denoising",
    "data": "shards, streams, sources, the embedded shapes",
    "training": "a run, from settings to `result.json`",
    "checkpoints": "every file that holds weights",
    "evaluation": "metrics",
    "cost": "FLOPs and memory",
}
"""The rooms of src/microdit that the reference shows, in the order in which one would read them."""
LIST_BELOW_TEXT = re.compile(r"^([^\s|>#*-].*)\n(?=(?:- |1\. ))", re.M)
"""Markdown of GitHub begins a list below a line of text, that of the site wants an empty line between."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
GROUPS_TITLE = "Choices"


def pages() -> dict[str, str]:
    """Where each document of the repository lies on the site: both relative to their roots."""
    found = {path.relative_to(ROOT).as_posix(): path.name for path in sorted((ROOT / "docs").glob("*.md"))}
    for path in sorted((ROOT / "experiments").glob("*/README.md")):
        found[path.relative_to(ROOT).as_posix()] = f"experiments/{path.parent.name}.md"
    for path in sorted((ROOT / "src/microdit/pretrained").glob("*/README.md")):
        found[path.relative_to(ROOT).as_posix()] = f"pretrained/{path.parent.name}.md"
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        found[path.relative_to(ROOT).as_posix()] = f"notebooks/{path.stem}.md"
    beside = {f"{name}.md": f"{name.lower()}.md" for name in ("SECURITY", "CONTRIBUTING", "CHANGELOG")}
    return {**found, **beside, "benchmarks/RESULTS.md": "benchmarks.md"}


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text with its parts changed that are in no fenced block."""
    parts = re.split(r"(^ *```.*?^ *```[^\S\n]*$)", text, flags=re.M | re.S)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def relative(target: str, page: str) -> str:
    return os.path.relpath(target, Path(page).parent).replace(os.sep, "/")


def named(document: str, path: str) -> str:
    """The file of the repository that a relative path in a document means, from the repository's root."""
    return Path(os.path.normpath(Path(document).parent / path)).as_posix()


def on_the_site(document: str, target: str, places: dict[str, str]) -> str | None:
    """Where a link of a document leads on the site, from its root; None for what is not there.

    ValueError for a link to what the repository does not have."""
    path, _, anchor = target.partition("#")
    name = named(document, path) if path else document
    if not (ROOT / name).exists():
        raise ValueError(f"{document} links to {target}, which is not there")
    anchor = f"#{anchor}" if anchor else ""
    if name == "README.md":
        return "index.md"
    for candidate in (name, f"{name}/README.md"):
        if candidate in places:
            return places[candidate] + anchor
    parts = name.split("/")
    if parts[0] == "conf" and len(parts) > 1 and (ROOT / "conf" / parts[1]) in groups():
        return f"choices.md#{parts[1]}"
    if name == "conf":
        return "choices.md"
    if parts[:2] == ["src", "microdit"] and len(parts) > 2 and parts[2].removesuffix(".py") in ROOMS:
        return f"reference/{parts[2].removesuffix('.py')}.md"
    return None


def page_of(document: str, text: str, places: dict[str, str], address: str | None) -> str:
    """A document as the site shows it: links lead to pages, else to the repository where its address is known."""

    def turned(found: re.Match) -> str:
        picture, words, target = found.groups()
        if re.match(r"[a-z]+:", target):
            return found.group()
        if picture:
            return f"![{words}]({relative(picture_place(document, target), places[document])})"
        place = on_the_site(document, target, places)
        if place is not None:
            return f"[{words}]({relative(place, places[document])})"
        return f"[{words}]({address}/blob/main/{named(document, target)})" if address else words

    return outside_code(text, lambda part: LIST_BELOW_TEXT.sub(r"\1\n\n", LINK.sub(turned, part)))


def picture_place(document: str, target: str) -> str:
    """Where a picture of the repository lies on the site."""
    return named(document, target).removeprefix("docs/")


def pictures_of(document: str, text: str) -> Iterator[tuple[Path, str]]:
    """The files of pictures that a document shows, and where they lie on the site."""
    for picture, _, target in LINK.findall(text):
        if picture and not re.match(r"[a-z]+:", target):
            yield ROOT / named(document, target), picture_place(document, target)


def first_comment(file: Path) -> str:
    """What a file of conf/ says of itself: the comment it begins with, without Hydra's own."""
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").strip())
    if not lines:
        raise ValueError(f"{file.relative_to(ROOT)} does not say when to choose it: its first line is no comment")
    return " ".join(lines)


def groups() -> list[Path]:
    """The groups of conf/: its folders that hold choices."""
    return sorted({file.parent for file in (ROOT / "conf").glob("*/*.yaml")})


def choices() -> str:
    """Every group of conf/ and its choices, as one page."""
    chosen = {}
    for default in yaml.safe_load((ROOT / "conf/config.yaml").read_text())["defaults"]:
        if isinstance(default, dict):
            chosen |= default
    text = [
        f"# {GROUPS_TITLE}\n",
        "A folder of `conf/` is a group, a file in it is a choice. On the command line: `GROUP=CHOICE`.",
    ]
    text.append("This page is made from the first comment of each file. The default of `train.py` is in bold.\n")
    for group in groups():
        plus = "+" if group.name in ("experiment", "recipe", "scale") else ""
        text += [f"## {group.name}\n", f"`{plus}{group.name}=`\n", "| choice | when |", "|---|---|"]
        for file in sorted(group.glob("*.yaml")):
            name = f"**`{file.stem}`**" if chosen.get(group.name) == file.stem else f"`{file.stem}`"
            text.append(f"| {name} | {escaped(first_comment(file))} |")
        text.append("")
    return "\n".join(text)


def escaped(text: str) -> str:
    return re.sub(r"([|<*_])", r"\\\1", text)


def reference(room: str) -> str:
    """The page of a room, which mkdocstrings fills with its docstrings."""
    package = ROOT / "src/microdit" / room
    about = ROOMS[room][0].upper() + ROOMS[room][1:]
    if not package.is_dir():
        return f"# {room}\n\n{about}.\n\n::: microdit.{room}\n"
    modules = [path for path in sorted(package.rglob("*.py")) if path.name != "__init__.py"]
    names = [".".join(path.relative_to(package.parents[1]).with_suffix("").parts) for path in modules]
    shown = "\n".join(f"## `{name.removeprefix('microdit.')}`\n\n::: {name}\n" for name in names)
    return f"# {room}\n\n{about}.\n\n{shown}"


def notebook_page(notebook: Path, address: str | None) -> tuple[str, dict[str, bytes]]:
    """A notebook as a page with the outputs that are committed, and the pictures it shows."""
    text, pictures = [], {}
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        text.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if output["output_type"] == "stream":
                text.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            elif "text/markdown" in data:
                text.append("".join(data["text/markdown"]))
            elif "image/png" in data:
                name = f"{notebook.stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                text.append(f"![output]({name})")
    if address:
        text.insert(1, colab(address, notebook.name))
    return "\n\n".join(text) + "\n", pictures


def colab(address: str, name: str) -> str:
    """The badge that opens a notebook of the repository on Google Colab."""
    where = address.removeprefix("https://github.com/")
    target = f"https://colab.research.google.com/github/{where}/blob/main/notebooks/{name}"
    return f"[Open in Colab]({target}){{ .md-button }}"


def write(file: Path, content: str | bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def assemble(folder: Path, address: str | None) -> None:
    """Write all pages below `folder`, which is made anew. ValueError for a link that leads nowhere."""
    shutil.rmtree(folder, ignore_errors=True)
    places = pages()
    for document, place in places.items():
        if document.endswith(".ipynb"):
            text, pictures = notebook_page(ROOT / document, address)
            for name, content in pictures.items():
                write(folder / "notebooks" / name, content)
        else:
            text = (ROOT / document).read_text()
            for file, where in pictures_of(document, text):
                write(folder / where, file.read_bytes())
        write(folder / place, page_of(document, text, places, address))
    write(folder / "choices.md", choices())
    write(folder / "site.css", (ROOT / "docs/site.css").read_bytes())
    for room in ROOMS:
        write(folder / "reference" / f"{room}.md", reference(room))
    listed = "\n".join(f"- [{room}]({room}.md): {about}" for room, about in ROOMS.items())
    write(
        folder / "reference/index.md",
        f"# Reference\n\nFrom the docstrings of `src/microdit`, a page a room.\n\n{listed}\n",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    settings = re.search(r"^repo_url: (\S+)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assemble(parser.parse_args().folder, settings.group(1) if settings else None)
