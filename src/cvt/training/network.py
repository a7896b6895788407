"""A model in the form that trains: memory layout, averaging, distribution, frozen parts, norms."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from cvt.errors import UserError
from cvt.parts.block import Block
from cvt.parts.model import VisionModel
from cvt.runtime import World
from cvt.training.config import TrainConfig


@dataclass(kw_only=True)
class Network:
    """One model in its several forms; all but `ema` share their weights.

    Args:
        model: The model itself; with FSDP its parameters are shares.
        forward: What an update calls: the model, distributed and compiled as the config says.
        ema: The running average of its weights, if one is kept.
        norms: What keeps BatchNorm's statistics equal in all chunks, where there are several.
    """

    model: nn.Module
    forward: nn.Module
    ema: ModelEmaV3 | None
    norms: "ChunkNorms | None"

    @property
    def product(self) -> nn.Module:
        """The model whose weights are measured and kept: the average where there is one."""
        return self.model if self.ema is None else self.ema.module


def make_network(
    model: VisionModel, config: TrainConfig, device: torch.device, world: World
) -> Network:
    """Brings a model into its training form; optimisers are made of `Network.model` afterwards."""
    _check(config, device, world)
    model = model.to(device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.sync_bn:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.grad_checkpointing:
        try:
            model.set_grad_checkpointing()
        except (AssertionError, AttributeError) as error:  # some of timm's networks
            raise UserError(
                "Got grad_checkpointing for a network that cannot do it; leave it out."
            ) from error
    ema = None
    if config.ema_decay:
        # Its warm-up keeps a short run's average from remembering the initial weights.
        ema = ModelEmaV3(
            model,
            decay=config.ema_decay,
            use_warmup=True,
            foreach=config.parallel != "fsdp",  # shares and buffers do not go into one call
        )
        ema.module.requires_grad_(False)
    freeze(model, config.freeze)
    forward = _distribute(model, ema, config, device, world)
    if config.compile:
        forward = cast("nn.Module", torch.compile(forward))
    many = world.size * config.accum_steps > 1
    return Network(model=model, forward=forward, ema=ema, norms=ChunkNorms(model) if many else None)


def _distribute(
    model: nn.Module,
    ema: ModelEmaV3 | None,
    config: TrainConfig,
    device: torch.device,
    world: World,
) -> nn.Module:
    if world.size == 1:
        return model
    if config.parallel == "fsdp":
        for whole in (model, ema.module) if ema else (model,):
            for block in [each for each in whole.modules() if isinstance(each, Block)]:
                fully_shard(block)
            fully_shard(whole)
        return model
    # A depthwise kernel's only input channel has a stride that says nothing, so it may differ.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    with warnings.catch_warnings():
        # torch 2.15 has another name for this, which 2.11 does not know.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        return DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,  # they are kept equal after every update
            gradient_as_bucket_view=True,
        )


def _check(config: TrainConfig, device: torch.device, world: World) -> None:
    if config.sync_bn and device.type != "cuda":
        raise UserError(f"Got sync_bn on {device.type}, which only GPUs can do; leave it out.")
    if config.precision == "fp16" and config.parallel == "fsdp" and world.size > 1:
        raise UserError("Got precision fp16 with parallel fsdp; take bf16, or parallel ddp.")
    if config.parallel == "fsdp" and world.size == 1:
        raise UserError(
            "Got parallel fsdp for a single process; start several with torchrun, or leave it out."
        )


# --- Keeping parts of a network as they are: BatchNorm, or all but the classifier.

Mode = Literal["none", "bn", "backbone"]


def freeze(model: nn.Module, mode: Mode) -> None:
    """Takes the gradient from what is to stay as it is; twice does what once does.

    Call it before optimisers are made, and `set_train_mode` instead of `model.train()` after it.

    Args:
        mode: `none` leaves the model alone; `bn` keeps every BatchNorm's statistics, scale and
            shift; `backbone` keeps all but the classifier, as linear probing does.
    """
    if mode == "bn":
        for module in _batch_norms(model):
            module.requires_grad_(False)
    elif mode == "backbone":
        model.requires_grad_(False)
        classifier = cast("VisionModel", model).get_classifier()
        for each in classifier if isinstance(classifier, tuple) else (classifier,):
            each.requires_grad_(True)


def set_train_mode(network: nn.Module, mode: Mode) -> None:
    """Puts a network into training mode, but what `freeze` froze into evaluation mode.

    So BatchNorm's statistics stay where they are, and frozen layers drop nothing out.

    Args:
        network: A model that went through `freeze`, or what wraps it.
    """
    network.train(mode != "backbone")
    if mode == "bn":
        for module in _batch_norms(network):
            module.eval()
    elif mode == "backbone":
        for module in network.modules():
            if any(each.requires_grad for each in module.parameters(recurse=False)):
                module.train()
            elif getattr(module, "distilled_training", False):
                module.training = True  # the flag alone: that both classifiers' logits come out


def _batch_norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


# --- BatchNorm's running statistics over a batch that is worked through in chunks.


class ChunkNorms:
    """Updates running statistics once a batch, by the mean over all chunks of all processes.

    Left to itself, BatchNorm would update them chunk after chunk, each process its own: they would
    differ between the processes and depend on their number. Here every chunk starts from the
    statistics before the batch, and the mean of what they make of them is what comes after.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [
            each
            for each in model.modules()
            if isinstance(each, _BatchNorm) and each.track_running_stats
        ]
        self._sums: list[Tensor] = []
        self._count = 0

    @contextmanager
    def chunk(self, counts: bool) -> Generator[None]:
        """Surrounds both passes of a chunk; one that does not count leaves no trace."""
        learning = self._learning()
        buffers = _running(learning)
        before = [each.clone() for each in buffers]
        for layer in learning:
            layer.training = counts
        yield
        if not self._sums:
            self._sums = [torch.zeros_like(each) for each in buffers]
        if counts and buffers:
            torch._foreach_add_(self._sums, buffers)
            self._count += 1
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(old)
        for layer in learning:
            layer.training = True
            _count_batches(layer, -1 if counts else 0)

    def combine(self, world: World) -> None:
        """Puts the mean over the chunks of all processes in place."""
        learning = self._learning()
        buffers = _running(learning)
        if buffers:
            flat = torch.cat([each.flatten() for each in self._sums])
            flat = world.sum(torch.cat([flat, flat.new_tensor([self._count])]))
            if flat[-1] > 0:
                means = (flat[:-1] / flat[-1]).split([each.numel() for each in buffers])
                for buffer, mean in zip(buffers, means, strict=True):
                    buffer.copy_(mean.view_as(buffer))
                for layer in learning:
                    _count_batches(layer, 1)
        self._sums, self._count = [], 0

    def _learning(self) -> list[_BatchNorm]:
        return [layer for layer in self._layers if layer.training]


def _running(layers: list[_BatchNorm]) -> list[Tensor]:
    buffers = []
    for layer in layers:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        buffers += [layer.running_mean, layer.running_var]
    return buffers


def _count_batches(layer: _BatchNorm, number: int) -> None:
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(number)
