"""From a training form to the rewritten network: a copy, the passes, a data type, a device."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from cvt.errors import UserError
from cvt.inference.forms import PackedLinear, inference_copy
from cvt.inference.passes import ALGEBRA, LAYOUT
from cvt.runtime import NUMBER_FORMATS, choose_device, cpu_computes, number_format

if TYPE_CHECKING:
    from cvt.inference.agreement import Agreement


def rewrite(
    model: nn.Module, names: Sequence[str], dtype: torch.dtype, device: torch.device
) -> "Deployed":
    """Returns a copy with the named passes applied, in a data type on a device."""
    network = inference_copy(model)
    done = {name: apply(network) for name, apply in ALGEBRA.items() if name in names}
    network.to(device=device, dtype=dtype)
    done |= {name: apply(network) for name, apply in LAYOUT.items() if name in names}
    return Deployed(network, model, {name: count for name, count in done.items() if count})


# --- Where it runs, and in which data type.


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """Returns the data type of a model's floating-point parameters, by the first; None without."""
    return next((each.dtype for each in model.parameters() if each.is_floating_point()), None)


def choose_target(
    model: nn.Module,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> tuple[torch.dtype, torch.device]:
    """Returns data type and device: those asked for, which are checked, else the model's own."""
    first = next((each for each in model.parameters() if each.is_floating_point()), None)
    own_dtype = torch.float32 if first is None else first.dtype
    own_device = torch.device("cpu") if first is None else first.device
    chosen = own_dtype if dtype is None else NUMBER_FORMATS[number_format(dtype)]
    where = own_device if device is None else choose_device(str(device))
    if dtype is not None or device is not None:
        check_dtype(chosen, where)
    return chosen, where


def check_dtype(dtype: torch.dtype, device: torch.device) -> None:
    """Refuses a data type for which a device lacks the instructions."""
    name = number_format(dtype)
    if device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
        if not cpu_computes(dtype):
            raise UserError(
                f"Got dtype {name}, for which this CPU has no instructions and could only imitate "
                "it at a fraction of the speed; take float32."
            )
    elif device.type == "cuda" and dtype == torch.bfloat16:
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError(f"Got dtype {name}, which this GPU lacks; take fp16 or float32.")
    elif device.type == "mps" and dtype == torch.float64:
        raise UserError(f"Got dtype {name}, which Apple's GPUs lack; take float32.")


# --- The rewritten network behind the model's own call.

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
    be traced into an exported graph. `rewritten` says in how many places each pass changed it.
    """

    is_deployed = True
    """What no other network says: it stays on its device and in its arithmetic."""

    def __init__(self, network: nn.Module, model: nn.Module, rewritten: Mapping[str, int]) -> None:
        super().__init__()
        self.network = network
        self.source = type(model).__name__
        self.rewritten = dict(rewritten)
        self.dtype = dtype_of(network) or torch.get_default_dtype()
        self.kind = number_format(self.dtype)
        self.agreement: Agreement | None = None
        for name in _KEPT:
            if hasattr(model, name):
                setattr(self, name, copy.deepcopy(getattr(model, name)))
        self.eval()

    def forward(self, image: Tensor) -> Any:
        is_traced = torch.compiler.is_compiling()
        with nullcontext() if is_traced else torch.no_grad():
            if image.dtype == self.dtype:
                return self.network(image)
            self.check_floating(image)
            return _in_dtype(self.network(image.to(self.dtype)), image.dtype)

    def check_floating(self, image: Tensor) -> None:
        """Refuses whole numbers, as of an image that nothing was done to."""
        if not image.is_floating_point():
            raise UserError(
                f"Got images of {image.dtype}, expected floating-point numbers: scale and "
                "normalise them first."
            )

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


def _in_dtype(outputs: Any, dtype: torch.dtype) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.to(dtype)
    return type(outputs)(_in_dtype(each, dtype) for each in outputs)


# --- The rewritten network as a graph, from which OpenVINO's and all exported files come.

SizeRange = tuple[int, int | None]
"""The smallest and the largest size of an axis; None: there is no largest."""


def traced(network: nn.Module, images: Tensor, free: dict[int, Any]) -> ExportedProgram:
    """Traces a network by `torch.export`; the axes that stay free come with their `Dim`.

    A size of 1 in the example of images (B, C, H, W) is traced as a constant.
    """
    with torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes=(free,), strict=False)


def image_shape(program: ExportedProgram) -> Sequence[int | torch.SymInt]:
    """Returns the shape of the images that a program takes; a free size is no int."""
    (name,) = program.graph_signature.user_inputs
    (node,) = (each for each in program.graph.nodes if each.name == name)
    return node.meta["val"].shape
