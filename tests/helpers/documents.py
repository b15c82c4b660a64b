"""What the documents have in them: the pages, their text, and the commands that they tell to type."""

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def script(name: str):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


assemble = script("assemble")
PAGES = assemble.pages()
DOCUMENTS = ["README.md", *(name for name in PAGES if name.endswith(".md"))]


def text_of(document: str) -> str:
    """A document's Markdown; of a notebook that of its cells of words."""
    text = (ROOT / document).read_text()
    if document.endswith(".md"):
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def commands(document: str) -> Iterator[list[str]]:
    """Every command of a document's fenced blocks and of its code in lines, as words from the script on."""
    text = text_of(document)
    blocks = re.findall(r"^```(?:bash|sh)?\n(.*?)^```", text, re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines += re.findall(
        r"`((?:python|torchrun|make) [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S).replace("\n", " ")
    )
    for line in lines:
        if not re.match(r"(python|torchrun|make) ", line):
            continue
        words = shlex.split(line, comments=True)
        starts = [place for place, word in enumerate(words) if word.endswith(".py") or word == "make"]
        if starts and not any("..." in word for word in words):
            yield [
                re.sub(r"^([^=]*)\{([^{},]+),[^{}]*\}", r"\1\2", word) for word in words[starts[0] :]
            ]  # {0,1}: the first
