"""Folders of transformers' CvT (and PVT, to read), without importing transformers.

transformers computes GELU where the reference computes QuickGELU, so the same tensors give it
other logits than they give us. The published weights were trained with QuickGELU, and that is what
they run with here unless the caller changes `act_layer` (see `gelu_note`). Its config has no field
for the activation, and its `layer_norm_eps` is never read: the norms have 1e-5.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from cvt.errors import UserError
from cvt.files import atomic_write
from cvt.parts.spec import BackboneSpec, StageSpec
from cvt.systems.cvt import ROWS
from cvt.weights import image_processor
from cvt.weights.checkpoint import read_safetensors, write_safetensors
from cvt.weights.ends import num_classes
from cvt.weights.expressible import check_expressible
from cvt.weights.hugging_face_pvt import read_pvt
from cvt.weights.layouts import StateDict, from_hugging_face, to_hugging_face
from cvt.weights.pickles import read_pickle
from cvt.weights.record import Preprocessing, Record
from cvt.weights.variant import check_whole

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
PREPROCESSOR_FILE = "preprocessor_config.json"
# Field of a stage, and key of the config; both are lists with one value a stage.
_COLUMNS = {
    "embed_kernel": "patch_sizes",
    "embed_stride": "patch_stride",
    "embed_padding": "patch_padding",
    "embed_dim": "embed_dim",
    "num_heads": "num_heads",
    "depth": "depth",
    "mlp_ratio": "mlp_ratio",
    "attn_drop_rate": "attention_drop_rate",
    "proj_drop_rate": "drop_rate",
    "drop_path_rate": "drop_path_rate",
    "qkv_bias": "qkv_bias",
    "cls_token": "cls_token",
    "conv_kernel": "kernel_qkv",
    "kv_stride": "stride_kv",
    "q_stride": "stride_q",
}


def read_hugging_face(folder: str | Path) -> tuple[StateDict, Record]:
    """Reads a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`.

    The class names are the config's `id2label`, the preprocessing that of
    `preprocessor_config.json`, or the default if there is none.

    Raises:
        UserError: A file is missing or unreadable, or the config is not one of a CvT that
            transformers can build, or a PVT.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") == "pvt":
        has_processor = (folder / PREPROCESSOR_FILE).is_file()
        return read_pvt(
            read_weights(folder),
            config,
            source=str(folder),
            processor=read_json(folder / PREPROCESSOR_FILE) if has_processor else None,
            class_names=partial(_class_names, config),
        )
    _check_type(config)
    state_dict = from_hugging_face(read_weights(folder))
    check_whole(state_dict, source=str(folder))
    spec = spec_of_config(config)
    spec = spec.change(num_classes=num_classes(state_dict, spec))
    preprocessing = Preprocessing.default(spec)
    if (folder / PREPROCESSOR_FILE).is_file():
        preprocessing = image_processor.read(read_json(folder / PREPROCESSOR_FILE))
    record = Record(
        model=_nearest_row(spec),
        spec=spec,
        preprocessing=preprocessing,
        class_names=_class_names(config, spec.num_classes),
        source=str(folder),
    )
    return state_dict, record


def write_hugging_face(
    folder: str | Path, state_dict: Mapping[str, Tensor], record: Record
) -> list[str]:
    """Writes a folder that `CvtForImageClassification.from_pretrained` reads.

    Returns:
        Sentences that the caller should show: what transformers will do differently.

    Raises:
        UserError: transformers' CvT cannot express the model (the field is named), or the folder
            cannot be written.
    """
    check_expressible(record.spec, "hugging_face")
    assert isinstance(record.spec, BackboneSpec)
    folder, notes = Path(folder), gelu_note(record.spec)
    processor = image_processor.write(record.preprocessing)
    write_safetensors(folder / "model.safetensors", to_hugging_face(state_dict), {"format": "pt"})
    write_json(folder / "config.json", config_of_record(record))
    if processor is None:
        (folder / PREPROCESSOR_FILE).unlink(missing_ok=True)
        notes.append(
            f"{PREPROCESSOR_FILE} was not written: no image processor of transformers for CvT "
            "does this preprocessing; prepare the images yourself."
        )
    else:
        write_json(folder / PREPROCESSOR_FILE, processor)
    return notes


def gelu_note(spec: BackboneSpec) -> list[str]:
    """Says that transformers computes another activation, if it does for this spec."""
    if spec.act_layer == "gelu":
        return []
    return [
        "transformers computes GELU where these weights were trained with QuickGELU, so its "
        "logits differ a little from ours."
    ]


def spec_of_config(config: Mapping[str, Any]) -> BackboneSpec:
    """Reads a `CvtConfig`; keys that it lacks have transformers' defaults, those of CvT-13.

    Raises:
        UserError: It is no CvT's, or asks for what transformers' CvT does not compute.
    """
    _check_type(config)
    stages = len(config.get("embed_dim", ROWS["cvt_13"].stages))
    columns = {field: _column(config, key, field, stages) for field, key in _COLUMNS.items()}
    rows = [{field: column[i] for field, column in columns.items()} for i in range(stages)]
    spec = BackboneSpec(
        stages=tuple(StageSpec(**row) for row in rows), in_chans=config.get("num_channels", 3)
    )
    if set(config.get("qkv_projection_method", ["dw_bn"])) != {"dw_bn"}:
        raise UserError(
            f"Got qkv_projection_method {config['qkv_projection_method']} in config.json, expected "
            "'dw_bn' in every stage, the only one that transformers computes."
        )
    for key in ("padding_q", "padding_kv"):
        if key in config and list(config[key]) != [s.conv_kernel // 2 for s in spec.stages]:
            raise UserError(
                f"Got {key} {config[key]} in config.json, expected half the kernel, rounded down."
            )
    check_expressible(spec, "hugging_face")
    return spec


def config_of_record(record: Record) -> dict[str, Any]:
    """Returns the `config.json` of a model as transformers' `CvtConfig` wants it."""
    assert isinstance(record.spec, BackboneSpec)
    stages = record.spec.stages
    labels = record.class_names or [f"LABEL_{i}" for i in range(record.spec.num_classes)]
    unique = len(set(labels)) == len(labels)
    return {
        "architectures": ["CvtForImageClassification"],
        "model_type": "cvt",
        "num_channels": record.spec.in_chans,
        **{key: [getattr(stage, field) for stage in stages] for field, key in _COLUMNS.items()},
        "qkv_projection_method": ["dw_bn"] * len(stages),
        "padding_q": [stage.conv_kernel // 2 for stage in stages],
        "padding_kv": [stage.conv_kernel // 2 for stage in stages],
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)} if unique else {},
        "dtype": "float32",
    }


def read_weights(folder: Path) -> StateDict:
    """Reads the weights file of a folder, in whatever names it has.

    Raises:
        UserError: There is none, or it is unreadable.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            is_pickle = name.endswith(".bin")
            return read_pickle(folder / name) if is_pickle else read_safetensors(folder / name)[0]
    raise UserError(f"There are no weights in {folder}, expected {' or '.join(WEIGHT_FILES)}.")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        UserError: The file is unreadable or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"Got {type(content).__name__} in {path}, expected an object with keys.")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object as JSON, all or nothing."""
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content, indent=2) + "\n")


def _check_type(config: Mapping[str, Any]) -> None:
    if config.get("model_type") != "cvt":
        raise UserError(
            f"Got model_type {config.get('model_type')!r} in config.json, expected 'cvt' or 'pvt'; "
            "take a timm folder of the model, or its authors' checkpoint."
        )


def _column(config: Mapping[str, Any], key: str, field: str, stages: int) -> list[Any]:
    default = [getattr(stage, field) for stage in ROWS["cvt_13"].stages]
    column = config.get(key, default)
    if not isinstance(column, list | tuple) or len(column) != stages:
        raise UserError(
            f"Got {key} {column!r} in config.json, expected a list with one value for each of the "
            f"{stages} stages."
        )
    return list(column)


def _class_names(config: Mapping[str, Any], count: int) -> tuple[str, ...] | None:
    """Labels by index; None where they are missing or placeholders."""
    labels = config.get("id2label") or {}
    names = tuple(str(labels.get(str(index), f"LABEL_{index}")) for index in range(count))
    placeholders = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return None if placeholders else names


def _nearest_row(spec: BackboneSpec) -> str:
    """The row with these widths and depths; any other spec is a change of CvT-13."""
    shape = [(stage.embed_dim, stage.depth) for stage in spec.stages]
    for name, row in ROWS.items():
        if [(stage.embed_dim, stage.depth) for stage in row.stages] == shape:
            return name
    return "cvt_13"
