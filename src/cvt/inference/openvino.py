"""The rewritten network in OpenVINO, on the CPU, behind the model's own call.

It is traced, converted to a graph, calibrated for int8, and compiled. Every shape of images gets a
program of its own: with known sizes OpenVINO fuses the whole attention into one kernel, which it
does not with free ones, and plans its memory beforehand.
"""

import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn

from cvt.errors import UserError
from cvt.inference.agreement import checked_agreement
from cvt.inference.int8 import Calibrating, calibration_images
from cvt.inference.rewrite import (
    Deployed,
    SizeRange,
    choose_target,
    dtype_of,
    image_shape,
    rewrite,
    traced,
)
from cvt.parts.model import VisionModel, check_image
from cvt.runtime import cpu_computes


@cache
def core() -> Any:
    """Returns the process's `openvino.Core`, made at the first call.

    A core on the CPU puts a signal stack of its own in the place of the thread's (where there is
    one: Python's faulthandler has one, and so pytest), and its end puts back what it found. Of two
    cores that do not end in the reverse order of their beginnings, the second puts back the first
    one's, which is gone: the next signal, be it Ctrl-C, then ends the process. Seen with 2026.4.
    """
    import openvino

    return openvino.Core()


# --- From a traced program to a graph of OpenVINO's.


def converted(program: torch.export.ExportedProgram) -> Any:
    """Returns an `openvino.Model` of a program, with sizes free where the program leaves them."""
    import openvino
    from openvino.frontend.pytorch import ConversionExtension

    resize = ConversionExtension("aten._upsample_bicubic2d_aa.default", _resize)
    model = openvino.convert_model(program, extension=[resize])
    # The converter forgets which sizes were traced as constants.
    model.reshape([size if isinstance(size, int) else -1 for size in image_shape(program)])
    return model


def _resize(context: Any) -> Any:
    """Interpolates a position table, which OpenVINO's converter lacks.

    torch's bicubic filter with antialiasing is Pillow's, which OpenVINO has under that name, with
    the coefficient -0.5 of Keys' cubic in both (OpenVINO heeds no other there).
    """
    import numpy as np
    from openvino import opset11

    resized = opset11.interpolate(
        context.get_input(0),
        context.get_input(1),
        mode="bicubic_pillow",
        shape_calculation_mode="sizes",
        axes=opset11.constant(np.array([2, 3], np.int32)),
        cube_coeff=-0.5,
        antialias=True,
        coordinate_transformation_mode="half_pixel",
    )
    return resized.outputs()


@dataclass(frozen=True)
class Graph:
    """A graph, and which images (B, C, H, W) it was traced for.

    Args:
        model: An `openvino.Model`, whose input has free sizes where the bounds leave them.
        bounds: One pair for each axis of the images.
    """

    model: Any
    bounds: tuple[SizeRange, ...]

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether images of this shape may go in."""
        return all(
            low <= size and (high is None or size <= high)
            for size, (low, high) in zip(shape, self.bounds, strict=True)
        )

    def covers(self, other: "Graph") -> bool:
        """Whether all images that go into another may go into this one."""
        return all(
            low <= other_low and (high is None or (other_high is not None and other_high <= high))
            for (low, high), (other_low, other_high) in zip(self.bounds, other.bounds, strict=True)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Graph":
        return self

    def __getstate__(self) -> dict[str, Any]:
        import openvino

        with TemporaryDirectory() as folder:
            text, weights = Path(folder, "graph.xml"), Path(folder, "graph.bin")
            openvino.serialize(self.model, text, weights)
            return {"files": (text.read_bytes(), weights.read_bytes()), "bounds": self.bounds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "model", core().read_model(*state["files"]))
        object.__setattr__(self, "bounds", state["bounds"])


def to_graph(network: nn.Module, images: Tensor, *, any_size: bool) -> Graph:
    """Traces a network by `torch.export` and converts it.

    Batch, height and width stay free where the network lets them: position tables, windows and the
    like tie it to the size of the images, and then so is the graph.

    Args:
        network: Rewritten, in float32 on the CPU.
        images: An example (B, C, H, W) of two or more.
        any_size: Whether height and width are to be free as well as the batch, which takes twice
            as long (CvT-13, one Zen 3 core: 20 s and not 11).
    """
    free = (0, 2, 3) if any_size else (0,)
    program = traced(network, images, {axis: torch.export.Dim.AUTO for axis in free})
    bounds: list[SizeRange] = []
    for size in image_shape(program):
        if isinstance(size, int):
            bounds.append((size, size))
        else:
            found = program.range_constraints[size.node.expr]
            largest = int(found.upper) if found.upper.is_Integer else None
            # Tracing says 2 of a batch that may be 1.
            bounds.append((int(found.lower) if bounds else 1, largest))
    return Graph(converted(program), tuple(bounds))


# --- In int8: ranges are found on real images, by NNCF.


def quantized(model: Any, images: Tensor) -> Any:
    """Returns an `openvino.Model` whose linear maps take weights and activations in int8.

    Weights are quantised symmetrically, activations asymmetrically where they have no sign in
    common (NNCF's preset "mixed"). The same images give the same graph. Progress goes to stderr.

    What differs from NNCF's settings for transformers was measured on the demo model, trained on
    CIFAR-10, with 100 images to calibrate on and 2,000 of its test to compare with float32 (Zen 3):
    the same class for 97.3 % with those settings, 97.0 % without smoothing outliers into weights
    (at a third of the mean error), 98.0 % with ranges from histograms instead of extremes, 99.0 %
    with weights of 7 bits as well, 99.4 % with the convolutions left in float32 as well.

    The seven bits are for CPUs without instructions for int8 dot products (VNNI), where sums of
    two products overflow 16 bits; all get them, so that all give the same answers. The
    convolutions, embeddings and depthwise ones, are 6 % of CvT-13's arithmetic.
    """
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(logging.ERROR)
    # One by one: NNCF takes some of a transformer's axes for the batch.
    data = nncf.Dataset([image.numpy() for image in images.split(1)])
    settings = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE,
        smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
        activations_range_estimator_params=RangeEstimatorParametersSet.HISTOGRAM,
    )
    convolutions = {"GroupConvolution", "Convolution"}
    present = convolutions & {each.get_type_name() for each in model.get_ops()}
    with redirect_stdout(sys.stderr):
        return nncf.quantize(
            model.clone(),
            data,
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(types=sorted(present)),
            advanced_parameters=settings,
        )


# --- The graph behind the model's own call.

_KEPT_PROGRAMS = 4  # each holds the weights once more, as its kernels read them


class OnOpenVINO(Deployed):
    """Images (B, in_chans, H, W) on the CPU to what the model's forward returns in eval mode.

    A new shape is compiled at its first call, which takes a second or so; the last four are kept.
    At first the graph takes any batch of one size; at the second size the network is traced anew,
    for all sizes that one graph can take, which takes as long as `cvt.deploy` twice. Images may be
    of another floating type than float32; the answer comes in theirs, in memory of its own. Calls
    from several threads wait for each other.

    Args:
        rewritten: The same in PyTorch, in float32 on the CPU.
        precision: What OpenVINO computes in where the graph says nothing: `f32` or `bf16`.
        image_size: The (H, W) to trace first.
        calibration: Images (N, C, H, W) to find the ranges of int8 on; sizes that the graph does
            not leave free are then refused.
    """

    def __init__(
        self,
        rewritten: Deployed,
        model: nn.Module,
        precision: str,
        image_size: tuple[int, int],
        calibration: Tensor | None = None,
    ) -> None:
        super().__init__(rewritten.network, model, rewritten.rewritten)
        self.precision = precision
        self.threads = torch.get_num_threads()
        self.is_int8 = calibration is not None
        kind = f"int8 and {precision}" if self.is_int8 else precision
        self.kind = f"OpenVINO's {kind}, {self.threads} threads"
        self.checks = isinstance(model, VisionModel)
        first = next((each for each in model.modules() if isinstance(each, nn.Conv2d)), None)
        channels = getattr(model, "in_chans", 3 if first is None else first.in_channels)
        example = torch.zeros(2, channels, *image_size)
        outputs = rewritten(example)
        self.outputs = None if isinstance(outputs, Tensor) else type(outputs)
        # What is calibrated is so for all sizes at once.
        graph = to_graph(self.network, example, any_size=self.is_int8)
        if calibration is not None:
            graph = Graph(quantized(graph.model, calibration), graph.bounds)
        self.graphs = [graph]
        self._start()

    def forward(self, image: Tensor) -> Any:
        self._check(image)
        batch = len(image)
        # OpenVINO computes nothing at all for an empty batch, not even the shape of the answer.
        pixels = image.detach() if batch else image.new_zeros(1, *image.shape[1:])
        values = pixels.to(torch.float32).contiguous().numpy()
        with self._lock:
            results = self._program(values.shape)(values, share_inputs=True, share_outputs=False)
        answers = [torch.from_numpy(each)[:batch].to(image.dtype) for each in results.values()]
        return answers[0] if self.outputs is None else self.outputs(answers)

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
        self.check_floating(image)
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
            model = self._graph(shape).model.clone()  # which shares the weights
            model.reshape(list(shape))
            options = {
                "INFERENCE_PRECISION_HINT": self.precision,
                "INFERENCE_NUM_THREADS": self.threads,
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                # Pinned, two processes of one thread each share the first core.
                "ENABLE_CPU_PINNING": False,
            }
            self._programs[shape] = core().compile_model(model, "CPU", options)
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


def on_openvino(
    model: nn.Module,
    names: Sequence[str],
    dtype: str | None,
    device: torch.device | str | None,
    calibration: Calibrating | None,
) -> OnOpenVINO:
    """Returns the model in OpenVINO, by the named passes; kernels and packing are torch's alone.

    What int8 leaves over is computed in bf16 where the CPU has the instructions, else in float32.
    Without a dtype a model in bf16 stays in it, and others are in float32.
    """
    _require("openvino", "openvino")
    precision = _precision(model, dtype, device)
    kept = [name for name in names if name not in ("kernels", "pack")]
    rewritten = rewrite(model, kept, torch.float32, torch.device("cpu"))
    if dtype != "int8":
        cfg = getattr(model, "pretrained_cfg", None) or {}
        own = getattr(getattr(model, "spec", None), "img_size", None)
        height, width = own or tuple(cfg.get("input_size", (3, 224, 224)))[1:]
        return OnOpenVINO(rewritten, model, precision, (height, width))
    _require("nncf", "int8,openvino")
    images = calibration_images(model, calibration)
    made = OnOpenVINO(rewritten, model, precision, (images.shape[2], images.shape[3]), images)
    made.agreement = checked_agreement(rewritten, made, images)
    return made


def _precision(model: nn.Module, dtype: str | None, device: torch.device | str | None) -> str:
    if device is not None and str(device).partition(":")[0] not in ("cpu", "auto"):
        raise UserError(
            f"Got device {str(device)!r} with engine 'openvino', which runs on the CPU; leave the "
            "device out, or take engine='torch'."
        )
    if dtype == "int8":
        return "bf16" if cpu_computes(torch.bfloat16) else "f32"
    own = torch.bfloat16 if dtype_of(model) == torch.bfloat16 else torch.float32
    chosen, _ = choose_target(model, own if dtype is None else dtype, "cpu")
    names = {torch.float32: "f32", torch.bfloat16: "bf16"}
    if chosen not in names:
        raise UserError(
            f"Got dtype {dtype} with engine 'openvino', expected float32, bf16 or int8."
        )
    return names[chosen]


def _require(package: str, extras: str) -> None:
    if find_spec(package) is None:
        raise UserError(
            f"This needs {package}, which is not installed; get it with: "
            f"pip install 'cvt[{extras}]'."
        )
