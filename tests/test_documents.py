"""What the documents say is shown somewhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


def test_every_row_of_what_happens_when_something_goes_wrong_names_tests_that_exist():
    text = (ROOT / "docs" / "many_gpus.md").read_text()
    section = text.partition("## When something goes wrong")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for what, _, shown in rows:
        named = re.findall(r"`(test_\w+)`", shown)
        assert named or shown.strip() == "the same" or "not tested" in shown, what
        assert not [name for name in named if f"def {name}(" not in TESTS], what


def test_every_file_that_security_names_is_there():
    named = re.findall(r"`(tests/[\w/.]+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 5
    assert not [name for name in named if not (ROOT / name).exists()]
