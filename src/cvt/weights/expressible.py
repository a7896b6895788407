"""What the two other implementations of CvT can compute, so that nothing is exported in vain."""

from collections.abc import Iterator
from typing import Literal

from cvt.errors import UserError
from cvt.parts.contract_spec import Spec
from cvt.parts.spec import BackboneSpec

# A field, what the other side computes there, and whether that is what this spec asks for.
_Check = tuple[str, object, str, bool]


def check_expressible(spec: Spec, layout: Literal["microsoft", "hugging_face"]) -> None:
    """Refuses a spec that the other implementation would compute differently, or not at all.

    Rates of dropout and stochastic depth are not looked at: they change training only. Neither is
    the activation in Hugging Face's case; see `hugging_face.gelu_note`.

    Raises:
        UserError: The message names the first field that stands in the way.
    """
    whose = "microsoft/CvT" if layout == "microsoft" else "Hugging Face's CvT"
    if not isinstance(spec, BackboneSpec):
        raise UserError(
            f"{whose} cannot express this model: it is not made of CvT's stages; keep it as "
            ".safetensors or a timm folder."
        )
    both = [*_whole(spec), *_stages(spec)]
    theirs = _microsoft(spec) if layout == "microsoft" else _hugging_face(spec)
    for field, got, expected, holds in [*both, *theirs]:
        if not holds:
            raise UserError(
                f"{whose} cannot express this model: got {field}={got!r}, expected {expected}; "
                "keep it as .safetensors or a timm folder."
            )


def _whole(spec: BackboneSpec) -> Iterator[_Check]:
    yield "attn_scale", spec.attn_scale, "'dim'", spec.attn_scale == "dim"
    for name in ("norm_eps", "embed_norm_eps"):
        yield name, getattr(spec, name), "1e-05", getattr(spec, name) == 1e-5
    yield "distilled", spec.distilled, "False", not spec.distilled


def _stages(spec: BackboneSpec) -> Iterator[_Check]:
    for stage in spec.stages:
        yield "embed", stage.embed, "'conv'", stage.embed == "conv"
        yield "embed_norm", stage.embed_norm, "True", stage.embed_norm
        yield "pos_embed", stage.pos_embed, "'none'", stage.pos_embed == "none"
        yield "q_stride", stage.q_stride, "1", stage.q_stride == 1


def _microsoft(spec: BackboneSpec) -> Iterator[_Check]:
    yield "act_layer", spec.act_layer, "'quick_gelu'", spec.act_layer == "quick_gelu"
    pool = "token" if spec.stages[-1].cls_token else "avg"
    yield "global_pool", spec.global_pool, repr(pool), spec.global_pool == pool
    for stage in spec.stages:
        conv = stage.projection in ("conv", "avg")
        yield "projection", stage.projection, "'conv' or 'avg' (it crashes on others)", conv


def _hugging_face(spec: BackboneSpec) -> Iterator[_Check]:
    gelu = spec.act_layer in ("gelu", "quick_gelu")
    yield "act_layer", spec.act_layer, "'gelu' or 'quick_gelu'", gelu
    last = len(spec.stages) - 1
    for index, stage in enumerate(spec.stages):
        conv = stage.projection == "conv"
        yield "projection", stage.projection, "'conv'", conv
        yield (
            "cls_token",
            stage.cls_token,
            "one in the last stage only",
            stage.cls_token == (index == last),
        )
        # Its constructor indexes the stage's list of drop-path rates with the stage's number.
        enough = f"at least {index + 1} in stage {index + 1} (it crashes otherwise)"
        yield "depth", stage.depth, enough, stage.depth > index
    yield "global_pool", spec.global_pool, "'token'", spec.global_pool == "token"
