"""Every model as an entry point of timm's registry; importing this module registers them.

timm looks for `default_cfgs` in the module that its entry points come from: this one. It is
imported as soon as timm is, so what it imports itself must not import timm, or it could meet
modules of ours half executed: networks and weights are imported when a model is built.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    is_model,
    model_entrypoint,
    register_model,
)
from torch import Tensor, nn

from cvt.errors import UserError
from cvt.parts.spec import Spec
from cvt.systems.catalog import ROWS, make_network, timm_name
from cvt.systems.timm_networks import OF_BUILDER
from cvt.weights.published import PUBLISHED
from cvt.weights.record import Preprocessing, preprocessing_of_row

if TYPE_CHECKING:
    from cvt.parts.model import VisionModel


def build(name: str, row: Spec, *, pretrained: bool = False, **kwargs: Any) -> Any:
    """Builds a model from a row through timm's own builder.

    Args:
        name: The name in the registry, which selects timm's `pretrained_cfg`.
        kwargs: timm's builder arguments; everything else changes a field of the row. The level
            after the last one in `out_indices` brings `extra_level=True` by itself. An
            `output_stride` is taken where the levels are no coarser than that.
    """
    options = {key: value for key, value in kwargs.items() if key in OF_BUILDER}
    changes = {key: value for key, value in kwargs.items() if key not in OF_BUILDER}
    spec = row.change(**changes)
    if row.made_by_timm:  # whose weights and features are timm's business
        return make_network(spec, pretrained=pretrained, **options)
    options["pretrained_cfg"] = _own_cfg(name, options.get("pretrained_cfg"))
    device, dtype = options.pop("device", None), options.pop("dtype", None)
    output_stride = options.pop("output_stride", None)
    wanted = options.get("out_indices") if options.get("features_only") else None
    asked = range(wanted) if isinstance(wanted, int) else () if wanted is None else wanted
    last = max(asked, default=-1)
    if "extra_level" not in changes and last == spec.extra_level_index:
        changes["extra_level"] = True
        spec = spec.change(extra_level=True)
    _check_levels(timm_name(name), spec, wanted, output_stride)

    def network(**changes: Any) -> "VisionModel":
        with torch.device(device) if device is not None else nullcontext():
            made = make_network(row.change(**changes))
        return made if dtype is None else made.to(dtype=dtype)

    return build_model_with_cfg(
        network,
        timm_name(name),
        pretrained,
        pretrained_filter_fn=filter_state_dict,
        feature_cfg={"out_indices": spec.out_indices, "feature_cls": "getter"},
        **options,
        **changes,
    )


def _check_levels(
    name: str, spec: Spec, wanted: int | Sequence[int] | None, output_stride: int | None
) -> None:
    """Refuses levels that there are not, and strides that only dilated convolutions have."""
    strides = spec.level_strides
    count = len(strides)
    asked_for = range(-wanted, 0) if isinstance(wanted, int) else wanted
    chosen = list(range(count) if asked_for is None else asked_for)
    levels = f"{name} has levels 0 to {count - 1}, at strides {', '.join(map(str, strides))}"
    if not chosen or not all(-count <= each < count for each in chosen):
        deepest = strides[-1] * (1 if spec.extra_level_index is None else 2)
        if deepest > strides[-1]:
            levels += f", and with extra_level=True one at {deepest}"
        raise UserError(
            f"Got out_indices={wanted!r}, but {levels}; choose among these (of "
            f"segmentation_models_pytorch: encoder_depth={deepest.bit_length() - 1} or less)."
        )
    natural = max(strides[each] for each in chosen)
    if output_stride is None or output_stride >= natural:
        return
    fine = [each for each in range(count) if strides[each] <= output_stride]
    advice = (
        f"ask for output_stride={natural} (of segmentation_models_pytorch: encoder_output_stride)"
    )
    if fine and len(strides) > 1:
        depth = strides[fine[-1]].bit_length() - 1
        advice += (
            f" or for levels that are as fine, out_indices={tuple(fine)} (encoder_depth={depth})"
        )
    raise UserError(
        f"Got output_stride={output_stride}, but {levels}, and nothing in it can be dilated; "
        f"{advice}."
    )


def filter_state_dict(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Brings a downloaded checkpoint, in any known layout, to our names and the model's size."""
    from cvt.weights.fit import adapt_tables, spec_of_tensors
    from cvt.weights.layouts import to_ours
    from cvt.weights.pickles import unwrap

    ours = to_ours(unwrap(state_dict), source="the downloaded checkpoint")
    network = cast("VisionModel", model)
    adapt_tables(ours, network, spec_of_tensors(network.spec, ours).img_size)
    return ours


def _own_cfg(name: str, cfg: Any) -> Any:
    """Our configuration of a tag; in timm's registry the name may be a model of its own."""
    name = timm_name(name)
    own = default_cfgs[name]
    tag = cfg or own.tags[0]
    if not isinstance(tag, str) or tag not in own.cfgs:
        return cfg
    return replace(own.cfgs[tag], architecture=name, tag=tag)


def _entrypoint(name: str, row: Spec) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(name, row, pretrained=pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = timm_name(name)
    entrypoint.__doc__ = f"Builds {name}; keywords change fields of its row."
    return entrypoint


def _pretrained_cfg(row: Spec, preprocessing: Preprocessing) -> dict[str, Any]:
    classifiers = row.classifiers
    return {
        **preprocessing.to_timm(),
        "num_classes": row.num_classes,
        "pool_size": None,  # tokens come out of `forward_features`, no map
        "first_conv": row.first_conv or (),
        "classifier": classifiers[0] if len(classifiers) == 1 else classifiers,
        "fixed_input_size": False,
        "min_input_size": (3, row.min_size, row.min_size),
    }


def _default_cfgs() -> dict[str, Any]:
    cfgs: dict[str, Any] = {}
    for published in PUBLISHED.values():
        cfgs[published.name] = {
            **_pretrained_cfg(ROWS[published.model], published.preprocessing),
            "hf_hub_id": published.hub_id,
            "license": published.licence,
            "paper_ids": "arXiv:2103.15808",
        }
    with_weights = {published.model for published in PUBLISHED.values()}
    for name, row in ROWS.items():
        if name not in with_weights and not row.made_by_timm:
            cfgs[f"{timm_name(name)}.untrained"] = _pretrained_cfg(row, preprocessing_of_row(name))
    return cfgs


def _register(name: str, entrypoint: Callable[..., Any]) -> None:
    """A name that timm itself has come to have is left to timm; `cvt.create_model` has ours."""
    if not is_model(name):
        register_model(entrypoint)
    elif model_entrypoint(name).__module__ != __name__:
        warnings.warn(
            f"timm has a model named {name!r} of its own and keeps it; "
            f"use cvt.create_model({name!r}) for this library's.",
            stacklevel=2,
        )


default_cfgs = generate_default_cfgs(_default_cfgs())

ENTRYPOINTS: dict[str, Callable[..., Any]] = {
    name: _entrypoint(name, row) for name, row in ROWS.items()
}

for _name, _build in ENTRYPOINTS.items():
    if not ROWS[_name].made_by_timm:
        _register(timm_name(_name), _build)
