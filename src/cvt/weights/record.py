"""What a checkpoint says about itself: architecture, preprocessing, classes, figures, licence."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal, Self

from cvt.errors import UserError
from cvt.parts.spec import Spec
from cvt.plain import Channels, Length, Range, Side, check_values, from_plain, to_plain
from cvt.systems.catalog import ROWS, spec_from_dict, system_of
from cvt.systems.system import IMAGENET_MEAN, IMAGENET_STD, is_ours

Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos"]
CropMode = Literal["center", "squash"]
ClassNames = Annotated[tuple[Annotated[str, Length(0, 1000)], ...], Length(0, 1_000_000)]
Text = Annotated[str, Length(0, 10_000)]

MOST_RESIZED = 16384
"""Pixels a side that an image is resized to, at most."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the network's input, in the words of timm's `pretrained_cfg`.

    `crop_mode="center"` resizes the short side to `side / crop_pct` and cuts the middle out;
    `"squash"` resizes both sides to `size / crop_pct`, which changes the aspect ratio.

    Args:
        input_size: Channels, height and width in pixels; any height and width.
        mean: Subtracted from each channel after scaling the pixels to 0..1.
        std: What each channel is then divided by.
        crop_pct: Share of the resized image that the crop keeps, in (0, 1].
    """

    input_size: tuple[Channels, Side, Side] = (3, 224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[Annotated[float, Range(above=0)], ...] = IMAGENET_STD
    interpolation: Interpolation = "bicubic"
    crop_pct: Annotated[float, Range(above=0, most=1)] = 0.875
    crop_mode: CropMode = "center"

    def __post_init__(self) -> None:
        check_values(self, "the preprocessing")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.input_size[0]:
                raise UserError(
                    f"Got {name} {getattr(self, name)}, expected one number for each of the "
                    f"{self.input_size[0]} channels of input_size."
                )
        if max(self.size) > MOST_RESIZED * self.crop_pct:
            raise UserError(
                f"Got crop_pct {self.crop_pct:g} for an input of {self.size[0]}x{self.size[1]} "
                f"pixels, expected an image of at most {MOST_RESIZED} pixels a side before the "
                "crop."
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input, in pixels."""
        return self.input_size[1], self.input_size[2]

    @classmethod
    def default(cls, spec: Spec) -> Self:
        """Returns what a model gets whose weights come without any word on preprocessing.

        At 224 pixels and above that is ImageNet's; smaller images are taken whole.
        """
        return cls(
            input_size=(spec.in_chans, *spec.img_size),
            mean=IMAGENET_MEAN if spec.in_chans == 3 else (0.5,) * spec.in_chans,
            std=IMAGENET_STD if spec.in_chans == 3 else (0.5,) * spec.in_chans,
            crop_pct=0.875 if min(spec.img_size) >= 224 else 1.0,
        )

    def with_channels(self, channels: int) -> Self:
        """Returns the same for another number of channels: the mean of all, or one after another.

        It goes with the first convolution as timm adapts it: summed for one channel, repeated
        for more than three.
        """
        had = self.input_size[0]
        if channels == had:
            return self

        def fit(values: tuple[float, ...]) -> tuple[float, ...]:
            if channels == 1:
                return (sum(values) / had,)
            return tuple(values[index % had] for index in range(channels))

        size = (channels, *self.size)
        return replace(self, input_size=size, mean=fit(self.mean), std=fit(self.std))

    @classmethod
    def from_timm(cls, cfg: dict[str, Any]) -> Self:
        """Reads a timm `pretrained_cfg`; keys that say nothing about preprocessing are left out."""
        names = {each.name for each in fields(cls)}
        return cls(**{key: cfg[key] for key in cfg.keys() & names if cfg[key] is not None})

    def to_timm(self) -> dict[str, Any]:
        """Returns the part of a timm `pretrained_cfg` that describes the preprocessing."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The data that a run learned from, and how it cut its validation split out of that.

    Args:
        name: What `cvt.data.load_data` was told, as are `data_dir`, `val_fraction` and `seed`.
        digests: For each split (training, validation, test) its number of images and its
            fingerprint, as far as they are known.
    """

    name: Text
    data_dir: Text | None = None
    val_fraction: Annotated[float, Range(above=0, most=1)] = 0.1
    seed: Annotated[int, Range(0, 2**64)] = 0
    digests: dict[str, tuple[int, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything beside the tensors that a checkpoint needs to be used: the file alone suffices.

    Args:
        model: Registered name of the row that the spec comes from, such as `cvt_13`.
        spec: The whole architecture; building it and loading the tensors gives the model.
        class_names: One label per output, of at most 1,000 letters; None: they are not known.
        multi_label: Whether each class is there or not by itself, so that probabilities are the
            sigmoids of the outputs; otherwise an image shows one class, and they are a softmax.
        metrics: Figures measured with these weights, such as `{"top1": 98.2}` (percent).
        source: Where the weights come from: a path, hub id or published name.
        trained_on: What the run that made the weights learned from; None: that is not known.
    """

    model: Annotated[str, Length(1, 200)]
    spec: Spec
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    class_names: ClassNames | None = None
    multi_label: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    licence: Text | None = None
    source: Text | None = None
    trained_on: RunData | None = None

    def __post_init__(self) -> None:
        check_values(self, "the record")
        if self.class_names is not None and len(self.class_names) != self.spec.num_classes:
            raise UserError(
                f"Got {len(self.class_names)} class names for a model with "
                f"{self.spec.num_classes} outputs; expected as many names as outputs."
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that goes to JSON and comes back through `from_dict`."""
        return to_plain(self, leave_out=("trained_on",) * (self.trained_on is None))

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Builds the record that `to_dict` wrote."""
        if isinstance(data, dict) and "spec" in data:
            data = {**data, "spec": spec_from_dict(data["spec"])}
        return from_plain(cls, data, "the record")


def preprocessing_of_row(name: str, spec: Spec | None = None) -> Preprocessing:
    """Returns how images are prepared for a row: as its system's published weights want it.

    Above 320 pixels, and for rows of our own, the image is taken whole.

    Args:
        spec: A change of the row, whose image size and channels hold; None: the row itself.
    """
    system, spec = system_of(name), spec or ROWS[name]
    whole = is_ours(name)
    return Preprocessing(
        input_size=(3, *spec.img_size),
        mean=IMAGENET_MEAN if whole else system.mean,
        std=IMAGENET_STD if whole else system.std,
        crop_pct=1.0 if whole or min(spec.img_size) > 320 else system.crop_pct,
    ).with_channels(spec.in_chans)
