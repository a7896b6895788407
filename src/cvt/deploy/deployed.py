"""What `cvt.deploy` returns for PyTorch: the rewritten network behind the model's own call."""

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cvt.deploy.packed_linear import PackedLinear
from cvt.deploy.target import dtype_of
from cvt.errors import UserError

if TYPE_CHECKING:
    from cvt.deploy.precision import Agreement

# What a model says about itself, as far as it does.
_KEPT = (
    *("spec", "num_classes", "in_chans", "num_features", "global_pool", "feature_info"),
    *("pretrained_cfg", "record"),
)


class Deployed(nn.Module):
    """Images (B, in_chans, H, W) to what the model's forward returns in eval mode.

    Images may be of another floating type than the network's; the answer comes in theirs. It is
    always in eval mode, and records no gradient: under `no_grad`, not `inference_mode`, since a
    tensor of the latter could not be used in training later, as frozen features are, and cannot
    be traced into an exported graph.

    Args:
        network: The rewritten network.
        model: The one it comes from.
        rewritten: How many places each pass has rewritten.
    """

    is_deployed = True
    """What no other network has: it stays on its device and in its arithmetic."""

    def __init__(self, network: nn.Module, model: nn.Module, rewritten: Mapping[str, int]) -> None:
        super().__init__()
        self.network = network
        self.source = type(model).__name__
        self.rewritten = dict(rewritten)
        self.dtype = dtype_of(network) or torch.get_default_dtype()
        self.kind = str(self.dtype)
        self.agreement: Agreement | None = None
        keep_facts(self, model)
        self.eval()

    def forward(self, image: Tensor) -> Any:
        is_traced = torch.compiler.is_compiling()
        with nullcontext() if is_traced else torch.no_grad():
            if image.dtype == self.dtype:
                return self.network(image)
            if not image.is_floating_point():
                raise UserError(
                    f"Got images of {image.dtype}, expected floating-point numbers: scale and "
                    "normalise them first."
                )
            return _in_dtype(self.network(image.to(self.dtype)), image.dtype)

    def train(self, mode: bool = True) -> "Deployed":
        """Stays in eval mode: what training needs has been folded away."""
        return super().train(False)

    def extra_repr(self) -> str:
        """Returns what it was made from, and what each pass rewrote."""
        done = ", ".join(f"{name} {count}" for name, count in self.rewritten.items())
        return f"{self.source} in {self.kind}, rewritten: {done or 'nothing'}"

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "Deployed":
        if any(isinstance(module, PackedLinear) for module in self.modules()):
            raise UserError(
                "Got a deployed network to move or convert, whose weights are packed for this CPU: "
                "deploy the model again with the dtype and device you want."
            )
        return super()._apply(fn, recurse)


def keep_facts(deployed: nn.Module, model: nn.Module) -> None:
    """Gives a deployed network copies of what its model says about itself."""
    for name in _KEPT:
        if hasattr(model, name):
            setattr(deployed, name, copy.deepcopy(getattr(model, name)))


def _in_dtype(outputs: Any, dtype: torch.dtype) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.to(dtype)
    return type(outputs)(_in_dtype(each, dtype) for each in outputs)
