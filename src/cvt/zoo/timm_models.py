"""Every model as an entry point of timm's registry; importing this module registers them.

timm looks for `default_cfgs` in the module that its entry points come from: this one. It is
imported as soon as timm is, so what it imports itself must not import timm, or it could meet
modules of ours half executed: networks and weights are imported when a model is built.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    is_model,
    model_entrypoint,
    register_model,
)

from cvt.parts.spec import BackboneSpec
from cvt.systems.cvt import ROWS
from cvt.weights.published import PUBLISHED
from cvt.weights.record import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cvt.parts.backbone import Backbone


def build(name: str, row: BackboneSpec, *, pretrained: bool = False, **kwargs: Any) -> Any:
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
    kwargs["pretrained_cfg"] = _own_cfg(name, kwargs.get("pretrained_cfg"))
    levels = len(row.stages) + bool(kwargs.get("extra_level", row.extra_level))
    return build_model_with_cfg(
        partial(_backbone, row),
        name,
        pretrained,
        pretrained_filter_fn=filter_state_dict,
        feature_cfg={"out_indices": tuple(range(levels)), "feature_cls": "getter"},
        **kwargs,
    )


def filter_state_dict(state_dict: dict[str, "Tensor"], model: "nn.Module") -> dict[str, "Tensor"]:
    """Brings a downloaded checkpoint, in whichever of the known layouts, to our names."""
    from cvt.weights.layouts import to_ours
    from cvt.weights.pickles import unwrap

    return to_ours(unwrap(state_dict), source="the downloaded checkpoint")


def _own_cfg(name: str, cfg: Any) -> Any:
    """Our configuration of a tag; in timm's registry the name may be a model of its own."""
    own = default_cfgs[name]
    tag = cfg or own.tags[0]
    if not isinstance(tag, str) or tag not in own.cfgs:
        return cfg
    return replace(own.cfgs[tag], architecture=name, tag=tag)


def _backbone(row: BackboneSpec, **changes: Any) -> "Backbone":
    from cvt.parts.backbone import Backbone

    return Backbone(row.change(**changes))


def _entrypoint(name: str, row: BackboneSpec) -> Callable[..., "nn.Module"]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> "nn.Module":
        return build(name, row, pretrained=pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"Builds {name}; keywords change fields of its row."
    return entrypoint


def _pretrained_cfg(row: BackboneSpec, preprocessing: Preprocessing) -> dict[str, Any]:
    grid = row.grids(preprocessing.size)[-1]
    return {
        **preprocessing.to_timm(),
        "num_classes": row.num_classes,
        "pool_size": grid,
        "first_conv": "stages.0.embed.proj",
        "classifier": "head",
        "fixed_input_size": False,
        "min_input_size": (3, 32, 32),
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
        if not any(published.model == name for published in PUBLISHED.values()):
            size = Preprocessing(input_size=(row.in_chans, *row.img_size), crop_pct=1.0)
            cfgs[f"{name}.untrained"] = _pretrained_cfg(row, size)
    return cfgs


def _register(name: str, entrypoint: Callable[..., Any]) -> None:
    """A name that timm itself has is left to timm; `cvt.create_model` has ours."""
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
    _register(_name, _build)
