"""The paper's Table 1, read off the rows: what a spec says on each of the four axes."""

from dataclasses import dataclass

from cvt.parts.spec import BackboneSpec
from cvt.parts.stage_spec import StageSpec
from cvt.parts.tnt_spec import TNTSpec

_PROJECTIONS = {
    "linear": "linear",
    "conv": "convolution",
    "avg": "average pooling",
    "reduction": "spatial reduction",
}


@dataclass(frozen=True, kw_only=True)
class Axes:
    """A line of Table 1, in the paper's words."""

    position: str
    embedding: str
    projection: str
    hierarchical: str


def axes_of(spec: object) -> Axes | None:
    """Derives the axes from a spec; None for a network without tokens (a CNN)."""
    if isinstance(spec, TNTSpec):
        # Patches are cut out first: the kernel of the words inside one ends at its border.
        return Axes(
            position="yes",
            embedding="non-overlapping (patch + pixel)",
            projection="linear",
            hierarchical="no",
        )
    if not isinstance(spec, BackboneSpec):
        return None
    return Axes(
        position=_position(spec.stages),
        embedding=_embedding(spec.stages),
        projection=_projection(spec.stages),
        hierarchical=_hierarchical(spec.stages),
    )


def _position(stages: tuple[StageSpec, ...]) -> str:
    kinds = {stage.pos_embed for stage in stages}
    if kinds & {"table", "sinusoid"}:
        return "yes"
    return "no (with PE generator)" if "conditional" in kinds else "no"


def _embedding(stages: tuple[StageSpec, ...]) -> str:
    if any(stage.embed != "conv" for stage in stages):
        return "overlapping (concatenate)"
    if any(stage.embed_kernel > stage.embed_stride for stage in stages):
        return "overlapping (convolution)"
    return "non-overlapping"


def _projection(stages: tuple[StageSpec, ...]) -> str:
    """Names what is not linear; PVT's last stage, whose reduction is by 1, does not count."""
    kinds = {
        stage.projection: None
        for stage in stages
        if stage.depth and (stage.projection != "reduction" or stage.kv_stride > 1)
    }
    special = [kind for kind in kinds if kind != "linear"]
    return " and ".join(_PROJECTIONS[kind] for kind in special or ["linear"])


def _hierarchical(stages: tuple[StageSpec, ...]) -> str:
    """Blocks on several grids are a hierarchy; embeddings alone are one of tokenisation."""
    with_blocks = sum(stage.depth > 0 for stage in stages)
    if with_blocks > 1:
        return "yes"
    return "partial (tokenisation)" if len(stages) > 1 else "no"
