"""One update: mix, forward and backward chunk by chunk, check, clip, step; and what it takes."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from cvt.data import Batch, ImageSet, Share, make_eval_loader, make_loader
from cvt.data.cache import Kept
from cvt.data.transforms import Transform
from cvt.errors import UserError
from cvt.parts.backbone import Backbone
from cvt.parts.model import VisionModel
from cvt.runtime import ALONE, World, autocast
from cvt.training.config import OptimConfig, TrainConfig
from cvt.training.losses import Mixer, Teacher, make_loss, make_mixer
from cvt.training.network import ChunkNorms, Network, make_network

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


# --- What updates are made with: the network in its training form, optimiser and loss.

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "adamw": {"fused": True},  # one kernel over all tensors, where there is one a tensor and step
    "sgd": {},
    "lamb": {"max_grad_norm": None},  # clip_grad alone decides
    "muon": {"momentum": 0.95},
}


@dataclass(kw_only=True)
class Learner:
    """Everything that an update needs but its images; `step` stays the same in all of them."""

    network: Network
    optimizer: Optimizer
    loss_fn: nn.Module
    step: StepOptions


def make_learner(
    model: VisionModel,
    config: TrainConfig,
    num_classes: int,
    device: torch.device,
    world: World,
    teacher: Teacher | None,
) -> Learner:
    """Brings a model into its training form, which changes it in place, and makes the rest."""
    if teacher is not None and model.spec.distilled:
        cast("Backbone", model).set_distilled_training()
    network = make_network(model, config, device, world)
    return Learner(
        network=network,
        optimizer=make_optimizer(network.model, config.optim),
        loss_fn=make_loss(config.mix, config.distill if teacher else None),
        step=StepOptions(
            batch_size=config.batch_size,
            num_chunks=config.accum_steps,
            world=world,
            mixer=make_mixer(config.mix, num_classes),
            norms=network.norms,
            clip_grad=config.optim.clip_grad,
            precision=config.precision,
            scaler=torch.amp.GradScaler(device.type) if config.precision == "fp16" else None,
            teacher=teacher,
        ),
    )


def make_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """Returns an optimiser of the parameters that learn; frozen ones are in none of its groups.

    `adamw` has betas 0.9 and 0.999 and eps 1e-8, `sgd` Nesterov momentum, `lamb` AdamW's betas
    and eps 1e-6. `muon` orthogonalises the steps of matrices and kernels and scales them to
    AdamW's size, so that rates are alike; what has one dimension is AdamW's (betas 0.9 and 0.95).
    Biases, norms, class tokens and position tables are not decayed; linear, embedding and depthwise
    kernels are. With `layer_decay` d, the classifier has the learning rate itself and each layer
    before it d times that of the next one: the blocks (the final norm goes with the last), the
    embeddings between the stages, and the stem.

    Source: microsoft/CvT f851e68, lib/optim/build.py and the YAML files' WITHOUT_WD_LIST; layer
    decay: BEiT, arXiv 2106.08254, through timm and the model's `group_matcher`; Muon: Jordan et
    al., kellerjordan.github.io/posts/muon, its scale Liu et al., arXiv 2502.16982.
    """
    opt, layer_decay = config.opt, config.layer_decay
    arguments: dict[str, Any] = {"momentum": config.momentum, **_ARGUMENTS[opt]}
    return create_optimizer_v2(
        model,
        opt=opt,
        lr=config.lr,
        weight_decay=config.weight_decay,
        layer_decay=None if layer_decay == 1 else layer_decay,
        **arguments,
    )


def train_batches(
    config: TrainConfig,
    images: ImageSet,
    transform: Transform,
    world: World,
    epoch: int,
    start_batch: int = 0,
    kept: Kept | None = None,
) -> Iterable[Batch]:
    """Returns this process's chunks of the batches of an epoch, counted from 0."""
    return make_loader(
        images,
        transform,
        batch_size=config.batch_size,
        shuffle=True,
        seed=config.seed,
        epoch=epoch,
        start_batch=start_batch,
        num_workers=config.num_workers,
        drop_last=True,
        repeats=config.augment.repeats,
        share=Share(world.rank, world.size, config.accum_steps),
        kept=kept,
    )


def eval_batches(
    config: TrainConfig,
    images: ImageSet,
    transform: Transform,
    world: World,
    kept: Kept | None = None,
) -> Iterable[Batch]:
    """Returns this process's share of a split, in order, in batches of a chunk's size."""
    return make_eval_loader(
        images,
        transform,
        batch_size=max(config.batch_size // config.accum_steps // world.size, 1),
        num_workers=config.num_workers,
        rank=world.rank,
        world_size=world.size,
        kept=kept,
    )


def on_device(
    chunks: Iterable[Batch], device: torch.device, channels_last: bool = False
) -> Iterator[Chunk]:
    """Brings chunks to the device as they are asked for."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for chunk in chunks:
        images = chunk.images.to(device, non_blocking=True, memory_format=layout)
        yield images, chunk.labels.to(device, non_blocking=True)
