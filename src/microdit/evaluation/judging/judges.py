"""Who is asked: a model of transformers on this machine, or a server that speaks OpenAI's chat API."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypedDict

import numpy as np
import torch

from microdit.evaluation.judging.questions import YES_OR_NO, Question, Reply
from microdit.kinds import Limits, Place

PROTOCOL = "judge 1"  # what was answered under another is asked anew
SERVER_AT_ONCE = 8  # questions under way; one that is asked too often says so, and is waited for


class JudgeSettings(TypedDict):
    """`weights`: a model that takes pictures and text, a folder or a name on the Hugging Face hub, read by
    transformers; with an `address`, the name that the server there has for it. `address`: None, or such as
    http://localhost:8000/v1; the key, if it asks for one, is in the environment."""

    weights: Annotated[str, Limits(1, 1000), Place(on_hub=True)]
    address: Annotated[str, Limits(1, 1000), Place()] | None


@dataclass(frozen=True)
class Judge:
    """Who replies to a question; a name for it and its weights; and how many questions may be under way at once.

    `ask` raises JudgeError where there is no reply.
    """

    ask: Callable[[Question], Reply]
    name: str
    at_once: int = 1


def read_judge(settings: JudgeSettings, option: str, device: torch.device) -> Judge:
    """The judge that `settings` describe; `option` is where they are set, for messages. A server is not asked yet.

    SettingsError where transformers or httpx is missing, or what is named is no such model or address;
    FileNotFoundError for weights that cannot be had: it says which, from where, and how to point to a folder.
    """
    if settings["address"] is None:
        from microdit.evaluation.judging.local import LocalModel

        model = LocalModel(settings["weights"], f"{option}.weights", device)
        return Judge(model, f"{PROTOCOL}, {model.name}")
    from microdit.evaluation.judging.server import ChatServer

    server = ChatServer(settings["address"], settings["weights"], f"{option}.address")
    return Judge(server, f"{PROTOCOL}, served as {settings['weights']}", SERVER_AT_ONCE)


def check_judge(settings: JudgeSettings, option: str) -> None:
    """Raises what `read_judge` and the first question would, without reading any weights: a server is asked about one
    small picture."""
    if settings["address"] is None:
        from microdit.evaluation.judging.local import judge_folder

        judge_folder(settings["weights"], f"{option}.weights")
    else:
        first_question(read_judge(settings, option, torch.device("cpu")))


def first_question(judge: Judge) -> Reply:
    """Asks about a small picture, so that what is wrong with a judge shows before hours of work. JudgeError."""
    picture = np.full((64, 64, 3), 255, dtype=np.uint8)
    words = "Is this picture white? Answer with yes or no alone."
    return judge.ask(Question((picture,), words, YES_OR_NO, "a white picture"))
