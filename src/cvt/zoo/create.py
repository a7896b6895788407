"""The front door: models by name, or from a checkpoint."""

import dataclasses
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cvt.errors import UserError, did_you_mean
from cvt.parts.model import VisionModel
from cvt.parts.spec import Spec
from cvt.systems.catalog import row_of, system_of
from cvt.systems.timm_networks import OF_BUILDER, PREFIX, timm_names
from cvt.weights.fit import adapt, load_strict
from cvt.weights.published import PUBLISHED
from cvt.weights.record import Record
from cvt.weights.source import open_weights, trained_timm
from cvt.zoo.timm_models import ENTRYPOINTS, build


def create_model(name: str, pretrained: bool = False, **changes: Any) -> nn.Module:
    """Builds a model by name, in training mode.

    `changes` are fields of the row (`num_classes`, `in_chans`, `kv_stride`, `drop_path_rate`,
    ...: one value for all stages, or a list with one a stage) and timm's `features_only`,
    `out_indices`, `output_stride`, `device` and `dtype`. The model goes through `torch.compile`,
    `torch.export` and `torch.jit.trace`; `torch.jit.script` it does not.

    Args:
        name: `cvt_13`, or with the tag of published weights: `cvt_13.msft_in1k_384`; `timm/NAME`
            or `timm/NAME.TAG` is timm's network of that name, which takes what timm's builder does.
        pretrained: Load those weights (the model's first ones when no tag is given).
    """
    architecture, _, tag = name.partition(".")
    is_timms = name.startswith(PREFIX)
    if not is_timms and (architecture not in ENTRYPOINTS or (tag and name not in PUBLISHED)):
        known = [*ENTRYPOINTS, *PUBLISHED]
        raise UserError(
            f"Unknown model {name!r}.{did_you_mean(name, known)} `cvt models` lists them all."
        )
    row = row_of(name if is_timms else architecture)
    if pretrained and row.made_by_timm:
        return _trained_by_timm(name if is_timms else PREFIX + name, row, changes)
    if pretrained and not changes.get("features_only"):
        return _in_place(_published_name(name), changes)
    return build(architecture, row, pretrained=pretrained, pretrained_cfg=tag or None, **changes)


def _trained_by_timm(source: str, row: Spec, changes: Mapping[str, Any]) -> nn.Module:
    """A network of timm's with its weights; timm's own builder makes what is no whole network."""
    options = {name: value for name, value in changes.items() if name in OF_BUILDER}
    if options.keys() <= {"device", "dtype"}:
        return _in_place(source, changes)
    spec = row.change(**{name: changes[name] for name in changes.keys() - options.keys()})
    return trained_timm(source, spec, **options)


def _in_place(source: str, changes: Mapping[str, Any]) -> nn.Module:
    place: dict[str, Any] = {name: changes.get(name) for name in ("device", "dtype")}
    changes = {name: value for name, value in changes.items() if name not in place}
    return load(source, **changes).train().to(**place)


def load(source: str | Path, **changes: Any) -> VisionModel:
    """Builds the model of a checkpoint and loads its weights, ready for inference (eval mode).

    Another `num_classes` gets a fresh classifier, another `in_chans` an adapted first
    convolution, another `img_size` interpolated position tables, as timm does it. The record of
    the checkpoint (preprocessing, class names, metrics, licence) is the model's `record`.

    Args:
        source: Our `.safetensors` or a run's folder; a `.pth` of Microsoft's, of another system's
            authors or of timm's; a Hugging Face or timm folder or file; a hub id such as
            `microsoft/cvt-13`; a published name such as `cvt_13.msft_in1k`; `timm/NAME` or
            `timm/NAME.TAG`, with the weights that timm has; `demo`, the small model that comes
            along.
    """
    return loaded(*open_weights(source), source=str(source), **changes)


def loaded(
    state_dict: Mapping[str, Tensor], stored: Record, *, source: str, **changes: Any
) -> VisionModel:
    """Does what `load` does, with what `open_weights` has read."""
    spec = stored.spec.change(**changes)
    record = dataclasses.replace(
        stored,
        spec=spec,
        class_names=stored.class_names if spec.num_classes == stored.spec.num_classes else None,
        preprocessing=stored.preprocessing.with_channels(spec.in_chans),
    )
    model = build(record.model, spec, num_classes=spec.num_classes, in_chans=spec.in_chans)
    fitting = adapt(state_dict, model, img_size=stored.spec.img_size)
    load_strict(model, fitting, source=source)
    model.record = record
    model.pretrained_cfg.update(record.preprocessing.to_timm())
    return model.eval()


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Returns the names of the models, or of published weights, that fit a shell pattern.

    A pattern that begins with `timm/` is of timm's.
    """
    if pattern.startswith(PREFIX):
        return timm_names(pattern, pretrained)
    names = PUBLISHED if pretrained else ENTRYPOINTS
    return [name for name in names if fnmatch(name, pattern)]


def _published_name(name: str) -> str:
    if name in PUBLISHED:
        return name
    for published in PUBLISHED.values():
        if published.model == name:
            return published.name
    others = f"timm's by cvt.load('hf-hub:timm/{name}.TAG')"
    raise UserError(
        f"There are no published weights for {name!r} in this library's list; train it, load "
        f"{others if system_of(name).is_in_timm else 'a file'}, or choose one of "
        f"{', '.join(sorted({published.model for published in PUBLISHED.values()}))}."
    )
