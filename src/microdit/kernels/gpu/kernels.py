"""Triton kernels between a block's linear layers: each tensor is read and written once, sums are in float32.

Nothing is added by several programs at once, so results are the same to the last bit each time. Sizes are arguments and
no constants but for the power of two that a row fits, so that all blocks, whatever their widths, share a few kernels.
"""

import triton
import triton.language as tl


@triton.jit
def norm_forward(
    x,  # [rows, width]
    y,  # [rows, width], added to x first
    gate,  # [samples, width], which y is multiplied with
    weight,  # [width]
    shift,  # [samples, width]
    scale,
    total,  # [rows, width]: x + gate * y
    normed,  # [rows, width]
    mean,  # [rows]
    rstd,
    tokens,
    width,
    gate_stride,
    shift_stride,
    scale_stride,
    eps,
    ADDS: tl.constexpr,
    GATED: tl.constexpr,
    MODULATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """total = x + gate y; normed = norm(total) weight (1 + scale) + shift. One program a row."""
    row = tl.program_id(0).to(tl.int64)
    sample = row // tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    here = row * width + columns
    value = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        added = tl.load(y + here, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            added *= tl.load(gate + sample * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = (value + added).to(total.dtype.element_ty)
        tl.store(total + here, rounded, mask=inside)
        value = rounded.to(tl.float32)
    middle = tl.sum(value, axis=0) / width
    value = tl.where(inside, value - middle, 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / width + eps)
    result = value * factor * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if MODULATED:
        result *= 1.0 + tl.load(scale + sample * scale_stride + columns, mask=inside, other=0.0).to(tl.float32)
        result += tl.load(shift + sample * shift_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + here, result.to(normed.dtype.element_ty), mask=inside)
    tl.store(mean + row, middle)
    tl.store(rstd + row, factor)


@triton.jit
def norm_backward(
    of_total,  # [rows, width]: the gradient of total
    of_normed,  # [rows, width]
    total,  # [rows, width]: what was normalised
    y,
    gate,
    weight,
    scale,
    mean,
    rstd,
    of_x,  # [rows, width], from here on results
    of_y,
    sums,  # [samples, parts, 2, width]: the gradient of normed times what was normalised; and the gate's gradient if
    # there is one, else that of normed
    tokens,
    width,
    gate_stride,
    scale_stride,
    ADDS: tl.constexpr,
    GATED: tl.constexpr,
    MODULATED: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradients of norm_forward: one program a part of a sample's rows. The gradient of y is x's without a gate."""
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if MODULATED:
        factor *= 1.0 + tl.load(scale + sample * scale_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        gates = tl.load(gate + sample * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
    products = tl.zeros([BLOCK], tl.float32)
    others = tl.zeros([BLOCK], tl.float32)
    for i in range(PART):
        token = part * PART + i
        there = inside & (token + 0 * columns < tokens)
        row = sample * tokens + tl.minimum(token, tokens - 1)
        here = row * width + columns
        gradient = tl.load(of_normed + here, mask=there, other=0.0).to(tl.float32)
        normalised = tl.load(total + here, mask=there, other=0.0).to(tl.float32) - tl.load(mean + row)
        per_unit = tl.load(rstd + row)
        normalised = tl.where(there, normalised * per_unit, 0.0)
        products += gradient * normalised
        if not GATED:
            others += gradient
        gradient *= factor
        offset = tl.sum(gradient, axis=0) / width
        slope = tl.sum(gradient * normalised, axis=0) / width
        result = (gradient - offset - normalised * slope) * per_unit
        if ADDS:
            result += tl.load(of_total + here, mask=there, other=0.0).to(tl.float32)
        tl.store(of_x + here, result.to(of_x.dtype.element_ty), mask=there)
        if GATED:
            others += result * tl.load(y + here, mask=there, other=0.0).to(tl.float32)
            tl.store(of_y + here, (result * gates).to(of_y.dtype.element_ty), mask=there)
    place = (sample * tl.num_programs(1) + part) * 2 * width + columns
    tl.store(sums + place, products, mask=inside)
    tl.store(sums + place + width, others, mask=inside)


@triton.jit
def norm_backward_of_rows(
    sums,  # [samples, parts, 2, width], as norm_backward leaves them
    weight,  # [width]
    scale,  # [samples, width]
    of_weight,  # [samples, width], from here on results: each sample's share
    of_scale,  # [samples, width]
    of_other,  # [samples, width]: of the gate if there is one, else of the shift
    parts,
    width,
    scale_stride,
    MODULATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What norm_backward has summed by parts of a sample's rows, as gradients. One program a sample."""
    sample = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    products = tl.zeros([BLOCK], tl.float32)
    others = tl.zeros([BLOCK], tl.float32)
    for part in range(parts):
        place = (sample * parts + part) * 2 * width + columns
        products += tl.load(sums + place, mask=inside, other=0.0)
        others += tl.load(sums + place + width, mask=inside, other=0.0)
    here = sample * width + columns
    tl.store(of_other + here, others.to(of_other.dtype.element_ty), mask=inside)
    if MODULATED:
        weights = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(of_scale + here, (products * weights).to(of_scale.dtype.element_ty), mask=inside)
        products *= 1.0 + tl.load(scale + sample * scale_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(of_weight + here, products, mask=inside)


@triton.jit
def add_gated_forward(x, y, gate, out, tokens, width, gate_stride, BLOCK: tl.constexpr):
    """x + gate y, one program a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    here = row * width + columns
    gates = tl.load(gate + (row // tokens) * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
    result = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    result += gates * tl.load(y + here, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + here, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_gated_backward(
    gradient, y, gate, of_y, of_gate, tokens, width, gate_stride, PART: tl.constexpr, BLOCK: tl.constexpr
):
    """The gradients of y, and of the gate by parts of a sample's rows: [samples, parts, width]."""
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    gates = tl.load(gate + sample * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
    all_of_gate = tl.zeros([BLOCK], tl.float32)
    for i in range(PART):
        token = part * PART + i
        there = inside & (token + 0 * columns < tokens)
        here = (sample * tokens + tl.minimum(token, tokens - 1)) * width + columns
        out = tl.load(gradient + here, mask=there, other=0.0).to(tl.float32)
        all_of_gate += out * tl.load(y + here, mask=there, other=0.0).to(tl.float32)
        tl.store(of_y + here, (out * gates).to(of_y.dtype.element_ty), mask=there)
    place = (sample * tl.num_programs(1) + part) * width + columns
    tl.store(of_gate + place, all_of_gate, mask=inside)


@triton.jit
def silu_product_forward(packed, out, width, BLOCK: tl.constexpr):
    """silu(x) y of x and y side by side: [rows, 2, width]. One program a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    here = row * 2 * width + columns
    value = tl.load(packed + here, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(packed + here + width, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, (value * tl.sigmoid(value) * other).to(out.dtype.element_ty), mask=inside)


@triton.jit
def silu_product_backward(gradient, packed, of_packed, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    here = row * 2 * width + columns
    out = tl.load(gradient + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(packed + here, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(packed + here + width, mask=inside, other=0.0).to(tl.float32)
    gate = tl.sigmoid(value)
    tl.store(of_packed + here + width, (out * value * gate).to(of_packed.dtype.element_ty), mask=inside)
    slope = gate * (1.0 + value * (1.0 - gate))
    tl.store(of_packed + here, (out * other * slope).to(of_packed.dtype.element_ty), mask=inside)


@triton.jit
def normalise_forward(packed, out, mean, rstd, rows, parts, width, eps, WRITES: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of the first parts of [rows, parts, width], as many as the second axis of the grid, without their mean and
    with a deviation of 1: [parts, rows, width]; or only what that takes."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(packed + (row * parts + part) * width + columns, mask=inside, other=0.0).to(tl.float32)
    middle = tl.sum(value, axis=0) / width
    value = tl.where(inside, value - middle, 0.0)
    factor = 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / width + eps)
    place = part * rows + row
    if WRITES:
        tl.store(out + place * width + columns, (value * factor).to(out.dtype.element_ty), mask=inside)
    tl.store(mean + place, middle)
    tl.store(rstd + place, factor)


@triton.jit
def normalise_backward(
    of_first,  # [rows, width]: the gradients of each part
    of_second,
    of_third,
    packed,  # [rows, parts, width]
    mean,  # [parts, rows]
    rstd,
    of_packed,  # [rows, parts, width], the result
    rows,
    parts,
    width,
    first_stride,
    second_stride,
    third_stride,
    NORMALISED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradients of all parts, side by side as they were; those of the first NORMALISED through their norm."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    if part == 0:
        gradient = tl.load(of_first + row * first_stride + columns, mask=inside, other=0.0).to(tl.float32)
    elif part == 1:
        gradient = tl.load(of_second + row * second_stride + columns, mask=inside, other=0.0).to(tl.float32)
    else:
        gradient = tl.load(of_third + row * third_stride + columns, mask=inside, other=0.0).to(tl.float32)
    here = (row * parts + part) * width + columns
    if part < NORMALISED:
        place = part * rows + row
        per_unit = tl.load(rstd + place)
        value = tl.load(packed + here, mask=inside, other=0.0).to(tl.float32) - tl.load(mean + place)
        value = tl.where(inside, value * per_unit, 0.0)
        offset = tl.sum(gradient, axis=0) / width
        slope = tl.sum(gradient * value, axis=0) / width
        gradient = (gradient - offset - value * slope) * per_unit
    tl.store(of_packed + here, gradient.to(of_packed.dtype.element_ty), mask=inside)


@triton.jit
def sum_over_experts_forward(
    outputs,  # [experts, samples, k, width]
    weights,  # [samples, experts, k]
    slots,  # [samples, experts, tokens]
    out,  # [samples, tokens, width]
    samples,
    experts,
    tokens,
    k,
    width,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What the experts that chose a patch made of it, added up in their order: one program a patch."""
    row = tl.program_id(0).to(tl.int64)
    sample, token = row // tokens, row % tokens
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    total = tl.zeros([BLOCK], tl.float32)
    for expert in range(experts):
        slot = tl.load(slots + (sample * experts + expert) * tokens + token)
        place = (expert * samples + sample) * k + tl.minimum(slot, k - 1)
        value = tl.load(outputs + place * width + columns, mask=inside & (slot + 0 * columns < k), other=0.0).to(
            tl.float32
        )
        if WEIGHTED:
            value *= tl.load(weights + (sample * experts + expert) * k + tl.minimum(slot, k - 1)).to(tl.float32)
        total += value
    tl.store(out + row * width + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def sum_over_experts_backward(
    gradient,  # [samples * tokens, width]
    outputs,  # [experts, samples, k, width]
    weights,  # [samples, experts, k]
    rows,  # [experts * samples * k]: which row of `gradient` was chosen
    of_outputs,
    of_weights,
    samples,
    experts,
    k,
    width,
    BLOCK: tl.constexpr,
):
    """The gradients of what an expert made of a patch, and of its weight: one program each."""
    slot = tl.program_id(0).to(tl.int64)
    expert, sample, place = slot // (samples * k), (slot // k) % samples, slot % k
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    given = tl.load(gradient + tl.load(rows + slot) * width + columns, mask=inside, other=0.0).to(tl.float32)
    made = tl.load(outputs + slot * width + columns, mask=inside, other=0.0).to(tl.float32)
    at = (sample * experts + expert) * k + place
    weighted = given * tl.load(weights + at).to(tl.float32)
    tl.store(of_outputs + slot * width + columns, weighted.to(of_outputs.dtype.element_ty), mask=inside)
    tl.store(of_weights + at, tl.sum(given * made, axis=0).to(of_weights.dtype.element_ty))


@triton.jit
def normalised_rows(x, place, mean, rstd, row, is_row):
    """Rows of queries or keys, without their mean over all heads and with a deviation of 1."""
    value = tl.load(x + place, mask=is_row[:, None], other=0.0).to(tl.float32)
    middle = tl.load(mean + row, mask=is_row, other=0.0)
    factor = tl.load(rstd + row, mask=is_row, other=0.0)
    return ((value - middle[:, None]) * factor[:, None]).to(x.dtype.element_ty)


@triton.jit
def attention_forward(
    q,  # [samples, queries, heads, HEAD], each with its strides
    k,
    v,
    q_mean,  # [samples * queries]: q and k are normalised as they are read
    q_rstd,
    k_mean,
    k_rstd,
    out,
    logsumexp,  # [samples, heads, queries]
    q_sample,
    q_row,
    k_sample,
    k_row,
    v_sample,
    v_row,
    heads,
    queries,
    keys,
    scale,
    HEAD: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """softmax(q k^T scale) v for one head of one sample and a block of queries; all keys fit in one block."""
    sample, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    channels = head * HEAD + tl.arange(0, HEAD)
    row = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    key = tl.arange(0, KEYS)
    is_row, is_key = row < queries, key < keys
    query_place = sample * q_sample + row[:, None] * q_row + channels[None, :]
    query_rows = normalised_rows(q, query_place, q_mean, q_rstd, sample * queries + row, is_row)
    key_place = sample * k_sample + key[:, None] * k_row + channels[None, :]
    key_rows = normalised_rows(k, key_place, k_mean, k_rstd, sample * keys + key, is_key)
    value_rows = tl.load(
        v + sample * v_sample + key[:, None] * v_row + channels[None, :], mask=is_key[:, None], other=0.0
    )
    logits = tl.where(is_key[None, :], tl.dot(query_rows, tl.trans(key_rows)) * scale, float("-inf"))
    largest = tl.max(logits, axis=1)
    weights = tl.exp(logits - largest[:, None])
    total = tl.sum(weights, axis=1)
    result = tl.dot(weights.to(value_rows.dtype), value_rows) / total[:, None]
    place = (sample * queries + row[:, None]) * (heads * HEAD) + channels[None, :]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=is_row[:, None])
    tl.store(logsumexp + (sample * heads + head) * queries + row, largest + tl.log(total), mask=is_row)


@triton.jit
def attention_gradients(query_rows, key_rows, value_rows, given, common, normaliser, is_row, is_key, scale):
    """The weights of a block of queries for a block of keys, and the gradient of what the weights come from."""
    logits = tl.dot(query_rows, tl.trans(key_rows)) * scale
    weights = tl.where(is_row[:, None] & is_key[None, :], tl.exp(logits - normaliser[:, None]), 0.0)
    of_logits = weights * (tl.dot(given, tl.trans(value_rows)) - common[:, None]) * scale
    return weights.to(given.dtype), of_logits.to(given.dtype)


@triton.jit
def attention_backward_few_queries(
    gradient,  # [samples, queries, heads * HEAD], contiguous as `out` is
    out,
    logsumexp,
    q,
    k,
    v,
    q_mean,
    q_rstd,
    k_mean,
    k_rstd,
    of_q,  # as q, k and v are shaped, samples without a gap between them
    of_k,
    of_v,
    q_sample,
    q_row,
    k_sample,
    k_row,
    v_sample,
    v_row,
    heads,
    queries,
    keys,
    scale,
    of_q_row,
    of_k_row,
    of_v_row,
    HEAD: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """The gradients for one head of one sample: all queries in one block, keys block by block."""
    sample, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    width = heads * HEAD
    channels = (head * HEAD + tl.arange(0, HEAD))[None, :]
    row = tl.arange(0, QUERIES)
    is_row = row < queries
    there = is_row[:, None]
    query_place = sample * q_sample + row[:, None] * q_row + channels
    query_rows = normalised_rows(q, query_place, q_mean, q_rstd, sample * queries + row, is_row)
    place = (sample * queries + row[:, None]) * width + channels
    given = tl.load(gradient + place, mask=there, other=0.0)
    made = tl.load(out + place, mask=there, other=0.0)
    common = tl.sum(given.to(tl.float32) * made.to(tl.float32), axis=1)
    normaliser = tl.load(logsumexp + (sample * heads + head) * queries + row, mask=is_row, other=float("inf"))
    all_of_q = tl.zeros([QUERIES, HEAD], tl.float32)
    for first in range(0, keys, KEYS):
        key = first + tl.arange(0, KEYS)
        is_key = key < keys
        inside = is_key[:, None]
        key_place = sample * k_sample + key[:, None] * k_row + channels
        key_rows = normalised_rows(k, key_place, k_mean, k_rstd, sample * keys + key, is_key)
        value_rows = tl.load(v + sample * v_sample + key[:, None] * v_row + channels, mask=inside, other=0.0)
        weights, of_logits = attention_gradients(
            query_rows, key_rows, value_rows, given, common, normaliser, is_row, is_key, scale
        )
        key_of_all = sample * keys + key[:, None]
        of_values = tl.dot(tl.trans(weights), given)
        tl.store(of_v + key_of_all * of_v_row + channels, of_values.to(of_v.dtype.element_ty), mask=inside)
        of_keys = tl.dot(tl.trans(of_logits), query_rows)
        tl.store(of_k + key_of_all * of_k_row + channels, of_keys.to(of_k.dtype.element_ty), mask=inside)
        all_of_q += tl.dot(of_logits, key_rows)
    place = (sample * queries + row[:, None]) * of_q_row + channels
    tl.store(of_q + place, all_of_q.to(of_q.dtype.element_ty), mask=there)


@triton.jit
def attention_backward_few_keys(
    gradient,  # as above
    out,
    logsumexp,
    q,
    k,
    v,
    q_mean,
    q_rstd,
    k_mean,
    k_rstd,
    of_q,
    of_k,
    of_v,
    q_sample,
    q_row,
    k_sample,
    k_row,
    v_sample,
    v_row,
    heads,
    queries,
    keys,
    scale,
    of_q_row,
    of_k_row,
    of_v_row,
    HEAD: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """The gradients for one head of one sample: all keys in one block, queries block by block."""
    sample, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    width = heads * HEAD
    channels = (head * HEAD + tl.arange(0, HEAD))[None, :]
    key = tl.arange(0, KEYS)
    is_key = key < keys
    inside = is_key[:, None]
    key_place = sample * k_sample + key[:, None] * k_row + channels
    key_rows = normalised_rows(k, key_place, k_mean, k_rstd, sample * keys + key, is_key)
    value_rows = tl.load(v + sample * v_sample + key[:, None] * v_row + channels, mask=inside, other=0.0)
    all_of_k = tl.zeros([KEYS, HEAD], tl.float32)
    all_of_v = tl.zeros([KEYS, HEAD], tl.float32)
    for first in range(0, queries, QUERIES):
        row = first + tl.arange(0, QUERIES)
        is_row = row < queries
        there = is_row[:, None]
        query_place = sample * q_sample + row[:, None] * q_row + channels
        query_rows = normalised_rows(q, query_place, q_mean, q_rstd, sample * queries + row, is_row)
        place = (sample * queries + row[:, None]) * width + channels
        given = tl.load(gradient + place, mask=there, other=0.0)
        made = tl.load(out + place, mask=there, other=0.0)
        common = tl.sum(given.to(tl.float32) * made.to(tl.float32), axis=1)
        normaliser = tl.load(logsumexp + (sample * heads + head) * queries + row, mask=is_row, other=float("inf"))
        weights, of_logits = attention_gradients(
            query_rows, key_rows, value_rows, given, common, normaliser, is_row, is_key, scale
        )
        all_of_v += tl.dot(tl.trans(weights), given)
        place = (sample * queries + row[:, None]) * of_q_row + channels
        tl.store(of_q + place, tl.dot(of_logits, key_rows).to(of_q.dtype.element_ty), mask=there)
        all_of_k += tl.dot(tl.trans(of_logits), query_rows)
    key_of_all = sample * keys + key[:, None]
    tl.store(of_k + key_of_all * of_k_row + channels, all_of_k.to(of_k.dtype.element_ty), mask=inside)
    tl.store(of_v + key_of_all * of_v_row + channels, all_of_v.to(of_v.dtype.element_ty), mask=inside)
