"""How pictures are prepared for weights that come without any word on it."""

from cvt.parts.contract_spec import Spec
from cvt.systems.catalog import ROWS, system_of
from cvt.systems.system import IMAGENET_MEAN, IMAGENET_STD
from cvt.weights.record import Preprocessing


def preprocessing_of_row(name: str, spec: Spec | None = None) -> Preprocessing:
    """Returns how pictures are prepared for a row: as its system's published weights want it.

    Above 320 pixels, and for our own rows for small images, the picture is taken whole.

    Args:
        spec: A change of the row, whose image size and channels hold; None: the row itself.

    Raises:
        UserError: There is no such row.
    """
    system, spec = system_of(name), spec or ROWS[name]
    is_ours = name.endswith("_32")
    return Preprocessing(
        input_size=(3, *spec.img_size),
        mean=IMAGENET_MEAN if is_ours else system.mean,
        std=IMAGENET_STD if is_ours else system.std,
        crop_pct=1.0 if is_ours or min(spec.img_size) > 320 else system.crop_pct,
    ).with_channels(spec.in_chans)
