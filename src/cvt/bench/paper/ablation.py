"""The paper's Tables 5 to 8 as changes of any row that is made of stages.

One variant of each is what the others are compared with: the paper's own choice.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cvt.bench.names import Contender
from cvt.bench.paper.tables import TABLE_5, TABLE_5_DEIT, TABLE_6, TABLE_7, TABLE_8, PaperLine
from cvt.errors import UserError
from cvt.parts.spec import BackboneSpec


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A line of a table.

    Args:
        words: What the first column says.
        published: The paper's line for it, on the paper's own base; empty where it has none.
    """

    words: str
    contender: Contender
    spec: BackboneSpec
    published: PaperLine


@dataclass(frozen=True, kw_only=True)
class Base:
    """A row of stages, perhaps with changes, in which more is changed."""

    contender: Contender
    spec: BackboneSpec

    @classmethod
    def of(cls, named: Contender) -> "Base":
        """Refuses networks that are not made of stages."""
        spec = named.spec.staged
        if spec is None:
            raise UserError(
                f"Got {named.model} as the base, which is not made of stages that Tables 5 to 8 "
                "could change; take a row of ViT, DeiT, CPVT, PVT or CvT."
            )
        return cls(contender=Contender.of(named.model, named.model_args), spec=spec)

    @property
    def label(self) -> str:
        """The base as one word: `cvt_nano_32`, `cvt_nano_32+kv_stride=1`."""
        return self.contender.label

    @property
    def working(self) -> tuple[int, ...]:
        """The stages that have blocks; T2T-ViT's first two are embeddings alone."""
        return tuple(i for i, stage in enumerate(self.spec.stages) if stage.depth)

    def column(self, name: str, values: Mapping[int, Any]) -> list[Any]:
        """Returns a field for every stage: the values given for some, and the base's own."""
        return [values.get(i, getattr(stage, name)) for i, stage in enumerate(self.spec.stages)]

    def variant(self, words: str, changes: Mapping[str, Any], line: PaperLine | None) -> Variant:
        """Returns the base with further changes, the same contender for the same network.

        A column that is alike in all stages is written as one value, and what changes nothing is
        left out: so the base itself is one contender, whichever table asks for it.
        """
        args = dict(self.contender.model_args)
        for name, column in changes.items():
            value = column[0] if all(each == column[0] for each in column) else column
            if self.spec.change(**{name: value}) != self.spec:
                args[name] = value
        contender = Contender.of(self.contender.model, args)
        spec = contender.spec.staged
        assert spec is not None
        return Variant(words=words, contender=contender, spec=spec, published=line or PaperLine())


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A table of the paper on a base.

    Args:
        varied: What is.
        reference: The variant that the others are compared with.
        notes: Sentences that belong under the table.
    """

    table: int
    base: Base
    varied: str
    variants: tuple[Variant, ...]
    reference: Variant
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What tables and plots are headed by."""
        return f"Table {self.table}: {self.varied}, on {self.base.label}"

    @property
    def is_papers_own(self) -> bool:
        """Whether the paper's counts hold for this base."""
        return self.base.label in usual_bases(self.table)


def usual_bases(table: int) -> tuple[str, ...]:
    """Returns the networks that the paper makes a table with."""
    return ("cvt_13", "deit_small_patch16_224") if table == 5 else ("cvt_13",)


def make_ablation(table: int, base: Contender) -> Ablation:
    """Makes the variants of a table, or says why the base cannot express them.

    Args:
        table: 5 (position embedding), 6 (token embedding), 7 (k/v stride) or 8 (projection).
    """
    return _TABLES[table](Base.of(base))


def contenders_of(ablations: Iterable[Ablation]) -> list[Contender]:
    """Returns every network that the ablations need, each of them once, in their order."""
    found = [variant.contender for ablation in ablations for variant in ablation.variants]
    return list({contender.label: contender for contender in found}.values())


def _positions(base: Base) -> Ablation:
    """Table 5: a learned table in every, the first, the last or no stage.

    A base of one stage has but with and without, for which the paper has DeiT-S.
    """
    stages = base.working
    has_one = len(stages) == 1
    chosen = (stages, ()) if has_one else (stages, stages[:1], stages[-1:], ())
    published = TABLE_5_DEIT if has_one else TABLE_5
    lines: dict[str, dict[int, str]] = {
        words: {i: "table" if i in those else "none" for i in stages}
        for words, those in zip(published, chosen, strict=True)
    }
    own: dict[int, str] = {i: base.spec.stages[i].pos_embed for i in stages}
    if own not in lines.values():
        lines[f"as the row has it ({', '.join(dict.fromkeys(own.values()))})"] = own
    variants = tuple(
        base.variant(words, {"pos_embed": base.column("pos_embed", values)}, published.get(words))
        for words, values in lines.items()
    )
    return Ablation(
        table=5,
        base=base,
        varied="position embedding",
        variants=variants,
        reference=variants[0 if has_one else 3],
        notes=("The paper's figures are DeiT-S's.",) if has_one else (),
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
    overlapping = [
        (stage.embed_kernel, stage.embed_padding)
        if stage.embed_kernel > stage.embed_stride
        else (2 * stage.embed_stride - 1, stage.embed_stride - 1)
        for stage in stages
    ]
    embeddings = {
        "patches": [(stage.embed_stride, 0) for stage in stages],
        "convolution": overlapping,
    }
    positions = {"no position": "none", "position": "table"}
    variants = []
    for (embedding, position), line in TABLE_6.items():
        kernels, paddings = zip(*embeddings[embedding], strict=True)
        tables = base.column("pos_embed", dict.fromkeys(base.working, positions[position]))
        changes = {
            "embed_kernel": list(kernels),
            "embed_padding": list(paddings),
            "pos_embed": tables,
        }
        variants.append(base.variant(f"{embedding}, {position}", changes, line))
    note = (
        "The printed counts start from 19.98 M, where ours is 19.997 M, and fit position tables in "
        "stages 1 and 2 alone (0.351 M); ours are in every stage (0.427 M), as in Table 5."
    )
    return Ablation(
        table=6,
        base=base,
        varied="token embedding",
        variants=tuple(variants),
        reference=variants[3],
        notes=(note,) if base.label == "cvt_13" else (),
    )


def _strides(base: Base) -> Ablation:
    """Table 7: keys and values read at stride 1, or at the base's own (2 where that is 1)."""
    own = {
        i: base.spec.stages[i].kv_stride
        for i in base.working
        if base.spec.stages[i].projection != "linear"
    }
    if not own:
        raise UserError(
            f"Table 7 varies the stride of keys and values, and {base.label} reads them by linear "
            f"projections, which have none; take {base.contender.model}+projection=conv, or "
            "another base."
        )
    wide = dict.fromkeys(own, 2) if set(own.values()) == {1} else own
    alike = set(wide.values())
    said = str(alike.pop()) if len(alike) == 1 else ", ".join(map(str, wide.values()))
    lines = {
        "stride 1": (dict.fromkeys(own, 1), TABLE_7[1]),
        f"stride {said}": (wide, TABLE_7[2]),
    }
    variants = tuple(
        base.variant(words, {"kv_stride": base.column("kv_stride", values)}, line)
        for words, (values, line) in lines.items()
    )
    note = (
        "Both printed GFLOPs lie 1 % below what torch counts of convolutions, linear maps and both "
        "products of the attention; their origin is not known."
    )
    return Ablation(
        table=7,
        base=base,
        varied="stride of keys and values",
        variants=variants,
        reference=variants[1],
        notes=(note,) if base.label == "cvt_13" else (),
    )


_KINDS = {"conv": "convolutional", "avg": "pooled", "reduction": "spatially reduced"}


def _projections(base: Base) -> Ablation:
    """Table 8: which stages, from the first, keep the projection; the others read linearly.

    The projection is the base's own (PVT's reduction, say), or a convolution if that is linear.
    """
    own = {i: base.spec.stages[i].projection for i in base.working}
    kept = {i: kind for i, kind in own.items() if kind != "linear"} or dict.fromkeys(own, "conv")
    published = dict(TABLE_8) if len(kept) == 3 else {0: TABLE_8[0], len(kept): TABLE_8[3]}
    variants = []
    for count in range(len(kept) + 1):
        numbers = ", ".join(str(i + 1) for i in list(kept)[:count])
        words = f"stage{'s' * (count > 1)} {numbers}" if count else "none"
        values = {i: kept[i] if n < count else "linear" for n, i in enumerate(kept)}
        column = base.column("projection", values)
        variants.append(base.variant(words, {"projection": column}, published.get(count)))
    kinds = " and ".join(_KINDS[kind] for kind in dict.fromkeys(kept.values()))
    return Ablation(
        table=8,
        base=base,
        varied=f"stages with {kinds} projection",
        variants=tuple(variants),
        reference=variants[-1],
    )


_TABLES: dict[int, Callable[[Base], Ablation]] = {
    5: _positions,
    6: _embeddings,
    7: _strides,
    8: _projections,
}
