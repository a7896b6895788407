"""One update: mix, forward and backward chunk by chunk, check, clip, step."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from cvt.errors import UserError
from cvt.runtime import ALONE, World, autocast
from cvt.training.losses import Mixer, Teacher
from cvt.training.network import ChunkNorms

Chunk = tuple[Tensor, Tensor]

_FEWEST = 2  # images of a chunk, for BatchNorm's sake
_SMALLEST_SCALE = 2.0**-14  # of fp16: what overflows even here is no matter of the scale


class NonFinite(UserError):
    """A loss or gradient that is not a number, or infinite; the weights were not touched."""

    def __init__(
        self, message: str, *, loss: float = math.nan, grad_norm: float = math.nan
    ) -> None:
        super().__init__(message)
        self.loss = loss
        self.grad_norm = grad_norm


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What an update was like, the same in every process.

    Args:
        loss: Mean over its images.
        grad_norm: Norm of the gradient before clipping; infinite where fp16 overflowed and the
            update was left out.
        num_images: Images that it learned from.
    """

    loss: float
    grad_norm: float
    num_images: int


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """How updates are made: what stays the same from one to the next.

    Args:
        batch_size: Images of the whole batch, over all chunks of all processes.
        num_chunks: Chunks of it that this process works through.
        world: The processes that share the batch.
        mixer: Blends the images of a chunk and turns labels into probabilities (B, classes).
        norms: What takes care of BatchNorm's statistics where a batch has several chunks.
        clip_grad: Largest norm that the gradient may keep; 0 leaves it alone.
        precision: `float32`, `bf16` or `fp16`.
        scaler: The loss scaling that fp16 needs.
        teacher: Answers the mixed images of a chunk; the loss gets its logits as a third thing.
    """

    batch_size: int
    num_chunks: int = 1
    world: World = ALONE
    mixer: Mixer | None = None
    norms: ChunkNorms | None = None
    clip_grad: float = 0.0
    precision: str = "float32"
    scaler: torch.amp.GradScaler | None = None
    teacher: Teacher | None = None


def train_step(
    network: nn.Module,
    chunks: Iterable[Chunk],
    loss_fn: nn.Module,
    optimizer: Optimizer,
    options: StepOptions,
    seed_chunk: Callable[[int], None] = lambda number: None,
) -> StepResult:
    """Makes one update from a global batch that came in chunks; the mean over its images.

    Every process calls this with the chunks that it works through. The result does not depend on
    which process has which chunk, to rounding, nor on broken images that are missing in some.

    Args:
        network: The model, or what distributes it.
        chunks: Images (B, C, H, W) and labels (B,) on the model's device.
        seed_chunk: Called with a chunk's number in the batch before it is worked through.

    Raises:
        NonFinite: The loss or the gradient is not finite. No weight was changed.
    """
    optimizer.zero_grad(set_to_none=True)
    world, scaler, norms = options.world, options.scaler, options.norms
    sums = torch.zeros(2, dtype=torch.float64)
    for position, (images, labels) in enumerate(chunks):
        seed_chunk(position * world.size + world.rank)
        if world.size == options.num_chunks == 1 and len(images) < _FEWEST:
            return StepResult(loss=0.0, grad_norm=0.0, num_images=0)
        is_last = position == options.num_chunks - 1
        statistics = norms.chunk(counts=len(images) >= _FEWEST) if norms else nullcontext()
        with _gradients_shared(network, is_last), statistics:
            loss, count = _forward(network, images, labels, loss_fn, options)
            # Gradients are averaged over the processes, and are to be those of the batch's mean.
            share = loss * (count * world.size / options.batch_size)
            (share if scaler is None else scaler.scale(share)).backward()
        sums += torch.tensor([loss.item() * count, count], dtype=torch.float64)
    if norms is not None:
        norms.combine(world)
    total, count = world.sum(sums).tolist()
    if not count:
        return StepResult(loss=0.0, grad_norm=0.0, num_images=0)
    if scaler is not None:
        scaler.unscale_(optimizer)
    if count != options.batch_size:
        grads = [each.grad for each in network.parameters() if each.grad is not None]
        torch._foreach_mul_(grads, options.batch_size / count)
    norm = nn.utils.clip_grad_norm_(network.parameters(), options.clip_grad or math.inf)
    norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
    result = StepResult(loss=total / count, grad_norm=norm, num_images=round(count))
    _check(result, scaler)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    return result


def _forward(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss_fn: nn.Module,
    options: StepOptions,
) -> tuple[Tensor, int]:
    """Returns the mean loss of a chunk and the images that it is of.

    A chunk with too few good images still runs, on a blank one that counts for nothing: the
    other processes wait for its part of the gradient.
    """
    count = len(images) if len(images) >= _FEWEST else 0
    if not count:
        images = images.new_zeros(_FEWEST, *images.shape[1:])
    elif options.mixer is not None:
        images, labels = options.mixer(images, labels)
        count = len(images)
    with autocast(images.device, options.precision):
        # First, while no activations of the student's are kept.
        taught = () if options.teacher is None else (options.teacher(images),)
        out = network(images)
        return (loss_fn(out, labels, *taught) if count else _nothing(out)), count


def _nothing(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A loss of 0 that reaches all parameters, those behind a second classifier too."""
    logits = (out,) if isinstance(out, Tensor) else out
    return 0.0 * torch.stack([each.sum() for each in logits]).sum()


def _gradients_shared(network: nn.Module, is_last: bool) -> AbstractContextManager:
    """Lets the processes exchange gradients only at the last chunk of a batch."""
    network = getattr(network, "_orig_mod", network)  # torch.compile wraps
    network = getattr(network, "_orig_mod", network)  # what torch.compile has wrapped
    if isinstance(network, DistributedDataParallel) and not is_last:
        return network.no_sync()
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(is_last)
    return nullcontext()


def _check(result: StepResult, scaler: torch.amp.GradScaler | None) -> None:
    """fp16 overflows now and then: its scaler leaves that update out and takes a smaller scale."""
    may_overflow = scaler is not None and scaler.get_scale() > _SMALLEST_SCALE
    if math.isfinite(result.loss) and (math.isfinite(result.grad_norm) or may_overflow):
        return
    raise NonFinite(
        f"the loss is {result.loss:.4g}, the gradient norm {result.grad_norm:.4g}",
        loss=result.loss,
        grad_norm=result.grad_norm,
    )
