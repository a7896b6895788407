"""What OpenVINO's converter lacks of our graphs: the interpolation of a position table."""

from typing import Any


def conversions() -> list[Any]:
    """Returns what `openvino.convert_model` takes as `extension`.

    torch's bicubic filter with antialiasing is Pillow's, which OpenVINO has under that name, with
    the coefficient -0.5 of Keys' cubic in both (OpenVINO heeds no other there).
    """
    from openvino.frontend.pytorch import ConversionExtension

    return [ConversionExtension("aten._upsample_bicubic2d_aa.default", _resize)]


def _resize(context: Any) -> Any:
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
