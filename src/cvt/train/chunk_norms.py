"""BatchNorm's running statistics over a batch that is worked through in chunks."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cvt.train.world import World


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
        for layer in learning:
            layer.training = True
        if not self._sums:
            self._sums = [torch.zeros_like(each) for each in buffers]
        if counts and buffers:
            torch._foreach_add_(self._sums, buffers)
            self._count += 1
        for buffer, old in zip(buffers, before, strict=True):
            buffer.copy_(old)
        for layer in learning:
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
