"""The page, through its own HTTP client, and what it shows."""

import httpx
import numpy as np
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from microdit.build import SettingsError
from microdit.commands.demo import Subject, drawn, enlarged, page, seen_by_backbone
from microdit.pipeline import build_pipeline

PROMPT = "a red circle left of a blue square"
USUAL = {"sampler": "heun", "num_inference_steps": 3, "guidance_scale": 2.0, "temperature": 1.0}


@pytest.fixture(scope="module")
def subjects(pipeline_settings, wake) -> list[Subject]:
    """Two small networks with other weights."""
    made = []
    for number, name in enumerate(["first", "second"]):
        torch.manual_seed(number)
        pipeline = build_pipeline(pipeline_settings)
        wake(pipeline.dit)
        made.append(Subject(name, pipeline))
    return made


def test_the_page_draws_step_by_step_for_a_client(subjects):
    blocks = page(subjects)
    try:
        _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True)
        job = Client(address, verbose=False).submit(PROMPT, 3, "heun", 3, 2.0, 1.0, 0.75, api_name="/draw")
        shown = job.result(timeout=60)
        assert len(job.outputs()) == 3
    finally:
        blocks.close()
    assert len(shown) == 3
    first = np.asarray(Image.open(shown[0]).convert("RGB")).astype(int)
    expected = enlarged(subjects[0].pipeline.generate([PROMPT], seed=3, **USUAL)[0]).astype(int)
    assert first.shape == expected.shape
    assert np.abs(first - expected).mean() < 4  # sent as WebP


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (0, None, "request.prompt must be a text"),
        (0, "x" * 1_001, "request.prompt must be a text"),
        (1, None, "request.seed must be a number"),
        (1, 1e308, "request.seed must be a number from 0 to"),
        (3, 1e308, "maximum"),
        (6, 0.99, "maximum"),
    ],
)
def test_what_a_program_sends_is_told_in_a_sentence_and_not_on_the_operators_console(
    subjects, capsys, place, value, told
):
    blocks, asked = page(subjects), [PROMPT, 3, "heun", 3, 2.0, 1.0, 0.75]
    asked[place] = value
    try:
        _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True)
        capsys.readouterr()
        with pytest.raises(AppError, match=told):
            Client(address, verbose=False).predict(*asked, api_name="/draw")
    finally:
        blocks.close()
    if told.startswith("request"):
        assert "Traceback" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("place", [0, 1, 2, 5])
@pytest.mark.parametrize("nested", [False, True])
def test_no_address_that_a_request_names_is_fetched(subjects, monkeypatch, place, nested):
    fetched = []

    async def fetch(address: str, *given: object) -> str:
        fetched.append(address)
        raise ValueError

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", fetch)
    blocks, asked = page(subjects), [PROMPT, 3, "heun", 3, 2.0, 1.0, 0.75]
    named = {"path": "http://127.0.0.1:9/large", "meta": {"_type": "gradio.FileData"}}
    asked[place] = [{"a": named}] if nested else named
    try:
        _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True)
        called = f"{address}gradio_api/call/draw"
        event = httpx.post(called, json={"data": asked}).json()["event_id"]
        answer = httpx.get(f"{called}/{event}", timeout=60).text
    finally:
        blocks.close()
    assert fetched == []
    assert "names no file or address" in answer


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"prompt": None}, "request.prompt must be a text"),
        ({"prompt": "x" * 1_001}, "request.prompt must be a text, 0 to 1,000 of them"),
        ({"seed": float("inf")}, "request.seed must be a number from 0"),
        ({"seed": float("nan")}, "request.seed must be a number from 0"),
        ({"mask_ratio": 1.0}, "request.mask_ratio must be"),
        ({"num_inference_steps": None}, "request.num_inference_steps must be"),
        ({"sampler": "none"}, "request.sampler must be"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(subjects, changed, told):
    asked = {"prompt": PROMPT, "seed": 3, "mask_ratio": 0.75, **USUAL, **changed}
    first = {name: asked.pop(name) for name in ("prompt", "seed", "mask_ratio")}
    with pytest.raises(SettingsError, match=told):
        next(drawn(subjects, **first, told=asked))


def test_two_networks_start_from_the_same_noise(subjects):
    *_, last = drawn(subjects, PROMPT, 3, 0.75, USUAL)
    for subject, picture in zip(subjects, last, strict=False):
        assert np.array_equal(picture, enlarged(subject.pipeline.generate([PROMPT], seed=3, **USUAL)[0]))
    assert not np.array_equal(last[0], last[1])
    *_, twice = drawn([subjects[0], subjects[0]], PROMPT, 3, 0.75, USUAL)
    assert np.array_equal(twice[0], twice[1])


def test_what_the_backbone_sees_is_the_share_of_patches_that_masking_keeps(subjects):
    pipeline, picture = subjects[0].pipeline, torch.ones(3, 8, 8)
    shown = seen_by_backbone(pipeline, picture, 0.75, seed=1)
    side = pipeline.dit.patch_size
    patches = shown.unfold(1, side, side).unfold(2, side, side).flatten(3)
    assert (patches == patches[..., :1]).all()  # patches are kept or dropped as wholes
    assert (patches[0, ..., 0] == 1).float().mean() == 0.25
    assert torch.equal(shown, seen_by_backbone(pipeline, picture, 0.75, seed=1))
    assert not torch.equal(shown, seen_by_backbone(pipeline, picture, 0.75, seed=2))
    assert torch.equal(seen_by_backbone(pipeline, picture, 0.0, seed=1), picture)


def test_nothing_to_draw_is_told(subjects):
    with pytest.raises(SettingsError, match="a prompt says what to draw"):
        next(drawn(subjects, "  ", 0, 0.75, USUAL))
