"""A config as people read it: grouped, derived values explained, what is off put last."""

from collections.abc import Mapping
from typing import Any

from cvt.train.config import TrainConfig
from cvt.train.config_groups import GROUPS

_GROUPS = {
    "model": ("model", "model_args", "weights", "drop_path_rate", "freeze", "ema_decay"),
    "teacher": ("teacher", "teacher_args"),
    "length": ("epochs", "updates", "batch_size", "accum_steps", "image_size", "seed"),
    "machine": (
        "device",
        "precision",
        "parallel",
        "num_workers",
        "compile",
        "grad_checkpointing",
        "channels_last",
        "sync_bn",
        "deterministic",
    ),
    "keeping": ("out", "checkpoint_minutes", "keep_checkpoints"),
}
# These say how a run was called, not what it does.
_CALL = ("resume", "force", "download")
_OFF = ("none", "off", "", {})
# A zero switches these off; of the others it is a value like any other.
_OFF_AT_ZERO = (
    "drop_path_rate",
    "ema_decay",
    "clip_grad",
    "weight_decay",
    "warmup_epochs",
    "hflip",
    "color_jitter",
    "re_prob",
    "mixup",
    "cutmix",
    "smoothing",
)
_OFF_AT_ONE = ("layer_decay", "repeats", "accum_steps")


def flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a config's plain data with the names that the command line knows, `optim.lr`."""
    values: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, Mapping) and name in GROUPS:
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = value
    return values


def settings(config: TrainConfig, processes: int = 1) -> dict[str, str]:
    """Returns a line for each group of fields: those in use with their values, then those off.

    Args:
        processes: How many of them share a batch.
    """
    plain = config.to_dict()
    nested = {name: plain.pop(name) for name in GROUPS}
    if not config.is_taught:
        del nested["distill"]
    grouped = {group: {name: plain.pop(name) for name in _GROUPS[group]} for group in _GROUPS}
    rest = {name: value for name, value in plain.items() if name not in _CALL}
    lines = {}
    for group, values in ({"data": rest} | grouped | nested).items():
        used = {name: value for name, value in values.items() if not _is_off(name, value)}
        _leave_out_unread(used, config, processes)
        said = ", ".join(
            _said(name, value, config, processes).removeprefix(f"{group} ")
            for name, value in used.items()
        )
        off = [name for name, value in values.items() if value in (0, "off") and name not in used]
        if group in nested and off:
            said += f"{'; ' * bool(said)}off: {', '.join(off)}"
        if said:
            lines[group] = said
    return lines


def _is_off(name: str, value: Any) -> bool:
    if name in _OFF_AT_ZERO and value == 0:
        return True
    if name in _OFF_AT_ONE and value == 1:
        return True
    return value is None or value is False or value in _OFF


def _leave_out_unread(used: dict[str, Any], config: TrainConfig, processes: int) -> None:
    """Drops fields that nothing reads because of what another field says."""
    optim, augment = config.optim, config.augment
    unread = {
        "base_lr": True,  # said with lr
        "momentum": optim.opt not in (None, "sgd"),
        "scale": augment.crop != "random_resized",
        "ratio": augment.crop != "random_resized",
        "color_jitter": augment.auto_augment not in (None, "off"),
        "re_mode": not augment.re_prob,
        "parallel": processes == 1,
        "sync_bn": processes == 1,
        "accum_steps": True,  # said with batch_size
        "teacher": config.distill.kind == "none",
        "teacher_args": config.distill.kind == "none",
        "tau": config.distill.kind != "soft",
    }
    for name, drop in unread.items():
        if drop:
            used.pop(name, None)


def _said(name: str, value: Any, config: TrainConfig, processes: int) -> str:
    if value is True:
        return name
    text = f"{name} {say_value(value)}"
    if name == "lr" and config.optim.base_lr and config.batch_size:
        base_lr, batch_size = config.optim.base_lr, config.batch_size
        if abs(base_lr * batch_size / 512 - value) < 1e-9:
            text += f" = {base_lr:g} * {batch_size} / 512"
    if name == "batch_size" and (processes > 1 or config.accum_steps > 1):
        share = value / processes / config.accum_steps
        text += f" = {processes} processes * {config.accum_steps} steps * {share:g} images"
    return text


def say_value(value: Any) -> str:
    """Returns a field's value in the words of the command line."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(say_value, value))}]"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={say_value(item)}" for name, item in value.items())
    return str(value)
