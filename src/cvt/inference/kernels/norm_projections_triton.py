# Triton is not Python to a type checker.
# ty: ignore
"""The Triton kernels behind `norm_projections`, as operators that compilers see through.

Tiling. With kernel 3 and padding 1, a strided output (y, x) has the very window of the unstrided
output (2y, 2x): so the unit is a quad, two rows by two columns of tokens, whose four outputs of q
and one of k and v read a 4 x 4 window. A program owns BLOCK_X neighbouring quads and BLOCK_C
channels and walks down a strip of quad rows. It keeps the two lowest rows of the window in
registers and reads two more a step, each as four shifted columns (2x - 1 .. 2x + 2): an element is
loaded, widened and normalised twice instead of nine times, and the second read hits the first-level
cache. Only the two halo rows of a strip are read by two programs.

A thread holds four channels of a quad (BLOCK_X * BLOCK_C == 128 * WARPS). Its 108 taps stay in
registers: 230 of 255, without spilling (ptxas for sm_90, Triton 3.9). The eight channels of a
16-byte load would not fit, and reading taps again at each quad would cost more of the first-level
cache's bandwidth than the tokens do; two channels need 147, but 43 instructions an element
in place of 34, since addresses, masks and moments are then shared by half as many.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op, triton_op, wrap_triton

from cvt.inference.kernels import interpreted

# Quads side by side, channels, and the most quad rows that a program owns; its warps; stages of
# the loop's loads (more than one: through shared memory).
BLOCK_X, BLOCK_C, MAX_STEPS, WARPS, STAGES = 8, 64, 8, 4, 1


# Few functions call functions: Triton's interpreter, in which the tests run, is slow at that.
@triton.jit
def _tile(tokens, scale, shift, limit, x, channels, gamma, beta, DIM: tl.constexpr):
    """Normalised tokens x of a row, times channels, in float32; 0 for x outside 0 .. limit."""
    # One comparison for both ends: what is negative is large when it has no sign.
    inside = x.to(tl.uint32) < limit
    mask = inside[:, None]
    if tl.constexpr(DIM) % channels.shape[0] != 0:
        mask = mask & (channels < DIM)[None, :]
    value = tl.load(tokens + x[:, None] * DIM + channels[None, :], mask=mask, other=0.0)
    a = tl.load(scale + x, mask=inside, other=0.0)
    b = tl.load(shift + x, mask=inside, other=0.0)
    value = (value.to(tl.float32) * a[:, None] + b[:, None]) * gamma[None, :] + beta[None, :]
    return tl.where(mask, value, 0.0)


@triton.jit
def _row(tokens, scale, shift, y, pairs, channels, gamma, beta, height, width, DIM: tl.constexpr):
    """Columns 2x - 1, 2x, 2x + 1, 2x + 2 of row y."""
    x = 2 * pairs
    limit = tl.where((y >= 0) & (y < height), width, 0).to(tl.uint32)
    tokens, scale, shift = tokens + y * width * DIM, scale + y * width, shift + y * width
    return (
        _tile(tokens, scale, shift, limit, x - 1, channels, gamma, beta, DIM),
        _tile(tokens, scale, shift, limit, x, channels, gamma, beta, DIM),
        _tile(tokens, scale, shift, limit, x + 1, channels, gamma, beta, DIM),
        _tile(tokens, scale, shift, limit, x + 2, channels, gamma, beta, DIM),
    )


@triton.jit
def _vector(pointer, channels, DIM: tl.constexpr):
    return tl.load(pointer + channels, mask=channels < DIM, other=0.0).to(tl.float32)


@triton.jit
def _taps(taps, channels, DIM: tl.constexpr):
    """The nine taps of a kernel, each a vector over the channels."""
    mask = channels < DIM
    taps += channels
    return (
        tl.load(taps, mask=mask, other=0.0).to(tl.float32),
        tl.load(taps + DIM, mask=mask, other=0.0).to(tl.float32),
        tl.load(taps + 2 * DIM, mask=mask, other=0.0).to(tl.float32),
        tl.load(taps + 3 * DIM, mask=mask, other=0.0).to(tl.float32),
        tl.load(taps + 4 * DIM, mask=mask, other=0.0).to(tl.float32),
        tl.load(taps + 5 * DIM, mask=mask, other=0.0).to(tl.float32),
        tl.load(taps + 6 * DIM, mask=mask, other=0.0).to(tl.float32),
        tl.load(taps + 7 * DIM, mask=mask, other=0.0).to(tl.float32),
        tl.load(taps + 8 * DIM, mask=mask, other=0.0).to(tl.float32),
    )


@triton.jit
def _put(out, a, b, c, left: tl.constexpr, taps, bias, limit, x, channels, DIM: tl.constexpr):
    """Stores the convolution of rows a, b, c, from column `left` of the window, at x of a row."""
    # A whole tile from the start: otherwise Triton 3.9 multiplies apart from some additions.
    total = tl.full(b[1].shape, 0.0, tl.float32) + bias[None, :]
    total += a[left] * taps[0][None, :]
    total += a[left + 1] * taps[1][None, :]
    total += a[left + 2] * taps[2][None, :]
    total += b[left] * taps[3][None, :]
    total += b[left + 1] * taps[4][None, :]
    total += b[left + 2] * taps[5][None, :]
    total += c[left] * taps[6][None, :]
    total += c[left + 1] * taps[7][None, :]
    total += c[left + 2] * taps[8][None, :]
    mask = (x < limit)[:, None]
    if tl.constexpr(DIM) % channels.shape[0] != 0:
        mask = mask & (channels < DIM)[None, :]
    target = out + x[:, None] * DIM + channels[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _quad(
    out, a, b, c, d, taps, bias, y, pairs, channels, height, width,
    DIM: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """Stores one output's share of the quads in rows 2y and 2y + 1 from their four rows a to d."""
    if S == 2:
        width = (width + 1) // 2
        limit = tl.where(2 * y < height, width, 0)
        _put(out + y * width * DIM, a, b, c, 0, taps, bias, limit, pairs, channels, DIM)
    else:
        x = 2 * pairs
        limit = tl.where(2 * y < height, width, 0)
        row = out + 2 * y * width * DIM
        _put(row, a, b, c, 0, taps, bias, limit, x, channels, DIM)
        _put(row, a, b, c, 1, taps, bias, limit, x + 1, channels, DIM)
        limit = tl.where(2 * y + 1 < height, width, 0)
        row += width * DIM
        _put(row, b, c, d, 0, taps, bias, limit, x, channels, DIM)
        _put(row, b, c, d, 1, taps, bias, limit, x + 1, channels, DIM)


@triton.jit
def _carry(tokens, scale, shift, q, k, v, channels, gamma, beta, num_prefix, DIM: tl.constexpr):
    """Normalises the prefix tokens to the front of all three outputs."""
    for token in tl.range(0, num_prefix, loop_unroll_factor=1):
        value = _vector(tokens + token * DIM, channels, DIM)
        value = (value * tl.load(scale + token) + tl.load(shift + token)) * gamma + beta
        value = value.to(q.dtype.element_ty)
        tl.store(q + token * DIM + channels, value, mask=channels < DIM)
        tl.store(k + token * DIM + channels, value, mask=channels < DIM)
        tl.store(v + token * DIM + channels, value, mask=channels < DIM)


@triton.jit
def _length(height, width, num_prefix, S: tl.constexpr):
    return num_prefix + ((height + S - 1) // S) * ((width + S - 1) // S)


@triton.jit
def norm_projections_kernel(
    tokens, scale, shift, gamma, beta, taps, bias, q, k, v,
    num_prefix, height, width, strips, steps, blocks_x,
    DIM: tl.constexpr, SQ: tl.constexpr, SK: tl.constexpr, SV: tl.constexpr,
    BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr, STAGES: tl.constexpr,
) -> None:  # fmt: skip
    """Programs are (image, strip, block of quads, block of channels), channels fastest."""
    blocks_c: tl.constexpr = (DIM + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    channels = program % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    program = program // blocks_c
    pairs = program % blocks_x * BLOCK_X + tl.arange(0, BLOCK_X)
    strip = program // blocks_x % strips
    image = (program // blocks_x // strips).to(tl.int64)

    start = image * _length(height, width, num_prefix, 1)
    tokens, scale, shift = tokens + start * DIM, scale + start, shift + start
    q += image * _length(height, width, num_prefix, SQ) * DIM
    k += image * _length(height, width, num_prefix, SK) * DIM
    v += image * _length(height, width, num_prefix, SV) * DIM
    gamma, beta = _vector(gamma, channels, DIM), _vector(beta, channels, DIM)
    if (strip == 0) & (program % blocks_x == 0):
        _carry(tokens, scale, shift, q, k, v, channels, gamma, beta, num_prefix, DIM)
    tokens, scale, shift = tokens + num_prefix * DIM, scale + num_prefix, shift + num_prefix
    q, k, v = q + num_prefix * DIM, k + num_prefix * DIM, v + num_prefix * DIM

    of_q, of_k = _taps(taps, channels, DIM), _taps(taps + 9 * DIM, channels, DIM)
    of_v = _taps(taps + 18 * DIM, channels, DIM)
    bias_q, bias_k = _vector(bias, channels, DIM), _vector(bias + DIM, channels, DIM)
    bias_v = _vector(bias + 2 * DIM, channels, DIM)
    y = strip * steps
    a = _row(tokens, scale, shift, 2 * y - 1, pairs, channels, gamma, beta, height, width, DIM)
    b = _row(tokens, scale, shift, 2 * y, pairs, channels, gamma, beta, height, width, DIM)
    for _ in tl.range(0, steps, num_stages=STAGES):
        c = _row(tokens, scale, shift, 2 * y + 1, pairs, channels, gamma, beta, height, width, DIM)
        d = _row(tokens, scale, shift, 2 * y + 2, pairs, channels, gamma, beta, height, width, DIM)
        _quad(q, a, b, c, d, of_q, bias_q, y, pairs, channels, height, width, DIM, SQ)
        _quad(k, a, b, c, d, of_k, bias_k, y, pairs, channels, height, width, DIM, SK)
        _quad(v, a, b, c, d, of_v, bias_v, y, pairs, channels, height, width, DIM, SV)
        a, b, y = c, d, y + 1


@triton.jit
def token_moments_kernel(
    tokens, scale, shift, count, dim, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """`token_moments` of ROWS tokens, whose channels are held at once."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    mask = (token < count)[:, None] & (channel < dim)[None, :]
    source = tokens + token.to(tl.int64)[:, None] * dim + channel[None, :]
    value = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    middle = tl.sum(value, axis=1) / dim
    value = tl.where(mask, value - middle[:, None], 0.0)
    variance = tl.sum(value * value, axis=1) / dim
    factor = tl.rsqrt(variance + eps)
    tl.store(scale + token, factor, mask=token < count)
    tl.store(shift + token, -middle * factor, mask=token < count)


# Compilers trace through a triton_op, down to the kernel, which an interpreted one does not stand.
_operator = custom_op if interpreted() else triton_op


@_operator("cvt::norm_projections", mutates_args=())
def norm_projections_op(
    tokens: Tensor,
    scale: Tensor,
    shift: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    taps: Tensor,
    bias: Tensor,
    height: int,
    width: int,
    num_prefix: int,
    stride_q: int,
    stride_k: int,
    stride_v: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the kernel; arguments are `norm_projections`', the moments (B, N) in float32."""
    strides = (stride_q, stride_k, stride_v)
    q, k, v = _outputs(tokens, (height, width), num_prefix, strides)
    dim, rows, pairs = tokens.shape[2], (height + 1) // 2, (width + 1) // 2
    # No branch on a size, so that none of them is fixed in a program exported with free sizes.
    strips, blocks_x = triton.cdiv(rows, MAX_STEPS), triton.cdiv(pairs, BLOCK_X)
    blocks_c = triton.cdiv(dim, BLOCK_C)
    steps = triton.cdiv(rows, strips)
    kernel = norm_projections_kernel if interpreted() else wrap_triton(norm_projections_kernel)
    kernel[(tokens.shape[0] * strips * blocks_x * blocks_c,)](
        *(tokens, scale, shift, norm_weight, norm_bias, taps.contiguous(), bias.contiguous()),
        *(q, k, v, num_prefix, height, width, strips, steps, blocks_x),
        *(dim, *strides),
        BLOCK_X=BLOCK_X,
        BLOCK_C=BLOCK_C,
        STAGES=STAGES,
        num_warps=WARPS,
    )
    return q, k, v


@norm_projections_op.register_fake
def _(
    tokens, scale, shift, norm_weight, norm_bias, taps, bias, height, width, num_prefix, *strides
):  # fmt: skip
    return _outputs(tokens, (height, width), num_prefix, strides)


def _outputs(tokens: Tensor, grid: tuple[int, int], num_prefix: int, strides) -> tuple:
    batch, dim = tokens.shape[0], tokens.shape[2]
    sizes = ([(side + stride - 1) // stride for side in grid] for stride in strides)
    return tuple(tokens.new_empty(batch, num_prefix + h * w, dim) for h, w in sizes)


@custom_op("cvt::token_moments", mutates_args=())
def token_moments_op(tokens: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns `token_moments` of contiguous tokens in one kernel."""
    scale = tokens.new_empty(tokens.shape[:2], dtype=torch.float32)
    shift = torch.empty_like(scale)
    count, dim = scale.numel(), tokens.shape[2]
    block = triton.next_power_of_2(dim)
    rows = max(1, 2048 // block)
    token_moments_kernel[(triton.cdiv(count, rows),)](
        tokens, scale, shift, count, dim, eps, ROWS=rows, BLOCK=block
    )
    return scale, shift


@token_moments_op.register_fake
def _(tokens, eps):
    scale = tokens.new_empty(tokens.shape[:2], dtype=torch.float32)
    return scale, torch.empty_like(scale)
