"""What the documents say is so: links lead somewhere, commands exist, what is shown is shown by a test."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from compositions import composed
from documents import DOCUMENTS, PAGES, ROOT, assemble, commands, script, text_of
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
CONFIGS = {
    "train": "config",
    "generate": "generate",
    "prepare": "prepare",
    "evaluate": "evaluate",
    "plan": "plan",
    "demo": "demo",
}
"""The commands that Hydra composes, with their file of conf/."""
MADE_ON_THE_PAGE = ("masking=central", "masking=deferred,central")
"""Choices that docs/methods.md tells how to write; its own test runs them."""


def anchors(document: str) -> set[str]:
    """What links may name in a document: its headings, as GitHub and the site turn them into anchors."""
    headings = re.findall(r"^#+ +(.+?) *$", re.sub(r"^```.*?^```", "", text_of(document), flags=re.M | re.S), re.M)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("document", ["README.md", *PAGES])
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(document):
    missing = []
    for part in re.split(r"^ *```.*?^ *```", text_of(document), flags=re.M | re.S):
        for _, _, target in assemble.LINK.findall(part):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            name = assemble.named(document, path) if path else document
            if not (ROOT / name).exists() or (anchor and anchor not in anchors(name)):
                missing.append(target)
    assert not missing


def first(override: Override) -> str:
    """An override as the first of a sweep's jobs has it."""
    text = next(override.sweep_string_iterator()) if override.is_sweep_override() else override.get_value_string()
    plus = "++" if override.is_force_add() else "+" if override.is_add() else ""
    return f"{plus}{override.get_key_element().lstrip('+')}={text.replace('$seed', '1').replace('$HOME', '/home/me')}"


def test_there_are_commands_to_look_at():
    assert sum(1 for document in DOCUMENTS for _ in commands(document)) > 150


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_has_its_script_its_flags_and_its_settings(document):
    # By file of conf/ and choices: composing takes a fifth of a second, so commands of the same choices share one.
    told = {}
    for name, *words in commands(document):
        if name == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M), words
            continue
        assert (ROOT / name).is_file(), name
        config = CONFIGS.get(name.removesuffix(".py"))
        if config is None:
            inside = ROOT / "src/microdit/commands" / name
            text = (ROOT / name).read_text() + (inside.read_text() if inside.is_file() else "")
            assert not [word for word in words if word.startswith("--") and f'"{word.split("=")[0]}"' not in text], (
                words
            )
            continue
        if "-cn" in words:
            place = words.index("-cn")
            config = words[place + 1]
            del words[place : place + 2]
        settings = [
            word for word in words if "=" in word and word not in MADE_ON_THE_PAGE and not word.startswith("--")
        ]
        parsed = OverridesParser.create().parse_overrides(settings)
        parts = [first(part) for part in parsed if not part.key_or_group.startswith("hydra.")]
        choices = frozenset(part for part in parts if (ROOT / "conf" / part.partition("=")[0].lstrip("+")).is_dir())
        told.setdefault((config, choices), {}).update({part.partition("=")[0]: part for part in parts})
    for (config, _), settings in told.items():
        composed(*settings.values(), config=config)


def test_every_row_of_what_happens_when_something_goes_wrong_names_tests_that_exist():
    text = (ROOT / "docs" / "failures.md").read_text()
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


def test_the_readme_is_read_in_one_go():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_picture_of_the_network_is_what_its_script_draws():
    drawing = script("draw_network")
    assert drawing.FILE.read_text() == drawing.network()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The pages of the site, where the repository has an address."""
    folder = tmp_path_factory.mktemp("site")
    assemble.assemble(folder, "https://github.com/someone/microdit")
    return folder


def test_every_page_is_in_the_menu_and_nothing_else_is(site):
    def listed(entries) -> Iterator[str]:
        for entry in entries:
            inner = next(iter(entry.values())) if isinstance(entry, dict) else entry
            yield from [inner] if isinstance(inner, str) else listed(inner)

    menu = list(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(menu) == sorted(path.relative_to(site).as_posix() for path in site.rglob("*.md"))


def test_the_page_of_choices_has_every_file_of_every_group(site):
    page = (site / "choices.md").read_text()
    for file in (ROOT / "conf").glob("*/*.yaml"):
        section = page.partition(f"\n## {file.parent.name}\n")[2].partition("\n## ")[0]
        assert re.search(rf"^\| \**`{file.stem}`\** \| \w.*\|$", section, re.M), file


def test_links_lead_to_pages_of_the_site_or_to_the_repository(site):
    page = (site / "methods.md").read_text()
    assert "(reference/masking.md)" in page
    assert "](../" not in page
    shared = (site / "experiments/headline.md").read_text()
    assert "(https://github.com/someone/microdit/blob/main/experiments/headline/runs.tar.xz)" in shared
    assert "](headline/figure.png)" in shared
    assert (site / "experiments/headline/figure.png").read_bytes() == (
        ROOT / "experiments/headline/figure.png"
    ).read_bytes()


@pytest.mark.parametrize("notebook", sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")))
def test_notebooks_are_pages_that_open_elsewhere(site, notebook):
    page = (site / f"notebooks/{notebook}.md").read_text()
    assert f"https://colab.research.google.com/github/someone/microdit/blob/main/notebooks/{notebook}.ipynb" in page
    assert all((site / "notebooks" / name).is_file() for name in re.findall(r"\]\((\w+\.png)\)", page))


def test_without_an_address_no_link_leaves_the_site():
    page = assemble.page_of("docs/numbers.md", "[golden](../tests/golden), [data](data.md#x)", PAGES, None)
    assert page == "golden, [data](data.md#x)"


def test_a_link_to_nowhere_ends_the_assembling():
    with pytest.raises(ValueError, match=r"docs/data.md links to ../conf/nothing, which is not there"):
        assemble.page_of("docs/data.md", "[x](../conf/nothing)", PAGES, None)


def test_a_list_below_a_line_of_text_stays_a_list():
    assert assemble.page_of("docs/data.md", "Two:\n- a\n  b\n- c\n", PAGES, None) == "Two:\n\n- a\n  b\n- c\n"


def test_code_is_left_alone():
    text = "```\n[x](nowhere)\n```\n"
    assert assemble.page_of("docs/data.md", text, PAGES, None) == text
