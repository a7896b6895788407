"""All that a training run is told, complete, as plain data that needs no heavy import.

Nobody writes all of it: `cvt.training.defaults` lays what was said over what it knows of the data
and the device, and a run prints and writes what came out.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cvt.data.augment import Augment
from cvt.errors import UserError
from cvt.files import atomic_write
from cvt.plain import (
    Range,
    Rate,
    Side,
    check_values,
    from_plain,
    layer_from_plain,
    read_yaml_file,
    to_plain,
    write_yaml,
)

__all__ = [
    "GROUPS",
    "USUAL",
    "DistillConfig",
    "Layer",
    "MixConfig",
    "OptimConfig",
    "TrainConfig",
    "load_config",
    "save_config",
]

Layer = Mapping[str, Any]
"""Some of a config's fields by name, those of its groups in mappings of their own."""

Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(0)]
Decay = Annotated[float, Range(0, below=1)]
Count = Annotated[int, Range(1)]
Minutes = Annotated[float, Range(above=0, most=1e6)]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """An optimiser under a cosine with linear warm-up, stepped at every update."""

    opt: Literal["adamw", "sgd", "lamb", "muon"] = "adamw"
    """adamw, sgd (Nesterov), lamb or muon."""

    base_lr: Positive | None = None
    """Peak learning rate for a batch of 512 images; it grows in proportion to the batch."""

    lr: Positive
    """Peak learning rate itself, whatever the batch; by default base_lr * batch_size / 512."""

    min_lr: NotNegative
    """Learning rate at which the cosine ends; by default a hundredth of the peak."""

    weight_decay: NotNegative
    """Decay of matrices and kernels; biases, norms, class tokens and position tables have none."""

    warmup_epochs: NotNegative
    """Epochs over which the learning rate climbs from a thousandth of its peak."""

    momentum: Decay = 0.9
    """Momentum of sgd; the others do not read it."""

    layer_decay: Annotated[float, Range(above=0, most=1)] = 1.0
    """Learning rate of each block as a share of the next one's; 1 treats all alike."""

    clip_grad: NotNegative
    """Largest norm of the gradient; 0 does not clip."""

    def __post_init__(self) -> None:
        check_values(self, "optim")


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """How the images of a batch, and their labels, are mixed."""

    mixup: NotNegative
    """Alpha of mixup, which blends two images; 0 is off."""

    cutmix: NotNegative
    """Alpha of cutmix, which pastes a part of one image into another; 0 is off."""

    smoothing: Rate
    """Label smoothing: the share of a label's probability that all classes get alike."""

    loss: Literal["ce", "bce"] = "ce"
    """Cross-entropy over the classes (ce), or a yes or no for each of them (bce)."""

    def __post_init__(self) -> None:
        check_values(self, "mix")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How a student learns from its teacher: by default as DeiT's code does.

    Source: facebookresearch/deit 7e160fe, main.py; hard is what its paper finds best. For the soft
    kind the paper (arXiv 2012.12877, section 6.1) has alpha 0.1 and tau 3.
    """

    kind: Literal["hard", "soft", "none"] = "hard"
    """Learn the teacher's first choice (hard, the default), its probabilities (soft) or nothing."""

    alpha: Rate = 0.5
    """Share of the loss that the teacher decides, by default 0.5; the labels decide the rest."""

    tau: Positive = 1.0
    """Temperature by which soft divides both networks' logits, by default 1."""

    def __post_init__(self) -> None:
        check_values(self, "distill")


GROUPS = ("optim", "augment", "mix", "distill")
"""The fields that are groups: nested mappings in YAML, `--GROUP.FIELD` as flags."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run, complete; None stands where there is nothing to say.

    Fields with a default here have it for all data and devices. The others are filled in by
    `cvt.training.defaults.derive`. Of `epochs`, `updates` and `minutes` one holds, or epochs and
    minutes together, whichever ends first.
    """

    data: str = "digits"
    """digits, a path, or a name such as torch/cifar10 or hfds/..."""

    data_dir: str | None = None
    """Where torch/ and hfds/ data lie, and what a relative path is relative to."""

    download: bool = False
    """Fetch a torch/ data set that is not there yet."""

    val_fraction: Rate = 0.1
    """Share of the training images held out for validation where the data has no such split."""

    model: str
    """Name of a model of `cvt models`, or timm/NAME for a network of timm's."""

    model_args: dict[str, Any] = field(default_factory=dict)
    """Changes to the model's row, such as kv_stride 1; for timm/NAME what timm's network takes."""

    drop_path_rate: Rate | None = None
    """Stochastic depth at the last block of every stage; by default as the model's row says."""

    weights: str | None = None
    """Checkpoint, run folder, published name or timm/NAME.TAG to start from."""

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

    epochs: Count | None = None
    """Passes over the training images."""

    updates: Count | None = None
    """Length of the run in updates, instead of epochs."""

    minutes: Minutes | None = None
    """Minutes that the whole command takes, loading and test included, instead of epochs; a tenth
    of them is the most that the learning rate climbs."""

    patience: Count | None = None
    """Epochs without a better validation top-1 after which the run ends early."""

    batch_size: Annotated[int, Range(2)]
    """Images per update, over all processes and accumulation steps together."""

    accum_steps: Count = 1
    """Parts that each process splits its share of a batch into, to save memory."""

    image_size: Side
    """Side of the square that images are brought to, in pixels."""

    seed: Annotated[int, Range(0)] = 0
    """Decides initial weights, order, augmentation and a cut-out validation split."""

    num_workers: Annotated[int, Range(0, 1024)]
    """Processes that prepare images; 0 prepares them in the main one."""

    device: str
    """cpu, cuda, cuda:1, mps, ...; auto takes an accelerator if there is one."""

    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: every process holds the whole model (ddp) or a share of it (fsdp)."""

    precision: Literal["auto", "float32", "bf16", "fp16"]
    """float32, bf16 or fp16; auto: bf16 on GPUs, and on CPUs where a try is faster in it."""

    compile: bool = False
    """Let torch.compile rewrite the network; the first update then takes minutes."""

    grad_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""

    channels_last: bool = False
    """Keep the channels of images and kernels next to each other in memory."""

    sync_bn: bool = False
    """BatchNorm over the batch of all GPUs instead of each one's own."""

    deterministic: bool = False
    """Let GPUs compute the same bits every time, which costs speed; CPUs always do."""

    freeze: Literal["none", "bn", "backbone"] = "none"
    """Keep BatchNorm (bn), or all but the classifier (backbone: linear probing), as it is."""

    head: Literal["fresh", "probed"] = "fresh"
    """Start from a random classifier (fresh), or from one fitted to the weights' features (probed).
    """

    fast: bool = False
    """Fit the classifier alone, at once: take the features of the weights (by default demo) of each
    image, plain and mirrored, and the linear classifier of them that is best on validation. What
    freeze backbone does with augmentation takes many epochs."""

    ema_decay: Decay = 0.0
    """Average the weights over the updates with this decay and keep the average; 0 is off."""

    checkpoint_minutes: Positive = 10.0
    """Minutes between two checkpoints within an epoch; there is one at each epoch's end as well."""

    keep_checkpoints: Count = 2
    """Checkpoints that stay in the run folder, to go on from."""

    optim: OptimConfig
    augment: Augment
    mix: MixConfig
    distill: DistillConfig | None = None
    """None where there is no teacher."""

    def __post_init__(self) -> None:
        check_values(self, "the config")
        if (self.epochs, self.updates, self.minutes) == (None, None, None):
            raise UserError("There is no 'epochs' in the config, and no 'minutes'; give one.")

    @property
    def is_taught(self) -> bool:
        """Whether the run has a teacher that it listens to."""
        taught = self.teacher is not None and self.distill is not None
        return taught and self.distill.kind != "none"

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that YAML and JSON take and `from_dict` reads."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, plain: Any, what: str = "the config") -> "TrainConfig":
        """Rebuilds what `to_dict` wrote, by this version or by one before it."""
        return from_plain(cls, layer_from_plain(cls, plain, what), what)


USUAL: Layer = {
    each.name: each.default for each in fields(TrainConfig) if each.default is not MISSING
} | {"model_args": {}, "teacher_args": {}, "device": "auto", "precision": "auto"}
"""What top-level fields say where nobody says otherwise, whatever the data."""


def load_config(path: str | Path) -> TrainConfig:
    """Reads a complete config, as `save_config` wrote it."""
    return TrainConfig.from_dict(read_yaml_file(path, f"The config {path}"), str(path))


def save_config(path: str | Path, config: TrainConfig) -> None:
    """Writes a config as YAML, in the order of its fields, for `load_config`."""
    with atomic_write(path, "w") as file:
        file.write(write_yaml(config.to_dict()))
