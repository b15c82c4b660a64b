"""PartiPrompts' table, files of a prompt a line, and DPG-Bench's folder and table of questions."""

import re

import pytest

from microdit.evaluation.judging.prompts import Prompt, Proposition, read_dpg, read_prompts
from microdit.files import DamagedFileError
from microdit.kinds import SettingsError

PARTI = (
    "Prompt\tCategory\tChallenge\tNote\n"
    "bond\tAbstract\tBasic\tBiology\n"
    'A wall. The words "Fly an airplane" are on it.\tOutdoor Scenes\tComplex\t\n'
    '"Hi", says a café \tFood & Beverage\tWriting & Symbols\t\n'
    "wood\tAbstract\tBasic\tRelated to\n"
    '"a sign that says ""Go"""\tAbstract\tBasic\t\n'
)
QUESTIONS = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n"
    'b,"Two dogs, red",,1,0,entity,whole,entity - whole (dogs),Are there dogs?\n'
    'b,"Two dogs, red",,2,1,attribute,color,"attribute - color (dogs, red)","Are the dogs red?"\n'
    'b,"Two dogs, red",,3,"1, 2",relation,spatial,relation - spatial (dogs),Are they side by side?\n'
    "a,A cat,,1,0,global,,global (photo),Is it a photo?\n"
    "away,Not here,,1,0,global,,global (photo),Is it a photo?\n"
)


@pytest.fixture
def parti(tmp_path):
    path = tmp_path / "PartiPrompts.tsv"
    path.write_text(PARTI, encoding="utf-8")
    return path


def test_partiprompts_have_their_quotation_marks_and_categories(parti):
    assert read_prompts(parti, "option") == [
        Prompt("bond", "Abstract"),
        Prompt('A wall. The words "Fly an airplane" are on it.', "Outdoor Scenes"),
        Prompt('"Hi", says a café', "Food & Beverage"),
        Prompt("wood", "Abstract"),
        Prompt('a sign that says "Go"', "Abstract"),
    ]


def test_of_each_category_the_first_are_taken(parti):
    assert [prompt.text[:4] for prompt in read_prompts(parti, "option", 1)] == ["bond", "A wa", '"Hi"']


def test_the_mark_that_windows_begins_a_file_with_is_no_part_of_it(parti):
    parti.write_text(PARTI, "utf-8-sig")
    assert read_prompts(parti, "option")[0] == Prompt("bond", "Abstract")


def test_another_file_has_a_prompt_a_line(tmp_path):
    (tmp_path / "mine.txt").write_text("a dog\n\n  two cats, one\tred \na\u2028b\r\n")
    texts = ["a dog", "two cats, one\tred", "a\u2028b"]  # one line, as everyone has it but Python
    assert read_prompts(tmp_path / "mine.txt", "option") == [Prompt(text, "") for text in texts]


def test_a_missing_file_says_where_it_is_had(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"metrics\.x\.prompts_file.*PartiPrompts.tsv of https://github.com/goo"
    ):
        read_prompts(tmp_path / "PartiPrompts.tsv", "metrics.x.prompts_file")
    with pytest.raises(FileNotFoundError, match=r"metrics\.dpg\.prompts_folder=.*no such folder.*ELLA"):
        read_dpg(tmp_path / "prompts", tmp_path / "q.csv", "metrics.dpg")
    (tmp_path / "prompts").mkdir()
    with pytest.raises(FileNotFoundError, match=r"metrics\.dpg\.questions_file.*q\.csv.*ELLA"):
        read_dpg(tmp_path / "prompts", tmp_path / "q.csv", "metrics.dpg")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no column Prompt"),
        ("Prompt,Category\nbond,Abstract\n", "no column Prompt"),
        ("Prompt\tCategory\nbond\n", "line 2 is short"),
        ("Prompt\tCategory\n", "holds no prompts"),
        ("Prompt\tCategory\n\tAbstract\n", "empty"),
        ("Prompt\tCategory\nbond\t=1+1\n", "no category is called '=1"),
        ("Prompt\tCategory\nbond\tpictures\n", "no category is called 'pictures'"),
        ("Prompt\tCategory\nbond\ta\x1b[31m\n", "no category is called"),
        (f"Prompt\tCategory\nbond\t{'a' * 101}\n", "no category is called"),
        ("Prompt\tCategory\n" + "".join(f"bond\t{n}\n" for n in range(1001)), "1,001 categories, and at most 1,000"),
        ("Prompt\tCategory\nbond\tAbstr\udcffct\n", "is damaged .*codec can't decode"),
        (f"Prompt\tCategory\n{'a' * 10_001}\tAbstract\n", "too long"),
        (f"Prompt\tCategory\n{'a' * 200_000}\tAbstract\n", "field larger"),
    ],
)
def test_what_is_no_table_of_prompts_is_told(parti, text, told):
    parti.write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(DamagedFileError, match=told):
        read_prompts(parti, "option")


@pytest.fixture
def dpg(tmp_path):
    """dpg(questions, texts): what is read of a folder and a table."""

    def read(questions: str = QUESTIONS, texts=(("a", "A cat"), ("b", "Two dogs, red\n"))):
        folder = tmp_path / "prompts"
        folder.mkdir(exist_ok=True)
        for name, text in texts:
            (folder / f"{name}.txt").write_text(text)
        (tmp_path / "dpg_bench.csv").write_text(questions)
        return read_dpg(folder, tmp_path / "dpg_bench.csv", "metrics.dpg")

    return read


def test_questions_of_dpg_come_with_what_they_depend_on(dpg):
    first, second = dpg()
    assert (first.name, first.text, second.name, second.text) == ("b", "Two dogs, red", "a", "A cat")
    assert first.propositions == (
        Proposition(1, (), "entity - whole", "Are there dogs?"),
        Proposition(2, (1,), "attribute - color", "Are the dogs red?"),
        Proposition(3, (1, 2), "relation - spatial", "Are they side by side?"),
    )


@pytest.mark.parametrize(
    ("changed", "to", "error", "told"),
    [
        (",1,0,global", ",one,0,global", DamagedFileError, "line 5: invalid literal"),
        ("global (photo)", "overall (photo)", DamagedFileError, "no category is called 'overall'"),
        ("Are there dogs?", "x" * 10_001, DamagedFileError, "line 2 asks nothing, or too much"),
        ("Are there dogs?", "", DamagedFileError, "line 2 asks nothing, or too much"),
        ('"1, 2"', '"1, 4"', SettingsError, "question 3 of b is there twice, or depends on one that does not"),
        (",2,1,attr", ",2,2,attr", SettingsError, "question 2 of b"),
        (",2,1,attr", ",1,0,attr", SettingsError, "question 1 of b is there twice"),
        ("question_natural_language", "question", DamagedFileError, "no column question_natural_language"),
        ("a,A cat", "c,A cat", DamagedFileError, re.escape("no question about the prompt") + ".*/a.txt"),
    ],
)
def test_questions_that_are_none_are_told(dpg, changed, to, error, told):
    assert changed in QUESTIONS
    with pytest.raises(error, match=told):
        dpg(QUESTIONS.replace(changed, to))


@pytest.mark.parametrize("text", [" ", "x" * 10_001])
def test_a_prompt_that_is_none_is_named(dpg, text):
    with pytest.raises(DamagedFileError, match=r"prompts/b\.txt is empty, or too long for a prompt"):
        dpg(texts=(("a", "A cat"), ("b", text)))


def test_a_folder_without_prompts_is_told(dpg):
    with pytest.raises(DamagedFileError, match=r"holds no prompts ITEM\.txt"):
        dpg(texts=())
