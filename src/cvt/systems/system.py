"""What a system is to this library: its rows, what is published of them, whose weights load."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING

from cvt.errors import UserError
from cvt.parts.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Facts:
    """What is known of a row, for ImageNet's 1000 classes at the row's own image size.

    Args:
        num_params: Exact count, what is never trained included, as `num_params` counts.
        gmacs: Billions of multiply-accumulates, to three digits, where an independent count of
            the authors' or the judge's code is at hand.
        published_params: Millions, with the digits that are printed.
        published_gmacs: What papers call FLOPs, with the digits that are printed.
        top1: Accuracy on ImageNet-1k's validation images in percent.
        num_frozen: Those of the parameters that are never trained: sinusoids and random features.
        source: Where the published figures stand.
        note: Why computed and published counts differ, where that is known.
    """

    num_params: int
    gmacs: float | None = None
    published_params: float | None = None
    published_gmacs: float | None = None
    top1: float | None = None
    _: KW_ONLY
    num_frozen: int = 0
    source: str = ""
    note: str = ""


@dataclass(frozen=True)
class Rule:
    r"""What happens to the tensors whose whole name matches `pattern`.

    Args:
        pattern: A regular expression.
        names: Our names, with `\1` for its groups; several: the tensor is cut into as many equal
            parts along its first axis, in this order; none: nothing of ours corresponds.
        move: Turns the tensor into the form that ours has.
    """

    pattern: str
    names: tuple[str, ...] = ()
    move: "Callable[[Tensor], Tensor] | None" = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How somebody's code names the tensors of a checkpoint.

    Args:
        name: `timm`, `authors`, `microsoft` or `transformers`.
        of: Whose names they are, for messages: `timm's ViT`.
        fingerprint: Names that every checkpoint in it has.
        rules: From their names to ours.
        back: From our names to theirs, for the layouts that are written as well.
        check: Refuses what has these names and is another network.
    """

    name: str
    of: str
    fingerprint: tuple[str, ...]
    rules: tuple[Rule, ...]
    back: tuple[Rule, ...] = ()
    check: "Callable[[Mapping[str, Tensor]], None] | None" = None

    def to_ours(self, state_dict: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Renames a whole state dict; a name that no rule knows is refused."""
        if self.check is not None:
            self.check(state_dict)
        return rename(state_dict, self.rules, self.of)

    def from_ours(self, state_dict: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Renames a state dict of ours; a name that theirs have no counterpart of is refused."""
        assert self.back, "written in this layout are CvT's alone"
        return rename(state_dict, self.back, f"this library, for {self.of}")


@dataclass(frozen=True, kw_only=True)
class System:
    """A paper's networks.

    Args:
        name: What people call it.
        paper: Authors, venue and arXiv number.
        rows: Its networks by name; of some (`is_ours`) no paper says anything.
        facts: What is known of a row, by the same names.
        layouts: Whose checkpoints load.
        licence: Of the published weights; empty where there are none.
        mean: Subtracted from pixels scaled to 0..1, for the published weights.
        std: What they are then divided by.
        crop_pct: Share of the resized image that the published evaluation keeps.
        is_in_timm: Whether timm has the same networks under the same names; timm keeps them.
    """

    name: str
    paper: str
    rows: Mapping[str, Spec]
    facts: Mapping[str, Facts] = field(default_factory=dict)
    layouts: tuple[Layout, ...] = ()
    licence: str = ""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_pct: float = 0.9
    is_in_timm: bool = False


def is_ours(name: str) -> bool:
    """Whether a row is of our making, no paper's: `cvt_nano_32`, for images of 32 pixels."""
    return re.search(r"_(nano|micro|mini)_\d+$", name) is not None


# Renaming, strict about every name.


def rename(
    state_dict: "Mapping[str, Tensor]", rules: Sequence[Rule], where: str
) -> "dict[str, Tensor]":
    """Applies to each name the first rule that it matches; `where` tells whose names they are."""
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state_dict.items():
        for pattern, rule in compiled:
            match = pattern.fullmatch(name)
            if match:
                names = [match.expand(template) for template in rule.names]
                renamed.update(zip(names, _parts(name, tensor, rule), strict=True))
                break
        else:
            unknown.append(name)
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UserError(
            f"Got {', '.join(map(repr, unknown[:3]))}{more} in a checkpoint of {where}, expected "
            "only names that it has; load the checkpoint of a model of this library's list."
        )
    return renamed


def block_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Returns the rules of ViT's block as timm names it, its q, k and v fused.

    Both arguments are what stands before the names, `theirs` as a pattern.
    """
    return (
        linear(rf"{theirs}attn\.qkv", *(f"{ours}attn.{each}.linear" for each in "qkv")),
        Rule(
            rf"{theirs}((?:norm[12]|attn\.proj|mlp\.fc[12])\.(?:weight|bias))",
            (rf"{ours}\g<{1 + re.compile(theirs).groups}>",),
        ),
    )


def reduced_block_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Returns the rules of PVT's block, as its authors and timm's Twins name it."""
    return (
        *block_rules(theirs, ours),
        linear(rf"{theirs}attn\.q", f"{ours}attn.q.linear"),
        linear(rf"{theirs}attn\.kv", *(f"{ours}attn.{each}.linear" for each in "kv")),
        linear(rf"{theirs}attn\.sr", f"{ours}attn.reduce.conv"),
        linear(rf"{theirs}attn\.norm", f"{ours}attn.reduce.norm"),
    )


def linear(theirs: str, *ours: str) -> Rule:
    """Returns the rule of a module's tensors: weight and bias, and a BatchNorm's statistics.

    Of several of ours, theirs are the tensors one behind the other, fused.
    """
    leaf = 1 + re.compile(theirs).groups
    leaves = "weight|bias|running_mean|running_var|num_batches_tracked"
    return Rule(rf"{theirs}\.({leaves})", tuple(rf"{each}.\g<{leaf}>" for each in ours))


def _parts(name: str, tensor: "Tensor", rule: Rule) -> "Sequence[Tensor]":
    if rule.move is not None:
        try:
            tensor = rule.move(tensor)
        except (RuntimeError, LookupError) as error:
            raise UserError(
                f"Got the shape {tuple(tensor.shape)} of {name!r}, expected another; the "
                "checkpoint is damaged or another network's."
            ) from error
    count = len(rule.names)
    if count < 2:
        return [tensor] * count
    if tensor.ndim == 0 or tensor.shape[0] % count:
        raise UserError(
            f"Got the shape {tuple(tensor.shape)} of {name!r}, expected a first axis that "
            f"is a multiple of {count}, for as many fused projections; the checkpoint is damaged "
            "or another network's."
        )
    return tensor.chunk(count)
