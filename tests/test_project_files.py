"""What stands beside the code for those who take it up: the image, the workflows, citation, changes, issue forms."""

import datetime
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
# The instructions of a Dockerfile, without those that are deprecated or need care (ADD, MAINTAINER, ONBUILD).
INSTRUCTIONS = {"FROM", "RUN", "CMD", "LABEL", "EXPOSE", "ENV", "COPY", "USER", "WORKDIR", "ARG", "SHELL", "ENTRYPOINT"}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
# Of the schema of CITATION.cff 1.2.0: https://github.com/citation-file-format/citation-file-format
CITED = {
    *("cff-version", "message", "title", "type", "authors", "license", "abstract", "keywords", "preferred-citation"),
    *("version", "date-released", "doi", "identifiers", "repository-code", "url", "contact", "references", "commit"),
}
PERSON, ENTITY = {"family-names", "given-names", "affiliation", "orcid", "email"}, {"name", "website", "email"}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in their order, continued lines joined."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def given(instruction: str) -> list[str]:
    return [rest for name, rest in instructions() if name == instruction]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_the_image_is_made_of_known_instructions_and_shell_that_can_be_read():
    assert {name for name, _ in instructions()} <= INSTRUCTIONS
    for command in given("RUN"):
        assert shlex.split(command)
        assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0


def test_the_image_is_based_on_a_named_version_of_the_cuda_that_the_locked_torch_has():
    bases, named = [], set()
    for stage in given("FROM"):
        image, _, name = stage.partition(" AS ")
        if image not in named:
            bases.append(image)
        named.add(name)
    (base,) = bases
    locked = re.search(r"^cuda-toolkit==(\d+)\.", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    assert locked is not None
    assert re.fullmatch(rf"nvidia/cuda:{locked[1]}\.\d+\.\d+-base-ubuntu\d\d\.04", base)


def test_nothing_runs_as_root_in_the_image_and_nothing_unneeded_stays_in_it():
    last_stage = [name for name, _ in instructions()].index("USER")
    assert given("USER") == ["microdit"]
    assert "CMD" in [name for name, _ in instructions()[last_stage:]]
    assert any("useradd" in command and " microdit" in command for command in given("RUN"))
    for command in given("RUN"):
        assert "sudo" not in command
        assert "curl" not in command
        if "apt-get install" in command:
            assert "--no-install-recommends" in command
            assert command.endswith("rm -rf /var/lib/apt/lists/*")
        for piece in command.split("&&"):
            assert "pip install" not in piece or "--no-cache-dir" in piece


def test_what_the_image_copies_and_calls_is_there():
    for copied in given("COPY"):
        *sources, _ = [word for word in copied.split() if not word.startswith("--")]
        assert "--from=" in copied or all((ROOT / source).exists() for source in sources)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".venv", "data", "runs"} <= {*ignored}
    assert not {"conf", "src", ".git", "requirements.lock", "pyproject.toml", "README.md", "LICENSE"} & {*ignored}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_the_targets_that_one_types(path):
    workflow = yaml.safe_load(path.read_text())
    called = set()
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))
            if "uses" in step and "checkout" in step["uses"]:
                assert step["with"]["fetch-depth"] == 0  # else there is no tag, and no version
            called |= set(re.findall(r"\bmake ([a-z-]+)", step.get("run", "")))
    assert {"test", "wheel"} <= called <= make_targets()
    assert workflow["permissions"] in ({"contents": "read"}, {"contents": "write"})


def test_make_help_lists_every_target():
    told = subprocess.run(["make", "--silent", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in told.splitlines()} == make_targets()
    assert all(len(line) < 120 and line.split()[1:] for line in told.splitlines())


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_ask_questions(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= form.keys()
    names = [question["id"] for question in form["body"]]
    assert len({*names}) == len(names) > 1
    for question in form["body"]:
        assert question.keys() <= {"type", "id", "attributes", "validations"}
        assert question["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert question["attributes"]["label"]


def check_authors(authors: list[dict[str, Any]]) -> None:
    assert authors
    for author in authors:
        assert author.keys() <= PERSON or ("name" in author and author.keys() <= ENTITY)


def test_the_citation_is_valid_and_names_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= cited.keys() <= CITED
    assert cited["type"] in ("software", "dataset")
    assert isinstance(cited.get("date-released", datetime.date.today()), datetime.date)
    check_authors(cited["authors"])
    paper = cited["preferred-citation"]
    check_authors(paper["authors"])
    assert paper["title"].startswith("Stretching Each Dollar")
    assert [author["family-names"] for author in paper["authors"]] == ["Sehwag", "Kong", "Li", "Spranger", "Lyu"]
    assert paper["conference"].keys() == {"name"}
    assert "2407.15811" in paper["url"]


def test_changes_are_told_by_version_and_kind():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    dates = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", version) for version in versions[1:]]
    assert all(dates)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert {*re.findall(r"^### (.+)$", text, flags=re.MULTILINE)} <= kinds
    named = set(re.findall(r"\]\(([\w./]+)\)", text)) | set(re.findall(r"`(src/[\w/.]+)`", text))
    assert all((ROOT / name).exists() for name in named)


def test_contributing_calls_commands_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    called = set(re.findall(r"\bmake ([a-z-]+)", text)) - {"numbers"}
    assert {"install", "lint", "test", "wheel"} <= called <= make_targets()
    assert all((ROOT / name).exists() for name in re.findall(r"\]\(([\w./]+)\)", text))
