"""A graph of OpenVINO's in int8, its ranges found on real images, by NNCF."""

import logging
import sys
from contextlib import redirect_stdout
from typing import Any

from torch import Tensor

from cvt.deploy.openvino_graph import Graph


def quantized(graph: Graph, images: Tensor) -> Graph:
    """Returns a graph in int8, as `quantized_model` makes it; the one given is left as it is."""
    return Graph(quantized_model(graph.model, images), graph.bounds)


def quantized_model(model: Any, images: Tensor) -> Any:
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

    Args:
        model: In float32; it is left as it is.
        images: (N, C, H, W), of which each goes through the graph.
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
