"""What every vision network here promises and does alike: timm's contract, in timm's words."""

from typing import Any

import torch
from timm.models._features import feature_take_indices  # private: a test watches it
from torch import Tensor, nn

from cvt.errors import UserError
from cvt.parts.embed import PerformerTokens
from cvt.parts.position import PositionTable, SinusoidTable
from cvt.parts.spec import Spec

Levels = list[tuple[Tensor, Tensor | None]]
"""Map (B, C, h, w) and prefix tokens (B, P, C), if any, of each level of the pyramid."""


class VisionModel(nn.Module):
    """Images (B, in_chans, H, W) of any size to logits (B, num_classes).

    With `num_classes=0` the pooled features (B, num_features) come out; with `global_pool=''`
    as well, the normalised tokens (B, num_prefix_tokens + h*w, num_features).

    `torch.export`, `torch.compile` and `torch.jit.trace` take it; `torch.jit.script` does not.
    """

    pretrained_cfg: dict[str, Any]  # set by timm's builder
    record: Any  # set by `cvt.load`: what the checkpoint says about itself
    spec: Any  # what the network is built from
    feature_info: list[dict[str, Any]]  # channels, stride and module of each level of the pyramid
    norm: nn.Module
    head_drop: nn.Module
    head: nn.Module

    def __init__(self, spec: Spec, *, num_features: int, num_prefix_tokens: int) -> None:
        super().__init__()
        self.spec = spec
        self.num_classes = spec.num_classes
        self.in_chans = spec.in_chans
        self.global_pool = spec.global_pool or ""
        self.num_features = self.head_hidden_size = num_features
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, image: Tensor) -> Any:
        """Returns logits (B, num_classes)."""
        return self.forward_head(self.forward_features(image))

    def forward_features(self, image: Tensor) -> Tensor:
        """Returns the last stage's tokens, normalised: (B, num_prefix_tokens + h*w, C)."""
        raise NotImplementedError

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Any:
        """Pools normalised tokens and classifies them; `pre_logits` stops before the classifier."""
        pooled = self.head_drop(self._pool(tokens))
        return pooled if pre_logits else self.head(pooled)

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

        Args:
            x: Images (B, in_chans, H, W).
            indices: Levels of `feature_info`, or how many of the last ones; None: all.
            norm: Apply the final LayerNorm to all maps that are as wide as the last one as well.
            stop_early: Leave out what comes after the last chosen level.
            output_fmt: `NCHW` maps, or `NLC` tokens (B, h*w, C) without the prefix.
            intermediates_only: Return the list alone.
            return_prefix_tokens: Each level is a pair of map and prefix tokens (B, P, C), with P
                of 0 at a level without; no pairs where no level has a prefix.
            output_dict: Return a dict of `image_intermediates`, `image_intermediates_prefix` if
                these are asked for and there, and `image_features`, the final tokens.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt={output_fmt!r} must be 'NCHW' or 'NLC'.")
        self.check_image(x)
        count = len(self.feature_info)
        taken, last = feature_take_indices(count, indices)
        tokens, found = self._walk(x, last if stop_early else count - 1, norm)
        chosen = [level for index, level in enumerate(found) if index in taken]
        levels: list[Any] = [fmap for fmap, _ in chosen]
        if output_fmt == "NLC":
            levels = [fmap.flatten(2).transpose(1, 2) for fmap in levels]
        given: list[Tensor] = []
        if return_prefix_tokens and any(prefix is not None for _, prefix in chosen):
            given = [
                fmap.new_empty(fmap.shape[0], 0, fmap.shape[1]) if prefix is None else prefix
                for fmap, prefix in chosen
            ]
        if output_dict:
            own: dict[str, Any] = {"image_intermediates": levels}
            own |= {"image_intermediates_prefix": given} if given else {}
            return own if intermediates_only else {**own, "image_features": tokens}
        levels = list(zip(levels, given, strict=True)) if given else levels
        return levels if intermediates_only else (tokens, levels)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops what the chosen levels don't need; returns the levels as indices."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        self._cut_behind(last)
        self.feature_info = self.feature_info[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """Returns the last linear layer (with distillation both), or an identity without one."""
        heads = tuple(self.get_submodule(name) for name in self.spec.classifiers)
        return heads if len(heads) > 1 else heads[0]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a fresh classifier in place (none for 0), and another pooling if one is named."""
        changes: dict[str, Any] = {"num_classes": num_classes}
        if global_pool is not None:
            changes["global_pool"] = global_pool
        self.spec = self.spec.change(**changes)
        self.num_classes, self.global_pool = num_classes, self.spec.global_pool
        like = next(self.parameters())
        for name in self.spec.classifiers:
            setattr(self, name, self._make_head().to(like))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        raise NotImplementedError

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Interpolates position tables to another image size (H, W); nothing else stores one."""
        spec: Spec = self.spec.change(img_size=img_size)
        tables = spec.tables(spec.img_size)
        self.spec = spec
        for name, module in self.named_modules():
            if isinstance(module, PositionTable) and f"{name}.table" in tables:
                module.set_grid(*tables[f"{name}.table"])

    def no_weight_decay(self) -> set[str]:
        """Names that weight decay skips besides biases and norms: prefix tokens and tables.

        Sources: microsoft/CvT f851e68, `ConvolutionalVisionTransformer.no_weight_decay`;
        huawei-noah/CV-Backbones 25531f7, tnt_pytorch/tnt.py, `no_weight_decay`.
        """
        special = ("cls_token", "dist_token", "pos_embed.table", "word_pos.table")
        return {name for name, _ in self.named_parameters() if name.endswith(special)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into depth groups, for layer-wise learning rates."""
        raise NotImplementedError

    def check_image(self, image: Tensor) -> None:
        """Turns torch's shape errors into a sentence, as the function `check_image` does."""
        check_image(image, self.in_chans, self.spec)

    def __prepare_scriptable__(self) -> "VisionModel":
        """Refuses `torch.jit.script`, which would fail with pages about some line of a layer."""
        raise UserError(
            f"torch.jit.script cannot compile a {type(self).__name__}; use torch.jit.trace(model, "
            "images), torch.export.export or `cvt export` instead."
        )

    def _walk(self, image: Tensor, last: int, norm: bool) -> tuple[Tensor, Levels]:
        """The tokens behind level number `last`, and map and prefix of each level up to there."""
        raise NotImplementedError

    def _cut_behind(self, last: int) -> None:
        """Drops the layers that come after level number `last`."""
        raise NotImplementedError

    def _pool(self, tokens: Tensor) -> Tensor:
        if self.global_pool == "token":
            return tokens[:, 0]
        if self.global_pool == "avg":
            on_grid = tokens[:, self.num_prefix_tokens :] if self.num_prefix_tokens else tokens
            return on_grid.mean(dim=1)
        return tokens

    def _make_head(self) -> nn.Module:
        """A fresh classifier: weight N(0, 0.02), and the bias that torch gives it."""
        if self.num_classes == 0:
            return nn.Identity()
        head = nn.Linear(self.num_features, self.num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        return head


def check_image(image: Tensor, in_chans: int, spec: Any) -> None:
    """Turns torch's shape errors into a sentence; symbolic sizes of tracers pass."""
    sizes = tuple(image.shape) if isinstance(image, Tensor) else ()
    if not all(isinstance(size, int) for size in sizes) or torch.compiler.is_compiling():
        return
    if sizes and (len(sizes) != 4 or sizes[1] != in_chans):
        raise UserError(
            f"Got an image tensor of shape {sizes}; expected (batch, {in_chans}, height, width)."
        )
    if sizes and min(sizes[2:]) < spec.min_size:
        spec.grids((sizes[2], sizes[3]))


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
