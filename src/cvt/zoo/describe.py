"""What a model is, counted: grids, tokens, parameters, multiply-accumulates by part."""

import os
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cvt.parts.model import VisionModel, num_params
from cvt.parts.spec import BackboneSpec, Spec
from cvt.systems.catalog import ROWS, make_network, row_of
from cvt.systems.system import is_ours
from cvt.systems.timm_networks import PREFIX, split_name
from cvt.weights.published import find_published, imagenet_class_names, shipped_file
from cvt.weights.record import Record
from cvt.weights.source import FILE_SUFFIXES, names_weights, open_weights, record_of_timm

PARTS = ("embedding", "depthwise", "linear", "attention", "mlp", "head")
PARTS_OF_TIMMS = ("convolution", "linear", "attention", "head")


@dataclass(frozen=True, kw_only=True)
class StageDescription:
    """One row of the stage table; grids are (H, W), MACs are counts for one image."""

    grid: tuple[int, int]
    num_tokens: int
    kv_grid: tuple[int, int]
    num_kv_tokens: int
    embed_dim: int
    num_heads: int
    depth: int
    num_params: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class Description:
    """What `describe` counts: the stage table, parameters, and MACs for one image by part.

    `grids` are the (H, W) of the maps that the network can give: one a stage, one for all blocks
    of TNT, those that timm gives of its networks, each once, with their `widths` in channels.
    Networks that are not made of stages (TNT, timm's) have an empty table; the parts of timm's are
    its convolutions, linear maps, all other products (`attention`) and the classifier. `record` is
    what a checkpoint says about itself.
    """

    name: str
    from_paper: bool
    size: tuple[int, int]
    stages: tuple[StageDescription, ...]
    grids: tuple[tuple[int, int], ...]
    num_params: int
    num_params_norm: int
    num_params_head: int
    macs: int
    macs_by_part: dict[str, int]
    record: Record | None = None
    widths: tuple[int, ...] = ()


def describe(
    name: str, image_size: int | tuple[int, int] | None = None, spec: Spec | None = None
) -> Description:
    """Counts a model at an image size, on torch's meta device: nothing is computed.

    MACs are torch's own FLOP count halved: convolutions, linear maps and both products of the
    attention, as the paper counts them (its "FLOPs" are MACs).

    Args:
        name: A registered model, `timm/NAME`, or a checkpoint as for `cvt.load`. Of published
            weights, and timm's, the file is not fetched: what is known of them is told.
        image_size: A side or (H, W) in pixels; None: that of a checkpoint's preprocessing, 224, or
            what a small row is made for.
        spec: Count this variation of the model instead of the registered row.
    """
    record = _record(name) if spec is None else None
    if record is not None:
        name, spec = record.model, record.spec
        image_size = image_size or record.preprocessing.size
    spec = row_of(name) if spec is None else spec
    size = (image_size, image_size) if isinstance(image_size, int) else image_size or spec.img_size
    grids = spec.grids(size)
    with torch.device("meta"):
        model = make_network(spec).eval()
        macs = _by_part(count_macs(model, torch.empty(1, spec.in_chans, *size)), model)
    norm = getattr(model, "norm", None)
    by_part = dict.fromkeys(PARTS_OF_TIMMS if spec.made_by_timm else PARTS, 0)
    for (_, part), count in macs.items():
        by_part[part] += count
    return Description(
        name=name,
        from_paper=not is_ours(name),
        size=size,
        stages=tuple(_describe_stages(model, size, macs)),
        grids=tuple(grids),
        num_params=num_params(model),
        num_params_norm=num_params(norm) if isinstance(norm, nn.Module) else 0,
        num_params_head=sum(num_params(model.get_submodule(each)) for each in spec.classifiers),
        macs=sum(macs.values()),
        macs_by_part=by_part,
        record=record,
        widths=spec.widths(size),
    )


def _record(name: str) -> Record | None:
    """Returns what a checkpoint says about itself; None for a row's name, or no name at all."""
    is_row = name in ROWS and not names_weights(name)
    published = None if os.path.exists(name) else find_published(name)
    if name.startswith(PREFIX) and not os.path.exists(name):
        return record_of_timm(name) if split_name(name)[1] else None
    if published is not None:
        return Record(
            model=published.model,
            spec=ROWS[published.model],
            preprocessing=published.preprocessing,
            class_names=imagenet_class_names(),
            metrics={"top1": published.top1},
            licence=published.licence,
            source=published.hub_id,
        )
    is_path = os.path.exists(name) or "/" in name or name.endswith(FILE_SUFFIXES)
    could_be = is_path or shipped_file(name) is not None
    return open_weights(name)[1] if could_be and not is_row else None


def _describe_stages(
    model: VisionModel, size: tuple[int, int], macs: Counter[tuple[str, str]]
) -> list[StageDescription]:
    spec: BackboneSpec | None = model.spec.staged
    if spec is None:
        return []
    rows, incoming = [], size
    for index, row in enumerate(spec.stages):
        inner, prefix = row.grid_after_embed(incoming), spec.num_prefix[index]
        grid, stage = row.grid_after(incoming), f"stages.{index}"
        # The keys of the first block are read from the grid before its queries shrink it.
        kv_grid = row.kv_grid(inner if row.depth == 1 else grid)
        described = StageDescription(
            grid=grid,
            num_tokens=prefix + grid[0] * grid[1],
            kv_grid=kv_grid,
            num_kv_tokens=prefix + kv_grid[0] * kv_grid[1],
            embed_dim=row.embed_dim,
            num_heads=row.num_heads,
            depth=row.depth,
            num_params=num_params(model.get_submodule(stage)),
            macs=sum(n for (owner, _), n in macs.items() if owner == stage),
        )
        rows.append(described)
        incoming = grid
    return rows


def count_macs(model: nn.Module, images: torch.Tensor) -> dict[str, int]:
    """Returns the multiply-accumulates of every module that is called, by its path.

    What is inside a module is counted with it, and the whole model stands under ''.
    """
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(images)
    counts = counter.get_flop_counts()
    flops = {name.partition(".")[2]: sum(each.values()) for name, each in counts.items()}
    return {path: each // 2 for path, each in {**flops, "": counter.get_total_flops()}.items()}


def _by_part(macs: dict[str, int], model: nn.Module) -> Counter[tuple[str, str]]:
    """MACs by (owner, part), each operation counted for the innermost module around it."""
    found: Counter[tuple[str, str]] = Counter()

    def add(path: str, count: int) -> None:
        if path:
            found[".".join(path.split(".")[:2]), _part(path, model)] += count

    for path, count in macs.items():
        add(path, count)
        outer = path.rpartition(".")[0]
        while outer and outer not in macs:  # a ModuleList is never called
            outer = outer.rpartition(".")[0]
        add(outer, -count)
    return found


def _part(path: str, model: nn.Module) -> str:
    """Which of the parts a module's own operations belong to."""
    spec = cast("Spec", model.spec)
    if path in spec.classifiers:
        return "head"
    if spec.made_by_timm:
        module = model.get_submodule(path)
        kinds = {nn.Conv2d: "convolution", nn.Linear: "linear"}
        return next((part for kind, part in kinds.items() if isinstance(module, kind)), "attention")
    if ".embed." in f"{path}." or path.startswith(("word_embed", "patch_embed")):
        return "embedding"
    if path.endswith(".conv") and ".reduce." not in path:
        return "depthwise"
    if path.endswith(".attn"):
        return "attention"
    return "mlp" if ".mlp" in path else "linear"
