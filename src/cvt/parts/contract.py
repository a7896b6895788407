"""What every vision network here promises: timm's model contract, in timm's words."""

from typing import Any

import torch
from torch import Tensor, nn

from cvt.errors import UserError


class VisionModel(nn.Module):
    """Images (B, in_chans, H, W) of any size to logits (B, num_classes).

    With `num_classes=0` the pooled features (B, num_features) come out; with `global_pool=''`
    as well, the normalised tokens (B, num_prefix_tokens + h*w, num_features).
    """

    pretrained_cfg: dict[str, Any]  # set by timm's builder
    record: Any  # set by `cvt.load`: what the checkpoint says about itself
    spec: Any  # what the network is built from
    feature_info: Any
    num_classes: int
    in_chans: int
    global_pool: str
    num_features: int
    head_hidden_size: int
    num_prefix_tokens: int

    def forward(self, image: Tensor) -> Any:
        """Returns logits (B, num_classes)."""
        return self.forward_head(self.forward_features(image))

    def forward_features(self, image: Tensor) -> Tensor:
        """Returns the last stage's tokens, normalised: (B, num_prefix_tokens + h*w, C)."""
        raise NotImplementedError

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Any:
        """Pools normalised tokens and classifies them; `pre_logits` stops before the classifier."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Returns the final tokens and each chosen level's map (B, C, h, w), finest first."""
        raise NotImplementedError

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops what the chosen levels don't need; returns the levels as indices."""
        raise NotImplementedError

    def get_classifier(self) -> Any:
        """Returns the last linear layer (with distillation both), or an identity without one."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a fresh classifier in place (none for 0), and another pooling if one is named."""
        raise NotImplementedError

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        raise NotImplementedError

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Interpolates position tables to another image size (H, W)."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Names that weight decay skips besides biases and norms."""
        raise NotImplementedError

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into depth groups, for layer-wise learning rates."""
        raise NotImplementedError

    def check_image(self, image: Tensor) -> None:
        """Turns torch's shape errors into a sentence, as `check_image` does."""
        check_image(image, self.in_chans, self.spec)


def check_image(image: Tensor, in_chans: int, spec: Any) -> None:
    """Turns torch's shape errors into a sentence; symbolic sizes of tracers pass.

    Raises:
        UserError: Another number of axes or channels, or a side that is too small.
    """
    sizes = tuple(image.shape) if isinstance(image, Tensor) else ()
    if not all(isinstance(size, int) for size in sizes) or torch.compiler.is_compiling():
        return
    if sizes and (len(sizes) != 4 or sizes[1] != in_chans):
        raise UserError(
            f"Got an image tensor of shape {sizes}; expected (batch, {in_chans}, height, width)."
        )
    if sizes and min(sizes[2:]) < spec.min_size:
        spec.grids((sizes[2], sizes[3]))


def check_format(output_fmt: str) -> None:
    """Refuses a layout of intermediate features that there is not."""
    if output_fmt not in ("NCHW", "NLC"):
        raise UserError(f"output_fmt={output_fmt!r} must be 'NCHW' or 'NLC'.")
