"""What a checkpoint says about itself: architecture, preprocessing, classes, figures, licence."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from cvt.errors import UserError, did_you_mean
from cvt.parts.contract_spec import Spec
from cvt.systems.catalog import spec_from_dict
from cvt.systems.system import IMAGENET_MEAN, IMAGENET_STD

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos")
CROP_MODES = ("center", "squash")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes the network's input, in the words of timm's `pretrained_cfg`.

    `crop_mode="center"` resizes the short side to `side / crop_pct` and cuts the middle out;
    `"squash"` resizes both sides to `size / crop_pct`, which changes the aspect ratio.

    Args:
        input_size: Channels, height and width in pixels; any height and width.
        mean: Subtracted from each channel after scaling the pixels to 0..1.
        std: What each channel is then divided by.
        crop_pct: Share of the resized picture that the crop keeps, in (0, 1].

    Raises:
        UserError: A value is not of the kind that the field asks for.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        for name in ("input_size", "mean", "std"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        if len(self.input_size) != 3 or any(n < 1 or n != int(n) for n in self.input_size):
            raise UserError(
                f"Got input_size {self.input_size}, expected (channels, height, width) as "
                "positive whole numbers."
            )
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.input_size[0]:
                raise UserError(
                    f"Got {name} {getattr(self, name)}, expected one number for each of the "
                    f"{self.input_size[0]} channels of input_size."
                )
        if any(value <= 0 for value in self.std):
            raise UserError(f"Got std {self.std}, expected numbers above 0.")
        crop_pct = self.crop_pct
        if not isinstance(crop_pct, int | float) or not 0 < crop_pct <= 1:
            raise UserError(f"Got crop_pct {crop_pct!r}, expected a number in (0, 1].")
        _one_of("interpolation", self.interpolation, INTERPOLATIONS)
        _one_of("crop_mode", self.crop_mode, CROP_MODES)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input, in pixels."""
        return self.input_size[1], self.input_size[2]

    @classmethod
    def default(cls, spec: Spec) -> Self:
        """Returns what a model gets whose weights come without any word on preprocessing.

        At 224 pixels and above that is ImageNet's; smaller pictures are taken whole.
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

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that goes to JSON and comes back through `from_dict`."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Builds the record that `to_dict` wrote.

        Raises:
            UserError: A key is unknown (the nearest one is named) or a value is unusable.
        """
        _only_known(data, cls, "preprocessing")
        return cls(**data)

    @classmethod
    def from_timm(cls, cfg: dict[str, Any]) -> Self:
        """Reads a timm `pretrained_cfg`; keys that say nothing about preprocessing are left out.

        Raises:
            UserError: A value is unusable, among them timm's `crop_mode="border"`.
        """
        names = {each.name for each in fields(cls)}
        return cls(**{key: cfg[key] for key in cfg.keys() & names if cfg[key] is not None})

    def to_timm(self) -> dict[str, Any]:
        """Returns the part of a timm `pretrained_cfg` that describes the preprocessing."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything beside the tensors that a checkpoint needs to be used: the file alone suffices.

    Args:
        model: Registered name of the row that the spec comes from, such as `cvt_13`.
        spec: The whole architecture; building it and loading the tensors gives the model.
        class_names: One label per output, or None if they are not known.
        metrics: Figures measured with these weights, such as `{"top1": 98.2}` (percent).
        licence: Under what terms the weights may be used.
        source: Where the weights come from: a path, hub id or published name.

    Raises:
        UserError: There are more or fewer class names than outputs.
    """

    model: str
    spec: Spec
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    class_names: tuple[str, ...] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    licence: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if self.class_names is None:
            return
        object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
        if len(self.class_names) != self.spec.num_classes:
            raise UserError(
                f"Got {len(self.class_names)} class names for a model with "
                f"{self.spec.num_classes} outputs; expected as many names as outputs."
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that goes to JSON and comes back through `from_dict`."""
        return {
            "model": self.model,
            "spec": self.spec.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "class_names": None if self.class_names is None else list(self.class_names),
            "metrics": dict(self.metrics),
            "licence": self.licence,
            "source": self.source,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Builds the record that `to_dict` wrote.

        Raises:
            UserError: A key is unknown (the nearest one is named) or missing, or a value unusable.
        """
        _only_known(data, cls, "record")
        for name in ("model", "spec"):
            if name not in data:
                raise UserError(
                    f"The record has no {name!r}; expected one written by this library."
                )
        parts: dict[str, Any] = {**data, "spec": spec_from_dict(data["spec"])}
        if "preprocessing" in data:
            parts["preprocessing"] = Preprocessing.from_dict(data["preprocessing"])
        return cls(**parts)


def _only_known(data: object, cls: Any, what: str) -> None:
    if not isinstance(data, dict):
        raise UserError(f"Got {type(data).__name__} for the {what}, expected an object with keys.")
    names = [each.name for each in fields(cls)]
    for key in data:
        if key not in names:
            hint = did_you_mean(str(key), names)
            raise UserError(f"Got unknown key {key!r} in the {what}, expected {names}.{hint}")


def _numbers(name: str, value: object) -> tuple:
    if not isinstance(value, list | tuple) or not all(isinstance(n, int | float) for n in value):
        raise UserError(f"Got {name} {value!r}, expected a list of numbers.")
    return tuple(value)


def _one_of(name: str, got: object, options: tuple[str, ...]) -> None:
    if got not in options:
        hint = did_you_mean(str(got), options)
        raise UserError(f"Got {name} {got!r}, expected one of {', '.join(options)}.{hint}")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
