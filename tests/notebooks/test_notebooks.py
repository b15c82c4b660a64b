"""The notebooks run from top to bottom, and what they print as committed is what they print now."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
STEPS = "4"  # of the training in your_pictures.ipynb, where a reader has 600; it prints nothing that depends on them


@pytest.fixture(scope="module", params=NAMES)
def notebook(request, tmp_path_factory):
    """A notebook as committed, and as it is after it was run now."""
    committed = nbformat.read(NOTEBOOKS / request.param, as_version=4)
    again = nbformat.read(NOTEBOOKS / request.param, as_version=4)
    with pytest.MonkeyPatch.context() as environment:  # of the kernel, which is a process of its own
        environment.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        environment.setenv("MICRODIT_NOTEBOOK_STEPS", STEPS)
        environment.setenv("TMPDIR", str(tmp_path_factory.mktemp("notebook")))  # where data and runs go
        NotebookClient(
            again, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}
        ).execute()
    return committed, again


def texts(notebook) -> list[str]:
    """What the cells print, each cell in one piece however the kernel cut it, and the tables they show."""
    found = []
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        if printed := "".join(output.text for output in outputs if output.output_type == "stream"):
            found.append(printed)
        for output in outputs:
            if "text/markdown" in output.get("data", {}):
                found.append(output.data["text/markdown"])
    return found


def pictures(notebook) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_it_shows_what_was_committed(notebook):
    committed, again = notebook
    assert texts(again), "it shows nothing"
    assert texts(again) == texts(committed), "run: .venv/bin/jupyter execute --inplace notebooks/NAME"


def test_it_draws_every_figure(notebook):
    committed, again = notebook
    assert pictures(again) == pictures(committed) > 0


def test_it_says_nothing_of_the_machine_it_was_run_on(notebook):
    committed, _ = notebook
    outputs = [output for cell in committed.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "stream" and output.name != "stdout"]
    assert not [text for text in texts(committed) if "/tmp" in text or "/home" in text or "site-packages" in text]


def test_the_tables_of_masking_are_the_committed_tables():
    tables = [path.read_text() for path in NOTEBOOKS.parent.glob("experiments/*/table.md")]
    shown = [text for text in texts(nbformat.read(NOTEBOOKS / "masking.ipynb", as_version=4)) if text.startswith("**")]
    assert len(shown) == 2
    assert all(any(text in whole for whole in tables) for text in shown)
