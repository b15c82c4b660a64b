"""Answers are kept as soon as they are known: nothing is asked twice, whoever is killed on the way."""

import json
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from chat_server import Response, ask_and_be_killed, ask_who_never_answers, says, served
from warm_processes import warm_processes

from microdit.evaluation.judging.answers import answered, unanswered
from microdit.evaluation.judging.judges import SERVER_AT_ONCE, Judge
from microdit.evaluation.judging.questions import YES_OR_NO, JudgeError, Question, Reply
from microdit.evaluation.subject import silent
from microdit.files import DamagedFileError, unsealed


def questions(count: int = 6, words: str = "Is it bright?", vote: int = 0) -> Iterator[Question]:
    for number in range(count):
        picture = np.full((8, 8, 3), 40 * number % 256, dtype=np.uint8)
        yield Question((picture,), words, YES_OR_NO, f"{number}.png", vote=vote)


@pytest.fixture
def ask_again(tmp_path):
    """ask_again(name, ...): the answers, and how bright the pictures were that the judge was asked about."""

    def ask(name: str = "bright", fails: tuple[int, ...] = (), at_once: int = 1, **settings):
        asked: list[int] = []

        def reply(question: Question) -> Reply:
            shade = int(question.pictures[0].mean())
            asked.append(shade)
            if shade in fails:
                raise JudgeError("no more today")
            return Reply("Yes" if shade >= 100 else "No", False, None, 10, 1)

        return answered(tmp_path, lambda: questions(**settings), Judge(reply, name, at_once), silent), asked

    return ask


def test_answers_are_in_the_order_of_the_questions_each_a_line_and_none_is_asked_again(ask_again, tmp_path):
    answers, asked = ask_again()
    assert [answer["answer"] for answer in answers] == ["no", "no", "no", "yes", "yes", "yes"]
    assert [answer["about"] for answer in answers] == [f"{number}.png" for number in range(6)]
    assert asked == [0, 40, 80, 120, 160, 200]
    lines = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    assert [unsealed(line) for line in lines] == answers
    assert ask_again() == (answers, [])
    assert ask_again(count=2) == (answers[:2], [])


@pytest.mark.parametrize("changes", [{"name": "another"}, {"words": "Is it dark?"}, {"vote": 1}])
def test_another_judge_question_or_vote_is_asked_anew(changes, ask_again):
    ask_again()
    assert len(ask_again(**changes)[1]) == 6
    assert ask_again()[1] == []


def test_the_same_question_twice_is_asked_once(tmp_path):
    asked = []
    judge = Judge(lambda question: asked.append(1) or Reply("yes", False, None, 1, 1), "judge", 4)
    answers = answered(tmp_path, lambda: iter([*questions(1), *questions(1), *questions(2)]), judge, silent)
    assert (len(answers), len(asked)) == (4, 2)


@pytest.mark.parametrize("at_once", [1, 4])
def test_when_a_judge_fails_what_it_answered_is_kept(at_once, ask_again, tmp_path):
    with pytest.raises(JudgeError, match="no more today"):
        ask_again(fails=(120,), at_once=at_once)
    kept = len((tmp_path / "asked.jsonl").read_text().splitlines())
    assert kept >= 3
    answers, asked = ask_again(at_once=at_once)
    assert len(asked) == 6 - kept
    assert len(answers) == 6


def test_a_server_is_asked_several_questions_at_once_and_no_more(tmp_path):
    under_way, most = set(), []

    def reply(question: Question) -> Reply:
        under_way.add(question.about)
        most.append(len(under_way))
        time.sleep(0.02)
        under_way.discard(question.about)
        return Reply("yes", False, None, 1, 1)

    answered(tmp_path, lambda: questions(24, "Well?"), Judge(reply, "judge", 3), silent)
    assert max(most) == 3


def test_the_cost_is_told_before_and_after(ask_again, capsys):
    ask_again()
    before, after = capsys.readouterr().err.splitlines()
    assert before == "bright: 6 questions, 6 to be asked, about 48 tokens"
    assert after == "bright: 6 questions cost 60 tokens read and 6 written"
    ask_again()
    assert capsys.readouterr().err == "bright: 6 questions, 0 to be asked, about 0 tokens\n"


def test_progress_is_of_what_is_asked_with_its_tokens(tmp_path):
    told = []
    judge = Judge(lambda question: Reply("yes", False, None, 10, 1), "judge")
    answered(tmp_path, lambda: questions(2), judge, lambda *given: told.append(given))
    answered(tmp_path, lambda: questions(4), judge, lambda *given: told.append(given))
    assert told == [(n, 2, f"questions, {11 * n} tokens") for n in (1, 2)] * 2


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_line_that_was_cut_off_is_asked_again_and_no_other(cut, ask_again, tmp_path):
    answers, _ = ask_again()
    journal = tmp_path / "asked.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    assert ask_again() == (answers, [200])


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"key": 1}', b'{"answer": "yes", "key": "a"}'])
def test_any_other_line_that_is_none_is_told(line, ask_again, tmp_path):
    ask_again()
    journal = tmp_path / "asked.jsonl"
    journal.write_bytes(line + b"\n" + journal.read_bytes())
    with pytest.raises(DamagedFileError, match=r"asked\.jsonl is damaged \(line 1: .*; remove it and evaluate again"):
        ask_again()


def test_a_digit_that_is_another_is_told_and_lines_of_older_versions_are_read(ask_again, tmp_path):
    answers, _ = ask_again()
    journal = tmp_path / "asked.jsonl"
    whole = journal.read_text()
    journal.write_text(whole.replace('"tokens_read": 10', '"tokens_read": 18', 1))
    with pytest.raises(DamagedFileError, match=r"asked\.jsonl is damaged \(line 1: its checksum is another"):
        ask_again()
    journal.write_text(re.sub(r', "crc32": "crc32 \w+"', "", whole))
    assert ask_again() == (answers, [])


def test_a_process_that_is_killed_goes_on_where_it_was(tmp_path):
    count, numbers = 40, []

    def rule(request) -> Response:
        numbers.append(int(request.words.removesuffix("?").split()[-1]))
        return says("yes" if numbers[-1] % 2 else "no")

    with served(rule) as there:
        for at in (15, None):
            process = warm_processes().Process(
                target=ask_and_be_killed, args=(tmp_path / "killed", there.address, count, at)
            )
            process.start()
            process.join(60)
            assert process.exitcode == (0 if at is None else -signal.SIGKILL)
        twice = [number for number, times in Counter(numbers).items() if times > 1]
        assert set(numbers) == set(range(count))
        assert len(twice) <= SERVER_AT_ONCE  # those that were under way, whose answers nobody heard
        assert max(Counter(numbers).values()) <= 2
        before = len(numbers)
        ask_and_be_killed(tmp_path / "killed", there.address, count, None)
        assert len(numbers) == before
    kept = [json.loads(line) for line in (tmp_path / "killed/asked.jsonl").read_text().splitlines()]
    assert {line["about"]: line["answer"] for line in kept} == {f"{n}.png": ["no", "yes"][n % 2] for n in range(count)}


def test_ctrl_c_ends_it_soon_whoever_does_not_answer(tmp_path):
    process = warm_processes().Process(target=ask_who_never_answers, args=(tmp_path, 3))
    process.start()
    process.join(300)
    ended = process.exitcode
    process.kill()
    assert ended == 130
    assert len((tmp_path / "asked.jsonl").read_text().splitlines()) == 3


def test_answers_that_are_none_are_counted_by_what_they_are(ask_again):
    answers, _ = ask_again()
    assert unanswered(answers, YES_OR_NO) == {"refused": 0.0, "unreadable": 0.0}
    answers[0]["answer"], answers[1]["answer"], answers[2]["answer"] = "refused", "refused", "unreadable"
    assert unanswered(answers, YES_OR_NO) == {"refused": 2.0, "unreadable": 1.0}
