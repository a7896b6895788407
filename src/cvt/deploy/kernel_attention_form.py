"""The inference form of attention on a GPU: one kernel for the norm and the convolutions before it.

In CvT's blocks q, k and v are read from the normalised tokens by three depthwise convolutions, and
nothing else reads these tokens: so none of them need be written.
"""

from typing import cast

from torch import Tensor, nn

from cvt.deploy.attention_form import AttentionForm
from cvt.deploy.kernels.norm_projections import norm_projections, stack_taps
from cvt.deploy.token_parts import Parts, joined
from cvt.parts.projection import ConvProjection


class KernelAttentionForm(AttentionForm):
    """Takes the place of a block's first norm and of its attention: tokens come as they are.

    With `only_prefix` the queries on the grid are read and dropped. The kernel holds what they are
    made of in any case; they cost 1 of the 2.5 units of traffic, in one block of the network.

    Args:
        norm: The first norm, with weight and bias.
        attention: Of three convolutions that `norm_projections` computes (see
            `cvt.deploy.norm_kernels`), which leave their projections.
    """

    taps: Tensor
    taps_bias: Tensor

    def __init__(self, norm: nn.LayerNorm, attention: AttentionForm) -> None:
        super().__init__(attention)
        self.norm = norm
        reads = [cast("ConvProjection", each) for each in (self.q, self.k, self.v)]
        q, k, v = (each.conv for each in reads)
        assert q.bias is not None
        assert k.bias is not None
        assert v.bias is not None
        taps, taps_bias = stack_taps((q.weight, k.weight, v.weight), (q.bias, k.bias, v.bias))
        self.register_buffer("taps", taps)
        self.register_buffer("taps_bias", taps_bias)
        self.strides = (q.stride[0], k.stride[0], v.stride[0])
        for each in reads:
            del each.conv

    @property
    def reads_grid(self) -> bool:
        """No projection does any more, and the kernel takes the prefix along."""
        return False

    def project(
        self, parts: Parts, grid: tuple[int, int], num_prefix: int, *, only_prefix: bool
    ) -> tuple[Parts, Tensor, Tensor]:
        """Returns q, k and v as the other form does, from tokens that are not normalised."""
        read, keys, values = norm_projections(
            joined(parts),
            grid,
            num_prefix,
            norm_weight=self.norm.weight,
            norm_bias=self.norm.bias,
            eps=self.norm.eps,
            taps=self.taps,
            bias=self.taps_bias,
            strides=self.strides,
        )
        queries: Parts = (read,)
        if only_prefix:
            queries = (read[:, :num_prefix],)
        elif len(parts) == 2:
            queries = (read[:, :num_prefix], read[:, num_prefix:])
        q = tuple(self.q.linear(each) for each in queries)
        return q, self.k.linear(keys), self.v.linear(values)
