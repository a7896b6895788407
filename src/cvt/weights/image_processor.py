"""transformers' `preprocessor_config.json` and our `Preprocessing`; CvT's there and back.

The hub's CvT models name the ConvNeXT processor. Below 384 pixels it resizes the short side to
`size / crop_pct` and cuts the middle out; from 384 on it squashes to a square and ignores
`crop_pct` (transformers, models/convnext/image_processing_convnext.py). PVT's squashes to its size
(models/pvt/image_processing_pvt.py). What a field says is followed, or the file is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cvt.errors import UserError
from cvt.plain import Range, from_others
from cvt.systems.system import HALF, IMAGENET_MEAN, IMAGENET_STD
from cvt.weights.record import Interpolation, Preprocessing

_SQUASHED_FROM = 384
# By Pillow's codes.
RESAMPLES: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_FILE = "preprocessor_config.json"
_KINDS = {"convnext": "ConvNeXT's, which CvT has", "pvt": "PVT's"}
_CONVERTS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
# Other things that processors do, by the keys that ask for them.
_UNKNOWN = ("size_divisor", "rescale_offset", "offset")


@dataclass(frozen=True, kw_only=True)
class _Processor:
    """The fields that both processors read, with transformers' defaults."""

    image_processor_type: str | None = None
    feature_extractor_type: str | None = None
    do_resize: bool = True
    size: int | dict[str, int | None] | None = None
    crop_pct: float | None = None
    resample: int | None = None
    do_rescale: bool = True
    rescale_factor: Annotated[float, Range(above=0)] = 1 / 255
    do_normalize: bool = True
    image_mean: float | tuple[float, ...] | None = None
    image_std: float | tuple[float, ...] | None = None


def read(
    config: Mapping[str, Any],
    kind: Literal["convnext", "pvt"] = "convnext",
    channels: int | None = None,
) -> Preprocessing:
    """Reads an image processor's configuration.

    Pixels that are not scaled to 0..1, or by another factor, and such as are not normalised come
    out as the mean and standard deviation that amount to the same.

    Args:
        kind: Whose processor it has to be, or is where the file does not say.
        channels: Those of the model; None: as many as `image_mean` has, or 3.

    Raises:
        UserError: It is another processor's, a value is unusable, or it asks for a step that is
            not done here.
    """
    processor = from_others(_Processor, config, _FILE)
    named = processor.image_processor_type or processor.feature_extractor_type or kind
    if not named.lower().startswith(kind):
        raise UserError(
            f"Got the image processor {named!r} in {_FILE}, expected {_KINDS[kind]}; "
            "remove the file to use the default preprocessing."
        )
    _check_steps(config, processor)
    if channels is None:
        channels = len(processor.image_mean) if isinstance(processor.image_mean, tuple) else 3
    # With x in 0..1, they compute (x * factor - mean) / std.
    factor = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    factor = 1.0 if abs(factor - 1) < 1e-6 else factor
    # Where the file is silent, ConvNeXT's halves hold, and not ImageNet's.
    mean = _per_channel(processor.image_mean, IMAGENET_MEAN if kind == "pvt" else HALF, channels)
    std = _per_channel(processor.image_std, IMAGENET_STD if kind == "pvt" else HALF, channels)
    if not processor.do_normalize:
        mean, std = (0.0,) * channels, (1.0,) * channels
    height, width = _size(processor.size, kind)
    squash = kind == "pvt" or height >= _SQUASHED_FROM
    crop_pct = 0.875 if processor.crop_pct is None else processor.crop_pct
    return Preprocessing(
        input_size=(channels, height, width),
        mean=tuple(each / factor for each in mean),
        std=tuple(each / factor for each in std),
        interpolation=_interpolation(processor.resample, kind),
        crop_pct=1.0 if squash else crop_pct,
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


def _check_steps(config: Mapping[str, Any], processor: _Processor) -> None:
    if not processor.do_resize:
        raise UserError(
            f"Got do_resize false in {_FILE}, expected true: pictures of one size are made here."
        )
    others = [key for key in config if str(key).startswith("do_") and key not in _CONVERTS]
    for key in (*others, *_UNKNOWN):
        if config.get(key):
            raise UserError(
                f"Got {key} {config[key]!r} in {_FILE}, expected none: that step is not done here; "
                "prepare the pictures with transformers."
            )


def _per_channel(
    value: float | tuple[float, ...] | None, default: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    """One number for each channel, given one for all, each, or none."""
    if value is None:
        return default
    return value if isinstance(value, tuple) else (value,) * channels


def _interpolation(resample: int | None, kind: str) -> Interpolation:
    if resample is None and kind == "pvt":
        raise UserError(
            f"Got no resample in {_FILE}, expected 2 (bilinear, which transformers 4 takes then) "
            "or 3 (bicubic, which transformers 5 does)."
        )
    resample = 3 if resample is None else resample
    if resample not in RESAMPLES:
        raise UserError(f"Got resample {resample!r} in {_FILE}, expected one of {list(RESAMPLES)}.")
    return RESAMPLES[resample]


def _size(size: int | dict[str, int | None] | None, kind: str) -> tuple[int, int]:
    """Height and width, in the three ways in which transformers has written them over the years."""
    if size is None:
        size = 224 if kind == "pvt" else _SQUASHED_FROM
    if isinstance(size, int):
        size = {"height": size, "width": size}
    given = {key: side for key, side in size.items() if side is not None}
    side = given.get("shortest_edge") if kind == "convnext" else None
    height, width = given.get("height", side), given.get("width", side)
    expected = "height and width" if kind == "pvt" else "a side in pixels"
    if height is None or width is None or not given.keys() <= {"shortest_edge", "height", "width"}:
        raise UserError(f"Got size {size} in {_FILE}, expected {expected}.")
    if kind == "convnext" and (height != width or side not in (None, height)):
        raise UserError(f"Got size {size} in {_FILE}, expected a square.")
    return height, width
