"""What an ablation is: variants of a base, one of which is what the others are compared with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cvt.bench.base import Base
from cvt.bench.contender import Contender
from cvt.bench.paper_tables import Printed
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
        spec = ROWS[base.model].change(**contender.model_args)
        assert isinstance(spec, BackboneSpec)
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
