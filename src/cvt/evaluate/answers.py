"""A model's answers for a set of pictures, shared out among the processes that measure."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from cvt.data import ImageSet, eval_transform, make_eval_loader
from cvt.errors import UserError
from cvt.train.device import choose_device, choose_precision
from cvt.train.validate import Logits, validate
from cvt.train.world import World
from cvt.weights.record import Preprocessing


@dataclass(frozen=True)
class Pace:
    """How pictures are put to a model; none of it changes what comes out, but for rounding.

    Args:
        batch_size: Pictures per forward pass, in each process.
        num_workers: Processes that prepare pictures, beside each measuring one; 0: none.
        precision: `float32`, `bf16`, or `auto`, which is bf16 on GPUs that compute in it.
        on_start: Called with the number of pictures that this process is about to go through.
        on_batch: Called after each batch with its number of pictures.
    """

    batch_size: int = 64
    num_workers: int = 0
    device: str = "auto"
    precision: str = "auto"
    on_start: Callable[[int], None] | None = None
    on_batch: Callable[[int], None] | None = None


def answers(
    network: nn.Module, data: ImageSet, preprocessing: Preprocessing, pace: Pace, world: World
) -> Logits:
    """Returns what the network, in eval mode, says to each readable picture, in their order.

    Several processes take a share each, and all of them get the whole.

    Raises:
        UserError: The device is not there, not a single picture could be read, or what the network
            says to some is no finite number.
    """
    device = choose_device(pace.device)
    loader = make_eval_loader(
        data,
        eval_transform(preprocessing),
        batch_size=pace.batch_size,
        num_workers=pace.num_workers,
        rank=world.rank,
        world_size=world.size,
    )
    if pace.on_start:
        pace.on_start(len(range(world.rank, len(data), world.size)))
    precision = choose_precision(pace.precision, device)
    said = validate(network.to(device), loader, device, precision, pace.on_batch, world)
    count = int((~said.logits.isfinite().all(dim=1)).sum())
    if count:
        raise UserError(
            f"Got outputs that are no finite numbers for {count:,} of {len(said.logits):,} images, "
            "so that nothing can be measured; check the weights, or take float32 for the precision."
        )
    return said
