"""A model in the form that trains: frozen parts, memory layout, averaging, distribution."""

import warnings
from dataclasses import dataclass
from typing import cast

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from cvt.errors import UserError
from cvt.parts.block import Block
from cvt.parts.contract import VisionModel
from cvt.train.chunk_norms import ChunkNorms
from cvt.train.config import TrainConfig
from cvt.train.freeze import freeze
from cvt.train.world import World


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
    norms: ChunkNorms | None

    @property
    def product(self) -> nn.Module:
        """The model whose weights are measured and kept: the average where there is one."""
        return self.model if self.ema is None else self.ema.module


def make_network(
    model: VisionModel, config: TrainConfig, device: torch.device, world: World
) -> Network:
    """Brings a model into its training form; optimisers are made of `Network.model` afterwards.

    Raises:
        UserError: The config asks for what the device or the number of processes does not allow.
    """
    _check(config, device, world)
    model = model.to(device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.sync_bn:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.grad_checkpointing:
        model.set_grad_checkpointing()
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
        for each in (model, ema.module) if ema else (model,):
            _shard(each)
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


def _shard(model: nn.Module) -> None:
    """Spreads a model's parameters over all processes, block by block."""
    for module in model.modules():
        if isinstance(module, Block):
            fully_shard(module)
    fully_shard(model)


def _check(config: TrainConfig, device: torch.device, world: World) -> None:
    if config.sync_bn and device.type != "cuda":
        raise UserError(f"Got sync_bn on {device.type}, which only GPUs can do; leave it out.")
    if config.precision == "fp16" and config.parallel == "fsdp" and world.size > 1:
        raise UserError("Got precision fp16 with parallel fsdp; take bf16, or parallel ddp.")
    if config.parallel == "fsdp" and world.size == 1:
        raise UserError(
            "Got parallel fsdp for a single process; start several with torchrun, or leave it out."
        )
