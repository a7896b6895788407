"""The network's answers for a whole split: measured in training, and by `cvt.evaluate`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvt.data import Batch
from cvt.errors import UserError
from cvt.train.device import autocast


@dataclass(frozen=True)
class Logits:
    """Answers and truth of the pictures that could be read, N of them, on the CPU.

    Args:
        logits: float32, shape (N, classes).
        labels: int64, shape (N,).
        bad: One sentence for each picture that could not be read.
    """

    logits: Tensor
    labels: Tensor
    bad: tuple[str, ...] = ()

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
) -> Logits:
    """Runs a model in eval mode over a split; its mode is put back afterwards.

    Args:
        precision: `float32` or `bf16`; the logits are float32 in any case.
        on_batch: Called after each batch with its number of pictures.

    Raises:
        UserError: Not a single picture could be read.
    """
    logits, labels, bad = [], [], []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in loader:
                bad += batch.bad
                if len(batch.labels):
                    with autocast(device, precision):
                        out = model(batch.images.to(device, non_blocking=True))
                    logits.append(out.float().cpu())
                    labels.append(batch.labels)
                if on_batch:
                    on_batch(len(batch.labels))
    finally:
        model.train(was_training)
    if not logits:
        raise UserError(f"None of the {len(bad)} images could be read; the first: {bad[0]}")
    return Logits(torch.cat(logits), torch.cat(labels), tuple(bad))
