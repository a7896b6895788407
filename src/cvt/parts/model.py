"""What every vision network here promises: timm's model contract, in timm's words."""

from typing import Any

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from cvt.errors import UserError
from cvt.parts.embed import PerformerTokens
from cvt.parts.position import SinusoidTable

__all__ = ["feature_take_indices"]


class VisionModel(nn.Module):
    """Images (B, in_chans, H, W) of any size to logits (B, num_classes).

    With `num_classes=0` the pooled features (B, num_features) come out; with `global_pool=''`
    as well, the normalised tokens (B, num_prefix_tokens + h*w, num_features).

    `torch.export`, `torch.compile` and `torch.jit.trace` take it; `torch.jit.script` does not.
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
        *,
        return_prefix_tokens: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Returns the final tokens and each chosen level's map (B, C, h, w), finest first.

        See `shape_intermediates` for the other forms.
        """
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

    def __prepare_scriptable__(self) -> "VisionModel":
        """Refuses `torch.jit.script`, which would fail with pages about some line of a layer."""
        raise UserError(
            f"torch.jit.script cannot compile a {type(self).__name__}; use torch.jit.trace(model, "
            "images), torch.export.export or `cvt export` instead."
        )

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


def shape_intermediates(
    tokens: Tensor,
    maps: list[Tensor],
    prefixes: list[Tensor | None],
    *,
    output_fmt: str,
    intermediates_only: bool,
    return_prefix_tokens: bool,
    output_dict: bool,
) -> Any:
    """Returns what `forward_intermediates` is asked for, in the forms of timm's ViT.

    Args:
        tokens: The final ones.
        maps: One (B, C, h, w) a level; with `NLC` it becomes (B, h*w, C).
        prefixes: The tokens (B, P, C) off each map's grid, or None.
        intermediates_only: Leave the final tokens out.
        return_prefix_tokens: Each level is a pair of map and prefix, the latter (B, 0, C) at a
            level without; no pairs where no level has a prefix.
        output_dict: Return a dict of `image_intermediates`, `image_intermediates_prefix` if these
            are asked for and there, and `image_features`, the final tokens.
    """
    levels: list[Any] = maps
    if output_fmt == "NLC":
        levels = [fmap.flatten(2).transpose(1, 2) for fmap in maps]
    given: list[Tensor] = []
    if return_prefix_tokens and any(prefix is not None for prefix in prefixes):
        given = [
            fmap.new_empty(fmap.shape[0], 0, fmap.shape[1]) if prefix is None else prefix
            for fmap, prefix in zip(maps, prefixes, strict=True)
        ]
    if output_dict:
        own: dict[str, Any] = {"image_intermediates": levels}
        own |= {"image_intermediates_prefix": given} if given else {}
        return own if intermediates_only else {**own, "image_features": tokens}
    levels = list(zip(levels, given, strict=True)) if given else levels
    return levels if intermediates_only else (tokens, levels)


def num_params(network: nn.Module) -> int:
    """Counts a network's numbers as papers do: its parameters, and its `fixed_tables`."""
    tables = fixed_tables(network).values()
    return sum(each.numel() for each in (*network.parameters(), *tables))


def fixed_tables(network: nn.Module) -> dict[str, Tensor]:
    """Returns the buffers that are no statistics: sinusoids, and a performer's random features.

    Authors keep them as frozen parameters; no training moves them.
    """
    return {
        f"{name}.{key}".lstrip("."): buffer
        for name, module in network.named_modules()
        if isinstance(module, SinusoidTable | PerformerTokens)
        for key, buffer in module.named_buffers(recurse=False)
    }


# --- The one place that imports what timm keeps private, so that one test can watch it.
