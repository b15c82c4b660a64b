"""A judge behind OpenAI's chat API: vLLM, or a hosted one. Its key comes from the environment alone."""

import base64
import io
import json
import math
import os
import random
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, TypedDict

from PIL import Image

from microdit.evaluation.judging.questions import JudgeError, Question, Reply, Tokens
from microdit.kinds import LARGEST_NUMBER, Limits, SettingsError, check_kind

try:
    import httpx
except ImportError as error:
    raise SettingsError(f"a judge at an address needs httpx ({error}): pip install 'microdit[judges]'") from error

KEY_VARIABLE = "MICRODIT_JUDGE_KEY"
ATTEMPTS, FIRST_WAIT_S, LONGEST_WAIT_S = 6, 0.5, 60.0
LONGEST_ASKED_WAIT_S = 300.0  # a server that wants more has a quota that is used up
SILENCE_S, LONGEST_ANSWER_S, LARGEST_ANSWER = 120.0, 600.0, 1 << 20
MOST_TOKENS, MOST_TEXT, TOLD = 256, 2000, 300  # written by a judge; characters of it that are kept, and in messages
TOP_LOGPROBS = 20  # the most that OpenAI tells
BUSY = (408, 409, 429)
FILTERED = ("content_filter", "content_policy_violation", "image_content_policy_violation", "moderation_blocked")
KEPT = "What was answered is kept: run the same command again"


# What is read of a chat completion; there is more in it.
AndMore = TypedDict("AndMore", {"**": Any})


class Message(AndMore, total=False):
    content: str | None
    refusal: str | None


class Likely(AndMore):
    token: str
    logprob: Annotated[float, Limits(-LARGEST_NUMBER, 0.001)]


class Token(AndMore, total=False):
    top_logprobs: list[Likely]


class Logprobs(AndMore, total=False):
    content: list[Token] | None


class Said(AndMore):
    message: Message


class Choice(Said, total=False):
    finish_reason: str | None
    logprobs: Logprobs | None


class Usage(AndMore, total=False):
    prompt_tokens: Tokens
    completion_tokens: Tokens


class Chosen(AndMore):
    choices: Annotated[list[Choice], Limits(1, 100)]


class Completion(Chosen, total=False):
    usage: Usage | None


class BusyError(Exception):
    """A reply that may be another when it is asked for again; `wait_s`: what the server said, if it did."""

    def __init__(self, reason: str, wait_s: float | None = None):
        super().__init__(reason)
        self.wait_s = wait_s


class ChatServer:
    """Replies of the model called `model` at `address`. SettingsError for what is no address, or a key that is none;
    `option`: where the address is set."""

    def __init__(self, address: str, model: str, option: str):
        check_address(address, option)
        self.url, self.model, self.option = f"{address.rstrip('/')}/chat/completions", model, option
        self.key = os.environ.get(KEY_VARIABLE, "").strip()
        if not self.key.isascii() or not self.key.isprintable() or " " in self.key:
            raise SettingsError(f"{KEY_VARIABLE} holds no key: there are letters in it that no key has")
        # A server may spell it in JSON as it likes.
        letters = (rf"(?:\\u00(?i:{ord(letter):02x})|\\?{re.escape(letter)})" for letter in self.key)
        self.key_as_spelt = re.compile("".join(letters))
        # What is packed may be a million times as large as what was sent.
        headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        # No redirect is followed: a key is for the address that was typed.
        self.client = httpx.Client(headers=headers, timeout=SILENCE_S, follow_redirects=False)

    def __call__(self, question: Question) -> Reply:
        """Asked again with growing waits, or as long as the server says, where it is busy or out of reach. JudgeError
        where it refuses to be asked, wants to be left alone for long, or after the last attempt."""
        content, wait_s, cause = json.dumps(self.request(question)).encode(), FIRST_WAIT_S, ""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self.reply(content)
            except BusyError as busy:
                cause, asked = str(busy), busy.wait_s
            if asked is not None and asked > LONGEST_ASKED_WAIT_S:
                raise JudgeError(f"{self.url} asks to be left alone for {asked:,.0f} s ({cause}). {KEPT} then")
            if attempt < ATTEMPTS:
                time.sleep(asked if asked is not None else wait_s * (0.5 + random.random()))
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        raise JudgeError(f"{self.url} gave no answer in {ATTEMPTS} attempts; the last: {cause}. {KEPT}")

    def request(self, question: Question) -> dict[str, Any]:
        pictures = [{"type": "image_url", "image_url": {"url": as_url(picture)}} for picture in question.pictures]
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": [*pictures, {"type": "text", "text": question.words}]}],
            "max_completion_tokens": MOST_TOKENS,
            "temperature": question.temperature,
            "seed": question.vote,
            **({"logprobs": True, "top_logprobs": TOP_LOGPROBS} if question.probable else {}),  # not all can tell
        }

    def reply(self, content: bytes) -> Reply:
        """One attempt. BusyError where another may end better, JudgeError where none will."""
        try:
            status, headers, body = self.sent(content)
        except httpx.HTTPError as error:
            raise BusyError(self.without_key(f"{type(error).__name__}: {error}")) from error
        told = self.without_key(body.decode("utf-8", errors="replace"))
        if status in BUSY or status >= 500:
            raise BusyError(f"status {status}: {in_short(told)}", wait_told(headers.get("retry-after")))
        if status != 200:
            if status == 400 and any(f'"{code}"' in told for code in FILTERED):
                return Reply(told[:MOST_TEXT], True, None, 0, 0)
            of_key = f". The key is read from {KEY_VARIABLE}, which is {'set' if self.key else 'not set'}"
            raise JudgeError(
                f"{self.option}: {self.url} refuses a question to {self.model}, status {status}: {in_short(told)}"
                f"{of_key if status in (401, 403) else ''}"
            )
        try:
            completion = json.loads(told)
            check_kind(completion, Completion, "it")
            return reply_in(completion)
        except (ValueError, RecursionError) as error:
            raise BusyError(f"no chat completion ({in_short(str(error))})") from error

    def sent(self, content: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of what is answered. BusyError where that is too long or takes too long."""
        started, body = time.monotonic(), bytearray()
        headers = {"Content-Type": "application/json"}
        with self.client.stream("POST", self.url, content=content, headers=headers) as response:
            packed = self.without_key(in_short(response.headers.get("content-encoding", "identity")))
            if packed.lower() != "identity":
                raise BusyError(f"an answer that is packed as {packed}, which was not asked for")
            for piece in response.iter_raw(1 << 16):
                body += piece
                if len(body) > LARGEST_ANSWER:
                    raise BusyError(f"an answer of more than {LARGEST_ANSWER:,} bytes")
                if time.monotonic() - started > LONGEST_ANSWER_S:
                    raise BusyError(f"an answer that took more than {LONGEST_ANSWER_S:.0f} s")
            return response.status_code, response.headers, bytes(body)

    def without_key(self, text: str) -> str:
        return self.key_as_spelt.sub("[key]", text) if self.key else text


def check_address(address: str, option: str) -> None:
    """Raises SettingsError for what is no address of a server."""
    try:
        url = httpx.URL(address)
        host, port = url.host.encode("idna"), url.port or 1  # as it is looked up
    except (httpx.InvalidURL, UnicodeError):
        host, port = b"", 0
    is_http = address.startswith(("http://", "https://")) and host and port < 1 << 16
    if not is_http or "@" in address or any(letter.isspace() for letter in address):
        raise SettingsError(
            f"{option}={address}: that is no address of a server, such as http://localhost:8000/v1; a key is in the "
            "environment, never in an address"
        )


def reply_in(completion: Completion) -> Reply:
    """The first of a completion's choices."""
    choice, usage = completion["choices"][0], completion.get("usage") or {}
    message, tokens = choice["message"], (choice.get("logprobs") or {}).get("content")
    first: dict[str, float] | None = {} if tokens else None
    for likely in tokens[0].get("top_logprobs", []) if tokens else []:
        first[likely["token"]] = first.get(likely["token"], 0.0) + math.exp(min(0.0, likely["logprob"]))  # type: ignore
    refusal = message.get("refusal")
    refused = bool(refusal) or choice.get("finish_reason") == "content_filter"
    counted = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    return Reply((refusal or message.get("content") or "")[:MOST_TEXT], refused, first, *counted)


def as_url(picture: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def wait_told(header: str | None) -> float | None:
    """The seconds of a Retry-After, which may be a date. None where there is none, or nothing that can be read."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            when = parsedate_to_datetime(header)
        except (ValueError, OverflowError):
            return None
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def in_short(text: str) -> str:
    return " ".join(text.split())[:TOLD] or "nothing"
