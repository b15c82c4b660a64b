"""A judge at an address: a real server on this machine, which answers by rule."""

import gzip
import tracemalloc
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
import torch
from chat_server import Response, prefers_brighter, says, sees_what_is_bright, served

from microdit.evaluation.judging import server
from microdit.evaluation.judging.judges import check_judge, read_judge
from microdit.evaluation.judging.questions import FIRST_OF_TWO, REFUSED, YES_OR_NO, JudgeError, Question, Reply, chosen
from microdit.kinds import SettingsError

KEY = "sk-secret-1234"


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> list[float]:
    """The seconds that were waited, none of them really."""
    waited: list[float] = []
    monkeypatch.setattr(server.time, "sleep", waited.append)
    monkeypatch.delenv(server.KEY_VARIABLE, raising=False)
    return waited


def picture(shade: int) -> np.ndarray:
    return np.full((8, 8, 3), shade, dtype=np.uint8)


def ask(address: str, *shades: int, **settings) -> Reply:
    choices = YES_OR_NO if len(shades) == 1 else FIRST_OF_TWO
    question = Question(tuple(map(picture, shades)), "Well?", choices, "pictures", **settings)
    return read_judge({"weights": "a-model", "address": address}, "metrics.x.judge", torch.device("cpu")).ask(question)


def test_pictures_are_sent_in_their_order_with_the_words_and_the_vote():
    with served(prefers_brighter) as there:
        reply = ask(there.address, 10, 200, temperature=0.5, vote=3)
    assert chosen(reply, FIRST_OF_TWO) == "second"
    assert (reply.tokens_read, reply.tokens_written) == (100, 2)
    (request,) = there.requests
    assert (request.shades, request.words) == ([10, 200], "Well?")
    assert {name: request.body[name] for name in ("model", "temperature", "seed")} == {
        **{"model": "a-model", "temperature": 0.5, "seed": 3}
    }
    assert "logprobs" not in request.body
    assert "Authorization" not in request.headers


def test_probabilities_are_asked_for_where_they_are_wanted():
    with served(sees_what_is_bright) as there:
        first = ask(there.address, 51, probable=True).first
    assert first == pytest.approx({"Yes": 0.15, " yes": 0.05, "No": 0.8})
    assert (there.requests[0].body["logprobs"], there.requests[0].body["top_logprobs"]) == (True, 20)


def test_the_key_is_of_the_environment_and_goes_to_the_address_alone(monkeypatch):
    monkeypatch.setenv(server.KEY_VARIABLE, KEY)
    with served(lambda request: says("yes")) as other:
        away = Response(b"", 307, [("Location", f"{other.address}/chat/completions")])
        with served(lambda request: away) as there, pytest.raises(JudgeError, match="status 307"):
            ask(there.address, 1)
    assert there.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    assert not other.requests


def test_what_a_server_says_of_the_key_is_not_repeated(monkeypatch):
    monkeypatch.setenv(server.KEY_VARIABLE, KEY)
    told = r"status 401: wrong key: \[key\]\. .*MICRODIT_JUDGE_KEY, which is set"
    given_up(Response(f"wrong key: {KEY}".encode(), 401), told)
    with served(lambda request: says(f"yes {KEY}")) as there:
        assert ask(there.address, 1).text == "yes [key]"


def test_a_key_in_what_a_server_says_of_its_answer_is_not_repeated(monkeypatch):
    monkeypatch.setenv(server.KEY_VARIABLE, KEY)
    given_up(Response(b"", headers=[("Content-Encoding", f"x {KEY}")]), r"packed as x \[key\]")


@pytest.mark.parametrize("status", [200, 400, 401, 500])
@pytest.mark.parametrize("spelt", ["sk-se\\/cret", "\\u0073k-se/\\u0063ret", "sk-se\\u002Fcret", "sk-se/cret"])
def test_a_key_is_not_repeated_however_json_spells_it(spelt, status, monkeypatch):
    monkeypatch.setenv(server.KEY_VARIABLE, "sk-se/cret")
    content = f'{{"choices": [{{"message": {{"content": "yes {spelt}"}}}}], "error": {{"code": "content_filter"}}}}'
    with served(lambda request: Response(content.encode(), status)) as there:
        try:
            told = ask(there.address, 1).text
        except JudgeError as error:
            told = str(error)
    assert "yes [key]" in told


@pytest.mark.parametrize("key", ["sk-1\nX-Other: 2", "sk 1", "schl\u00fcssel", "sk-1\x00"])
def test_a_key_that_is_none_is_told_without_its_letters(key, monkeypatch):
    monkeypatch.setattr(server.os, "environ", {server.KEY_VARIABLE: key})
    with pytest.raises(SettingsError, match="MICRODIT_JUDGE_KEY holds no key") as told:
        ask("http://127.0.0.1:9/v1", 1)
    assert key not in str(told.value)


def test_the_end_of_a_line_after_a_key_is_not_part_of_it(monkeypatch):
    monkeypatch.setenv(server.KEY_VARIABLE, f"{KEY}\n")
    with served(lambda request: says("yes")) as there:
        ask(there.address, 1)
    assert there.requests[0].headers["Authorization"] == f"Bearer {KEY}"


def given_up(response: Response, told: str) -> list:
    """The requests before a JudgeError that tells this."""
    with served(lambda request: response) as there, pytest.raises(JudgeError, match=told):
        ask(there.address, 1)
    return there.requests


BUSY = Response(b"slow down", 429, [("Retry-After", "7")])
FAILED = Response(b"oh", 500)


@pytest.mark.parametrize(
    ("first", "waits"),
    [
        ([BUSY, BUSY], [(7, 7), (7, 7)]),
        ([FAILED, Response(b"", 503, [("Retry-After", "2.5")])], [(0.25, 0.75), (2.5, 2.5)]),
        ([FAILED, FAILED, FAILED], [(0.25, 0.75), (0.5, 1.5), (1, 3)]),
        ([Response(b"", 429, [("Retry-After", "soon")])], [(0.25, 0.75)]),
        ([Response(b"", 429, [("Retry-After", "-3")])], [(0, 0)]),
        ([Response(b"", 429, [("Retry-After", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT")])], [(0.25, 0.75)]),
        ([Response(b"", 429, [("Retry-After", "Mon, 01 Jan 2024 00:00:00 +99999999999999999999")])], [(0.25, 0.75)]),
        ([Response(b"<html>a proxy</html>")], [(0.25, 0.75)]),
        (
            [Response(b'{"choices": []}'), Response(b"\xff\xfe"), Response(b"[" * 5000)],
            [(0.25, 0.75), (0.5, 1.5), (1, 3)],
        ),
        ([Response(b'{"choices": [{"message": {"content": 3}}]}')], [(0.25, 0.75)]),
        ([Response(b'{"choices": [{"message": {"content": "yes"}}], "usage": {"prompt_tokens": -1}}')], [(0.25, 0.75)]),
        ([Response(b"x" * 2_000_000)], [(0.25, 0.75)]),
    ],
)
def test_a_busy_or_broken_server_is_asked_again_after_a_while(first, waits, quick):
    responses = iter([*first, says("yes")])
    with served(lambda request: next(responses)) as there:
        assert ask(there.address, 1).text == "yes"
    assert len(there.requests) == len(first) + 1
    assert len(quick) == len(waits)
    assert all(least <= waited <= most for waited, (least, most) in zip(quick, waits, strict=True))


def test_a_server_that_never_answers_is_given_up_with_its_last_words():
    told = r"no answer in 6 attempts; the last: status 529: overloaded.*is kept"
    assert len(given_up(Response(b"overloaded", 529), told)) == 6
    with pytest.raises(JudgeError, match="no answer in 6 attempts; the last: ConnectError"):
        ask("http://127.0.0.1:9/v1", 1)


@pytest.mark.parametrize("layers", [1, 3])
def test_an_answer_that_is_packed_is_not_unpacked(layers):
    content = bytes(1 << 24)
    for _ in range(layers):
        content = gzip.compress(content)
    packed = Response(content, headers=[("Content-Encoding", ", ".join(["gzip"] * layers))])
    tracemalloc.start()
    requests = given_up(packed, "the last: an answer that is packed as gzip.*, which was not asked for")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 23
    assert requests[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("as_date", [False, True])
def test_a_quota_that_is_used_up_is_told_at_once(as_date, quick):
    told = format_datetime(datetime.now(UTC) + timedelta(hours=1)) if as_date else "86400"
    response = Response(b"quota", 429, [("Retry-After", told)])
    requests = given_up(response, r"asks to be left alone for (86,400|3,\d\d\d) s .*quota.*same command again")
    assert (len(requests), quick) == (1, [])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_will_not_be_answered_however_often_is_not_asked_again(status, quick):
    told = rf"metrics\.x\.judge\.address: .* to a-model, status {status}: no such model"
    assert (len(given_up(Response(b"no such model", status), told)), quick) == (1, [])


@pytest.mark.parametrize(
    "response",
    [
        says("", refusal="I can't help with that"),
        says("I'm sorry, but I can't assist with that request."),
        Response(b'{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}'),
        Response(b'{"error": {"code": "content_policy_violation", "message": "no"}}', 400),
    ],
)
def test_a_refusal_is_a_refusal_however_it_is_said(response):
    with served(lambda request: response) as there:
        assert chosen(ask(there.address, 1), YES_OR_NO) == REFUSED


@pytest.mark.parametrize(
    "address",
    [
        *(
            "localhost:8000/v1",
            "ftp://host/v1",
            "https://me:key@host/v1",
            "http://a b",
            "http://[::1",
            "http://host:x/v1",
        ),
        *(
            "http://",
            "http:///v1",
            "http://a\x00b/v1",
            "http://a..b/v1",
            f"http://{'a' * 64}/v1",
            "https://xn--\u0660.com",
        ),
        *("http://host:99999/v1", "http://host/\ud800"),
    ],
)
def test_what_is_no_address_is_told(address):
    with pytest.raises(SettingsError, match=r"metrics\.x\.judge\.address=.* no address of a server, such as http"):
        ask(address, 1)


def test_a_judge_is_asked_about_a_small_picture_before_training():
    settings = {"weights": "a-model", "address": ""}
    with served(lambda request: says("yes")) as there:
        check_judge({**settings, "address": there.address}, "metrics.x.judge")  # type: ignore[arg-type]
    assert [request.shades for request in there.requests] == [[255]]
    with served(lambda request: Response(b"no", 404)) as there, pytest.raises(JudgeError, match="status 404"):
        check_judge({**settings, "address": there.address}, "metrics.x.judge")  # type: ignore[arg-type]
