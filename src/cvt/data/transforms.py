"""From a picture to the network's input tensor, built from timm's transforms."""

from collections.abc import Callable
from typing import Any

from PIL import Image
from timm.data import create_transform
from timm.data.transforms import MaybeToTensor
from torch import Tensor
from torchvision import transforms as T

from cvt.data.augment import Augment
from cvt.data.posterize import allow_zero_bits
from cvt.data.steps import Flip, PadCrop, ResizedCrop, ResizeTo, ToNormalizedTensor
from cvt.errors import UserError
from cvt.weights.record import Preprocessing

Transform = Callable[[Image.Image], Tensor]


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """Returns the fixed transform from an RGB picture to a float32 tensor (C, H, W).

    Raises:
        UserError: The input has neither one nor three channels.
    """
    return _with_channels(preprocessing, T.Compose(_eval_steps(preprocessing)))


def train_transform(preprocessing: Preprocessing, augment: Augment) -> Transform:
    """Returns a random transform from an RGB picture to a float32 tensor (C, H, W).

    It draws from the global generators of Python, numpy and torch.

    Raises:
        UserError: The input has neither one nor three channels, or timm does not know the
            `auto_augment` policy.
    """
    common = _common(preprocessing)
    try:
        _, colour, tensor = create_transform(
            **common,
            is_training=True,
            separate=True,
            color_jitter=augment.color_jitter,
            auto_augment=augment.auto_augment,
            re_prob=augment.re_prob,
            re_mode=augment.re_mode,
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(
            f"Got auto_augment {augment.auto_augment!r}, expected a policy of timm's such as "
            "'rand-m9-mstd0.5-inc1', 'augmix-m3' or 'original'."
        ) from error
    allow_zero_bits(colour)
    steps = [
        *_crop(preprocessing, augment),
        Flip(augment.hflip),
        # At strength 0 a jitter would draw numbers and do nothing.
        *(s for s in colour.transforms if augment.color_jitter or not isinstance(s, T.ColorJitter)),
        *_quick_tensor(tensor.transforms),
    ]
    return _with_channels(preprocessing, T.Compose(steps))


def _crop(preprocessing: Preprocessing, augment: Augment) -> list[Any]:
    size, interpolation = preprocessing.size, preprocessing.interpolation
    if augment.crop == "none":
        return _eval_steps(preprocessing)[:-1]  # all but the tensor
    if augment.crop == "random_resized":
        return [ResizedCrop(size, augment.scale, augment.ratio, interpolation)]
    return [ResizeTo(size, interpolation), PadCrop(size, (size[0] // 8, size[1] // 8))]


def _eval_steps(preprocessing: Preprocessing) -> list[Any]:
    steps = create_transform(
        **_common(preprocessing),
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
    )
    return _quick_tensor(steps.transforms)


def _quick_tensor(steps: list[Any]) -> list[Any]:
    """Puts one step of ours in the place of two of timm's that give the same."""
    start = next(place for place, step in enumerate(steps) if isinstance(step, MaybeToTensor))
    normalize = steps[start + 1]
    quick = ToNormalizedTensor(normalize.mean.tolist(), normalize.std.tolist())
    return [*steps[:start], quick, *steps[start + 2 :]]


def _common(preprocessing: Preprocessing) -> dict[str, Any]:
    """Arguments of timm's that training and evaluation share, always for three channels."""
    channels = preprocessing.input_size[0]
    if channels not in (1, 3):
        raise UserError(f"Got a model of {channels} input channels, expected 1 or 3 for pictures.")
    copies = 3 if channels == 1 else 1
    return {
        "input_size": (3, *preprocessing.size),
        "interpolation": preprocessing.interpolation,
        "mean": preprocessing.mean * copies,
        "std": preprocessing.std * copies,
    }


def _with_channels(preprocessing: Preprocessing, steps: T.Compose) -> Transform:
    """Makes a grey input out of three equal channels, because timm's policies ask for RGB."""
    if preprocessing.input_size[0] == 3:
        return steps
    return T.Compose([T.Grayscale(3), steps, _first_channel])


def _first_channel(image: Tensor) -> Tensor:
    return image[:1]
