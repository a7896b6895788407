"""LayerNorm and the three depthwise convolutions of a block, with their BatchNorm folded in.

CvT reads q, k and v from one normalised map (section 3.2): run one after another on a GPU, that is
a LayerNorm (read, write), three convolutions (each reads the map again; k and v write a quarter of
it) and, where a class token rides along, three joins. In units of the token tensor this moves
2 + 2 + 1.25 + 1.25 = 6.5, and 3 more in the last stage; one pass moves 1 + 1 + 0.25 + 0.25 = 2.5.

The two ceilings of that pass, CvT-13 at 224 pixels in bfloat16, an image (an H100 SXM moves
3.35 TB/s and issues 33.5 T float32 lane operations a second; 34 of these an element as compiled for
sm_90, without halos: 13.5 for the taps, 4 to normalise a value twice, the rest masks, addresses and
widening). Figures are computed, not timed: no GPU was at hand.

    stage  tokens x channels  blocks   MB moved   microseconds: bytes  operations
    1      3136 x  64          1        1.00                    0.30   0.20
    2       784 x 192          2        1.51                    0.45   0.31
    3       197 x 384         10        3.79                    1.13   0.77
    all                                 6.30 (6.5 + joins: 20.9)  1.88   1.28

Bytes decide, so a token is fetched from memory once and never written normalised.

The moments of the tokens (mean, reciprocal deviation) come from outside the kernel, once a token.
Recomputed for each halo they would tie a program to all channels: a reduction over threads and a
barrier for each of the four shifted reads of a row, and lanes left idle at 192 and 384. Apart, they
are 8 bytes a token, and under `torch.compile` they cost no traffic at all: written as plain
operations, the compiler computes them where it adds the residual and holds the tokens already.
Run eagerly they are one more read (3.5 units in place of 2.5).
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from cvt.inference.kernels import has_kernels
from cvt.parts.tokens import map_to_tokens, prefix_of, tokens_to_map


def norm_projections(
    tokens: Tensor,
    grid: tuple[int, int],
    num_prefix: int,
    *,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    taps: Tensor,
    bias: Tensor,
    strides: tuple[int, int, int] = (1, 2, 2),
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what q, k and v's linear maps read: each (B, num_prefix + h*w, C) in tokens' dtype.

    Tokens are (B, num_prefix + H*W, C), `norm_weight` and `norm_bias` (C,); `taps` (3, 3, 3, C) are
    the kernels of q, k and v (which, row, column, channel) and `bias` (3, C) theirs, see
    `stack_taps`. Outside the grid the normalised map is 0. Prefix tokens are normalised only. A
    stride is 1 or 2; h is H or (H + 1) // 2.

    On a CUDA device (or in Triton's interpreter) one kernel computes in float32 whatever the
    storage; elsewhere, in float64, and where a gradient is asked for, `norm_projections_plain`
    computes in the dtype of the tokens.

    Source: CvT, section 3.2; microsoft/CvT, lib/models/cls_cvt.py, `Attention.forward_conv`.
    """
    assert tokens.shape[1] == num_prefix + grid[0] * grid[1]
    assert taps.shape == (3, 3, 3, tokens.shape[2])
    assert all(stride in (1, 2) for stride in strides)
    needs_grad = any(each.requires_grad for each in (tokens, norm_weight, taps))
    if (needs_grad and torch.is_grad_enabled()) or not has_kernels(tokens.dtype, tokens.device):
        return norm_projections_plain(
            tokens, grid, num_prefix, norm_weight, norm_bias, eps, taps, bias, strides
        )
    from cvt.inference.kernels.norm_projections_triton import norm_projections_op, token_moments_op

    tokens = tokens.contiguous()
    rest = (norm_weight, norm_bias, taps, bias, *grid, num_prefix, *strides)
    if torch.compiler.is_compiling():
        return norm_projections_op(tokens, *token_moments(tokens, eps), *rest)
    # Triton starts a kernel on the current device, which need not be the tensors'.
    one = torch.cuda.device_count() < 2
    with nullcontext() if one else torch.cuda.device_of(tokens):
        return norm_projections_op(tokens, *token_moments_op(tokens, eps), *rest)


def norm_projections_plain(
    tokens: Tensor,
    grid: tuple[int, int],
    num_prefix: int,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    taps: Tensor,
    bias: Tensor,
    strides: tuple[int, int, int] = (1, 2, 2),
) -> tuple[Tensor, Tensor, Tensor]:
    """`norm_projections` in PyTorch's own operations, in the dtype of the tokens: the oracle."""
    dim, dtype = tokens.shape[2], tokens.dtype
    tokens = F.layer_norm(tokens, (dim,), norm_weight.to(dtype), norm_bias.to(dtype), eps)
    fmap, prefix = tokens_to_map(tokens, grid, num_prefix), prefix_of(tokens, num_prefix)
    kernels = taps.to(dtype).permute(0, 3, 1, 2).unsqueeze(2)
    q, k, v = (
        map_to_tokens(F.conv2d(fmap, kernel, shift, stride, 1, groups=dim), prefix).contiguous()
        for kernel, shift, stride in zip(kernels, bias.to(dtype), strides, strict=True)
    )
    return q, k, v


def token_moments(tokens: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns `scale` and `shift`, (B, N) each in float32: a token normalises to x * scale + shift.

    They are 1 / sqrt(variance + eps) and -mean / sqrt(variance + eps) over the channels.
    """
    variance, mean = torch.var_mean(tokens.float(), dim=-1, correction=0)
    scale = (variance + eps).rsqrt()
    return scale, -mean * scale


def stack_taps(weights: list[Tensor], biases: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns `taps` (3, 3, 3, C) and `bias` (3, C) of the convolutions of q, k and v.

    Weights are depthwise 3x3 kernels (C, 1, 3, 3) with BatchNorm already folded into them, biases
    (C,). Channels go last, so that neighbouring threads read neighbouring values.
    """
    assert len(weights) == len(biases) == 3
    return torch.stack(weights).squeeze(2).permute(0, 2, 3, 1).contiguous(), torch.stack(biases)
