"""The rewritten graph in OpenVINO, on the CPU, behind the model's own call.

Every shape of images gets a program of its own. With sizes that are known OpenVINO fuses the whole
attention into one kernel, which it does not with free ones, and plans its memory beforehand.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from cvt.deploy.calibration import Calibrating, calibration_images
from cvt.deploy.deployed import keep_facts
from cvt.deploy.openvino_core import core
from cvt.deploy.openvino_graph import Graph, to_graph
from cvt.deploy.precision import Agreement, checked_agreement
from cvt.deploy.rewrite import rewrite
from cvt.deploy.target import choose_target, dtype_of, is_int8
from cvt.errors import UserError
from cvt.parts.contract import VisionModel, check_image
from cvt.train.device import cpu_computes

# A program holds its weights as its kernels read them, once more.
_KEPT_PROGRAMS = 4


class OnOpenVINO(nn.Module):
    """Images (B, in_chans, H, W) on the CPU to what the model's forward returns in eval mode.

    A new shape is compiled at its first call, which takes a second or so; the last four are kept.
    The graph is of one size at first, for any batch; with the second size comes one for all sizes
    that the network lets one graph be for, which takes as long as `cvt.deploy` twice. Images may be
    of another floating type than float32; the answer comes in theirs, in memory of its own. Calls
    from several threads wait for each other.

    Args:
        network: The rewritten network, in float32 on the CPU.
        model: The one it comes from.
        precision: What OpenVINO computes in where the graph says nothing: `f32` or `bf16`.
        image_size: The (H, W) to trace first.
        quantized: Makes a graph one in int8; sizes that it does not leave free are then refused.
    """

    is_deployed = True

    def __init__(
        self,
        network: nn.Module,
        model: nn.Module,
        precision: str,
        image_size: tuple[int, int],
        quantized: Callable[[Graph], Graph] | None = None,
    ) -> None:
        super().__init__()
        keep_facts(self, model)
        self.network = network
        self.source = type(model).__name__
        self.precision = precision
        self.threads = torch.get_num_threads()
        self.checks = isinstance(model, VisionModel)
        self.is_int8 = quantized is not None
        self.agreement: Agreement | None = None
        example = torch.zeros(2, _channels(model), *image_size)
        with torch.no_grad():
            outputs = network(example)
        self.outputs = None if isinstance(outputs, Tensor) else type(outputs)
        # What is calibrated is so for all sizes at once.
        graph = to_graph(network, example, any_size=quantized is not None)
        self.graphs = [graph if quantized is None else quantized(graph)]
        self._start()
        self.eval()

    def forward(self, image: Tensor) -> Any:
        self._check(image)
        batch = len(image)
        # OpenVINO computes nothing at all for no image, not even the shape of the answer.
        pixels = image.detach() if batch else image.new_zeros(1, *image.shape[1:])
        values = pixels.to(torch.float32).contiguous().numpy()
        with self._lock:
            results = self._program(values.shape)(values, share_inputs=True, share_outputs=False)
        answers = [torch.from_numpy(each)[:batch].to(image.dtype) for each in results.values()]
        return answers[0] if self.outputs is None else self.outputs(answers)

    def train(self, mode: bool = True) -> "OnOpenVINO":
        """Stays in eval mode: what training needs has been folded away."""
        return super().train(False)

    def extra_repr(self) -> str:
        """Returns what it was made from, in which precision it runs, and on how many threads."""
        kind = f"int8 and {self.precision}" if self.is_int8 else self.precision
        return f"{self.source} in OpenVINO's {kind}, {self.threads} threads"

    def __getstate__(self) -> dict[str, Any]:
        passing = ("_lock", "_programs")
        return {name: value for name, value in self.__dict__.items() if name not in passing}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._programs: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def _check(self, image: Tensor) -> None:
        if image.device.type != "cpu":
            raise UserError(
                f"Got images on {image.device}, expected them on the CPU, where OpenVINO runs."
            )
        if not image.is_floating_point():
            raise UserError(
                f"Got images of {image.dtype}, expected floating-point numbers: scale and "
                "normalise them first."
            )
        if self.checks:
            check_image(image, cast("int", self.in_chans), self.spec)
        elif image.ndim != 4:
            raise UserError(
                f"Got an image tensor of shape {tuple(image.shape)}, expected (batch, channels, "
                "height, width)."
            )

    def _program(self, shape: tuple[int, ...]) -> Any:
        """The program for a shape, the one that was used longest ago making room for it."""
        if shape not in self._programs:
            if len(self._programs) >= _KEPT_PROGRAMS:
                self._programs.popitem(last=False)
            self._programs[shape] = self._compile(self._graph(shape).of_shape(shape))
        self._programs.move_to_end(shape)
        return self._programs[shape]

    def _graph(self, shape: tuple[int, ...]) -> Graph:
        for graph in self.graphs:
            if graph.takes(shape):
                return graph
        if self.is_int8:
            raise UserError(
                f"Got images of {shape[2]} x {shape[3]} pixels, which the calibrated graph does "
                "not take; deploy the model again with calibration images of that size."
            )
        example = torch.zeros(max(2, shape[0]), *shape[1:])
        made = to_graph(self.network, example, any_size=True)
        # Each holds the weights.
        self.graphs = [*(each for each in self.graphs if not made.covers(each)), made]
        return made

    def _compile(self, model: Any) -> Any:
        return core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": self.precision,
                "INFERENCE_NUM_THREADS": self.threads,
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                # Pinned, two processes of one thread each share the first core.
                "ENABLE_CPU_PINNING": False,
            },
        )


def on_openvino(
    model: nn.Module,
    *,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    names: Sequence[str],
    calibration: Calibrating | None = None,
) -> OnOpenVINO:
    """Returns the model in OpenVINO.

    Args:
        model: The training form.
        dtype: float32, bfloat16 or int8 (which computes in bfloat16 what it does not in int8, where
            the CPU has the instructions); None: bfloat16 for a model in it, else float32.
        device: The CPU, or None.
        names: The passes to apply.
        calibration: Images to find the ranges of int8 with; the result then has their `agreement`.

    Raises:
        UserError: OpenVINO is missing, or NNCF for int8; another device; a dtype that the CPU or
            the engine lacks; int8 without images, or images without int8.
    """
    _require("openvino", "openvino")
    precision = _precision(model, dtype, device)
    network = rewrite(model, names, torch.float32, torch.device("cpu"))
    if not is_int8(dtype):
        return OnOpenVINO(network, model, precision, _image_size(model))
    _require("nncf", "int8,openvino")
    from cvt.deploy.quantize_openvino import quantized

    images = calibration_images(model, calibration)
    size = (images.shape[2], images.shape[3])
    made = OnOpenVINO(network, model, precision, size, lambda graph: quantized(graph, images))
    made.agreement = checked_agreement(network, made, images)
    return made


def _precision(
    model: nn.Module, dtype: torch.dtype | str | None, device: torch.device | str | None
) -> str:
    if device is not None and str(device).partition(":")[0] not in ("cpu", "auto"):
        raise UserError(
            f"Got device {str(device)!r} with engine 'openvino', which runs on the CPU; leave the "
            "device out, or take engine='torch'."
        )
    if is_int8(dtype):
        return "bf16" if cpu_computes(torch.bfloat16) else "f32"
    own = torch.bfloat16 if dtype_of(model) == torch.bfloat16 else torch.float32
    chosen, _ = choose_target(model, own if dtype is None else dtype, "cpu")
    names = {torch.float32: "f32", torch.bfloat16: "bf16"}
    if chosen not in names:
        raise UserError(
            f"Got dtype {str(chosen).removeprefix('torch.')} with engine 'openvino', expected "
            "float32, bfloat16 or int8."
        )
    return names[chosen]


def _image_size(model: nn.Module) -> tuple[int, int]:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    own = getattr(getattr(model, "spec", None), "img_size", None)
    height, width = own or tuple(cfg.get("input_size", (3, 224, 224)))[1:]
    return height, width


def _channels(model: nn.Module) -> int:
    first = next((each for each in model.modules() if isinstance(each, nn.Conv2d)), None)
    return getattr(model, "in_chans", 3 if first is None else first.in_channels)


def _require(package: str, extras: str) -> None:
    if find_spec(package) is None:
        raise UserError(
            f"This needs {package}, which is not installed; get it with: "
            f"pip install 'cvt[{extras}]'."
        )
