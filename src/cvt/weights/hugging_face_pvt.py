"""Folders of transformers' PVT, read without importing transformers.

transformers has one epsilon for all norms, 1e-6, where the authors have 1e-5 behind embeddings
and reductions; a folder is read as transformers computes it.
"""

from collections.abc import Callable, Mapping
from typing import Any, get_args

from cvt.errors import UserError
from cvt.parts.contract_spec import Spec
from cvt.parts.spec import Activation, BackboneSpec
from cvt.parts.stage_spec import StageSpec
from cvt.systems.catalog import system_of
from cvt.systems.pvt import DIMS, HEADS, MLP_RATIOS, PVT, REDUCTIONS
from cvt.weights.image_processor import RESAMPLES
from cvt.weights.layouts import StateDict, identify
from cvt.weights.record import Preprocessing, Record
from cvt.weights.row_preprocessing import preprocessing_of_row
from cvt.weights.variant import spec_of_tensors

# Key of the config, and what it is by default: PVT-Tiny.
_COLUMNS: dict[str, tuple[float, ...]] = {
    "hidden_sizes": DIMS,
    "depths": (2, 2, 2, 2),
    "num_attention_heads": HEADS,
    "mlp_ratios": MLP_RATIOS,
    "sequence_reduction_ratios": REDUCTIONS,
    "patch_sizes": (4, 2, 2, 2),
    "strides": (4, 2, 2, 2),
}


def read_pvt(
    state_dict: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    source: str,
    processor: Mapping[str, Any] | None,
    class_names: Callable[[int], tuple[str, ...] | None],
) -> tuple[StateDict, Record]:
    """Brings what is in a folder of `PvtForImageClassification` to our names and words.

    Args:
        source: The folder, for messages.
        processor: Its `preprocessor_config.json`; None: there is none, so the system's holds.
        class_names: Returns the labels of so many classes, or None.

    Raises:
        UserError: The tensors are not PVT's, or the config asks for what PVT does not compute.
    """
    ours, systems = identify(state_dict, source=source)
    if PVT not in systems:
        raise UserError(
            f"Got the tensors of {systems[0].name} in {source}, expected PVT's, which its "
            "config.json names; copy or download the folder again."
        )
    spec = spec_of_tensors(spec_of_pvt_config(config), ours)
    name = _nearest_row(spec)
    preprocessing = preprocessing_of_row(name, spec)
    if processor is not None:
        preprocessing = read_processor(processor, preprocessing)
    record = Record(
        model=name,
        spec=spec,
        preprocessing=preprocessing,
        class_names=class_names(spec.num_classes),
        licence=system_of(name).licence,
        source=source,
    )
    return ours, record


def spec_of_pvt_config(config: Mapping[str, Any]) -> BackboneSpec:
    """Reads a `PvtConfig`; keys that it lacks have transformers' defaults, those of PVT-Tiny.

    Raises:
        UserError: A list has not one value a stage, or a value that PVT does not compute.
    """
    columns = {key: _column(config, key, default) for key, default in _COLUMNS.items()}
    if columns["patch_sizes"] != columns["strides"]:
        raise UserError(
            f"Got patch_sizes {columns['patch_sizes']} and strides {columns['strides']} in "
            "config.json, expected the same, as PVT's patches don't overlap."
        )
    act_layer = config.get("hidden_act", "gelu")
    if act_layer not in get_args(Activation):
        raise UserError(
            f"Got hidden_act {act_layer!r} in config.json, expected one of "
            f"{', '.join(get_args(Activation))}."
        )
    eps = config.get("layer_norm_eps", 1e-6)
    return BackboneSpec(
        stages=tuple(_stage(columns, index, config) for index in range(len(columns["depths"]))),
        in_chans=config.get("num_channels", 3),
        img_size=config.get("image_size", 224),
        act_layer=act_layer,
        norm_eps=eps,
        embed_norm_eps=eps,
        attn_scale="head_dim",
        pos_interpolation="bilinear",
        drop_path_schedule="network",
    )


def _stage(columns: Mapping[str, list[Any]], index: int, config: Mapping[str, Any]) -> StageSpec:
    stride = columns["strides"][index]
    return StageSpec(
        embed_dim=columns["hidden_sizes"][index],
        depth=columns["depths"][index],
        num_heads=columns["num_attention_heads"][index],
        embed_kernel=stride,
        embed_stride=stride,
        embed_padding=0,
        mlp_ratio=float(columns["mlp_ratios"][index]),
        projection="reduction",
        kv_stride=columns["sequence_reduction_ratios"][index],
        qkv_bias=config.get("qkv_bias", True),
        cls_token=index == len(columns["depths"]) - 1,
        pos_embed="table",
        proj_drop_rate=config.get("hidden_dropout_prob", 0.0),
        attn_drop_rate=config.get("attention_probs_dropout_prob", 0.0),
        drop_path_rate=config.get("drop_path_rate", 0.0),
    )


def read_processor(config: Mapping[str, Any], default: Preprocessing) -> Preprocessing:
    """Reads a PVT image processor's configuration, which squashes the picture to its size.

    Raises:
        UserError: A value is unusable.
    """
    size = config.get("size", {})
    if not isinstance(size, Mapping) or not {"height", "width"} <= size.keys():
        raise UserError(
            f"Got size {size!r} in preprocessor_config.json, expected height and width, which "
            "PVT's processor has; remove the file to use the default preprocessing."
        )
    mean = config.get("image_mean", default.mean)
    return Preprocessing(
        input_size=(len(mean), size["height"], size["width"]),
        mean=mean,
        std=config.get("image_std", default.std),
        interpolation=RESAMPLES.get(config.get("resample", 2), "bilinear"),
        crop_pct=1.0,
        crop_mode="squash",
    )


def _column(config: Mapping[str, Any], key: str, default: tuple[float, ...]) -> list[Any]:
    depths, column = config.get("depths", _COLUMNS["depths"]), config.get(key, default)
    stages = len(depths) if isinstance(depths, list | tuple) else len(DIMS)
    if not isinstance(column, list | tuple) or len(column) != stages:
        raise UserError(
            f"Got {key} {column!r} in config.json, expected a list with one value for each of the "
            f"{stages} stages."
        )
    return list(column)


def _nearest_row(spec: Spec) -> str:
    """The row with these widths and depths; any other spec is a change of PVT-Tiny."""
    shape = _shape(spec)
    return next((name for name, row in PVT.rows.items() if _shape(row) == shape), "pvt_tiny")


def _shape(spec: Spec) -> list[tuple[int, int]]:
    assert isinstance(spec, BackboneSpec)
    return [(stage.embed_dim, stage.depth) for stage in spec.stages]
