"""Folders of transformers' CvT (and PVT, to read), without importing transformers.

transformers computes GELU where the reference computes QuickGELU, so the same tensors give it
other logits than they give us. The published weights were trained with QuickGELU, and that is what
they run with here unless the caller changes `act_layer` (see `gelu_note`). Its config has no field
for the activation, and its `layer_norm_eps` is never read: the norms have 1e-5.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import Tensor

from cvt import plain
from cvt.errors import UserError
from cvt.files import atomic_write
from cvt.parts.spec import BackboneSpec, StageSpec
from cvt.parts.spec_checks import MOST_STAGES, Channels, Depth, Kernel, Padding, Rate, Ratio, Width
from cvt.plain import Length, from_others
from cvt.systems.cvt import ROWS
from cvt.weights import image_processor
from cvt.weights.checkpoint import read_safetensors, write_safetensors
from cvt.weights.ends import num_classes
from cvt.weights.expressible import check_expressible
from cvt.weights.hugging_face_pvt import read_pvt
from cvt.weights.layouts import (
    StateDict,
    from_hugging_face,
    strip_wrappers,
    to_hugging_face,
)
from cvt.weights.pickles import read_pickle
from cvt.weights.record import Preprocessing, Record
from cvt.weights.variant import check_whole

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
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

_Stages = Length(1, MOST_STAGES)


@dataclass(frozen=True, kw_only=True)
class _Config:
    """The fields of a `CvtConfig` that make the network, with its defaults: those of CvT-13."""

    num_channels: Channels = 3
    patch_sizes: Annotated[tuple[Kernel, ...], _Stages] = (7, 3, 3)
    patch_stride: Annotated[tuple[Kernel, ...], _Stages] = (4, 2, 2)
    patch_padding: Annotated[tuple[Padding, ...], _Stages] = (2, 1, 1)
    embed_dim: Annotated[tuple[Width, ...], _Stages] = (64, 192, 384)
    num_heads: Annotated[tuple[Width, ...], _Stages] = (1, 3, 6)
    depth: Annotated[tuple[Depth, ...], _Stages] = (1, 2, 10)
    mlp_ratio: Annotated[tuple[Ratio, ...], _Stages] = (4.0, 4.0, 4.0)
    attention_drop_rate: Annotated[tuple[Rate, ...], _Stages] = (0.0, 0.0, 0.0)
    drop_rate: Annotated[tuple[Rate, ...], _Stages] = (0.0, 0.0, 0.0)
    drop_path_rate: Annotated[tuple[Rate, ...], _Stages] = (0.0, 0.0, 0.1)
    qkv_bias: Annotated[tuple[bool, ...], _Stages] = (True, True, True)
    cls_token: Annotated[tuple[bool, ...], _Stages] = (False, False, True)
    kernel_qkv: Annotated[tuple[Kernel, ...], _Stages] = (3, 3, 3)
    stride_kv: Annotated[tuple[Kernel, ...], _Stages] = (2, 2, 2)
    stride_q: Annotated[tuple[Kernel, ...], _Stages] = (1, 1, 1)
    qkv_projection_method: tuple[str, ...] = ("dw_bn",)
    padding_q: tuple[int, ...] | None = None
    padding_kv: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What any config of transformers says of a classifier's outputs."""

    id2label: dict[str, str | int] | list[str | int] | None = None
    num_labels: int | None = None
    problem_type: (
        Literal["single_label_classification", "multi_label_classification", "regression"] | None
    ) = None
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None


def read_hugging_face(folder: str | Path) -> tuple[StateDict, Record]:
    """Reads a folder with `config.json` and weights: one file, or several with their index.

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
            answers=partial(read_answers, config),
        )
    _check_type(config)
    state_dict = from_hugging_face(read_weights(folder))
    check_whole(state_dict, source=str(folder))
    spec = spec_of_config(config)
    spec = spec.change(num_classes=num_classes(state_dict, spec))
    preprocessing = Preprocessing.default(spec)
    if (folder / PREPROCESSOR_FILE).is_file():
        processor = read_json(folder / PREPROCESSOR_FILE)
        preprocessing = image_processor.read(processor, "convnext", spec.in_chans)
    class_names, multi_label = read_answers(config, spec.num_classes)
    record = Record(
        model=_nearest_row(spec),
        spec=spec,
        preprocessing=preprocessing,
        class_names=class_names,
        multi_label=multi_label,
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
    said = from_others(_Config, config, "config.json")
    stages = len(said.embed_dim)
    for key in _COLUMNS.values():
        if len(getattr(said, key)) != stages:
            raise UserError(
                f"Got {key} {getattr(said, key)!r} in config.json, expected a list with one value "
                f"for each of the {stages} stages."
            )
    rows = [
        {field: getattr(said, key)[i] for field, key in _COLUMNS.items()} for i in range(stages)
    ]
    spec = BackboneSpec(stages=tuple(StageSpec(**row) for row in rows), in_chans=said.num_channels)
    if set(said.qkv_projection_method) != {"dw_bn"}:
        raise UserError(
            f"Got qkv_projection_method {said.qkv_projection_method} in config.json, expected "
            "'dw_bn' in every stage, the only one that transformers computes."
        )
    for key in ("padding_q", "padding_kv"):
        padding = getattr(said, key)
        if padding is not None and list(padding) != [s.conv_kernel // 2 for s in spec.stages]:
            raise UserError(
                f"Got {key} {padding} in config.json, expected half the kernel, rounded down."
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
        **({"problem_type": "multi_label_classification"} if record.multi_label else {}),
        "dtype": "float32",
    }


def read_weights(folder: Path) -> StateDict:
    """Reads the weights of a folder, in whatever names they have, from one file or several.

    Raises:
        UserError: There are none, or they are unreadable; an index and its files disagree.
    """
    for name, index in zip(WEIGHT_FILES, INDEX_FILES, strict=True):
        if (folder / name).is_file():
            return _read_file(folder / name)
        if (folder / index).is_file():
            return _read_shards(folder, index)
    raise UserError(
        f"There are no weights in {folder}, expected {' or '.join(WEIGHT_FILES)}, or an index of "
        "several files."
    )


def shard_files(index: Path) -> dict[str, str]:
    """Returns which file holds each tensor, as an index of transformers' tells it.

    Raises:
        UserError: The index is unreadable, or names a file outside its folder.
    """
    said = from_others(_Index, read_json(index), str(index))
    suffix = ".safetensors" if index.name.startswith("model.") else ".bin"
    for file in set(said.weight_map.values()):
        if Path(file).name != file or "\\" in file or not file.endswith(suffix):
            raise UserError(
                f"Got the file {file!r} in {index}, expected the name of a {suffix} file beside it."
            )
    return said.weight_map


@dataclass(frozen=True, kw_only=True)
class _Index:
    weight_map: Annotated[dict[str, str], Length(1, 100_000)]


def _read_shards(folder: Path, index: str) -> StateDict:
    places = shard_files(folder / index)
    state_dict: StateDict = {}
    for file in dict.fromkeys(places.values()):
        if not (folder / file).is_file():
            raise UserError(
                f"There is no file {folder / file}, which {index} names; download it as well."
            )
        tensors = _read_file(folder / file)
        expected = {name for name, place in places.items() if place == file}
        wrapped = strip_wrappers(dict.fromkeys(expected)).keys()
        if tensors.keys() not in (expected, wrapped):
            raise UserError(
                f"Got {len(tensors)} tensors in {folder / file}, expected the {len(expected)} that "
                f"{index} lists for it; download both again."
            )
        state_dict |= tensors
    return state_dict


def _read_file(path: Path) -> StateDict:
    return read_pickle(path) if path.suffix == ".bin" else read_safetensors(path)[0]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        UserError: The file is unreadable or holds something else.
    """
    content = plain.read_json_file(path)
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


def read_answers(config: Mapping[str, Any], count: int) -> tuple[tuple[str, ...] | None, bool]:
    """Reads what a classifier's outputs mean, as transformers' pipeline understands it.

    Args:
        count: How many outputs there are.

    Returns:
        The class names, or None where they are missing or placeholders; and whether the classes
        may hold together, as they may where there is one only.

    Raises:
        UserError: The names don't fit the outputs, or these are no classes.
    """
    for key in ("quantization_config", "auto_map"):
        if config.get(key):
            raise UserError(
                f"Got {key} in config.json, expected a model that transformers computes by itself "
                "in floating point; save it as one."
            )
    said = from_others(_Answers, config, "config.json")
    if count == 0:
        return None, False
    if said.problem_type == "regression":
        raise UserError(
            "Got problem_type 'regression' in config.json, expected a classifier: what this "
            "library says of outputs are probabilities."
        )
    if said.num_labels not in (None, count):
        raise UserError(
            f"Got num_labels {said.num_labels} in config.json for a classifier of {count} outputs, "
            "expected as many."
        )
    multi_label = said.problem_type == "multi_label_classification" or count == 1
    function = "sigmoid" if multi_label else "softmax"
    if said.function_to_apply not in (None, function):
        raise UserError(
            f"Got function_to_apply {said.function_to_apply!r} in config.json, expected "
            f"{function!r}, which transformers computes for this model."
        )
    return _class_names(said.id2label, count), multi_label


def _class_names(
    labels: dict[str, str | int] | list[str | int] | None, count: int
) -> tuple[str, ...] | None:
    if not labels:
        return None
    if isinstance(labels, list):
        labels = {str(index): label for index, label in enumerate(labels)}
    if labels.keys() != {str(index) for index in range(count)}:
        raise UserError(
            f"Got id2label with {len(labels)} labels in config.json, for the outputs "
            f"{_some(labels)}; expected one for each of the outputs 0 to {count - 1}."
        )
    names = tuple(str(labels[str(index)]) for index in range(count))
    placeholders = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return None if placeholders else names


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys) if len(keys) <= 4 else f"{keys[0]}, {keys[1]}, ..., {keys[-1]}"


def _nearest_row(spec: BackboneSpec) -> str:
    """The row with these widths and depths; any other spec is a change of CvT-13."""
    shape = [(stage.embed_dim, stage.depth) for stage in spec.stages]
    for name, row in ROWS.items():
        if [(stage.embed_dim, stage.depth) for stage in row.stages] == shape:
            return name
    return "cvt_13"
