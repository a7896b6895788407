"""transformers' `preprocessor_config.json` for CvT and our `Preprocessing`, there and back.

The hub's CvT models name the ConvNeXT processor. Below 384 pixels it resizes the short side to
`size / crop_pct` and cuts the middle out; from 384 on it squashes to a square and ignores
`crop_pct` (transformers, models/convnext/image_processing_convnext.py).
"""

from collections.abc import Mapping
from typing import Any

from cvt.errors import UserError
from cvt.weights.record import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocessing

_SQUASHED_FROM = 384
RESAMPLES: dict[int, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}  # by PIL's codes
_FILE = "preprocessor_config.json"


def read(config: Mapping[str, Any]) -> Preprocessing:
    """Reads a ConvNeXT image processor's configuration.

    Raises:
        UserError: It is another processor's, or a value is unusable.
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    if not kind.lower().startswith("convnext"):
        raise UserError(
            f"Got the image processor {kind!r} in {_FILE}, expected ConvNeXT's, which CvT has; "
            "remove the file to use the default preprocessing."
        )
    side = _side(config.get("size", {"shortest_edge": _SQUASHED_FROM}))
    squash = side >= _SQUASHED_FROM
    resample = config.get("resample", 3)
    if resample not in RESAMPLES:
        raise UserError(f"Got resample {resample!r} in {_FILE}, expected one of {list(RESAMPLES)}.")
    mean = config.get("image_mean", IMAGENET_MEAN)
    return Preprocessing(
        input_size=(len(mean), side, side),
        mean=mean,
        std=config.get("image_std", IMAGENET_STD),
        interpolation=RESAMPLES[resample],
        crop_pct=1.0 if squash else config.get("crop_pct", 0.875),
        crop_mode="squash" if squash else "center",
    )


def write(preprocessing: Preprocessing) -> dict[str, Any] | None:
    """Returns the configuration, or None where the ConvNeXT processor does something else."""
    height, width = preprocessing.size
    squash = height >= _SQUASHED_FROM
    as_here = ("squash", 1.0) if squash else ("center", preprocessing.crop_pct)
    if height != width or (preprocessing.crop_mode, preprocessing.crop_pct) != as_here:
        return None
    codes = {name: code for code, name in RESAMPLES.items()}
    return {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": height},
        "crop_pct": preprocessing.crop_pct,
        "resample": codes[preprocessing.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _side(size: Any) -> int:
    """The side in the three ways in which transformers has written it over the years."""
    side = size
    if isinstance(size, Mapping):
        side = size.get("shortest_edge", size.get("height"))
        if side != size.get("width", side):
            raise UserError(f"Got size {dict(size)} in {_FILE}, expected a square.")
    if not isinstance(side, int) or side < 1:
        raise UserError(f"Got size {size!r} in {_FILE}, expected a side in pixels.")
    return side
