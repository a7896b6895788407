"""Everything that a training run can be told, as plain data that needs no heavy import.

None stands for "derive it from the data": `cvt.training.defaults` fills those fields in, and the
filled-in config is what a run prints and writes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cvt.errors import UserError, did_you_mean
from cvt.plain import read_yaml, read_yaml_file, write_yaml

__all__ = [
    "AugmentConfig",
    "DistillConfig",
    "MixConfig",
    "OptimConfig",
    "TrainConfig",
    "known",
    "load_config",
    "read_config",
    "save_config",
]


# --- The groups of a run's config: each is a nested mapping in YAML, and `--GROUP.FIELD` as flags.


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """An optimiser under a cosine with linear warm-up, stepped at every update."""

    opt: Literal["adamw", "sgd", "lamb"] | None = None
    """adamw, sgd (Nesterov) or lamb."""

    base_lr: float | None = None
    """Peak learning rate for a global batch of 512 images; it grows in proportion to the batch."""

    lr: float | None = None
    """Peak learning rate itself; by default base_lr * batch_size / 512."""

    min_lr: float | None = None
    """Learning rate that the cosine ends at; by default a hundredth of the peak."""

    weight_decay: float | None = None
    """Decay of matrices and kernels; biases, norms, class tokens and position tables have none."""

    warmup_epochs: float | None = None
    """Epochs over which the learning rate climbs from a thousandth of its peak."""

    momentum: float | None = None
    """Momentum of sgd; the others do not read it."""

    layer_decay: float | None = None
    """Factor by which each block's learning rate falls short of the next one's; 1 is none."""

    clip_grad: float | None = None
    """Largest norm that the gradient may keep; 0 leaves it alone."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training pictures are varied, field for field `cvt.data.transforms.Augment`."""

    crop: Literal["random_resized", "pad", "none"] | None = None
    """Random part of the picture, whole picture shifted by an eighth, or what evaluation sees."""

    scale: tuple[float, float] | None = None
    """Smallest and largest share of the area that a random_resized crop takes."""

    ratio: tuple[float, float] | None = None
    """Smallest and largest width / height of that crop."""

    hflip: float | None = None
    """Probability of mirroring left and right."""

    color_jitter: float | None = None
    """Strength of random brightness, contrast and saturation, where auto_augment is off."""

    auto_augment: str | None = None
    """A policy of timm's, such as rand-m9-mstd0.5-inc1; off: none."""

    re_prob: float | None = None
    """Probability of erasing a random rectangle."""

    re_mode: Literal["const", "rand", "pixel"] | None = None
    """What is erased becomes 0 (const), one random colour (rand) or noise (pixel)."""

    repeats: int | None = None
    """Differently varied copies of a picture in a batch; an epoch then sees fewer pictures."""


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """How pictures of a batch, and their labels, are mixed."""

    mixup: float | None = None
    """Alpha of mixup, which blends two pictures; 0 is off."""

    cutmix: float | None = None
    """Alpha of cutmix, which pastes a part of one picture into another; 0 is off."""

    smoothing: float | None = None
    """Probability that a label gives away to the other classes."""

    loss: Literal["ce", "bce"] | None = None
    """Cross-entropy over the classes (ce), or a yes or no for each of them (bce)."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How a student learns from `teacher`; nothing reads it where there is none."""

    kind: Literal["hard", "soft", "none"] | None = None
    """Learn the teacher's first choice (hard, the default), its probabilities (soft) or nothing."""

    alpha: float | None = None
    """Share of the loss that the teacher decides, by default 0.5; the labels decide the rest."""

    tau: float | None = None
    """Temperature by which soft divides both networks' logits, by default 1."""


GROUPS = ("optim", "augment", "mix", "distill")


# --- Checks the values of a config against the annotations of its fields, and their ranges.

_LEAST = {
    "epochs": 1,
    "updates": 1,
    "batch_size": 2,
    "accum_steps": 1,
    "image_size": 1,
    "seed": 0,
    "num_workers": 0,
    "repeats": 1,
    "keep_checkpoints": 1,
}
_MOST = {"num_workers": 1024, "image_size": 4096, "repeats": 1024}
_ABOVE_ZERO = ("base_lr", "lr", "checkpoint_minutes", "tau")
_NOT_NEGATIVE = ("min_lr", "weight_decay", "warmup_epochs", "clip_grad", "mixup", "cutmix")
_SHARES = (
    "drop_path_rate",
    "smoothing",
    "hflip",
    "re_prob",
    "val_fraction",
    "alpha",
)
_NOT_QUITE_ONE = ("momentum", "ema_decay")


def check_fields(config: Any, prefix: str) -> None:
    """Checks the kinds and ranges of all fields of a dataclass, nested groups included.

    Args:
        prefix: What stands before a field's name in messages, such as `optim.`.

    Raises:
        UserError: A value is not what its field's annotation or range asks for.
    """
    hints = get_type_hints(type(config))
    for each in fields(config):
        name, value = prefix + each.name, getattr(config, each.name)
        if is_dataclass(value):
            check_fields(value, name + ".")
        elif not _is_a(value, hints[each.name]):
            raise UserError(f"Got {name} {value!r}, expected {_describe(hints[each.name])}.")
        elif value is not None:
            _check_range(name, each.name, value)


def _check_range(name: str, field_name: str, value: Any) -> None:
    if field_name in _LEAST and value < _LEAST[field_name]:
        raise UserError(f"Got {name} {value}, expected {_LEAST[field_name]} or more.")
    if field_name in _MOST and value > _MOST[field_name]:
        raise UserError(f"Got {name} {value}, expected {_MOST[field_name]:,} at most.")
    if field_name in _ABOVE_ZERO and not 0 < value < float("inf"):
        raise UserError(f"Got {name} {value}, expected a number above 0.")
    if field_name in _NOT_NEGATIVE and not 0 <= value < float("inf"):
        raise UserError(f"Got {name} {value}, expected a number of 0 or more.")
    if field_name in _SHARES and not 0 <= value <= 1:
        raise UserError(f"Got {name} {value}, expected a number from 0 to 1.")
    if field_name in _NOT_QUITE_ONE and not 0 <= value < 1:
        raise UserError(f"Got {name} {value}, expected a number from 0 to less than 1.")
    if field_name == "layer_decay" and not 0 < value <= 1:
        raise UserError(f"Got {name} {value}, expected a number above 0, up to 1.")


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a field's annotation; whole numbers pass as floats."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_is_a(value, option) for option in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        fits = isinstance(value, tuple) and len(value) == len(get_args(hint))
        return fits and all(_is_a(item, float) for item in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, origin or hint)


def _describe(hint: Any) -> str:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    kinds = []
    for option in options:
        if get_origin(option) is Literal:
            kinds += map(str, get_args(option))
        elif option is not type(None):
            kinds.append(words.get(option, "two numbers" if get_origin(option) else str(option)))
    return " or ".join(kinds)


T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. Fields that are None are derived from the data."""

    data: str = "digits"
    """digits, a path, or a name such as torch/cifar10 or hfds/..."""

    data_dir: str | None = None
    """Where torch/ and hfds/ data lie, and what a relative path is relative to."""

    download: bool = False
    """Fetch a torch/ data set that is not there yet."""

    val_fraction: float = 0.1
    """Share of the training pictures held out for validation where the data has no such split."""

    model: str | None = None
    """Name of a model; `cvt models` lists them."""

    model_args: dict[str, Any] = field(default_factory=dict)
    """Changes to the model's row, such as kv_stride 1; a list gives one value a stage."""

    drop_path_rate: float | None = None
    """Stochastic depth at the last block of every stage; by default as the model's row says."""

    weights: str | None = None
    """Checkpoint, run folder or published name to start from instead of a fresh model."""

    teacher: str | None = None
    """Trained network to learn from as well: a model's name, timm/NAME, a run or a checkpoint."""

    teacher_args: dict[str, Any] = field(default_factory=dict)
    """Changes to the teacher's row, such as in_chans 1; for timm/NAME what timm takes."""

    out: str | None = None
    """Folder of the run; by default the next free runs/DATA-MODEL-NUMBER."""

    resume: str | None = None
    """Folder of an interrupted run to go on with; its config holds."""

    force: bool = False
    """Resume although config, data or software changed since the run was started."""

    epochs: int | None = None
    """Passes over the training pictures."""

    updates: int | None = None
    """Length of the run in updates, instead of epochs."""

    batch_size: int | None = None
    """Pictures per update, over all processes and accumulation steps together."""

    accum_steps: int = 1
    """Parts that a process works through one after the other to make up its share of a batch."""

    image_size: int | None = None
    """Side of the square that pictures are brought to, in pixels."""

    seed: int = 0
    """Decides initial weights, order, augmentation and a cut-out validation split."""

    num_workers: int | None = None
    """Processes that prepare pictures; 0 prepares them in the main one."""

    device: str = "auto"
    """cpu, cuda, cuda:1, mps, ...; auto takes an accelerator if there is one."""

    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: every process holds the whole model (ddp) or a share of it (fsdp)."""

    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network; auto takes bf16 on GPUs, and CPUs where a try is quicker in it."""

    compile: bool = False
    """Let torch.compile rewrite the network; the first update then takes minutes."""

    grad_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""

    channels_last: bool = False
    """Keep the channels of pictures and kernels next to each other in memory."""

    sync_bn: bool = False
    """BatchNorm over the batch of all GPUs instead of each one's own."""

    deterministic: bool = False
    """Let GPUs compute the same bits every time, which costs speed; CPUs always do."""

    freeze: Literal["none", "bn", "backbone"] = "none"
    """Keep BatchNorm (bn), or all but the classifier (backbone: linear probing), as it is."""

    ema_decay: float | None = None
    """Average the weights over the updates with this decay and keep the average; 0 is off."""

    checkpoint_minutes: float = 10.0
    """Time between two checkpoints within an epoch; there is one at each epoch's end as well."""

    keep_checkpoints: int = 2
    """Checkpoints to go on from that stay in the run folder."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model_args", _typed(self.model_args))
        object.__setattr__(self, "teacher_args", _typed(self.teacher_args))
        check_fields(self, "")

    @property
    def is_taught(self) -> bool:
        """Whether the run has a teacher that it listens to."""
        return self.teacher is not None and self.distill.kind != "none"

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that YAML and JSON take and `from_dict` reads."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "TrainConfig":
        """Rebuilds a config from `to_dict`'s data; missing keys keep their defaults.

        Raises:
            UserError: An unknown key (the nearest is named) or a value of the wrong kind.
        """
        return _build(cls, plain, "")


def known(value: T | None) -> T:
    """Returns the value of a field that has been filled in."""
    assert value is not None
    return value


def load_config(path: str | Path) -> TrainConfig:
    """Reads a YAML file of `TrainConfig`'s fields.

    Raises:
        UserError: There is no such file, it is no YAML mapping, or `from_dict` refuses it.
    """
    return TrainConfig.from_dict(read_config(path))


def read_config(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file of `TrainConfig`'s fields, and returns those that it names.

    Raises:
        UserError: As `load_config` does; the message names the file.
    """
    plain = read_yaml_file(path, f"The config {path}")
    try:
        TrainConfig.from_dict(plain)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return plain


def save_config(path: str | Path, config: TrainConfig) -> None:
    """Writes a config as YAML, in the order of its fields, for `load_config`."""
    from cvt.files import atomic_write

    with atomic_write(path, "w") as file:
        file.write(write_yaml(config.to_dict()))


def _build(cls: type, plain: Any, prefix: str) -> Any:
    if not isinstance(plain, Mapping):
        where = prefix.rstrip(".") or "the config"
        raise UserError(f"Got {plain!r} for {where}, expected keys with values.")
    hints = get_type_hints(cls)
    values = {}
    for key, value in plain.items():
        if key not in hints:
            hint = did_you_mean(str(key), hints)
            raise UserError(f"Unknown key {prefix}{key} in the config.{hint}")
        if is_dataclass(hints[key]):
            value = _build(hints[key], value, f"{prefix}{key}.")
        values[key] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _typed(args: Any) -> Any:
    if not isinstance(args, Mapping):
        return args  # for `check_fields` to refuse
    return {str(name).replace("-", "_"): _typed_value(value) for name, value in args.items()}


def _typed_value(value: Any) -> Any:
    """Reads a value that the command line could only pass on as text: `2`, `true`, `[1, 2, 2]`."""
    if not isinstance(value, str) or not value:
        return value
    try:
        return read_yaml(value)
    except UserError:
        return value
