"""The network's answers for a whole split: measured in training, and by `cvt.evaluate`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvt.data import Batch
from cvt.errors import UserError
from cvt.train.device import autocast
from cvt.train.world import ALONE, World


@dataclass(frozen=True)
class Logits:
    """Answers and truth of the pictures that could be read, N of them, on the CPU.

    Args:
        logits: float32, shape (N, classes).
        labels: int64, shape (N,).
        bad: One sentence for each picture that could not be read.
        indices: Position of each picture in its set, rising, int64, shape (N,), where known.
    """

    logits: Tensor
    labels: Tensor
    bad: tuple[str, ...] = ()
    indices: Tensor | None = None

    def loss(self) -> float:
        """Returns the mean cross-entropy in nats, without label smoothing."""
        return F.cross_entropy(self.logits, self.labels).item()

    def top_k(self, k: int) -> float:
        """Returns the percentage of pictures whose label is among the `k` largest logits."""
        hits = self.logits.topk(k, dim=1).indices == self.labels[:, None]
        return 100 * hits.any(dim=1).double().mean().item()


def validate(
    model: nn.Module,
    loader: Iterable[Batch],
    device: torch.device,
    precision: str = "float32",
    on_batch: Callable[[int], None] | None = None,
    world: World = ALONE,
) -> Logits:
    """Runs a model in eval mode over a split; its modules' modes are put back afterwards.

    Several processes bring a loader of their share each (`cvt.data.make_eval_loader`) and all get
    the answers to the whole split, each picture once and in the split's order.

    Args:
        precision: `float32`, `bf16` or `fp16`; the logits are float32 in any case.
        on_batch: Called after each batch with its number of pictures.

    Raises:
        UserError: Not a single picture could be read.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        parts, bad = _answers(model, loader, device, precision, on_batch, world)
    finally:
        for module, mode in modes:
            module.training = mode
    shares = world.gather((parts, bad))
    bad = [sentence for _, sentences in shares for sentence in sentences]
    answered = [part for parts, _ in shares for part in parts]
    if not answered:
        raise UserError(f"None of the {len(bad)} images could be read; the first: {bad[0]}")
    logits, labels, indices = (torch.cat(each) for each in zip(*answered, strict=True))
    order = indices.argsort(stable=True)
    return Logits(logits[order], labels[order], tuple(bad), indices[order])


def _answers(
    model: nn.Module,
    loader: Iterable[Batch],
    device: torch.device,
    precision: str,
    on_batch: Callable[[int], None] | None,
    world: World,
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[str]]:
    parts, bad = [], []
    with torch.inference_mode(world.size == 1), torch.no_grad():
        for batch in loader:
            bad += batch.bad
            count = len(batch.labels)
            if count or world.size > 1:
                # With nothing to answer, layers spread over processes still have to run in step.
                blank = batch.images.new_zeros(1, *batch.images.shape[1:])
                images = batch.images if count else blank
                with autocast(device, precision):
                    out = model(images.to(device, non_blocking=True))
                if count:
                    parts.append((out.float().cpu(), batch.labels, batch.indices))
            if on_batch:
                on_batch(count)
    return parts, bad
