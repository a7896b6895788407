"""Folders of transformers' CvT, and of its PVT to read, without importing transformers.

transformers computes GELU where the reference computes QuickGELU, so the same tensors give it
other logits than they give us. The published weights were trained with QuickGELU, and that is what
they run with here unless the caller changes `act_layer`. Its config has no field
for the activation, and its `layer_norm_eps` is never read: the norms have 1e-5.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import Tensor

from cvt import plain
from cvt.errors import UserError
from cvt.files import atomic_write
from cvt.parts.spec import Activation, BackboneSpec, Spec, StageSpec
from cvt.plain import (
    MOST_STAGES,
    Channels,
    Depth,
    Epsilon,
    Kernel,
    Length,
    Padding,
    Range,
    Rate,
    Ratio,
    Side,
    Width,
    from_others,
)
from cvt.systems.cvt import CVT
from cvt.systems.pvt import DIMS, HEADS, MLP_RATIOS, PVT, REDUCTIONS
from cvt.systems.system import HALF, IMAGENET_MEAN, IMAGENET_STD
from cvt.weights.checkpoint import read_safetensors, write_safetensors
from cvt.weights.fit import check_whole, num_classes, spec_of_tensors
from cvt.weights.layouts import StateDict, identify, strip_wrappers, to_hugging_face
from cvt.weights.pickles import read_pickle
from cvt.weights.record import Interpolation, Preprocessing, Record, preprocessing_of_row

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
PREPROCESSOR_FILE = "preprocessor_config.json"


def read_hugging_face(folder: str | Path) -> tuple[StateDict, Record]:
    """Reads a folder with `config.json` and weights: one file, or several with their index.

    The class names are the config's `id2label`, the preprocessing that of
    `preprocessor_config.json`, or the default if there is none.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    spec = spec_of_config(config)
    is_pvt = config["model_type"] == "pvt"
    system = PVT if is_pvt else CVT
    state_dict, systems = identify(read_weights(folder), source=str(folder))
    if system not in systems:
        raise UserError(
            f"Got the tensors of {systems[0].name} in {folder}, expected {system.name}'s, which "
            "its config.json names; copy or download the folder again."
        )
    check_whole(state_dict, source=str(folder))
    if is_pvt:
        spec = spec_of_tensors(spec, state_dict)
    else:
        spec = spec.change(num_classes=num_classes(state_dict, spec))
    # The row with these widths and depths; any other spec is a change of the smallest.
    same = (name for name, row in system.rows.items() if _shape(row) == _shape(spec))
    name = next(same, next(iter(system.rows)))
    preprocessing = preprocessing_of_row(name, spec) if is_pvt else Preprocessing.default(spec)
    if (folder / PREPROCESSOR_FILE).is_file():
        processor = read_json(folder / PREPROCESSOR_FILE)
        kind = "pvt" if is_pvt else "convnext"
        preprocessing = read_processor(processor, kind, spec.in_chans)
    class_names, multi_label = read_answers(config, spec.num_classes)
    record = Record(
        model=name,
        spec=spec,
        preprocessing=preprocessing,
        class_names=class_names,
        multi_label=multi_label,
        licence=system.licence if is_pvt else None,
        source=str(folder),
    )
    return state_dict, record


def write_hugging_face(
    folder: str | Path, state_dict: Mapping[str, Tensor], record: Record
) -> list[str]:
    """Writes a folder that `CvtForImageClassification.from_pretrained` reads.

    Returns:
        Sentences that the caller should show: what transformers will do differently.
    """
    check_expressible(record.spec, "hugging_face")
    assert record.spec.staged is not None
    folder, notes = Path(folder), []
    if record.spec.staged.act_layer != "gelu":
        notes.append(
            "transformers computes GELU where these weights were trained with QuickGELU, so its "
            "logits differ a little from ours."
        )
    processor = write_processor(record.preprocessing)
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


def _shape(spec: Spec) -> list[tuple[int, int]]:
    assert spec.staged is not None
    return [(stage.embed_dim, stage.depth) for stage in spec.staged.stages]


# `config.json`: a table of a stage's field and their key for it, and what stands for all stages.

_CVT_COLUMNS = {
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

_PVT_COLUMNS = {
    "embed_dim": "hidden_sizes",
    "depth": "depths",
    "num_heads": "num_attention_heads",
    "mlp_ratio": "mlp_ratios",
    "kv_stride": "sequence_reduction_ratios",
    "embed_kernel": "patch_sizes",
    "embed_stride": "strides",
}
_Stages = Length(1, MOST_STAGES)


@dataclass(frozen=True, kw_only=True)
class _CvtConfig:
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
class _PvtConfig:
    """The fields of a `PvtConfig` that make the network, with its defaults: those of PVT-Tiny."""

    hidden_sizes: Annotated[tuple[Width, ...], _Stages] = DIMS
    depths: Annotated[tuple[Depth, ...], _Stages] = (2, 2, 2, 2)
    num_attention_heads: Annotated[tuple[Width, ...], _Stages] = HEADS
    mlp_ratios: Annotated[tuple[Ratio, ...], _Stages] = MLP_RATIOS
    sequence_reduction_ratios: Annotated[tuple[Kernel, ...], _Stages] = REDUCTIONS
    patch_sizes: Annotated[tuple[Kernel, ...], _Stages] = (4, 2, 2, 2)
    strides: Annotated[tuple[Kernel, ...], _Stages] = (4, 2, 2, 2)
    num_channels: Channels = 3
    image_size: Side | tuple[Side, Side] = 224
    hidden_act: Activation = "gelu"
    layer_norm_eps: Epsilon = 1e-6
    qkv_bias: bool = True
    hidden_dropout_prob: Rate = 0.0
    attention_probs_dropout_prob: Rate = 0.0
    drop_path_rate: Rate = 0.0


def spec_of_config(config: Mapping[str, Any]) -> BackboneSpec:
    """Reads a `CvtConfig` or `PvtConfig`; keys that it lacks have transformers' defaults."""
    kind = config.get("model_type")
    if kind == "cvt":
        return _spec_of_cvt(from_others(_CvtConfig, config, "config.json"))
    if kind == "pvt":
        return _spec_of_pvt(from_others(_PvtConfig, config, "config.json"))
    raise UserError(
        f"Got model_type {kind!r} in config.json, expected 'cvt' or 'pvt'; take a timm folder of "
        "the model, or its authors' checkpoint."
    )


def _spec_of_cvt(said: _CvtConfig) -> BackboneSpec:
    stages = tuple(StageSpec(**row) for row in _rows(said, _CVT_COLUMNS))
    if set(said.qkv_projection_method) != {"dw_bn"}:
        raise UserError(
            f"Got qkv_projection_method {said.qkv_projection_method} in config.json, expected "
            "'dw_bn' in every stage, the only one that transformers computes."
        )
    for key in ("padding_q", "padding_kv"):
        padding = getattr(said, key)
        if padding is not None and list(padding) != [s.conv_kernel // 2 for s in stages]:
            raise UserError(
                f"Got {key} {padding} in config.json, expected half the kernel, rounded down."
            )
    spec = BackboneSpec(stages=stages, in_chans=said.num_channels)
    check_expressible(spec, "hugging_face")
    return spec


def _spec_of_pvt(said: _PvtConfig) -> BackboneSpec:
    """One epsilon for all norms, where the authors have 1e-5 behind embeddings and reductions."""
    rows = list(_rows(said, _PVT_COLUMNS))
    if said.patch_sizes != said.strides:
        raise UserError(
            f"Got patch_sizes {said.patch_sizes} and strides {said.strides} in "
            "config.json, expected the same, as PVT's patches don't overlap."
        )
    stages = [
        StageSpec(
            **row,
            embed_padding=0,
            projection="reduction",
            qkv_bias=said.qkv_bias,
            cls_token=row is rows[-1],
            pos_embed="table",
            proj_drop_rate=said.hidden_dropout_prob,
            attn_drop_rate=said.attention_probs_dropout_prob,
            drop_path_rate=said.drop_path_rate,
        )
        for row in rows
    ]
    size = said.image_size
    return BackboneSpec(
        stages=tuple(stages),
        in_chans=said.num_channels,
        img_size=size if isinstance(size, tuple) else (size, size),
        act_layer=said.hidden_act,
        norm_eps=said.layer_norm_eps,
        embed_norm_eps=said.layer_norm_eps,
        attn_scale="head_dim",
        pos_interpolation="bilinear",
        drop_path_schedule="network",
    )


def _rows(said: object, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Turns a config's lists, with one value a stage, into one row a stage."""
    count = len(getattr(said, columns["embed_dim"]))
    for key in columns.values():
        if len(getattr(said, key)) != count:
            raise UserError(
                f"Got {key} {getattr(said, key)!r} in config.json, expected a list with one value "
                f"for each of the {count} stages."
            )
    for index in range(count):
        yield {field: getattr(said, key)[index] for field, key in columns.items()}


def config_of_record(record: Record) -> dict[str, Any]:
    """Returns the `config.json` of a model as transformers' `CvtConfig` wants it."""
    assert record.spec.staged is not None
    stages = record.spec.staged.stages
    labels = record.class_names or [f"LABEL_{i}" for i in range(record.spec.num_classes)]
    unique = len(set(labels)) == len(labels)
    return {
        "architectures": ["CvtForImageClassification"],
        "model_type": "cvt",
        "num_channels": record.spec.in_chans,
        **{key: [getattr(stage, field) for stage in stages] for field, key in _CVT_COLUMNS.items()},
        "qkv_projection_method": ["dw_bn"] * len(stages),
        **{key: [each.conv_kernel // 2 for each in stages] for key in ("padding_q", "padding_kv")},
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)} if unique else {},
        **({"problem_type": "multi_label_classification"} if record.multi_label else {}),
        "dtype": "float32",
    }


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What any config of transformers says of a classifier's outputs."""

    id2label: dict[str, str | int] | list[str | int] | None = None
    num_labels: int | None = None
    problem_type: (
        Literal["single_label_classification", "multi_label_classification", "regression"] | None
    ) = None
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None


def read_answers(config: Mapping[str, Any], count: int) -> tuple[tuple[str, ...] | None, bool]:
    """Reads what a classifier's `count` outputs mean, as transformers' pipeline understands it.

    Returns:
        The class names, or None where they are missing or placeholders; and whether the classes
        may hold together, as they may where there is one only.
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
        keys = list(labels)
        some = keys if len(keys) <= 4 else [*keys[:2], "...", keys[-1]]
        raise UserError(
            f"Got id2label with {len(labels)} labels in config.json, for the outputs "
            f"{', '.join(some)}; expected one for each of the outputs 0 to {count - 1}."
        )
    names = tuple(str(labels[str(index)]) for index in range(count))
    placeholders = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return None if placeholders else names


def read_weights(folder: Path) -> StateDict:
    """Reads the weights of a folder, in whatever names they have, from one file or several."""
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
    """Returns which file holds each tensor, as an index of transformers' tells it."""
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
    """Reads a JSON file that holds an object."""
    content = plain.read_json_file(path)
    if not isinstance(content, dict):
        raise UserError(f"Got {type(content).__name__} in {path}, expected an object with keys.")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object as JSON, all or nothing."""
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content, indent=2) + "\n")


# `preprocessor_config.json`. The hub's CvT models name the ConvNeXT processor. Below 384 pixels it
# resizes the short side to `size / crop_pct` and cuts the middle out; from 384 on it squashes to a
# square and ignores `crop_pct` (transformers, models/convnext/image_processing_convnext.py). PVT's
# squashes to its size (models/pvt/image_processing_pvt.py). What a field says is followed, or the
# file is refused.

_SQUASHED_FROM = 384
# By Pillow's codes.
RESAMPLES: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_KINDS = {"convnext": "ConvNeXT's, which CvT has", "pvt": "PVT's"}
_CONVERTS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
# Other things that processors do, by the keys that ask for them.
_UNKNOWN = ("size_divisor", "rescale_offset", "offset")


@dataclass(frozen=True, kw_only=True)
class _Processor:
    """The fields that both processors read, with transformers' defaults."""

    image_processor_type: str | None = None
    feature_extractor_type: str | None = None
    do_resize: bool = True
    size: int | dict[str, int | None] | None = None
    crop_pct: float | None = None
    resample: int | None = None
    do_rescale: bool = True
    rescale_factor: Annotated[float, Range(above=0)] = 1 / 255
    do_normalize: bool = True
    image_mean: float | tuple[float, ...] | None = None
    image_std: float | tuple[float, ...] | None = None


def read_processor(
    config: Mapping[str, Any],
    kind: Literal["convnext", "pvt"] = "convnext",
    channels: int | None = None,
) -> Preprocessing:
    """Reads an image processor's configuration.

    Pixels that are not scaled to 0..1, or by another factor, and such as are not normalised come
    out as the mean and standard deviation that amount to the same.

    Args:
        kind: Whose processor it has to be, or is where the file does not say.
        channels: Those of the model; None: as many as `image_mean` has, or 3.
    """
    processor = from_others(_Processor, config, PREPROCESSOR_FILE)
    named = processor.image_processor_type or processor.feature_extractor_type or kind
    if not named.lower().startswith(kind):
        raise UserError(
            f"Got the image processor {named!r} in {PREPROCESSOR_FILE}, expected {_KINDS[kind]}; "
            "remove the file to use the default preprocessing."
        )
    if not processor.do_resize:
        raise UserError(
            f"Got do_resize false in {PREPROCESSOR_FILE}, expected true: images of one size are "
            "made here."
        )
    others = [key for key in config if str(key).startswith("do_") and key not in _CONVERTS]
    for key in filter(config.get, (*others, *_UNKNOWN)):
        raise UserError(
            f"Got {key} {config[key]!r} in {PREPROCESSOR_FILE}, expected none: that step is not "
            "done here; prepare the images with transformers."
        )
    if channels is None:
        channels = len(processor.image_mean) if isinstance(processor.image_mean, tuple) else 3
    # With x in 0..1, they compute (x * factor - mean) / std.
    factor = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    factor = 1.0 if abs(factor - 1) < 1e-6 else factor
    # Where the file is silent, ConvNeXT's halves hold, and not ImageNet's.
    mean = _per_channel(processor.image_mean, IMAGENET_MEAN if kind == "pvt" else HALF, channels)
    std = _per_channel(processor.image_std, IMAGENET_STD if kind == "pvt" else HALF, channels)
    if not processor.do_normalize:
        mean, std = (0.0,) * channels, (1.0,) * channels
    height, width = _size(processor.size, kind)
    squash = kind == "pvt" or height >= _SQUASHED_FROM
    crop_pct = 0.875 if processor.crop_pct is None else processor.crop_pct
    return Preprocessing(
        input_size=(channels, height, width),
        mean=tuple(each / factor for each in mean),
        std=tuple(each / factor for each in std),
        interpolation=_interpolation(processor.resample, kind),
        crop_pct=1.0 if squash else crop_pct,
        crop_mode="squash" if squash else "center",
    )


def write_processor(preprocessing: Preprocessing) -> dict[str, Any] | None:
    """Returns the configuration, or None where the ConvNeXT processor does something else."""
    height, width = preprocessing.size
    squash = height >= _SQUASHED_FROM
    as_here = ("squash", 1.0) if squash else ("center", preprocessing.crop_pct)
    if height != width or (preprocessing.crop_mode, preprocessing.crop_pct) != as_here:
        return None
    codes = {name: code for code, name in RESAMPLES.items()}
    return {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": height},
        "crop_pct": preprocessing.crop_pct,
        "resample": codes[preprocessing.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _per_channel(
    value: float | tuple[float, ...] | None, default: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    """One number for each channel, given one for all, each, or none."""
    if value is None:
        return default
    return value if isinstance(value, tuple) else (value,) * channels


def _interpolation(resample: int | None, kind: str) -> Interpolation:
    if resample is None and kind == "pvt":
        raise UserError(
            f"Got no resample in {PREPROCESSOR_FILE}, expected 2 (bilinear, which transformers 4 "
            "takes then) or 3 (bicubic, which transformers 5 does)."
        )
    resample = 3 if resample is None else resample
    if resample not in RESAMPLES:
        raise UserError(
            f"Got resample {resample!r} in {PREPROCESSOR_FILE}, expected one of {list(RESAMPLES)}."
        )
    return RESAMPLES[resample]


def _size(size: int | dict[str, int | None] | None, kind: str) -> tuple[int, int]:
    """Height and width, in the three ways in which transformers has written them over the years."""
    if size is None:
        size = 224 if kind == "pvt" else _SQUASHED_FROM
    if isinstance(size, int):
        size = {"height": size, "width": size}
    given = {key: side for key, side in size.items() if side is not None}
    side = given.get("shortest_edge") if kind == "convnext" else None
    height, width = given.get("height", side), given.get("width", side)
    expected = "height and width" if kind == "pvt" else "a side in pixels"
    if height is None or width is None or not given.keys() <= {"shortest_edge", "height", "width"}:
        raise UserError(f"Got size {size} in {PREPROCESSOR_FILE}, expected {expected}.")
    if kind == "convnext" and (height != width or side not in (None, height)):
        raise UserError(f"Got size {size} in {PREPROCESSOR_FILE}, expected a square.")
    return height, width


def check_expressible(spec: Spec, layout: Literal["microsoft", "hugging_face"]) -> None:
    """Refuses a spec that the other implementation would compute differently, or not at all.

    Rates of dropout and stochastic depth are not looked at: they change training only. Neither is
    the activation in Hugging Face's case, of which `write_hugging_face` says what it does.
    """
    whose = "microsoft/CvT" if layout == "microsoft" else "Hugging Face's CvT"
    if (staged := spec.staged) is None:
        raise UserError(
            f"{whose} cannot express this model: it is not made of CvT's stages; keep it as "
            ".safetensors or a timm folder."
        )
    for field, got, options in _needs(staged, layout):
        if got not in options:
            expected = " or ".join(map(repr, options))
            raise UserError(
                f"{whose} cannot express this model: got {field}={got!r}, expected {expected}; "
                "keep it as .safetensors or a timm folder."
            )


def _needs(spec: BackboneSpec, layout: str) -> Iterator[tuple[str, object, tuple]]:
    """Yields fields, their values, and those that the other side computes."""
    is_microsoft = layout == "microsoft"
    yield "attn_scale", spec.attn_scale, ("dim",)
    yield "norm_eps", spec.norm_eps, (1e-5,)
    yield "embed_norm_eps", spec.embed_norm_eps, (1e-5,)
    yield "distilled", spec.distilled, (False,)
    for stage in spec.stages:
        yield "embed", stage.embed, ("conv",)
        yield "embed_norm", stage.embed_norm, (True,)
        yield "pos_embed", stage.pos_embed, ("none",)
        yield "q_stride", stage.q_stride, (1,)
    yield "act_layer", spec.act_layer, ("quick_gelu",) if is_microsoft else ("gelu", "quick_gelu")
    pool = "token" if spec.stages[-1].cls_token or not is_microsoft else "avg"
    for number, stage in enumerate(spec.stages, 1):
        # Microsoft's crashes on others.
        yield "projection", stage.projection, ("conv", "avg") if is_microsoft else ("conv",)
        if is_microsoft:
            continue
        yield f"cls_token of stage {number}", stage.cls_token, (number == len(spec.stages),)
        # Its constructor indexes the stage's list of drop-path rates with the stage's number.
        if stage.depth < number:
            raise UserError(
                f"Hugging Face's CvT cannot express this model: got depth={stage.depth}, expected "
                f"at least {number} in stage {number} (it crashes otherwise); keep it as "
                ".safetensors or a timm folder."
            )
    yield "global_pool", spec.global_pool, (pool,)
