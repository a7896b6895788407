"""What an ablation is: variants of a base, one of which is what the others are compared with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cvt.bench.names import Base, Contender
from cvt.bench.paper.tables import TABLE_5, TABLE_5_DEIT, TABLE_6, TABLE_7, TABLE_8, Printed
from cvt.errors import UserError
from cvt.parts.spec import BackboneSpec
from cvt.systems.catalog import ROWS


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A line of a table.

    Args:
        words: What the first column says.
        printed: The paper's line for it, on the paper's own base; None where it has none.
    """

    words: str
    contender: Contender
    spec: BackboneSpec
    printed: Printed | None = None

    @classmethod
    def of(
        cls, base: Base, words: str, changes: Mapping[str, Any], printed: Printed | None
    ) -> "Variant":
        """Changes a base; its spec is made from the row, as a training run makes it."""
        contender = base.contender(changes)
        spec = ROWS[base.model].change(**contender.model_args).staged
        assert spec is not None
        return cls(words=words, contender=contender, spec=spec, printed=printed)


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A table of the paper on a base.

    Args:
        title: What is varied.
        reference: The variant that the others are compared with: the paper's own choice.
        notes: Sentences that belong under the table.
    """

    table: int
    base: Base
    title: str
    variants: tuple[Variant, ...]
    reference: Variant
    notes: tuple[str, ...] = ()

    @property
    def is_papers_own(self) -> bool:
        """Whether the paper's counts hold for this base."""
        own = ("cvt_13", "deit_small_patch16_224") if self.table == 5 else ("cvt_13",)
        return self.base.label in own

    def printed_difference(self, variant: Variant) -> float | None:
        """The paper's accuracy of a variant minus that of its reference, in percentage points."""
        if variant.printed is None or self.reference.printed is None:
            return None
        return round(variant.printed.top1 - self.reference.printed.top1, 6)


# --- The paper's Tables 5 to 8 as changes of any row that is made of stages.


def make_ablation(table: int, base: Base) -> Ablation:
    """Makes the variants of a table from a base.

    Args:
        table: 5 (position embedding), 6 (token embedding), 7 (k/v stride) or 8 (projection).

    Raises:
        UserError: The base cannot express what the table varies.
    """
    return _TABLES[table](base)


def _positions(base: Base) -> Ablation:
    """Table 5: a learned table in every, the first, the last or no stage.

    A base of one stage has but with and without, for which the paper has DeiT-S.
    """
    stages = base.working
    own = tuple(base.spec.stages[i].pos_embed for i in stages)

    def column(chosen: tuple[int, ...]) -> tuple[str, ...]:
        return tuple("table" if i in chosen else "none" for i in stages)

    if len(stages) == 1:
        lines = {"with": column(stages), "without": column(())}
        printed: Mapping[str, Printed] = TABLE_5_DEIT
    else:
        lines = {
            "every stage": column(stages),
            "first stage": column(stages[:1]),
            "last stage": column(stages[-1:]),
            "none": column(()),
        }
        printed = {f"{name} stage": line for name, line in TABLE_5.items()}
        printed["none"] = TABLE_5["none"]
    if own not in lines.values():
        lines[f"as the row has it ({', '.join(dict.fromkeys(own))})"] = own
    variants = [
        Variant.of(base, words, {"pos_embed": base.column("pos_embed", values)}, printed.get(words))
        for words, values in lines.items()
    ]
    reference = variants[0] if len(stages) == 1 else variants[3]
    notes = ("The paper's figures are DeiT-S's.",) if len(stages) == 1 else ()
    return Ablation(
        table=5,
        base=base,
        title="position embedding",
        variants=tuple(variants),
        reference=reference,
        notes=notes,
    )


def _embeddings(base: Base) -> Ablation:
    """Table 6: overlapping convolutions or patches, without and with positions in every stage.

    A patch embedding has a kernel equal to its stride and no padding. Where the base has one, its
    convolution gets the kernel 2 * stride - 1 (7 at stride 4, 3 at stride 2, as in CvT) and the
    padding that keeps the grid.
    """
    stages = base.spec.stages
    if any(stage.embed != "conv" for stage in stages):
        raise UserError(
            f"Table 6 varies convolutional token embeddings, and {base.label} has soft splits; "
            "take another base."
        )
    patch = {
        "embed_kernel": [stage.embed_stride for stage in stages],
        "embed_padding": [0 for _ in stages],
    }
    overlaps = [stage.embed_kernel > stage.embed_stride for stage in stages]
    conv = {
        "embed_kernel": [
            stage.embed_kernel if overlap else 2 * stage.embed_stride - 1
            for stage, overlap in zip(stages, overlaps, strict=True)
        ],
        "embed_padding": [
            stage.embed_padding if overlap else stage.embed_stride - 1
            for stage, overlap in zip(stages, overlaps, strict=True)
        ],
    }
    none, every = (base.column("pos_embed", [p] * len(base.working)) for p in ("none", "table"))
    variants = tuple(
        Variant.of(
            base,
            f"{'convolution' if is_conv else 'patches'}, {'position' if has else 'no position'}",
            {**(conv if is_conv else patch), "pos_embed": every if has else none},
            TABLE_6[is_conv, has],
        )
        for is_conv, has in ((False, False), (False, True), (True, True), (True, False))
    )
    notes = (_TABLE_6_NOTE,) if base.label == "cvt_13" else ()
    return Ablation(
        table=6,
        base=base,
        title="token embedding",
        variants=variants,
        reference=variants[3],
        notes=notes,
    )


_TABLE_6_NOTE = (
    "The printed counts start from 19.98 M, where ours is 19.997 M, and fit position tables in "
    "stages 1 and 2 alone (0.351 M); ours are in every stage (0.427 M), as in Table 5."
)


def _strides(base: Base) -> Ablation:
    """Table 7: keys and values read at stride 1, or at the base's own (2 where that is 1)."""
    stages = [i for i in base.working if base.spec.stages[i].projection != "linear"]
    if not stages:
        raise UserError(
            f"Table 7 varies the stride of keys and values, and {base.label} reads them by linear "
            f"projections, which have none; take {base.model}+projection=conv, or another base."
        )
    own = [base.spec.stages[i].kv_stride for i in stages]
    wide = [2] * len(own) if set(own) == {1} else own
    said = str(wide[0]) if len(set(wide)) == 1 else ", ".join(map(str, wide))
    lines = {"stride 1": [1] * len(own), f"stride {said}": wide}
    variants = tuple(
        Variant.of(
            base,
            words,
            {"kv_stride": base.column("kv_stride", values, stages)},
            TABLE_7[1 if words == "stride 1" else 2],
        )
        for words, values in lines.items()
    )
    notes = (_TABLE_7_NOTE,) if base.label == "cvt_13" else ()
    return Ablation(
        table=7,
        base=base,
        title="stride of keys and values",
        variants=variants,
        reference=variants[1],
        notes=notes,
    )


_TABLE_7_NOTE = (
    "Both printed GFLOPs lie 1 % below what torch counts of convolutions, linear maps and both "
    "products of the attention; their origin is not known."
)


_KINDS = {"conv": "convolutional", "avg": "pooled", "reduction": "spatially reduced"}


def _projections(base: Base) -> Ablation:
    """Table 8: which stages, from the first, keep the projection; the others read linearly.

    The projection is the base's own (PVT's reduction, say), or a convolution if that is linear.
    """
    own = {i: base.spec.stages[i].projection for i in base.working}
    kept = {i: kind for i, kind in own.items() if kind != "linear"}
    kept = kept or dict.fromkeys(own, "conv")
    stages = tuple(kept)

    def line(count: int) -> Variant:
        column: list[str] = [stage.projection for stage in base.spec.stages]
        for number, i in enumerate(stages):
            column[i] = kept[i] if number < count else "linear"
        return Variant.of(base, words[count], {"projection": column}, printed.get(count))

    numbers = [str(i + 1) for i in stages]
    words = ["none", f"stage {numbers[0]}"]
    words += [f"stages {', '.join(numbers[:count])}" for count in range(2, len(stages) + 1)]
    if len(stages) == 3:
        printed: dict[int, Printed] = dict(TABLE_8)
    else:
        printed = {0: TABLE_8[0], len(stages): TABLE_8[3]}
    variants = tuple(line(count) for count in range(len(stages) + 1))
    kinds = " and ".join(_KINDS[kind] for kind in dict.fromkeys(kept.values()))
    return Ablation(
        table=8,
        base=base,
        title=f"stages with {kinds} projection",
        variants=variants,
        reference=variants[-1],
    )


_TABLES: dict[int, Callable[[Base], Ablation]] = {
    5: _positions,
    6: _embeddings,
    7: _strides,
    8: _projections,
}
