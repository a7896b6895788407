"""From a picture to the network's input tensor, built from timm's transforms."""

from collections.abc import Callable
from typing import Any

from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision import transforms as T

from cvt.data.augment import Augment
from cvt.data.posterize import allow_zero_bits
from cvt.errors import UserError
from cvt.weights.record import Preprocessing

Transform = Callable[[Image.Image], Tensor]


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """Returns the fixed transform from an RGB picture to a float32 tensor (C, H, W).

    Raises:
        UserError: The input has neither one nor three channels.
    """
    return _with_channels(preprocessing, _eval_steps(preprocessing))


def train_transform(preprocessing: Preprocessing, augment: Augment) -> Transform:
    """Returns a random transform from an RGB picture to a float32 tensor (C, H, W).

    It draws from the global generators of Python, numpy and torch.

    Raises:
        UserError: The input has neither one nor three channels, or timm does not know the
            `auto_augment` policy.
    """
    try:
        crop, colour, tensor = create_transform(
            **_common(preprocessing),
            is_training=True,
            separate=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
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
    if augment.crop != "random_resized":
        crop = T.Compose(
            [*_crop(preprocessing, augment.crop), T.RandomHorizontalFlip(augment.hflip)]
        )
    return _with_channels(preprocessing, T.Compose([crop, colour, tensor]))


def _crop(preprocessing: Preprocessing, crop: str) -> list[Any]:
    if crop == "none":
        return _eval_steps(preprocessing).transforms[:-2]  # without to-tensor and normalisation
    height, width = preprocessing.size
    interpolation = T.InterpolationMode(preprocessing.interpolation)
    return [
        T.Resize((height, width), interpolation=interpolation),
        T.RandomCrop((height, width), padding=(width // 8, height // 8)),
    ]


def _eval_steps(preprocessing: Preprocessing) -> T.Compose:
    return create_transform(
        **_common(preprocessing),
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
    )


def _common(preprocessing: Preprocessing) -> dict[str, Any]:
    """Arguments of timm's that training and evaluation share, always for three channels."""
    copies = 3 if preprocessing.input_size[0] == 1 else 1
    return {
        "input_size": (3, *preprocessing.size),
        "interpolation": preprocessing.interpolation,
        "mean": preprocessing.mean * copies,
        "std": preprocessing.std * copies,
    }


def _with_channels(preprocessing: Preprocessing, steps: T.Compose) -> Transform:
    """Makes a grey input out of three equal channels, because timm's policies ask for RGB."""
    channels = preprocessing.input_size[0]
    if channels == 1:
        return T.Compose([T.Grayscale(3), steps, _first_channel])
    if channels != 3:
        raise UserError(f"Got a model of {channels} input channels, expected 1 or 3 for pictures.")
    return steps


def _first_channel(image: Tensor) -> Tensor:
    return image[:1]
