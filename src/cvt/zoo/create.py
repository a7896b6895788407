"""The front door: models by name, or from a checkpoint."""

import dataclasses
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from cvt.errors import UserError, did_you_mean
from cvt.parts.model import VisionModel
from cvt.systems.catalog import ROWS, system_of
from cvt.weights.fit import adapt, load_strict
from cvt.weights.published import PUBLISHED
from cvt.weights.source import is_out_of_reach, open_weights
from cvt.zoo.timm_models import ENTRYPOINTS, build


def create_model(name: str, pretrained: bool = False, **changes: Any) -> nn.Module:
    """Builds a model by name, in training mode.

    `changes` are fields of the row (`num_classes`, `in_chans`, `kv_stride`, `drop_path_rate`,
    ...: one value for all stages, or a list with one a stage) and timm's `features_only`,
    `out_indices`, `output_stride`, `device` and `dtype`. The model goes through `torch.compile`,
    `torch.export` and `torch.jit.trace`; `torch.jit.script` it does not.

    Args:
        name: `cvt_13`, or with the tag of published weights: `cvt_13.msft_in1k_384`.
        pretrained: Load those weights (the model's first ones when no tag is given).
    """
    architecture, _, tag = name.partition(".")
    if architecture not in ENTRYPOINTS or (tag and name not in PUBLISHED):
        known = [*ENTRYPOINTS, *PUBLISHED]
        raise UserError(
            f"Unknown model {name!r}.{did_you_mean(name, known)} `cvt models` lists them all."
        )
    made_by_timm = ROWS[architecture].made_by_timm
    if pretrained and not made_by_timm and not changes.get("features_only"):
        place = {key: changes.pop(key, None) for key in ("device", "dtype")}
        return load(_published_name(name), **changes).train().to(**place)
    build_row = partial(ENTRYPOINTS[architecture], pretrained_cfg=tag or None)
    if pretrained and made_by_timm:
        return build_trained(architecture, build_row, changes)
    return build_row(pretrained, **changes)


def load(source: str | Path, **changes: Any) -> VisionModel:
    """Builds the model of a checkpoint and loads its weights, ready for inference (eval mode).

    Another `num_classes` gets a fresh classifier, another `in_chans` an adapted first
    convolution, another `img_size` interpolated position tables, as timm does it. The record of
    the checkpoint (preprocessing, class names, metrics, licence) is the model's `record`.

    Args:
        source: Our `.safetensors` or a run's folder; a `.pth` of Microsoft's, of another system's
            authors or of timm's; a Hugging Face or timm folder or file; a hub id such as
            `microsoft/cvt-13`; a published name such as `cvt_13.msft_in1k`; `demo`, the small
            model that comes along.
    """
    state_dict, stored = open_weights(source)
    spec = stored.spec.change(**changes)
    record = dataclasses.replace(
        stored,
        spec=spec,
        class_names=stored.class_names if spec.num_classes == stored.spec.num_classes else None,
        preprocessing=stored.preprocessing.with_channels(spec.in_chans),
    )
    model = build(record.model, spec, num_classes=spec.num_classes, in_chans=spec.in_chans)
    fitting = adapt(state_dict, model, img_size=stored.spec.img_size)
    load_strict(model, fitting, source=str(source))
    model.record = record
    model.pretrained_cfg.update(record.preprocessing.to_timm())
    return model.eval()


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Returns the names of the models, or of published weights, that fit a shell pattern."""
    names = PUBLISHED if pretrained else ENTRYPOINTS
    return [name for name in names if fnmatch(name, pattern)]


def _published_name(name: str) -> str:
    if name in PUBLISHED:
        return name
    for published in PUBLISHED.values():
        if published.model == name:
            return published.name
    others = f"timm's by cvt.load('timm/{name}.TAG')" if system_of(name).is_in_timm else "a file"
    raise UserError(
        f"There are no published weights for {name!r} in this library's list; train it, load "
        f"{others}, or choose one of "
        f"{', '.join(sorted({published.model for published in PUBLISHED.values()}))}."
    )


def build_trained(
    name: str, build: Callable[..., nn.Module], changes: Mapping[str, Any]
) -> nn.Module:
    """Calls `build(pretrained=True, **changes)` for a network whose weights timm downloads."""
    import timm
    from huggingface_hub.errors import HTTPError

    config = timm.get_pretrained_cfg(name)
    if config is not None and config.hf_hub_id and is_out_of_reach(config.hf_hub_id):
        raise _not_at_hand(name)  # asked once, instead of the minute that timm's retries take
    try:
        return build(pretrained=True, **changes)
    except (OSError, HTTPError) as error:  # being offline is an OSError too
        raise _not_at_hand(name) from error
    except (TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"timm cannot build {name!r} with {dict(changes)}: {reason}.") from error


def _not_at_hand(name: str) -> UserError:
    return UserError(
        f"Cannot get timm's weights of {name!r}: they are not in the cache and cannot be "
        "downloaded now; go online, or give the path of weights that you have."
    )
