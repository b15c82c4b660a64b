"""A server on this machine that speaks OpenAI's chat API and answers by rule; and sets of pictures to ask it about."""

import base64
import io
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from microdit.evaluation.pictures import Making, keep


class Request(NamedTuple):
    """What came: how bright each picture is, 0 to 255, the words, all of it as it was sent, and its headers."""

    shades: list[int]
    words: str
    body: dict[str, Any]
    headers: dict[str, str]


class Response(NamedTuple):
    content: bytes
    status: int = 200
    headers: Sequence[tuple[str, str]] = ()


Rule = Callable[[Request], Response]


class Served(NamedTuple):
    """A server that runs: its address, and all that was asked of it."""

    address: str
    requests: list[Request]


def says(text: str, first: dict[str, float] | None = None, **message: Any) -> Response:
    """A chat completion, with the probabilities of its first token where they are told."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
    if first is not None:
        top = [{"token": token, "logprob": float(np.log(share)), "bytes": None} for token, share in first.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": top}]}
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
    return Response(json.dumps({"id": "1", "choices": [choice], "usage": usage}).encode())


def prefers_brighter(request: Request) -> Response:
    if len(request.shades) == 1:  # whether there is a judge at all
        return says("yes")
    first, second = request.shades
    return says("First." if first > second else "Second." if second > first else "tie")


def sees_what_is_bright(request: Request) -> Response:
    """Says yes as surely as the picture is bright."""
    share = min(0.99, max(0.01, request.shades[0] / 255))
    return says("Yes" if share >= 0.5 else "No", {"Yes": share * 0.75, " yes": share * 0.25, "No": 1 - share})


@contextmanager
def served(rule: Rule) -> Iterator[Served]:
    """While the block runs, every request is answered as `rule` says."""
    requests: list[Request] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            parts = body["messages"][0]["content"]
            shades = [shade_of(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
            words = " ".join(part["text"] for part in parts if part["type"] == "text")
            request = Request(shades, words, body, dict(self.headers))
            with lock:
                requests.append(request)
                response = rule(request)
            if self.path != "/v1/chat/completions":
                response = Response(b"no such place", 404)
            self.send_response(response.status)
            for name, value in response.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(response.content)))
            self.end_headers()
            self.wfile.write(response.content)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{server.server_port}/v1", requests)
    finally:
        server.shutdown()
        server.server_close()


def shade_of(url: str) -> int:
    head, _, content = url.partition(",")
    assert head == "data:image/png;base64"
    return round(float(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).mean()))


def keep_shades(folder: Path, name: str, prompts: Sequence[str], shades: Sequence[int]) -> Path:
    """Grey pictures of `prompts`, kept as evaluation keeps them."""
    making = Making(list(prompts), {"seed": 0}, "of nobody", [])
    pictures = torch.tensor(shades).view(-1, 1, 1, 1).expand(-1, 3, 8, 8) / 255
    keep(folder / f"{name}.tar", making, iter([pictures]))
    return folder


def shades_elsewhere(root: Path, prompts: Sequence[str], shades: Sequence[Sequence[int]]) -> Path:
    """Grey pictures made elsewhere, in GenEval's layout, a folder a prompt."""
    for number, (prompt, mine) in enumerate(zip(prompts, shades, strict=True)):
        samples = root / f"{number:05d}/samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps({"prompt": prompt, "by": "somebody"}) + "\n")
        for place, shade in enumerate(mine):
            Image.new("RGB", (12, 8), (shade,) * 3).save(samples / f"{place:04d}.png")
    return root


def ask_who_never_answers(folder: Path, answered_first: int) -> None:
    """Asks a judge who answers so many questions and then no more, as a process that Ctrl-C ends."""
    from microdit.commands.messages import run_told
    from microdit.evaluation.judging.answers import answered
    from microdit.evaluation.judging.judges import Judge
    from microdit.evaluation.judging.questions import YES_OR_NO, Question, Reply

    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore it

    def reply(question: Question) -> Reply:
        if int(question.about) >= answered_first:
            if int(question.about) == answered_first:
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            time.sleep(1000)
        return Reply("yes", False, None, 1, 1)

    def questions() -> Iterator[Question]:
        for number in range(answered_first + 8):
            yield Question((np.full((8, 8, 3), number, dtype=np.uint8),), "Well?", YES_OR_NO, str(number))

    run_told(lambda: answered(folder, questions, Judge(reply, "silent", 4), lambda *given: None) and None)


def number_in(words: str) -> int:
    """The number of "picture 7" in a question."""
    found = re.search(r"picture (\d+)", words)
    assert found is not None
    return int(found[1])


def ask_and_be_killed(folder: Path, address: str, count: int, at: int | None) -> None:
    """Asks about so many pictures; when the `at`-th answer is kept the process is killed. None: it ends."""
    from microdit.evaluation.judging.answers import answered
    from microdit.evaluation.judging.judges import read_judge
    from microdit.evaluation.judging.questions import YES_OR_NO, Question

    def progress(done: int, total: int, doing: str) -> None:
        if done == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def questions() -> Iterator[Question]:
        for number in range(count):
            picture = np.full((8, 8, 3), number, dtype=np.uint8)
            yield Question((picture,), f"Is this picture {number}?", YES_OR_NO, f"{number}.png")

    judge = read_judge({"weights": "someone", "address": address}, "judge", torch.device("cpu"))
    answered(folder, questions, judge, progress)
