"""Folders for `timm.create_model("local-dir:...")` and transformers' `AutoModel...`.

`model.safetensors` is a checkpoint of ours as well, so nothing is lost on the way back; only a
folder that timm saved itself is read from its `config.json`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from timm.models import is_model, list_models
from torch import Tensor

from cvt.errors import UserError, did_you_mean
from cvt.parts.model import VisionModel
from cvt.parts.spec import Spec
from cvt.plain import Classes, from_others
from cvt.systems.catalog import ROWS, make_network, name_of_timms, row_of, timm_name
from cvt.weights.checkpoint import METADATA_KEY, read_safetensors, record_of, save_checkpoint
from cvt.weights.fit import check_record, spec_of_tensors
from cvt.weights.hugging_face import read_json, read_weights, write_json
from cvt.weights.layouts import StateDict, to_ours
from cvt.weights.record import ClassNames, Preprocessing, Record

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class _Config:
    """The fields of timm's `config.json` that say what a model is."""

    architecture: str
    num_classes: Classes | None = None
    global_pool: str | None = None
    label_names: ClassNames | None = None
    model_args: dict[str, Any] | None = None
    pretrained_cfg: dict[str, Any] = field(default_factory=dict)


def save_pretrained(
    model: VisionModel,
    folder: str | Path,
    record: Record | None = None,
    *,
    class_names: Sequence[str] | None = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
) -> None:
    """Saves a model as a folder that timm (after `import cvt`), transformers and we can load.

    The architecture saved is the model's own, so a record from before a `reset_classifier` will
    do; class names that no longer fit are dropped.

    Args:
        model: A model of this library, from whatever loop trained it; not what is wrapped around
            it, such as a LightningModule.
        record: What the folder says about the model; by default what `cvt.load` found in its
            checkpoint or, for a new model, the preprocessing of its registered configuration.
        class_names: One label per output, in their order; None: the record's.
        preprocessing: How images were prepared in training, also as timm's data config
            (`timm.data.resolve_model_data_config`); None: the record's.
    """
    if not hasattr(model, "spec"):
        raise UserError(
            f"Got a {type(model).__name__}, expected a model of this library; give the network "
            "inside of it, such as its `.model` or `.module`."
        )
    record = record_of_model(model, record)
    if class_names is not None:
        if isinstance(class_names, str):
            raise UserError(f"Got class_names {class_names!r}, expected a list of names.")
        record = replace(record, class_names=tuple(class_names))
    if preprocessing is not None:
        if not isinstance(preprocessing, Preprocessing):
            preprocessing = Preprocessing.from_timm(dict(preprocessing))
        record = replace(record, preprocessing=preprocessing)
    check_record(record, str(folder))
    write_timm_folder(folder, model.state_dict(), record)


def record_of_model(model: VisionModel, record: Record | None = None) -> Record:
    """Returns what there is to say about a model as it is now, see `save_pretrained`."""
    record = record or getattr(model, "record", None)
    if record is None:
        cfg = getattr(model, "pretrained_cfg", None)
        if cfg is None:
            raise UserError(
                "Got a model that does not say which row it is of; make it with cvt.create_model, "
                "or pass a record."
            )
        prepared = Preprocessing.from_timm(cfg).with_channels(model.in_chans)
        own = model.spec.made_by_timm
        name = name_of_timms(model.spec.architecture) if own else _row_named(cfg["architecture"])
        record = Record(model=name, spec=model.spec, preprocessing=prepared)
    # timm's own networks know no spec to keep up with `reset_classifier`.
    spec = model.spec.change(num_classes=model.num_classes)
    kept = record.class_names if spec.num_classes == record.spec.num_classes else None
    preprocessing = record.preprocessing.with_channels(spec.in_chans)
    return replace(record, spec=spec, class_names=kept, preprocessing=preprocessing)


def write_timm_folder(folder: str | Path, state_dict: Mapping[str, Tensor], record: Record) -> None:
    """Writes `model.safetensors` and `config.json`, each of them whole or not at all."""
    config = config_of_record(record)
    save_checkpoint(Path(folder) / WEIGHTS_FILE, state_dict, record)
    write_json(Path(folder) / "config.json", config)


def read_timm_folder(folder: str | Path) -> tuple[StateDict, Record]:
    """Reads a folder that `save_pretrained`, or timm's own `save_for_hf`, wrote."""
    folder = Path(folder)
    if (folder / WEIGHTS_FILE).is_file():
        state_dict, metadata = read_safetensors(folder / WEIGHTS_FILE)
        if METADATA_KEY in metadata:
            return state_dict, record_of(metadata, source=str(folder))
    config = read_json(folder / "config.json")
    record = record_of_config(config, source=str(folder))
    tensors = read_weights(folder)
    state_dict = tensors if record.spec.made_by_timm else to_ours(tensors, source=str(folder))
    # timm's own configurations may not tell input channels and image size.
    spec = spec_of_tensors(record.spec, state_dict)
    if spec.num_classes != record.spec.num_classes:
        raise UserError(
            f"Got a classifier of {spec.num_classes} outputs in {folder}, expected the "
            f"{record.spec.num_classes} classes of its config.json."
        )
    told_channels = (config.get("model_args") or {}).get("in_chans")
    if told_channels not in (None, spec.in_chans):
        raise UserError(
            f"Got a first layer for {spec.in_chans} channels in {folder}, expected the "
            f"{told_channels} of its config.json."
        )
    preprocessing = record.preprocessing.with_channels(spec.in_chans)
    return state_dict, replace(record, spec=spec, preprocessing=preprocessing)


def config_of_record(record: Record) -> dict[str, Any]:
    """Returns timm's `config.json` of a model.

    The number of classes stands at the top only: in `model_args`, where timm 1.0 puts it too, it
    makes transformers 5 pass it twice and fail.
    """
    spec = record.spec
    arguments = model_args(record.model, spec)
    num_classes = arguments.pop("num_classes", spec.num_classes)
    if not spec.is_sized and spec.made_by_timm:
        arguments.pop("img_size", None)  # timm's builder of these has no such argument
    with torch.device("meta"):
        num_features = make_network(spec).num_features
    ends = spec.classifiers
    labels = {"label_names": list(record.class_names)} if record.class_names else {}
    return {
        "architecture": timm_name(record.model),
        "num_classes": num_classes,
        "num_features": num_features,
        **({} if spec.global_pool is None else {"global_pool": spec.global_pool}),
        **labels,
        "model_args": arguments,
        "pretrained_cfg": {
            **record.preprocessing.to_timm(),
            "num_classes": num_classes,
            "first_conv": spec.first_conv,
            "classifier": ends[0] if len(ends) == 1 else list(ends),
            "fixed_input_size": False,
            "license": record.licence,
        },
    }


def model_args(model: str, spec: Spec) -> dict[str, Any]:
    """Returns the changes that make a row this spec: `row_of(model).change(**them) == spec`."""
    old, new = row_of(model).to_dict(), spec.to_dict()
    before, after = old.pop("stages", []), new.pop("stages", [])
    if len(before) != len(after):
        raise UserError(
            f"Got {len(after)} stages, expected the {len(before)} of {model}: a timm "
            "folder says only how a model differs from its row; keep it as .safetensors."
        )
    changes = {name: value for name, value in new.items() if value != old[name]}
    changes |= changes.pop("arguments", {})
    for name in after[0] if after else ():
        if [stage[name] for stage in after] != [stage[name] for stage in before]:
            changes[name] = [stage[name] for stage in after]
    return changes


def record_of_config(config: Mapping[str, Any], *, source: str) -> Record:
    """Reads timm's `config.json`.

    Images are prepared as `input_size` and `crop_pct` say, as timm's own transforms do it;
    `test_input_size` and `test_crop_pct` are for its validation script.
    """
    said = from_others(_Config, config, "config.json")
    name = _row_named(said.architecture)
    if name not in ROWS and not is_model(name):
        raise UserError(
            f"Got the architecture {name!r} in {source}, expected one that `cvt models` lists, or "
            f"timm.{did_you_mean(name, list_models())}"
        )
    name = name if name in ROWS else name_of_timms(name)
    arguments, cfg = dict(said.model_args or {}), said.pretrained_cfg
    if said.num_classes is not None:
        arguments["num_classes"] = said.num_classes
    if said.global_pool is not None and said.global_pool != arguments.setdefault(
        "global_pool", said.global_pool
    ):
        raise UserError(
            f"Got global_pool {said.global_pool!r} in {source}, and {arguments['global_pool']!r} "
            "in its model_args; expected the same."
        )
    return Record(
        model=name,
        spec=row_of(name).change(**arguments),
        preprocessing=Preprocessing.from_timm(cfg),
        class_names=said.label_names or cfg.get("label_names"),
        licence=cfg.get("license"),
        source=source,
    )


def _row_named(architecture: str) -> str:
    """The row that timm's registry has under this name, be it ours or timm's own network."""
    return next((each for each in ROWS if timm_name(each) == architecture), architecture)
