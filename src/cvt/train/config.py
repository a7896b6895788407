"""Everything that a training run can be told, as plain data that needs no heavy import.

None stands for "derive it from the data": `cvt.train.defaults` fills those fields in, and the
filled-in config is what a run prints and writes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from cvt.errors import UserError, did_you_mean
from cvt.plain import read_yaml, read_yaml_file, write_yaml
from cvt.train.config_groups import AugmentConfig, DistillConfig, MixConfig, OptimConfig
from cvt.train.fields import check_fields

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
