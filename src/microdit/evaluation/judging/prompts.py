"""Prompts by category (PartiPrompts, or a text file), and DPG-Bench's prompts with their questions."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from microdit.files import DamagedFileError, small_text
from microdit.kinds import SettingsError

LARGEST_FILE = 1 << 26  # bytes; the official files have a few of 2^20
LONGEST_PROMPT = 10_000
LONGEST_CATEGORY, MOST_CATEGORIES = 100, 1000  # whose numbers fit into a run's record
NAMED_OTHERWISE = re.compile(  # numbers beside those of categories
    "all|overall|pictures|prompts|refused|unreadable|unanswered|first|(wins|ties|losses)(_low|_high)?"
)
PARTI = "PartiPrompts.tsv of https://github.com/google-research/parti"
DPG = "dpg_bench/dpg_bench.csv and the folder dpg_bench/prompts of https://github.com/TencentQQGYLab/ELLA"
QUESTION_COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")


@dataclass(frozen=True)
class Prompt:
    """A text to draw; `category`: such as "Food & Beverage", "" where there are none."""

    text: str
    category: str


@dataclass(frozen=True)
class Proposition:
    """A question about a picture of a prompt. `parents`: numbers of the questions without which it makes no sense.
    `category`: such as "attribute - color"."""

    number: int
    parents: tuple[int, ...]
    category: str
    words: str


@dataclass(frozen=True)
class Asked:
    """A prompt of DPG-Bench and its questions."""

    name: str
    text: str
    propositions: tuple[Proposition, ...]


def read_prompts(path: Path, option: str, per_category: int | None = None) -> list[Prompt]:
    """The prompts in a .tsv with the columns Prompt and Category (PartiPrompts), or else one a line; of each category
    the first `per_category` (None: all).

    FileNotFoundError, which says where PartiPrompts is had, and DamagedFileError where a line is no prompt.
    """
    text = text_of(path, option, PARTI)
    if path.suffix.lower() == ".tsv":
        rows = list(rows_of(path, text, ("Prompt", "Category"), "\t"))
        found = [Prompt(row["Prompt"], row["Category"]) for _, row in rows]
    else:
        found = [Prompt(line.strip(), "") for line in text.split("\n") if line.strip()]
    if not found or any(not 0 < len(prompt.text) <= LONGEST_PROMPT for prompt in found):
        raise DamagedFileError(f"{path} holds no prompts, or an empty or too long one; {option} is such as {PARTI}")
    check_categories(path, (prompt.category for prompt in found))
    before: Counter[str] = Counter()
    taken = []
    for prompt in found:
        before[prompt.category] += 1
        if per_category is None or before[prompt.category] <= per_category:
            taken.append(prompt)
    return taken


def check_categories(path: Path, categories: Iterable[str]) -> None:
    """Raises DamagedFileError where there are more categories than a record takes numbers of, or one is no name, or
    that of another number, or begins as a formula of a spreadsheet."""
    names = sorted(set(categories))
    for name in names:
        strange = not name.isprintable() or name.startswith(tuple("=+-@")) or NAMED_OTHERWISE.fullmatch(name)
        if strange or len(name) > LONGEST_CATEGORY:
            raise DamagedFileError(f"{path}: no category is called {name[:LONGEST_CATEGORY]!r}; give it another name")
    if len(names) > MOST_CATEGORIES:
        raise DamagedFileError(f"{path}: {len(names):,} categories, and at most {MOST_CATEGORIES:,} are told apart")


def of_categories(name: str, prompts: Sequence[Prompt], values: Sequence[float | None]) -> dict[str, float]:
    """The mean of each category that has any value, as `NAME/CATEGORY`."""
    found: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        if prompt.category and value is not None:
            found.setdefault(f"{name}/{prompt.category}", []).append(value)
    return {each: mean(of_it) for each, of_it in found.items()}


def mean(values: Sequence[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def read_dpg(folder: Path, questions: Path, option: str) -> list[Asked]:
    """The prompts ITEM.txt in a folder with their questions in a CSV, by its order; questions of items without a prompt
    are left out, as those of a part of the benchmark.

    FileNotFoundError, which says where both are had; DamagedFileError where a row is no question, or a prompt has none,
    SettingsError for a question that depends on one there is not, or on itself.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{option}.prompts_folder={folder}: no such folder. {advice(DPG)}")
    texts = {path.stem: text_of(path, option, DPG).strip() for path in sorted(folder.glob("*.txt"))}
    if unfit := [name for name, text in texts.items() if not 0 < len(text) <= LONGEST_PROMPT]:
        raise DamagedFileError(f"{folder / unfit[0]}.txt is empty, or too long for a prompt; {advice(DPG)}")
    by_item: dict[str, list[Proposition]] = {}
    table = text_of(questions, f"{option}.questions_file", DPG)
    for number, row in rows_of(questions, table, QUESTION_COLUMNS, ","):
        try:
            parents = [int(each) for each in row["dependency"].split(",")]
            own = int(row["proposition_id"])
        except ValueError as error:
            raise DamagedFileError(f"{questions} is damaged (line {number}: {error}); {advice(DPG)}") from error
        category, words = row["tuple"].partition("(")[0].strip(), row["question_natural_language"]
        if not 0 < len(words) <= LONGEST_PROMPT:
            raise DamagedFileError(f"{questions} is damaged (line {number} asks nothing, or too much); {advice(DPG)}")
        asked = Proposition(own, tuple(each for each in parents if each), category, words)
        by_item.setdefault(row["item_id"], []).append(asked)
    if lonely := sorted(set(texts) - set(by_item)):
        raise DamagedFileError(f"{questions} has no question about the prompt {folder / lonely[0]}.txt; {advice(DPG)}")
    found = [Asked(item, texts[item], tuple(asked)) for item, asked in by_item.items() if item in texts]
    if not found:
        raise DamagedFileError(f"{folder} holds no prompts ITEM.txt; {advice(DPG)}")
    check_categories(questions, (broad(one.category) for each in found for one in each.propositions))
    for each in found:
        check_order(each, questions)
    return found


def broad(category: str) -> str:
    """Such as "attribute" of "attribute - color"."""
    return category.partition("-")[0].strip() or "other"


def check_order(asked: Asked, questions: Path) -> None:
    """Raises SettingsError where a question depends on one that does not come before it."""
    before: set[int] = set()
    for each in asked.propositions:
        if not before.issuperset(each.parents) or each.number in before:
            raise SettingsError(
                f"{questions}: question {each.number} of {asked.name} is there twice, or depends on one that does not "
                "come before it"
            )
        before.add(each.number)


def rows_of(path: Path, text: str, columns: Sequence[str], delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table with their line's number. DamagedFileError where a column is missing or a row is short."""
    # In a table by tabs a quotation mark is one: PartiPrompts has them in the middle and at the beginning of prompts.
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, quoting=quoting)
    try:
        lacking = [column for column in columns if column not in (reader.fieldnames or ())]
        if lacking:
            raise DamagedFileError(f"{path} has no column {lacking[0]}; its first line names {', '.join(columns)}")
        for row in reader:
            if any(not isinstance(row[column], str) for column in columns):
                raise DamagedFileError(f"{path} is damaged (line {reader.line_num} is short); download it again")
            yield reader.line_num, {column: unquoted(row[column].strip()) for column in columns}
    except csv.Error as error:
        raise DamagedFileError(f"{path} is damaged (line {reader.line_num}: {error}); download it again") from error


def unquoted(text: str) -> str:
    """A text without the quotation marks that a program which wrote the table may have put around all of it."""
    inside = text[1:-1]
    wrapped = len(text) > 1 and text[0] == text[-1] == '"' and '"' in inside and '"' not in inside.replace('""', "")
    return inside.replace('""', '"') if wrapped else text


def text_of(path: Path, option: str, source: str) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{option}: there is no file {path}. {advice(source)}")
    return small_text(path, advice(source), LARGEST_FILE).removeprefix("\ufeff")  # with which Windows begins a file


def advice(source: str) -> str:
    return f"Download {source}, and name them in the metric's settings"
