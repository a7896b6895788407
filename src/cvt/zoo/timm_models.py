"""Every model as an entry point of timm's registry; importing this module registers them.

timm looks for `default_cfgs` in the module that its entry points come from: this one. It is
imported as soon as timm is, so what it imports itself must not import timm, or it could meet
modules of ours half executed: networks and weights are imported when a model is built.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from timm.models import (
    build_model_with_cfg,
    create_model,
    generate_default_cfgs,
    is_model,
    model_entrypoint,
    register_model,
)

from cvt.parts.contract_spec import Spec
from cvt.parts.spec import BackboneSpec
from cvt.parts.tnt_spec import TNTSpec
from cvt.systems.baselines import BaselineSpec
from cvt.systems.catalog import ROWS, as_vision_model, make_network, timm_name
from cvt.weights.published import PUBLISHED
from cvt.weights.record import Preprocessing
from cvt.weights.row_preprocessing import preprocessing_of_row

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cvt.parts.contract import VisionModel

# What timm's networks take, of a baseline's fields.
_OF_TIMM = ("num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate")


# What may stand beside the fields: timm's builder takes these.
_OF_BUILDER = (
    *("features_only", "out_indices", "output_stride", "feature_cls"),
    *("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"),
)


def build(name: str, row: Spec, *, pretrained: bool = False, **kwargs: Any) -> Any:
    """Builds a model from a row through timm's own builder.

    Args:
        name: The name in the registry, which selects timm's `pretrained_cfg`.
        row: The spec that `kwargs` may change.
        pretrained: Let timm download and load the weights of the configuration.
        kwargs: timm's builder arguments (`features_only`, `out_indices`, `pretrained_cfg`, ...);
            everything else changes a field of the row.

    Raises:
        UserError: A keyword is neither timm's nor a field of the row.
    """
    if isinstance(row, BaselineSpec):
        return _build_baseline(row, pretrained, kwargs)
    kwargs["pretrained_cfg"] = _own_cfg(name, kwargs.get("pretrained_cfg"))
    levels = {key: kwargs[key] for key in ("extra_level", "depth") if key in kwargs}
    return build_model_with_cfg(
        partial(_network, row),
        timm_name(name),
        pretrained,
        pretrained_filter_fn=filter_state_dict,
        feature_cfg={"out_indices": row.change(**levels).out_indices, "feature_cls": "getter"},
        **kwargs,
    )


def _build_baseline(row: BaselineSpec, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    """timm's own network, whose weights and features are timm's business."""
    spec = row.change(**{key: value for key, value in kwargs.items() if key not in _OF_BUILDER})
    if not pretrained and not kwargs.get("features_only"):
        return make_network(spec)
    plain = {key: value for key, value in spec.to_dict().items() if key in _OF_TIMM}
    rest = {key: value for key, value in kwargs.items() if key in _OF_BUILDER}
    network = create_model(spec.architecture, pretrained=pretrained, **plain, **rest)
    return network if kwargs.get("features_only") else as_vision_model(network, spec)


def filter_state_dict(state_dict: dict[str, "Tensor"], model: "nn.Module") -> dict[str, "Tensor"]:
    """Brings a downloaded checkpoint, in any known layout, to our names and the model's size."""
    from cvt.weights.layouts import to_ours
    from cvt.weights.pickles import unwrap
    from cvt.weights.strict import adapt_tables
    from cvt.weights.variant import spec_of_tensors

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


def _network(row: Spec, **changes: Any) -> "VisionModel":
    return make_network(row.change(**changes))


def _entrypoint(name: str, row: Spec) -> Callable[..., "nn.Module"]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> "nn.Module":
        return build(name, row, pretrained=pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = timm_name(name)
    entrypoint.__doc__ = f"Builds {name}; keywords change fields of its row."
    return entrypoint


def _pretrained_cfg(row: Spec, preprocessing: Preprocessing) -> dict[str, Any]:
    first_conv, classifier = "stages.0.embed.proj", "head"
    if isinstance(row, TNTSpec):
        first_conv = "word_embed.proj"
    elif isinstance(row, BackboneSpec):
        classifier = ("head", "head_dist") if row.distilled else "head"
        first_conv = first_conv if row.stages[0].embed == "conv" else None
    return {
        **preprocessing.to_timm(),
        "num_classes": row.num_classes,
        "pool_size": row.grids(preprocessing.size)[-1],
        "first_conv": first_conv,
        "classifier": classifier,
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
    for name, row in ROWS.items():
        has_weights = any(published.model == name for published in PUBLISHED.values())
        if not has_weights and not isinstance(row, BaselineSpec):
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
    if not isinstance(ROWS[_name], BaselineSpec):
        _register(timm_name(_name), _build)
