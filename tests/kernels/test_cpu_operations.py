"""What is compiled for a CPU computes what the formulas say, forward and backward, whatever the sizes."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from compiler import needs_compiler
from torch import nn

from microdit.cost.flops import training_flops_per_image
from microdit.kernels.compile import compile_network
from microdit.kernels.cpu import operations as fused_operations
from microdit.kernels.cpu.operations import CompilerError, load_fused_operations, refuse_others
from microdit.model.operations import FORMULAS, Operations, silu_product


@pytest.fixture(scope="module")
def fused() -> Operations:
    return load_fused_operations()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def assert_alike(formula, fused, *inputs: torch.Tensor, tolerance: float = 1e-5) -> None:
    """The same result, and the same gradients of all inputs."""

    gradient = torch.randn_like(formula(*inputs))

    def results(operation):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        out = operation(*leaves)
        out.backward(gradient)
        return [out.detach(), *(x.grad for x in leaves)]

    for actual, expected in zip(results(fused), results(formula), strict=True):
        # Some gradients are zero but for rounding, such as that of a query with one key to choose from.
        assert (actual - expected).norm() <= tolerance * max(expected.norm(), expected.numel() ** 0.5)


def test_a_library_that_others_could_have_made_is_not_loaded(tmp_path):
    library = tmp_path / "microdit.so"
    library.touch(mode=0o700)
    refuse_others(library)
    for place in (library, tmp_path):
        mode = place.stat().st_mode
        place.chmod(0o777)
        with pytest.raises(CompilerError, match="others may write there"):
            refuse_others(library)
        place.chmod(mode)


@needs_compiler
@pytest.mark.parametrize("head_dim", [8, 12, 32, 64])
@pytest.mark.parametrize("tokens", [1, 6, 23, 64, 130])
def test_self_attention(fused, head_dim, tokens):
    sizes = {"head_dim": head_dim, "norm_eps": 1e-6}
    assert_alike(
        lambda qkv: FORMULAS.normalised_attention(qkv, **sizes),
        lambda qkv: fused.normalised_attention(qkv, **sizes),
        randn(3, tokens, 3 * 2 * head_dim),
    )


@needs_compiler
@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize(("queries", "keys"), [(64, 77), (49, 1), (7, 200)])
def test_attention_to_captions(fused, samples, queries, keys):
    sizes = {"head_dim": 32, "norm_eps": 1e-6}
    assert_alike(
        lambda q, kv: FORMULAS.normalised_attention(q, kv, **sizes),
        lambda q, kv: fused.normalised_attention(q, kv, **sizes),
        randn(samples, queries, 96),
        randn(samples, keys, 2 * 96),
    )


@needs_compiler
@pytest.mark.parametrize("others", [0, 60])
def test_attention_where_one_key_takes_all(fused, others):
    """Scores of -90 to 90, where powers of e vanish and would overflow if the largest were not taken off."""
    sizes = {"head_dim": 32, "norm_eps": 1e-6}
    channel = 100 * torch.eye(512)[[0, 0, 0, 200]]
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0])[:, None]
    qkv = torch.cat([channel * signs, channel * signs.flip(0), randn(4, 512)], dim=-1)[None] + 0.1 * randn(1, 4, 1536)
    qkv = torch.cat([qkv, randn(1, others, 1536)], dim=1)
    assert_alike(
        lambda x: FORMULAS.normalised_attention(x, **sizes), lambda x: fused.normalised_attention(x, **sizes), qkv
    )


@needs_compiler
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 64, 128], ids=["query", "key", "value"])
def test_what_is_no_number_stays_visible(fused, broken, where):
    """The results that are finite are the formula's, and no others."""
    qkv = randn(2, 23, 3 * 64)
    qkv[0, 3, where] = broken
    sizes = {"head_dim": 32, "norm_eps": 1e-6}
    expected = FORMULAS.normalised_attention(qkv, **sizes).isfinite()
    assert not expected.all()
    assert torch.equal(fused.normalised_attention(qkv, **sizes).isfinite(), expected)


@needs_compiler
@pytest.mark.parametrize("shape", [(3, 17, 40), (1, 1, 8), (5, 64, 512)])
def test_modulated_norm(fused, shape):
    n, _, d = shape

    def modulated(operations):
        def with_weight(x, weight, shift, scale):
            norm = nn.LayerNorm(d, eps=1e-6, bias=False)
            del norm.weight
            norm.weight = weight  # as an input, so that its gradient is compared
            return operations.modulated_norm(x, norm, shift, scale)

        return with_weight

    inputs = 3 + 2 * randn(*shape), randn(d), randn(n, d), randn(n, d)
    assert_alike(modulated(FORMULAS), modulated(fused), *inputs)


@needs_compiler
@pytest.mark.parametrize("shape", [(3, 17, 40), (1, 1, 5), (5, 64, 512)])
def test_gates(fused, shape):
    n, _, d = shape
    assert_alike(FORMULAS.add_gated, fused.add_gated, randn(*shape), randn(n, d), randn(*shape) - 1)
    assert_alike(silu_product, fused_operations.fused_silu_product, 20 * randn(*shape), randn(*shape) + 1)


@needs_compiler
def test_what_is_not_contiguous_is_taken_as_it_reads(fused):
    x, y = randn(4, 6, 10).transpose(1, 2), randn(4, 10, 12)[..., ::2]
    assert_alike(silu_product, fused_operations.fused_silu_product, x, y)
    sizes = {"head_dim": 6, "norm_eps": 1e-6}
    packed = randn(2, 18, 9).transpose(1, 2)
    assert torch.allclose(
        fused.normalised_attention(packed, **sizes), FORMULAS.normalised_attention(packed, **sizes), atol=1e-5
    )


@needs_compiler
def test_the_number_of_threads_changes_no_bit(fused):
    inputs, gradient = randn(3, 70, 96), randn(3, 70, 32)

    def results(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        qkv = inputs.clone().requires_grad_()
        attended = fused.normalised_attention(qkv, head_dim=32, norm_eps=1e-6)
        attended.backward(gradient)
        return [attended, qkv.grad]

    before = torch.get_num_threads()
    try:
        one, several = results(1), results(4)  # four threads share the heads of a sample, one takes sample by sample
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(one, several, strict=True))


@needs_compiler
def test_tensors_that_do_not_fit_are_refused(fused):
    """The formulas would raise or broadcast; compiled code would read what lies behind."""
    operations, x = torch.ops.microdit, randn(2, 5, 16)
    other = randn(1, 7, 16)
    with pytest.raises(RuntimeError, match="do not fit"):
        operations.attention(x, other, other, 8, 1e-6)
    with pytest.raises(RuntimeError, match="whole heads"):
        operations.attention(x, x, x, 12, 1e-6)
    with pytest.raises(RuntimeError, match="one vector a sample"):
        operations.add_gated(x, randn(1, 16), x)
    with pytest.raises(RuntimeError, match="belong"):
        operations.silu_product(x, randn(2, 4, 16))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_go_through_the_formulas(fused, dtype):
    x, y = randn(2, 3, 24).to(dtype), randn(2, 3, 24).to(dtype)
    assert torch.equal(fused_operations.fused_silu_product(x, y), silu_product(x, y))
    sizes = {"head_dim": 8, "norm_eps": 1e-6}
    assert torch.equal(fused.normalised_attention(x, **sizes), FORMULAS.normalised_attention(x, **sizes))


@needs_compiler
def test_a_fused_network_has_the_same_keys_flops_and_copies(small_network, inputs):
    network = small_network()
    keys, flops = list(network.state_dict()), training_flops_per_image(network, 0.75, 5)
    expected = network(*inputs())
    compile_network(network, "cpu")
    assert list(network.state_dict()) == keys
    assert training_flops_per_image(network, 0.75, 5) == flops
    for each in (network, copy.deepcopy(network)):
        assert torch.allclose(each(*inputs()), expected, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_every_operation_of_a_fused_network_is_fused(small_network, inputs):
    network = small_network()
    compile_network(network, "cpu")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        network(*inputs()).square().mean().backward()
    used = {event.key for event in profile.key_averages()}
    operations = ("attention", "modulated_norm", "add_gated", "silu_product")
    assert {f"microdit::{name}{way}" for name in operations for way in ("", "_backward")} <= used
    assert not {name for name in used if "scaled_dot_product" in name or name == "aten::silu"}


def test_clones_share_what_was_compiled_until_a_source_changes(monkeypatch, tmp_path):
    def name() -> str:
        return fused_operations.library_name(fused_operations.compiler_command())

    before = name()
    for paths in ("SOURCES", "HEADERS"):
        copies = [Path(shutil.copy(path, tmp_path)) for path in getattr(fused_operations, paths)]
        monkeypatch.setattr(fused_operations, paths, copies)
    monkeypatch.setattr(fused_operations, "FOLDER", tmp_path)
    assert name() == before
    header = fused_operations.HEADERS[0]
    header.write_text(header.read_text() + "// changed")
    assert name() != before


def test_without_a_compiler_the_message_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "absent-compiler")
    with pytest.raises(CompilerError, match=r"absent-compiler(.|\n)*Install a C\+\+ compiler(.|\n)*compile=false"):
        load_fused_operations.__wrapped__()


@needs_compiler
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "made"))
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'no OpenMP here' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(CompilerError, match="no OpenMP here"):
        load_fused_operations.__wrapped__()
    assert not list((tmp_path / "made").iterdir())


@needs_compiler
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("packed_attention", lambda: ([randn(2, 6, 3 * 32)], 16, 1e-6)),
        ("packed_attention", lambda: ([randn(2, 6, 32), randn(2, 5, 2 * 32)], 16, 1e-6)),
        ("modulated_norm", lambda: (randn(2, 6, 32), randn(2, 32), randn(2, 32), 1e-6)),
        ("add_gated", lambda: (randn(2, 6, 32), randn(2, 32), randn(2, 6, 32))),
        ("silu_product", lambda: (randn(2, 6, 32), randn(2, 6, 32))),
    ],
    ids=["self_attention", "attention_to_captions", "modulated_norm", "add_gated", "silu_product"],
)
def test_torch_finds_shapes_and_derivatives_of_every_operation_in_order(fused, name, arguments):
    def needing_gradients(value):
        if isinstance(value, list):
            return [needing_gradients(each) for each in value]
        return value.requires_grad_() if isinstance(value, torch.Tensor) else value

    operation = getattr(torch.ops.microdit, name).default
    torch.library.opcheck(operation, tuple(map(needing_gradients, arguments())))


@needs_compiler
def test_fake_tensors_go_through_a_network_with_fused_operations(small_network, inputs):
    network = small_network()
    compile_network(network, "cpu")
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        latents, noise, captions = (mode.from_tensor(x) for x in inputs())
        assert network(latents, noise, captions).shape == latents.shape


@needs_compiler
def test_keys_that_are_not_present_are_not_attended_to(fused):
    sizes = {"head_dim": 8, "norm_eps": 1e-6, "present": torch.tensor([[True, True, False], [True, False, False]])}
    q, kv = randn(2, 4, 16), randn(2, 3, 32)
    assert_alike(
        lambda q, kv: FORMULAS.normalised_attention(q, kv, **sizes),
        lambda q, kv: fused.normalised_attention(q, kv, **sizes),
        q,
        kv,
    )
    beside = kv.clone()
    beside[~sizes["present"]] = 7.0
    assert torch.equal(fused.normalised_attention(q, beside, **sizes), fused.normalised_attention(q, kv, **sizes))
