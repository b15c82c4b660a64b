"""The small parts of the network against their formulas, written plainly."""

import math

import pytest
import torch
from torch.nn import functional as F

from microdit.masking.patches import assemble_patches, cut_patches
from microdit.model.blocks import CrossAttention, SelfAttention, attention_width
from microdit.model.embeddings import NoiseEmbedding, sincos_position_table
from microdit.model.feed_forward import GELUFeedForward, SwiGLU, round_up


def test_a_position_is_its_column_in_the_first_half_and_its_row_in_the_second():
    rows, columns, dim = 3, 5, 16
    table = sincos_position_table(rows, columns, dim, 1.0).view(rows, columns, dim)
    for row in range(rows):
        for column in range(columns):
            expected = []
            for index in (column, row):
                angles = [index * 10000 ** (-i / (dim / 4)) for i in range(dim // 4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(table[row, column], torch.tensor(expected))


def test_scale_two_puts_every_second_position_of_a_large_grid_where_the_small_grid_has_it():
    small = sincos_position_table(4, 4, 16, 1.0).view(4, 4, 16)
    large = sincos_position_table(8, 8, 16, 2.0).view(8, 8, 16)
    assert torch.equal(large[::2, ::2], small)


def test_a_width_without_four_parts_is_refused():
    with pytest.raises(ValueError, match="divisible by 4, got dim=18"):
        sincos_position_table(2, 2, 18, 1.0)


def test_noise_is_embedded_as_cosines_then_sines_without_a_time_factor():
    embedding = NoiseEmbedding(8)
    seen = []
    embedding.mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    embedding(torch.tensor([0.7]))
    angles = [0.7 * math.exp(-math.log(10000) * i / 256) for i in range(256)]
    expected = torch.tensor([[*map(math.cos, angles), *map(math.sin, angles)]])
    torch.testing.assert_close(seen[0], expected)


@torch.no_grad()
def test_assembling_is_the_inverse_of_cutting_in_the_released_order():
    picture = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    patches = [
        [picture[n, c, 2 * row + i, 2 * column + j] for i in range(2) for j in range(2) for c in range(3)]
        for n in range(2)
        for row in range(2)
        for column in range(3)
    ]
    values = torch.tensor(patches).view(2, 6, 12)
    assert torch.equal(assemble_patches(values, 2, 3, 2), picture)
    assert torch.equal(cut_patches(picture, 2), values)


def test_round_up():
    assert [round_up(v, 256) for v in (1, 256, 257, 682)] == [256, 256, 512, 768]


@pytest.mark.parametrize(("ratio", "width"), [(1.0, 1024), (0.5, 512), (0.51, 640), (0.75, 768), (0.99, 1024)])
def test_scaled_attention_has_whole_pairs_of_heads(ratio, width):
    assert attention_width(1024, ratio, 64) == width


@torch.no_grad()
def test_swiglu_is_its_formula_with_two_thirds_of_the_width():
    layer, x = SwiGLU(32, 4.0, 16, bias=True), torch.randn(2, 5, 32)
    assert layer.w1.out_features == 96  # int(2 * 128 / 3) = 85, rounded up to a multiple of 16
    torch.testing.assert_close(layer(x), layer.w3(F.silu(layer.w1(x)) * layer.w2(x)))


@torch.no_grad()
def test_the_plain_feed_forward_layer_is_its_formula_at_the_full_width():
    layer, x = GELUFeedForward(32, 4.0, 16, bias=True), torch.randn(2, 5, 32)
    assert layer.w1.out_features == 128
    torch.testing.assert_close(layer(x), layer.w2(F.gelu(layer.w1(x))))


@torch.no_grad()
def test_self_attention_is_softmax_of_normed_queries_and_keys_head_by_head():
    torch.manual_seed(0)
    attention, x = SelfAttention(32, 0.5, 8, bias=False, norm_eps=1e-6), torch.randn(2, 6, 32)
    width = attention.proj.in_features
    q, k, v = attention.qkv(x).view(2, 6, 3, width).unbind(2)
    q, k = ((z - z.mean(-1, keepdim=True)) / (z.var(-1, keepdim=True, correction=0) + 1e-6).sqrt() for z in (q, k))
    heads = []
    for head in range(width // 8):
        part = slice(8 * head, 8 * head + 8)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(8)).softmax(-1)
        heads.append(weights @ v[..., part])
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, -1)))


@torch.no_grad()
def test_cross_attention_does_not_mind_the_order_of_caption_tokens_nor_the_size_of_queries():
    torch.manual_seed(0)
    attention = CrossAttention(32, 8, bias=False, norm_eps=1e-6)
    x, captions = torch.randn(2, 6, 32), torch.randn(2, 7, 32)
    before = attention(x, captions)
    torch.testing.assert_close(attention(x, captions.flip(1)), before)
    torch.testing.assert_close(attention(100 * x, captions), before, atol=1e-4, rtol=1e-4)
