"""Folders of transformers' PVT, read without importing transformers.

transformers has one epsilon for all norms, 1e-6, where the authors have 1e-5 behind embeddings
and reductions; a folder is read as transformers computes it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from cvt.errors import UserError
from cvt.parts.contract_spec import Spec
from cvt.parts.spec import Activation, BackboneSpec
from cvt.parts.spec_checks import (
    MOST_STAGES,
    Channels,
    Depth,
    Epsilon,
    Kernel,
    Rate,
    Ratio,
    Side,
    Width,
)
from cvt.parts.stage_spec import StageSpec
from cvt.plain import Length, from_others
from cvt.systems.catalog import system_of
from cvt.systems.pvt import DIMS, HEADS, MLP_RATIOS, PVT, REDUCTIONS
from cvt.weights import image_processor
from cvt.weights.layouts import StateDict, identify
from cvt.weights.record import Record
from cvt.weights.row_preprocessing import preprocessing_of_row
from cvt.weights.variant import spec_of_tensors

_Stages = Length(1, MOST_STAGES)
_COLUMNS = (
    *("hidden_sizes", "depths", "num_attention_heads", "mlp_ratios"),
    *("sequence_reduction_ratios", "patch_sizes", "strides"),
)


@dataclass(frozen=True, kw_only=True)
class _Config:
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


def read_pvt(
    state_dict: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    source: str,
    processor: Mapping[str, Any] | None,
    answers: Callable[[int], tuple[tuple[str, ...] | None, bool]],
) -> tuple[StateDict, Record]:
    """Brings what is in a folder of `PvtForImageClassification` to our names and words.

    Args:
        source: The folder, for messages.
        processor: Its `preprocessor_config.json`; None: there is none, so the system's holds.
        answers: Returns the labels of so many outputs, or None, and whether they may hold together.

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
        preprocessing = image_processor.read(processor, "pvt", spec.in_chans)
    class_names, multi_label = answers(spec.num_classes)
    record = Record(
        model=name,
        spec=spec,
        preprocessing=preprocessing,
        class_names=class_names,
        multi_label=multi_label,
        licence=system_of(name).licence,
        source=source,
    )
    return ours, record


def spec_of_pvt_config(config: Mapping[str, Any]) -> BackboneSpec:
    """Reads a `PvtConfig`; keys that it lacks have transformers' defaults, those of PVT-Tiny.

    Raises:
        UserError: A list has not one value a stage, or a value that PVT does not compute.
    """
    said = from_others(_Config, config, "config.json")
    stages = len(said.depths)
    for key in _COLUMNS:
        if len(getattr(said, key)) != stages:
            raise UserError(
                f"Got {key} {getattr(said, key)!r} in config.json, expected a list with one value "
                f"for each of the {stages} stages."
            )
    if said.patch_sizes != said.strides:
        raise UserError(
            f"Got patch_sizes {said.patch_sizes} and strides {said.strides} in "
            "config.json, expected the same, as PVT's patches don't overlap."
        )
    size = said.image_size
    return BackboneSpec(
        stages=tuple(_stage(said, index) for index in range(stages)),
        in_chans=said.num_channels,
        img_size=size if isinstance(size, tuple) else (size, size),
        act_layer=said.hidden_act,
        norm_eps=said.layer_norm_eps,
        embed_norm_eps=said.layer_norm_eps,
        attn_scale="head_dim",
        pos_interpolation="bilinear",
        drop_path_schedule="network",
    )


def _stage(said: _Config, index: int) -> StageSpec:
    stride = said.strides[index]
    return StageSpec(
        embed_dim=said.hidden_sizes[index],
        depth=said.depths[index],
        num_heads=said.num_attention_heads[index],
        embed_kernel=stride,
        embed_stride=stride,
        embed_padding=0,
        mlp_ratio=float(said.mlp_ratios[index]),
        projection="reduction",
        kv_stride=said.sequence_reduction_ratios[index],
        qkv_bias=said.qkv_bias,
        cls_token=index == len(said.depths) - 1,
        pos_embed="table",
        proj_drop_rate=said.hidden_dropout_prob,
        attn_drop_rate=said.attention_probs_dropout_prob,
        drop_path_rate=said.drop_path_rate,
    )


def _nearest_row(spec: Spec) -> str:
    """The row with these widths and depths; any other spec is a change of PVT-Tiny."""
    shape = _shape(spec)
    return next((name for name, row in PVT.rows.items() if _shape(row) == shape), "pvt_tiny")


def _shape(spec: Spec) -> list[tuple[int, int]]:
    assert isinstance(spec, BackboneSpec)
    return [(stage.embed_dim, stage.depth) for stage in spec.stages]
